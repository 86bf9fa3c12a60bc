"""What happened to pools since the process started, in numbers. Metrics read them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from enum import Enum


class Event(Enum):
    """What is counted."""

    DOCUMENTS_ACKNOWLEDGED = "documents_acknowledged"
    DOCUMENTS_DELETED = "documents_deleted"
    DOCUMENTS_EVICTED = "documents_evicted"
    SEALS = "seals"
    COMPACTIONS = "compactions"
    WRITER_CONFLICTS = "writer_conflicts"
    STORAGE_ERRORS = "storage_errors"


class EventCounters:
    """How often each event happened. Thread-safe."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._counts: Counter[Event] = Counter()

    def count(self, event: Event, number: int = 1) -> None:
        """Adds to an event's count."""
        with self._mutex:
            self._counts[event] += number

    def read(self) -> Mapping[Event, int]:
        """All counts, events that never happened included."""
        with self._mutex:
            return {event: self._counts[event] for event in Event}
