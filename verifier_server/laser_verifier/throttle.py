"""Keeps what goes wrong all the time from filling the log."""

from __future__ import annotations

import time

_INTERVAL_S = 1.0


class Throttle:
    """Lets one line through a second, and counts for it what it stands for. For one thread."""

    def __init__(self) -> None:
        self._num_untold = 0
        self._told_s = -_INTERVAL_S

    def count(self, number: int = 1) -> int:
        """Counts what happened. Returns all since the last line if it is time for one, else 0."""
        self._num_untold += number
        now_s = time.monotonic()
        if now_s - self._told_s < _INTERVAL_S:
            return 0
        num_told, self._num_untold, self._told_s = self._num_untold, 0, now_s
        return num_told
