"""A clock that stands until it is moved."""

from __future__ import annotations

from laser_retriever.clock import Clock


class HandClock:
    """Time as a test wants it."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0
        self.clock = Clock(lambda: self.now_s, lambda: self.now_s)

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
