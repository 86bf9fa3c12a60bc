"""From the engine's thread to queues of an event loop, with one wake-up for all that came meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque

from laser_verifier.sequence import Event


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
