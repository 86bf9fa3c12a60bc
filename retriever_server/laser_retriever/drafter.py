"""Drafts trees for sequences: the object behind the draft stream, usable in process without gRPC.

Knows sequences, sources and kernels; not pools' files, not messages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laser_protocol.tree import DraftTree
from laser_retriever.growth import (
    BEGIN_BONUS,
    ENOUGH,
    MAX_LOOKUPS,
    MAX_OWN_MATCHES,
    MAX_PER_SEARCH,
    MIN_PROB,
    NUM_SETTINGS,
    OWN_WEIGHT,
    grow_tree,
    num_features,
)
from laser_retriever.index import Sources
from laser_retriever.matching import MAX_MATCH_LENGTH, SEARCH_LENGTHS
from laser_retriever.suffix_array import BEGIN_MARK


def fitted_coefficients() -> tuple[float, ...]:
    """The coefficients shipped with this package."""
    return tuple(json.loads((Path(__file__).parent / "coefficients.json").read_bytes()))


@dataclass(frozen=True, slots=True)
class DraftParams:
    """How matches become probabilities. Chosen by `benchmarks/replay.py` on users 1-680 of the user corpus.

    Attributes:
        coefficients: of the features of `growth.describe_children`; empty: those of `coefficients.json`.
        level_lengths: the shortest match length of each level.
        own_weight: what an occurrence in the sequence itself counts against one in its pool.
        ancestor_weight: the same for an occurrence in an ancestor, per generation.
        begin_bonus: tokens by which a match that reaches the documents' begin counts as longer.
        min_prob: nodes less probable are not grown.
        max_matches: most occurrences looked at for one tree.
        max_per_search: most of them from one segment at one match length.
        max_own_matches: most of them from the sequence itself.
        enough: once matches weigh this much, shorter ones are left out.
        max_lookups: most lookups for one tree: at its root, then at nodes where fewer matches than `enough` are left.
        max_depth: longest path.
    """

    coefficients: tuple[float, ...] = ()
    level_lengths: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 11, 16, 24, 32)
    own_weight: float = 1.0
    ancestor_weight: float = 0.5
    begin_bonus: int = 16
    min_prob: float = 0.001
    max_matches: int = 2048
    max_per_search: int = 128
    max_own_matches: int = 128
    enough: float = 16.0
    max_lookups: int = 8
    max_depth: int = 48

    def __post_init__(self) -> None:
        if not self.coefficients:
            object.__setattr__(self, "coefficients", fitted_coefficients())
        needed = num_features(len(self.level_lengths))
        if len(self.coefficients) != needed:
            raise ValueError(f"coefficients has {len(self.coefficients)} values, must have {needed}")
        if self.level_lengths[0] != 1 or list(self.level_lengths) != sorted(set(self.level_lengths)):
            raise ValueError(f"level_lengths is {self.level_lengths}, must rise strictly from 1")


@dataclass(slots=True, eq=False)
class Scratch:
    """Buffers of one drafting thread, reused from tree to tree."""

    continuations: NDArray[np.int32]
    lengths: NDArray[np.int32]
    weights: NDArray[np.float64]
    origins: NDArray[np.int32]
    bases: NDArray[np.int32]

    @staticmethod
    def of(params: DraftParams) -> Scratch:
        n = params.max_matches
        return Scratch(
            np.empty((n, params.max_depth), np.int32),
            np.empty(n, np.int32),
            np.empty(n, np.float64),
            np.empty(n, np.int32),
            np.empty(n, np.int32),
        )


@dataclass(slots=True, eq=False)
class TokenBuffer:
    """A sequence's tokens: prompt and output so far, in a buffer that grows by doubling.

    Attributes:
        num_prompt_tokens: how many are prompt.
        num_tokens: how many there are: the position.
    """

    num_prompt_tokens: int
    num_tokens: int = 0
    _tokens: NDArray[np.int32] = field(default_factory=lambda: np.empty(512, np.int32))

    def extend(self, token_ids: NDArray[np.int32]) -> None:
        """Appends tokens."""
        needed = self.num_tokens + len(token_ids)
        if needed > len(self._tokens):
            grown = np.empty(max(needed, 2 * len(self._tokens)), np.int32)
            grown[: self.num_tokens] = self._tokens[: self.num_tokens]
            self._tokens = grown
        self._tokens[self.num_tokens : needed] = token_ids
        self.num_tokens = needed

    @property
    def tokens(self) -> NDArray[np.int32]:
        """int32[num_tokens] (view)."""
        return self._tokens[: self.num_tokens]

    def tail(self) -> NDArray[np.int32]:
        """int32[<= MAX_MATCH_LENGTH]: the tail that pools are searched for: the output behind its begin mark."""
        num_output = self.num_tokens - self.num_prompt_tokens
        if num_output >= MAX_MATCH_LENGTH:
            return self._tokens[self.num_tokens - MAX_MATCH_LENGTH : self.num_tokens]
        tail = np.empty(num_output + 1, np.int32)
        tail[0] = BEGIN_MARK
        tail[1:] = self._tokens[self.num_prompt_tokens : self.num_tokens]
        return tail


class TreeDrafter:
    """Drafts the tree of a token buffer from given sources. Not thread-safe: one per drafting thread."""

    def __init__(self, params: DraftParams) -> None:
        self._params = params
        self._scratch = Scratch.of(params)
        self._search_lengths = np.array(SEARCH_LENGTHS, np.int64)
        self._coefficients = np.array(params.coefficients, np.float64)
        settings = np.empty(NUM_SETTINGS)
        settings[MIN_PROB] = params.min_prob
        settings[ENOUGH] = params.enough
        settings[MAX_LOOKUPS] = params.max_lookups
        settings[OWN_WEIGHT] = params.own_weight
        settings[MAX_OWN_MATCHES] = params.max_own_matches
        settings[MAX_PER_SEARCH] = params.max_per_search
        settings[BEGIN_BONUS] = params.begin_bonus
        self._settings = settings
        lengths = np.arange(params.level_lengths[-1] + 1)
        self._levels = np.maximum(np.searchsorted(params.level_lengths, lengths, side="right") - 1, 0).astype(np.int64)

    def draft(self, buffer: TokenBuffer, sources: Sources, node_budget: int, vocab_size: int) -> DraftTree:
        """The draft tree that continues the buffer's tokens.

        Args:
            buffer: at least one token.
            sources: what its pool gives; the buffer's own tokens are matched beside them.
            node_budget: most nodes.
            vocab_size: token ids of the tree are below it.
        """
        position = buffer.num_tokens
        if node_budget == 0:
            return DraftTree.empty(position)
        s = self._scratch
        token_ids = np.empty(node_budget, np.int32)
        parents = np.empty(node_budget, np.int32)
        probs = np.empty(node_budget, np.float32)
        n = grow_tree(
            buffer.tokens, buffer.tail(), sources.table, self._source_weights(sources), self._search_lengths,
            self._levels, self._coefficients, self._settings, vocab_size,
            s.continuations, s.lengths, s.weights, s.origins, s.bases, token_ids, parents, probs,
        )  # fmt: skip
        return DraftTree(position, token_ids[:n], parents[:n], probs[:n])

    def _source_weights(self, sources: Sources) -> NDArray[np.float64]:
        weights: NDArray[np.float64] = np.float64(self._params.ancestor_weight) ** sources.distances
        return weights
