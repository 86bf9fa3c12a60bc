"""What became of the trees of a stream, counted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from laser_retriever.growth import Trees
from laser_retriever.kernel import kernel, short_kernel
from laser_retriever.outcomes import ACCEPTED_NODE, NUM_VERIFIED, ROW

NUM_DECILES = 10


@dataclass(slots=True, eq=False)
class Feedback:
    """Counts of one stream; the material of a calibration.

    Attributes:
        num_trees, num_nodes: drafted.
        num_verified, num_accepted: nodes.
        verified_per_decile: float64[3, 10] over verified nodes by tenth of their probability: how many, sum of the
            probabilities, how many lay on the accepted path.
    """

    num_trees: int = 0
    num_nodes: int = 0
    num_verified: int = 0
    num_accepted: int = 0
    verified_per_decile: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, NUM_DECILES)))

    def drafted(self, num_trees: int, num_nodes: int) -> None:
        """Counts trees sent out, and their nodes."""
        self.num_trees += num_trees
        self.num_nodes += num_nodes

    def observe(self, trees: Trees, outcomes: NDArray[np.int64]) -> None:
        """Counts what a verifier found of trees; `outcomes` is int64[K, 4], see `outcomes`."""
        self.num_verified += int(outcomes[:, NUM_VERIFIED].sum())
        self.num_accepted += _count(trees, outcomes, self.verified_per_decile)


@kernel
def _count(trees: Trees, outcomes: NDArray[np.int64], table: NDArray[np.float64]) -> int:
    """Adds trees' nodes to the table. Returns the length of all accepted paths together."""
    length = 0
    for k in range(len(outcomes)):
        tree = outcomes[k, ROW]
        for node in range(outcomes[k, NUM_VERIFIED]):
            prob = trees.probs[tree, node]
            decile = min(int(prob * NUM_DECILES), NUM_DECILES - 1)
            table[0, decile] += 1.0
            table[1, decile] += prob
        node = outcomes[k, ACCEPTED_NODE]
        while node >= 0:
            table[2, min(int(trees.probs[tree, node] * NUM_DECILES), NUM_DECILES - 1)] += 1.0
            length += 1
            node = int(trees.parents[tree, node])
    return length


@short_kernel
def begins_with_path(
    parents: NDArray[np.int32], token_ids: NDArray[np.int32], row: int, node_idx: int, emitted: NDArray[np.int32]
) -> bool:
    """Whether the emitted tokens begin with the tokens from the root of a tree, one row, to a node (-1: the root)."""
    depth = 0
    node = node_idx
    while node >= 0:
        depth += 1
        node = parents[row, node]
    if depth > len(emitted):
        return False
    node = node_idx
    while node >= 0:
        depth -= 1
        if token_ids[row, node] != emitted[depth]:
            return False
        node = parents[row, node]
    return True


@short_kernel
def first_outside(token_ids: NDArray[np.int32], vocab_size: int) -> int:
    """Index of the first token that is not from 0 to below `vocab_size`, or -1."""
    for i in range(len(token_ids)):
        if not 0 <= token_ids[i] < vocab_size:
            return i
    return -1
