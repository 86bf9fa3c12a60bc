"""Fits the drafter's coefficients to recorded outputs, by maximum likelihood. Offline; no server imports it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from laser_retriever.estimation import describe_children, num_features, split_matches
from laser_retriever.growth import Workspace, following_weight
from laser_retriever.matching import MAX_MATCH_LENGTH, collect_own_matches, collect_segment_matches
from laser_retriever.sources import Sources
from laser_retriever.tree_drafter import DraftParams, TokenBuffer, model_of

logger = logging.getLogger(__name__)

VOCAB_SIZE = 2**31 - 1


class Examples:
    """Nodes met on the way along real outputs: features of each node's children, and which of them came."""

    def __init__(self, params: DraftParams) -> None:
        self._params = params
        self._model = model_of(params)
        self._num_levels = len(params.level_lengths)
        self._num_features = num_features(self._num_levels)
        self._work = Workspace.room(params.max_matches, 1, params.max_depth)
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
        children = self._work.children
        np.add.at(rows, (np.arange(num_rows)[:, None], children.feature_ids[:num_rows]), children.values[:num_rows])
        return rows

    def _collect(self, sources: Sources, buffer: TokenBuffer) -> int:
        params, matches = self._params, self._work.matches
        n = collect_own_matches(
            buffer.tokens, buffer.address, buffer.tokens[-MAX_MATCH_LENGTH:], params.own_weight,
            params.max_own_matches, VOCAB_SIZE, 0, matches, 0,
        )  # fmt: skip
        self._work = self._work.with_room_for(len(sources.table))
        return collect_segment_matches(
            sources.table, self._work.searches, buffer.tail(), self._model.search_lengths, params.max_per_search,
            params.enough, params.ancestor_weight, params.begin_bonus, VOCAB_SIZE, 0, matches, n,
        )  # fmt: skip

    def _follow(self, sources: Sources, buffer: TokenBuffer, real: Sequence[int]) -> int:
        work, params = self._work, self._params
        begin, end = 0, self._collect(sources, buffer)
        work.order[:end] = np.arange(end)
        for depth, token in enumerate(real):
            weight = following_weight(
                work.matches, work.order, begin, end, depth, params.max_depth, VOCAB_SIZE, params.enough
            )
            if depth and weight < params.enough:
                # Here the drafter looks up anew, unless it is sure enough (`min_unseen`): the next root.
                return depth
            if begin == end:
                return depth + 1
            num_children = split_matches(
                work.matches, self._model.levels, work.order, work.scratch, work.child_of, begin, end, depth,
                params.max_depth, VOCAB_SIZE, work.children,
            )  # fmt: skip
            describe_children(work.children, num_children, self._num_levels)
            found = np.flatnonzero(work.children.tokens[:num_children] == token)
            self.rows.append(self._dense(num_children + 1))
            self.sizes.append(num_children + 1)
            self.targets.append(int(found[0]) if len(found) else num_children)
            if not len(found):
                return depth + 1
            begin, end = int(work.children.starts[found[0]]), int(work.children.starts[found[0] + 1])
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
