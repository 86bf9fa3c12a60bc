"""Fits the drafter's coefficients to recorded outputs, by maximum likelihood. Offline; no server imports it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from laser_retriever.drafter import DraftParams, Scratch, TokenBuffer
from laser_retriever.growth import MAX_CHILDREN, NUM_ENTRIES, describe_children, num_features, split_matches
from laser_retriever.index import Sources
from laser_retriever.matching import MAX_MATCH_LENGTH, SEARCH_LENGTHS, collect_own_matches, collect_segment_matches

logger = logging.getLogger(__name__)

VOCAB_SIZE = 2**31 - 1


class Examples:
    """Nodes met on the way along real outputs: features of each node's children, and which of them came."""

    def __init__(self, params: DraftParams) -> None:
        self._params = params
        self._scratch = Scratch.of(params)
        self._search_lengths = np.array(SEARCH_LENGTHS, np.int64)
        lengths = np.arange(params.level_lengths[-1] + 1)
        self._levels = np.maximum(np.searchsorted(params.level_lengths, lengths, side="right") - 1, 0).astype(np.int64)
        self._num_features = num_features(len(params.level_lengths))
        self._feature_ids = np.empty((MAX_CHILDREN + 1, NUM_ENTRIES), np.int64)
        self._values = np.empty((MAX_CHILDREN + 1, NUM_ENTRIES))
        self.rows: list[NDArray[np.float32]] = []
        self.sizes: list[int] = []
        self.targets: list[int] = []

    def walk(self, sources: Sources, prompt: Sequence[int], output: Sequence[int], max_depth: int) -> None:
        """Adds a tree's nodes on the real path, from roots along an output."""
        buffer = TokenBuffer(len(prompt))
        buffer.extend(np.array(prompt, np.int32))
        at = 0
        while at < len(output):
            depth = self._follow(sources, buffer, output[at : at + max_depth])
            step = max(depth, 1)
            buffer.extend(np.array(output[at : at + step], np.int32))
            at += step

    def _dense(self, num_rows: int) -> NDArray[np.float32]:
        rows = np.zeros((num_rows, self._num_features), np.float32)
        np.add.at(rows, (np.arange(num_rows)[:, None], self._feature_ids[:num_rows]), self._values[:num_rows])
        return rows

    def _collect(self, sources: Sources, buffer: TokenBuffer) -> int:
        s, params = self._scratch, self._params
        n = collect_own_matches(
            buffer.tokens, buffer.tokens[-MAX_MATCH_LENGTH:], params.own_weight, -1, VOCAB_SIZE,
            params.max_own_matches, s.continuations, s.lengths, s.weights, s.origins, 0,
        )  # fmt: skip
        weights = np.float64(params.ancestor_weight) ** sources.distances
        return collect_segment_matches(
            sources.table, weights, buffer.tail(), self._search_lengths, VOCAB_SIZE, params.max_per_search,
            params.enough, params.begin_bonus, s.continuations, s.lengths, s.weights, s.origins, n,
        )  # fmt: skip

    def _follow(self, sources: Sources, buffer: TokenBuffer, real: Sequence[int]) -> int:
        s, params = self._scratch, self._params
        n = self._collect(sources, buffer)
        s.bases[:n] = 0
        order = np.arange(n)
        begin, end = 0, n
        counts = np.empty((2, MAX_CHILDREN + 1, len(params.level_lengths)))
        tokens = np.empty(MAX_CHILDREN, np.int64)
        starts = np.empty(MAX_CHILDREN + 2, np.int64)
        for depth, token in enumerate(real):
            live = order[begin:end][s.continuations[order[begin:end], depth] >= 0]
            if depth and s.weights[live].sum() < params.enough:
                return depth  # here the drafter looks up anew: the next root
            if begin == end:
                return depth + 1
            num_children = split_matches(
                s.continuations, s.lengths, s.weights, s.origins, s.bases, self._levels, order,
                np.empty(n, np.int64), np.empty(n, np.int64), begin, end, depth, tokens, starts, counts,
            )  # fmt: skip
            describe_children(counts, num_children, self._feature_ids, self._values)
            found = np.flatnonzero(tokens[:num_children] == token)
            self.rows.append(self._dense(num_children + 1))
            self.sizes.append(num_children + 1)
            self.targets.append(int(found[0]) if len(found) else num_children)
            if not len(found):
                return depth + 1
            begin, end = int(starts[found[0]]), int(starts[found[0] + 1])
        return len(real)


def fit(examples: Examples, *, penalty: float = 1e-4, num_steps: int = 400, rate: float = 0.07) -> NDArray[np.float64]:
    """Coefficients of a conditional logit (McFadden, 1974) by Adam on all examples.

    Args:
        examples: at least one.
        penalty: of the squared coefficients, per example.

    Returns:
        float64[features].
    """
    rows = np.concatenate(examples.rows).astype(np.float64)
    sizes = np.array(examples.sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    chosen = starts + np.array(examples.targets)
    group = np.repeat(np.arange(len(sizes)), sizes)
    theta = np.zeros(rows.shape[1])
    first = np.zeros_like(theta)
    second = np.zeros_like(theta)
    observed = rows[chosen].sum(axis=0)
    for step in range(1, num_steps + 1):
        scores = rows @ theta
        scores -= np.maximum.reduceat(scores, starts)[group]
        odds = np.exp(scores)
        probs = odds / np.add.reduceat(odds, starts)[group]
        gradient = (rows.T @ probs - observed) / len(sizes) + 2 * penalty * theta
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        decay = rate * min(1.0, 2 * (1 - step / (num_steps + 1)))
        theta -= decay * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        if step % 100 == 0:
            logger.info("fitting.step step=%d loss=%.4f", step, -np.log(probs[chosen]).mean())
    return theta
