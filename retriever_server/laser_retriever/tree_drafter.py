"""Grows batches of draft trees by the kernels: parameters, tokens and sources in, trees out.

Knows no stream and no pool: `drafter.py` keeps the sequences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laser_protocol.tree import MAX_NODES, DraftTree
from laser_retriever.calibration import NUM_SCALING_ROWS, Scalings, no_scalings
from laser_retriever.estimation import num_features
from laser_retriever.growth import (
    ANCESTOR_WEIGHT,
    BEGIN_BONUS,
    BUDGET,
    ENOUGH,
    MAX_DEPTH,
    MAX_LOOKUPS,
    MAX_OWN_MATCHES,
    MAX_PER_LATER_SEARCH,
    MAX_PER_SEARCH,
    MIN_PROB,
    MIN_UNSEEN,
    NUM_PROMPT,
    NUM_REQUEST_COLUMNS,
    NUM_SETTINGS,
    NUM_SOURCES,
    OWN_WEIGHT,
    SCALINGS,
    SOURCES,
    TEXT,
    TEXT_LEN,
    Model,
    Trees,
    Workspace,
    grow_trees,
)
from laser_retriever.matching import MAX_MATCH_LENGTH, SEARCH_LENGTHS
from laser_retriever.sources import Sources
from laser_retriever.suffix_array import BEGIN_MARK, END_MARK

# In place of a number of nodes.
NOT_GROWN = -1


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
        max_per_search: most of them from the pools between one match length searched for and the next, at the root.
        max_per_later_search: the same at other nodes.
        max_own_matches: most of them from the sequence itself.
        enough: once matches weigh this much, shorter ones are left out.
        max_lookups: most lookups for one tree: at its root, then at nodes where fewer matches than `enough` are left
            and `min_unseen` says yes.
        max_depth: longest path.
        min_unseen: a node is looked up if it is reached, and left by none of its known children, with this probability.
    """

    coefficients: tuple[float, ...] = ()
    level_lengths: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 11, 16, 24, 32)
    own_weight: float = 1.0
    ancestor_weight: float = 0.7
    begin_bonus: int = 16
    min_prob: float = 0.001
    max_matches: int = 2048
    max_per_search: int = 64
    max_per_later_search: int = 32
    max_own_matches: int = 64
    enough: float = 16.0
    max_lookups: int = 8
    max_depth: int = 48
    min_unseen: float = 0.02

    def __post_init__(self) -> None:
        if not self.coefficients:
            object.__setattr__(self, "coefficients", fitted_coefficients())
        needed = num_features(len(self.level_lengths))
        if len(self.coefficients) != needed:
            raise ValueError(f"coefficients has {len(self.coefficients)} values, must have {needed}")
        if self.level_lengths[0] != 1 or list(self.level_lengths) != sorted(set(self.level_lengths)):
            raise ValueError(f"level_lengths is {self.level_lengths}, must rise strictly from 1")


class TokenBuffer:
    """A sequence's tokens: prompt and output so far, and an end mark behind them, in a buffer that grows by doubling.

    Attributes:
        num_prompt_tokens: how many are prompt.
        num_tokens: how many there are: the position.
        address: of the first; changes when the buffer grows.
    """

    __slots__ = ("_tokens", "address", "num_prompt_tokens", "num_tokens")

    def __init__(self, num_prompt_tokens: int) -> None:
        self.num_prompt_tokens = num_prompt_tokens
        self.num_tokens = 0
        self._tokens = np.full(512, END_MARK, np.int32)
        self.address: int = self._tokens.ctypes.data

    def extend(self, token_ids: NDArray[np.int32]) -> None:
        """Appends tokens."""
        end = self.num_tokens + len(token_ids)
        if end >= len(self._tokens):
            grown = np.empty(max(end + 1, 2 * len(self._tokens)), np.int32)
            grown[: self.num_tokens] = self._tokens[: self.num_tokens]
            self._tokens = grown
            self.address = grown.ctypes.data
        self._tokens[self.num_tokens : end] = token_ids
        self._tokens[end] = END_MARK
        self.num_tokens = end

    @property
    def tokens(self) -> NDArray[np.int32]:
        """int32[num_tokens] (view)."""
        return self._tokens[: self.num_tokens]

    def tail(self) -> NDArray[np.int32]:
        """int32[<= MAX_MATCH_LENGTH]: the tail that pools are searched for: the output behind its begin mark."""
        start = max(self.num_prompt_tokens - 1, self.num_tokens - MAX_MATCH_LENGTH)
        tail = self._tokens[start : self.num_tokens].copy()
        if start < self.num_prompt_tokens:
            tail[0] = BEGIN_MARK
        return tail


# Not frozen, as values elsewhere are: there is one for every tree, and making it would take three times as long.
@dataclass(slots=True, eq=False)
class DraftRequest:
    """A tree asked for.

    Attributes:
        buffer: at least one token.
        sources: what its pool gives; the buffer's own tokens are matched beside them.
        node_budget: most nodes.
        scalings: of a `Calibration`; None: none.
    """

    buffer: TokenBuffer
    sources: Sources
    node_budget: int
    scalings: Scalings | None = None


class DraftBatch:
    """Trees asked for together and the room for them; any number of threads grow them, each with its `TreeDrafter`.

    Args:
        requests: one or more.
        no_scalings: for requests without.

    Attributes:
        table: int64[B, NUM_REQUEST_COLUMNS], the requests as the kernels want them.
        trees, num_nodes: see `grow_trees`; NOT_GROWN where no thread has grown the tree.
        next_tree: int64[1], the first that no thread has taken.
        max_sources: most sources of one request.
        longest_text: most tokens of one request.
    """

    def __init__(self, requests: Sequence[DraftRequest], no_scalings: Scalings) -> None:
        self._requests = requests
        self.table = np.array([_row(request, no_scalings) for request in requests], np.int64)
        self.trees = Trees.room(len(requests), max(request.node_budget for request in requests))
        self.num_nodes = np.full(len(requests), NOT_GROWN, np.int64)
        self.next_tree = np.zeros(1, np.int64)
        self.max_sources = max(len(request.sources.table) for request in requests)
        self.longest_text = int(self.table[:, TEXT_LEN].max())

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def is_taken(self) -> bool:
        """Whether every tree has been taken up by some thread."""
        return bool(self.next_tree[0] >= len(self._requests))

    @property
    def num_late(self) -> int:
        """Trees that no thread has grown."""
        return int(np.count_nonzero(self.num_nodes == NOT_GROWN))

    def drafts(self) -> list[Draft]:
        """The trees; those that no thread has grown have no nodes."""
        return [
            Draft(self.trees, i, max(n, 0), request.buffer.num_tokens)
            for i, (request, n) in enumerate(zip(self._requests, self.num_nodes.tolist(), strict=True))
        ]


def _row(request: DraftRequest, no_scalings: Scalings) -> list[int]:
    row = [0] * NUM_REQUEST_COLUMNS
    buffer, sources = request.buffer, request.sources
    row[TEXT], row[TEXT_LEN], row[NUM_PROMPT] = buffer.address, buffer.num_tokens, buffer.num_prompt_tokens
    row[SOURCES], row[NUM_SOURCES] = sources.address, len(sources.table)
    row[SCALINGS], row[BUDGET] = (request.scalings or no_scalings).address, request.node_budget
    return row


@dataclass(slots=True, eq=False)
class Draft:
    """A tree of a batch, as arrays only when they are asked for.

    Attributes:
        batch: the trees that were grown together.
        row: which of them it is.
        num_nodes: of it.
        position: number of tokens that it continues.
    """

    batch: Trees
    row: int
    num_nodes: int
    position: int

    @property
    def tree(self) -> DraftTree:
        """The tree (views)."""
        made, row, n = self.batch, self.row, self.num_nodes
        return DraftTree(
            self.position, made.token_ids[row, :n], made.parents[row, :n], made.probs[row, :n], made.origins[row, :n]
        )


class TreeDrafter:
    """Drafts trees from given sources. Not thread-safe: one per drafting thread.

    Args:
        params: how matches become probabilities.
        vocab_size: token ids of the trees are below it.
    """

    def __init__(self, params: DraftParams, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._model = model_of(params)
        self._work = Workspace.room(params.max_matches, MAX_NODES, params.max_depth)
        self._no_scalings = no_scalings(len(params.level_lengths))

    def grow(self, batch: DraftBatch, max_trees: int) -> None:
        """Grows trees of the batch that no other thread has taken, at most so many."""
        self._work = self._work.with_room_for(batch.max_sources)
        grow_trees(
            batch.table, NUM_SCALING_ROWS, self._vocab_size, self._model, self._work, batch.trees, batch.num_nodes,
            batch.next_tree, max_trees,
        )  # fmt: skip

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """The trees that continue the requests' tokens."""
        batch = DraftBatch(requests, self._no_scalings)
        self.grow(batch, len(requests))
        return batch.drafts()


def model_of(params: DraftParams) -> Model:
    """The parameters as the kernels want them."""
    settings = np.empty(NUM_SETTINGS)
    settings[MIN_PROB] = params.min_prob
    settings[ENOUGH] = params.enough
    settings[MAX_LOOKUPS] = params.max_lookups
    settings[OWN_WEIGHT] = params.own_weight
    settings[MAX_OWN_MATCHES] = params.max_own_matches
    settings[MAX_PER_SEARCH] = params.max_per_search
    settings[MAX_PER_LATER_SEARCH] = params.max_per_later_search
    settings[BEGIN_BONUS] = params.begin_bonus
    settings[ANCESTOR_WEIGHT] = params.ancestor_weight
    settings[MAX_DEPTH] = params.max_depth
    settings[MIN_UNSEEN] = params.min_unseen
    lengths = np.arange(params.level_lengths[-1] + 1)
    levels = np.maximum(np.searchsorted(params.level_lengths, lengths, side="right") - 1, 0).astype(np.int64)
    return Model(np.array(SEARCH_LENGTHS, np.int64), levels, np.array(params.coefficients), settings)
