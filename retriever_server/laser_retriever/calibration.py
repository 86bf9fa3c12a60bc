"""Corrects the drafter's probabilities by what became of the nodes that were verified.

The coefficients were fitted on one model's outputs; another model, a relaxed acceptance, other texts have other odds.
So each (model, acceptance, temperature, root of the pool) has a table of scalings, slope and a shift of a node's
log-odds given its parent, by what speaks for the node (the sequence itself, the pool, its n-th ancestor) and the match
length. That is Platt scaling ("Probabilistic outputs for support vector machines", 1999), learned on the way by
Bayesian logistic regression with exponential forgetting (McCormick, Raftery, Madigan and Burd, "Dynamic logistic
regression and dynamic model averaging for binary classification", 2012): per cell one Newton step for each tree, shrunk
to slope 1 and shift 0 by a normal prior.

What comes back is another process's word: it is checked before it comes here, no scaling leaves its bounds, and of many
keys only the latest used are kept. Knows nothing of streams or pools.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from laser_protocol.acceptance import Acceptance
from laser_retriever.estimation import log_odds, scale_probability
from laser_retriever.growth import Trees
from laser_retriever.kernel import allocating_kernel, kernel
from laser_retriever.outcomes import ACCEPTED_NODE, NUM_EMITTED, NUM_VERIFIED, ROW

# Rows of a table: the sequence itself, the pool, its parent, all further ancestors.
NUM_SCALING_ROWS = 4

# A scaling, and the curvature of its likelihood: by slope twice, by slope and shift, by shift twice.
SLOPE, SHIFT = range(2)
SLOPE_SLOPE, SLOPE_SHIFT, SHIFT_SHIFT = range(3)

# Of a model's name as much tells it apart.
MAX_NAME = 128


@dataclass(frozen=True, slots=True)
class CalibrationParams:
    """How fast and how far scalings move: round numbers, not tuned; `benchmarks/reliability.py` shows what they do.

    Attributes:
        prior: evidence, in units of p (1 - p), at which a cell's own weighs as much as no shift.
        slope_prior: the same for its slope.
        memory: outcomes of a cell after which older ones count 1/e.
        max_shift: most log-odds by which a cell is moved either way.
        max_slope: largest slope; the smallest is one over it.
        max_keys: most tables kept; the one used longest ago goes first.
    """

    prior: float = 10.0
    slope_prior: float = 40.0
    memory: float = 20_000.0
    max_shift: float = 3.0
    max_slope: float = 2.0
    max_keys: int = 256

    def __post_init__(self) -> None:
        for name in ("prior", "slope_prior", "memory", "max_shift"):
            value = getattr(self, name)
            if not (value > 0.0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}, must be positive")
        if not 1.0 <= self.max_slope < math.inf:
            raise ValueError(f"max_slope is {self.max_slope}, must be at least 1")
        if self.max_keys < 1:
            raise ValueError(f"max_keys is {self.max_keys}, must be at least 1")


# What has scalings of its own: the model, the acceptance, the temperature, the root of the pool.
Key: TypeAlias = tuple[str, Acceptance, float, str]


@dataclass(frozen=True, slots=True, eq=False)
class Scalings:
    """The scalings of a key at one time.

    Attributes:
        values: float64[NUM_SCALING_ROWS, L, 2], read-only.
        address: of the values; asking numpy for it takes longer than all else that is done for a tree in Python.
    """

    values: NDArray[np.float64]
    address: int

    @staticmethod
    def of(values: NDArray[np.float64]) -> Scalings:
        """Makes the values read-only."""
        values.flags.writeable = False
        return Scalings(values, values.ctypes.data)


@dataclass(slots=True, eq=False)
class _Table:
    scalings: Scalings
    curvatures: NDArray[np.float64]


def no_scalings(num_levels: int) -> Scalings:
    """Slope 1 and shift 0 everywhere."""
    scalings = np.zeros((NUM_SCALING_ROWS, num_levels, 2))
    scalings[..., SLOPE] = 1.0
    return Scalings.of(scalings)


def key_of(model: str, acceptance: Acceptance, pool: str, temperature: float = 0.0) -> Key:
    """The key of a sequence. Temperatures of one tenth share it: sampled tokens are met less often than greedy ones."""
    return model[:MAX_NAME], acceptance, round(temperature, 1), pool.partition("/")[0]


class Calibration:
    """The scalings of all keys of a process. Not thread-safe; scalings that were given out never change.

    Args:
        num_levels: L, levels of match length.
        params: how fast and how far they move.
    """

    def __init__(self, num_levels: int, params: CalibrationParams | None = None) -> None:
        self._params = params or CalibrationParams()
        self._none = no_scalings(num_levels)
        self._tables: OrderedDict[Key, _Table] = OrderedDict()

    @property
    def num_keys(self) -> int:
        """Tables kept."""
        return len(self._tables)

    def scalings(self, key: Key) -> Scalings:
        """What is in force now. Later outcomes do not change it."""
        table = self._tables.get(key)
        return self._none if table is None else table.scalings

    def observe(self, key: Key, trees: Trees, outcomes: NDArray[np.int64]) -> None:
        """Takes in what became of trees, one after the other.

        Args:
            key: of their sequences.
            trees: as they were drafted.
            outcomes: int64[K, 4], see `outcomes`; what they say must have been checked.
        """
        params = self._params
        table = self._table(key)
        scalings = table.scalings.values.copy()
        learn_scalings(
            trees, outcomes, params.slope_prior, params.prior, params.memory, params.max_slope, params.max_shift,
            scalings, table.curvatures,
        )  # fmt: skip
        table.scalings = Scalings.of(scalings)

    def _table(self, key: Key) -> _Table:
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = _Table(self._none, np.zeros((*self._none.values.shape[:2], 3)))
            if len(self._tables) > self._params.max_keys:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return table


@allocating_kernel
def learn_scalings(
    trees: Trees,
    outcomes: NDArray[np.int64],
    slope_prior: float,
    shift_prior: float,
    memory: float,
    max_slope: float,
    max_shift: float,
    scalings: NDArray[np.float64],
    curvatures: NDArray[np.float64],
) -> None:
    """Moves `scalings` [C, L, 2] and `curvatures` [C, L, 3], in place, by what became of trees' verified nodes.

    A node has an outcome if its parent lies on the emitted path: it lies there too, or it does not.
    """
    is_emitted = np.empty(trees.parents.shape[1], np.bool_)
    gradients = np.empty_like(scalings)
    counts = np.empty(scalings.shape[:2])
    for k in range(len(outcomes)):
        tree = outcomes[k, ROW]
        num_verified = outcomes[k, NUM_VERIFIED]
        accepted_node = outcomes[k, ACCEPTED_NODE]
        depth = _mark_path(trees.parents[tree], num_verified, accepted_node, is_emitted)
        gradients[:] = 0.0
        counts[:] = 0.0
        for node in range(num_verified):
            parent = trees.parents[tree, node]
            if parent >= 0 and not is_emitted[parent]:
                continue
            if parent == accepted_node and outcomes[k, NUM_EMITTED] <= depth:
                continue  # the text ended there: nobody knows what would have followed
            row = min(int(trees.origins[tree, node]), len(scalings) - 1)
            level = int(trees.levels[tree, node])
            prob = float(trees.conditionals[tree, node])
            odds = log_odds(prob)
            prob = scale_probability(prob, scalings[row, level, SLOPE], scalings[row, level, SHIFT])
            missed = (1.0 if is_emitted[node] else 0.0) - prob
            weight = prob * (1.0 - prob)
            gradients[row, level, SLOPE] += missed * odds
            gradients[row, level, SHIFT] += missed
            curvatures[row, level, SLOPE_SLOPE] += weight * odds * odds
            curvatures[row, level, SLOPE_SHIFT] += weight * odds
            curvatures[row, level, SHIFT_SHIFT] += weight
            counts[row, level] += 1.0
        for row in range(scalings.shape[0]):
            for level in range(scalings.shape[1]):
                if counts[row, level] > 0.0:
                    kept = math.exp(-counts[row, level] / memory)
                    _step(
                        scalings[row, level], curvatures[row, level], gradients[row, level], kept,
                        slope_prior, shift_prior, max_slope, max_shift,
                    )  # fmt: skip


@kernel
def _mark_path(parents: NDArray[np.int32], num_verified: int, accepted_node: int, is_emitted: NDArray[np.bool_]) -> int:
    """Marks which of the verified nodes were emitted. Returns how many."""
    is_emitted[:num_verified] = False
    depth = 0
    while accepted_node >= 0:
        is_emitted[accepted_node] = True
        depth += 1
        accepted_node = parents[accepted_node]
    return depth


@kernel
def _step(
    scaling: NDArray[np.float64],
    curvature: NDArray[np.float64],
    gradient: NDArray[np.float64],
    kept: float,
    slope_prior: float,
    shift_prior: float,
    max_slope: float,
    max_shift: float,
) -> None:
    """One Newton step of one cell, in place; older evidence counts `kept` of what it did.

    Old evidence fades and the prior does not: what is missing of it pulls towards slope 1 and shift 0.
    """
    by_slope = gradient[SLOPE] - (1.0 - kept) * slope_prior * (scaling[SLOPE] - 1.0)
    by_shift = gradient[SHIFT] - (1.0 - kept) * shift_prior * scaling[SHIFT]
    slope_slope = curvature[SLOPE_SLOPE] + slope_prior
    shift_shift = curvature[SHIFT_SHIFT] + shift_prior
    slope_shift = curvature[SLOPE_SHIFT]
    determinant = slope_slope * shift_shift - slope_shift * slope_shift
    scaling[SLOPE] += (shift_shift * by_slope - slope_shift * by_shift) / determinant
    scaling[SHIFT] += (slope_slope * by_shift - slope_shift * by_slope) / determinant
    scaling[SLOPE] = min(max(scaling[SLOPE], 1.0 / max_slope), max_slope)
    scaling[SHIFT] = min(max(scaling[SHIFT], -max_shift), max_shift)
    curvature *= kept
