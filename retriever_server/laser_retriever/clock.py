"""What time it is; tests put another in its place instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Two readings of time.

    Attributes:
        unix_s: seconds since 1970, for what other processes read; may jump.
        monotonic_s: seconds since some moment, for durations within this process.
    """

    unix_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic
