"""From the engine's thread to queues of an event loop, with one wake-up for all that came meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from laser_verifier.sequence import Emitted, Event, Sink


class Mailbox:
    """Hands events over.

    Waking a loop costs a system call and a switch of threads in the middle of the engine's step, so it is done once per
    step and not once per sequence.

    Args:
        loop: whose queues are filled.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[asyncio.Queue[Event], Event]] = deque()
        self._is_called = False

    def put(self, queue: asyncio.Queue[Event], event: Event) -> None:
        """Puts the event into the queue, soon. From any thread; events of one queue keep their order."""
        self._waiting.append((queue, event))
        # Read after the append, and reset before the first is taken out: an event is never left behind.
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_called = False
        while self._waiting:
            queue, event = self._waiting.popleft()
            queue.put_nowait(event)


class JoinedDeltas:
    """A sink that passes a request's events on, what is emitted within an interval as one. For one thread at a time.

    Args:
        sink: where to. interval_s: least seconds between two Emitted; 0: each as it comes.
    """

    def __init__(self, sink: Sink, interval_s: float) -> None:
        self._sink = sink
        self._interval_s = interval_s
        self._held: Emitted | None = None
        self._due_s = 0.0

    def __call__(self, event: Event) -> None:
        """Passes the event on, after what is held; or holds it."""
        held, self._held = self._held, None
        if isinstance(event, Emitted):
            event = event if held is None else held.joined(event)
            now_s = time.monotonic()
            if now_s < self._due_s:
                self._held = event
                return
            self._due_s = now_s + self._interval_s
        elif held is not None:
            self._sink(held)
        self._sink(event)
