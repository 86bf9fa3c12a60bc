"""Whether nodes are accepted as often as their retriever says, and what their probability is worth if not.

Retrievers calibrate themselves; this one does not take their word: a shard with wrong weights, or one that lies, would
otherwise have the verifier pay for nodes that never come.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Calibration:
    """Maps said probabilities to observed ones, by bins of what is said; monotone, so an order by them stays one.

    Attributes:
        said, accepted: float64[bins], sums over the verified nodes, older ones fading.
    """

    _EDGES = np.asarray([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
    # So many nodes of a bin must be seen to weigh as much as what the retriever says of it.
    _TRUST = 50.0
    _FADE = 0.999

    def __init__(self) -> None:
        borders = np.concatenate(([0.0], self._EDGES, [1.0]))
        self._middles = (borders[:-1] + borders[1:]) / 2
        self._num = np.zeros(len(self._middles))
        self.said = np.zeros(len(self._middles))
        self.accepted = np.zeros(len(self._middles))
        self._points = np.concatenate(([0.0], self._middles, [1.0]))
        self._values = self._points

    def observe(self, probs: NDArray[np.float32], accepted: NDArray[np.bool_]) -> None:
        """Takes what became of verified nodes.

        Args:
            probs: as said, float32[n]. accepted: bool[n], which lie on the emitted path.
        """
        bins = np.searchsorted(self._EDGES, probs, side="right")
        for sums, weights in ((self._num, None), (self.said, probs), (self.accepted, accepted)):
            sums *= self._FADE
            sums += np.bincount(bins, weights, len(sums))
        # What is said within a bin may lie off its middle: the ratio of accepted to said is what is learned.
        prior = self._TRUST * self._middles
        observed = np.minimum(self._middles * (self.accepted + prior) / (self.said + prior), 1.0)
        values = isotonic(observed, self._num + 1.0)
        self._values = np.concatenate(([0.0], values, [max(values[-1], min(1.0, 2 * values[-1] - values[-2]))]))

    def __call__(self, probs: NDArray[np.float32]) -> NDArray[np.float64]:
        """The probabilities to expect for those said, in the same order."""
        values: NDArray[np.float64] = np.interp(probs, self._points, self._values)
        return values


def isotonic(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-decreasing float64[n] nearest to `values` in weighted squares.

    By the max-min formula over all blocks' means (Barlow et al., Statistical Inference under Order Restrictions,
    1972): n^2 work, for the few bins there are.
    """
    weight_sums = np.concatenate(([0.0], np.cumsum(weights)))
    value_sums = np.concatenate(([0.0], np.cumsum(weights * values)))
    first, last = np.triu_indices(len(values))
    means = np.full((len(values), len(values)), np.inf)
    means[first, last] = (value_sums[last + 1] - value_sums[first]) / (weight_sums[last + 1] - weight_sums[first])
    # least[i, k]: smallest mean of a block that begins at i and ends at k or later.
    least = np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
    least[np.tril_indices(len(values), -1)] = -np.inf
    best: NDArray[np.float64] = np.max(np.where(np.tri(len(values), dtype=bool).T, least, -np.inf), axis=0)
    return best
