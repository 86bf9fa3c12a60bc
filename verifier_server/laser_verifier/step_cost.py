"""What a forward over M tokens costs: measured when the server starts, corrected by the steps that it then runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a forward over M tokens, linear between and beyond the measured sizes.

    Attributes:
        sizes: int64[K], increasing, K >= 2. seconds: float64[K], non-decreasing.
    """

    sizes: NDArray[np.int64]
    seconds: NDArray[np.float64]

    def __call__(self, num_tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds for each number of tokens."""
        inside = np.interp(num_tokens, self.sizes, self.seconds)
        slope = (self.seconds[-1] - self.seconds[-2]) / (self.sizes[-1] - self.sizes[-2])
        beyond: NDArray[np.float64] = inside + np.maximum(num_tokens - self.sizes[-1], 0) * slope
        return beyond

    def of(self, num_tokens: int) -> float:
        """Seconds of one forward."""
        return float(self(np.asarray(num_tokens)))

    def largest_within(self, seconds: float, limit: int) -> int:
        """The most tokens, up to `limit`, whose forward takes at most so long; 0 if not even one does."""
        return int(np.searchsorted(self(np.arange(1, limit + 1)), seconds, side="right"))


def measure_step_cost(run: Callable[[int], None], sizes: Sequence[int], repeats: int = 3) -> StepCost:
    """Measures `run(M)` for each size: the shortest of `repeats` after one warm-up.

    Sizes take turns, so that a neighbour's burst does not fall on one of them alone; and whatever else runs while a
    server starts only ever adds, so the shortest is nearest to what the forward costs.

    Args:
        run: a forward over M tokens. sizes: increasing, at least two.
    """
    shortest = np.full(len(sizes), np.inf)
    for repeat in range(repeats + 1):
        for i, size in enumerate(sizes):
            started = time.perf_counter()
            run(size)
            if repeat > 0:
                shortest[i] = min(shortest[i], time.perf_counter() - started)
    # More tokens never cost less: a dip is noise, and would draw the budget towards it.
    return StepCost(np.asarray(sizes, np.int64), np.maximum.accumulate(shortest))


class LearnedCost:
    """A StepCost that follows what steps take: contexts grow, other processes come and go, clocks change.

    In the logarithm: one correction for all sizes, so that sizes not run lately follow too, and one for each size. A
    single step moves them by a twentieth and a tenth of its surprise, which is cut at a factor of 1.5: an outlier (a
    page fault, a neighbour's burst) is forgotten within a few steps. What one size has of its own fades, so that a
    machine that is slower or faster than it was is so for all sizes before long: with drafting off one size alone is
    run, and larger ones must not seem dear for having been measured in worse times.

    Args:
        measured: at start.
    """

    _RATE_ALL = 0.05
    _RATE_SIZE = 0.1
    _FADE_SIZE = 0.995
    _MAX_SURPRISE = float(np.log(1.5))

    def __init__(self, measured: StepCost) -> None:
        self._measured = measured
        self._all = 0.0
        self._of_size = np.zeros(len(measured.sizes))
        self.now = measured

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Takes what a forward took. Times of no duration (clocks too coarse) are ignored."""
        expected = self.now.of(num_tokens)
        if seconds <= 0.0 or expected <= 0.0:
            return
        surprise = float(np.clip(np.log(seconds / expected), -self._MAX_SURPRISE, self._MAX_SURPRISE))
        self._all += self._RATE_ALL * surprise
        self._of_size *= self._FADE_SIZE
        sizes = self._measured.sizes
        upper = int(np.clip(np.searchsorted(sizes, num_tokens), 1, len(sizes) - 1))
        share = float(np.clip((num_tokens - sizes[upper - 1]) / (sizes[upper] - sizes[upper - 1]), 0.0, 1.0))
        self._of_size[upper - 1] += self._RATE_SIZE * (1.0 - share) * surprise
        self._of_size[upper] += self._RATE_SIZE * share * surprise
        corrected = self._measured.seconds * np.exp(self._all + self._of_size)
        self.now = StepCost(sizes, np.maximum.accumulate(corrected))
