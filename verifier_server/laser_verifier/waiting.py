"""Requests that wait for a slot: a bounded queue, first come first served, that any thread may fill and cancel in."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from laser_protocol.errors import LaserError, Overloaded
from laser_verifier.sequence import Request, Sink


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request in the queue, and how many came before it."""

    request: Request
    sink: Sink
    number: int


class WaitingQueue:
    """The queue in front of the slots.

    Args:
        max_waiting: requests that may wait while no slot is free.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Waiting] = OrderedDict()
        self._num_added = 0
        self._cancelled: set[str] = set()
        self._closed: LaserError | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def check_room(self, num_coming: int, num_free_slots: int, retry_after_s: float) -> None:
        """Checks that one request more may come.

        Args:
            num_coming: so many others will come before it.
            num_free_slots: so many more may come, since they will not wait.
            retry_after_s: what a refused caller is told.

        Raises:
            Overloaded: the queue is full.
        """
        num_waiting = len(self._entries) + num_coming
        if num_waiting >= self._max_waiting + num_free_slots:
            raise Overloaded(
                f"{num_waiting} requests wait already, at most {self._max_waiting} may", retry_after_s=retry_after_s
            )

    def add(self, request: Request, sink: Sink) -> None:
        """Adds a request, also to a full queue.

        Raises:
            LaserError: of the kind it was closed with.
        """
        with self._lock:
            if self._closed is not None:
                raise type(self._closed)(str(self._closed))
            self._entries[request.request_id] = Waiting(request, sink, self._num_added)
            self._num_added += 1

    def cancel(self, request_id: str) -> bool:
        """Removes a request. False: it does not wait any more, and is in `take_cancelled` once."""
        with self._lock:
            waited = self._entries.pop(request_id, None) is not None
            if not waited:
                self._cancelled.add(request_id)
        return waited

    def num_ahead(self, request_id: str) -> int:
        """Requests that wait ahead of this one, or were cancelled there since; 0 if it does not wait.

        Everyone who waits asks, again and again: this must not take longer the more there are.
        """
        with self._lock:
            entry = self._entries.get(request_id)
            return 0 if entry is None else entry.number - next(iter(self._entries.values())).number

    def take(self) -> Waiting | None:
        """The first that waits, which is then out of the queue."""
        with self._lock:
            return self._entries.popitem(last=False)[1] if self._entries else None

    def take_cancelled(self) -> set[str]:
        """Ids cancelled since the last call that did not wait any more."""
        with self._lock:
            cancelled, self._cancelled = self._cancelled, set()
        return cancelled

    def close(self, error: LaserError) -> list[Waiting]:
        """Takes no more: whoever comes gets `error`. Returns those that waited."""
        with self._lock:
            self._closed = error
            entries, self._entries = list(self._entries.values()), OrderedDict()
        return entries
