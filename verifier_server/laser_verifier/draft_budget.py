"""How many draft nodes a step verifies: those whose expected tokens are worth their share of the forward.

Every tree lists its nodes by non-increasing probability of lying on the emitted path, so the K most probable nodes of
the whole batch are a prefix of every tree, and their sum is what they are expected to emit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a forward over M tokens, measured, linear between and beyond the measured sizes.

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


def measure_step_cost(run: Callable[[int], None], sizes: Sequence[int], repeats: int = 3) -> StepCost:
    """Measures `run(M)` for each size: the median of `repeats` after one warm-up.

    Args:
        run: a forward over M tokens. sizes: increasing, at least two.
    """
    medians: list[float] = []
    for size in sizes:
        run(size)
        seconds: list[float] = []
        for _ in range(repeats):
            started = time.perf_counter()
            run(size)
            seconds.append(time.perf_counter() - started)
        medians.append(float(np.median(seconds)))
    # More tokens never cost less: a dip is noise, and would draw the budget towards it.
    return StepCost(np.asarray(sizes, np.int64), np.maximum.accumulate(np.asarray(medians)))


def choose_num_nodes(
    probs: Sequence[NDArray[np.float32]], num_verified_tokens: int, num_sequences: int, cost: StepCost
) -> list[int]:
    """How many nodes of each tree to verify, so that expected tokens per second are highest.

    Args:
        probs: one non-increasing float32[n] per tree.
        num_verified_tokens: tokens the step runs anyway, at least 1.
        num_sequences: sequences that get their bonus token from this step.
        cost: of a forward.

    Returns:
        A prefix length per tree.
    """
    if not probs or not any(len(p) for p in probs):
        return [0] * len(probs)
    owner = np.repeat(np.arange(len(probs)), [len(p) for p in probs])
    flat = np.concatenate(probs).astype(np.float64)
    # Stable, so that among equal probabilities a tree's earlier nodes come first and the choice stays a prefix.
    order = np.argsort(-flat, kind="stable")
    expected = num_sequences + np.concatenate(([0.0], np.cumsum(flat[order])))
    seconds = cost(num_verified_tokens + np.arange(len(flat) + 1))
    best = int(np.argmax(expected / seconds))
    counts: list[int] = np.bincount(owner[order[:best]], minlength=len(probs)).tolist()
    return counts
