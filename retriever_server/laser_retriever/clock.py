"""What time it is; tests put another in its place instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

_JUMP_S = 60.0
_DOUBT_S = 600.0


@dataclass(frozen=True, slots=True)
class Clock:
    """Two readings of time.

    Attributes:
        unix_s: seconds since 1970, for what other processes read; may jump.
        monotonic_s: seconds since some moment, for durations within this process.
    """

    unix_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic


class TurnClock:
    """When the event loop began with the messages that it is at: those that came together have waited for each other.

    (uvloop's `loop.time()` is the present; asyncio's too.)
    """

    def __init__(self) -> None:
        self._began_s: float | None = None

    def began_s(self) -> float:
        """By `time.monotonic`, the same for all that is called in one turn of the running event loop."""
        if self._began_s is None:
            self._began_s = time.monotonic()
            asyncio.get_running_loop().call_soon(self._end)
        return self._began_s

    def _end(self) -> None:
        self._began_s = None


class SteadyTime:
    """Seconds since 1970 for what cannot be undone: a jump ahead is believed only once it has lasted.

    A virtual machine that wakes up may be days ahead until its clock is set.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._believed_s = self._ahead_s()
        self._jumped_at_s: float | None = None

    def unix_s(self) -> float:
        """The time, of which a jump ahead by more than a minute is left out for ten minutes."""
        now_s, ahead_s = self._clock.monotonic_s(), self._ahead_s()
        if ahead_s <= self._believed_s + _JUMP_S:
            self._believed_s, self._jumped_at_s = ahead_s, None
        elif self._jumped_at_s is None:
            self._jumped_at_s = now_s
        elif now_s - self._jumped_at_s >= _DOUBT_S:
            self._believed_s, self._jumped_at_s = ahead_s, None
        return now_s + self._believed_s

    def _ahead_s(self) -> float:
        return self._clock.unix_s() - self._clock.monotonic_s()
