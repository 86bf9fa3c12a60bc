"""The open sequences of one draft stream: opened, advanced by what was emitted, drafted for, closed.

The draft stream's adapter and in-process users (tests, `benchmarks/replay.py`) drive the same object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laser_protocol.acceptance import Acceptance, Strict
from laser_protocol.errors import InvalidRequest
from laser_protocol.pool_id import check_pool_id
from laser_protocol.tree import MAX_NODES, MAX_VOCAB_SIZE, DraftTree
from laser_retriever.drafter import DraftParams, DraftRequest, TokenBuffer, TreeDrafter
from laser_retriever.index import Sources
from laser_retriever.pools import PoolStatus

NUM_DECILES = 10


class SourceProvider(Protocol):
    """Where a sequence's sources come from; `Pools` is one."""

    def sources(self, pool: str, fingerprint: str) -> tuple[PoolStatus, Sources]: ...


@dataclass(slots=True, eq=False)
class Feedback:
    """What became of the trees of a stream; the material of a calibration.

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

    def drafted(self, tree: DraftTree) -> None:
        """Counts a tree sent out."""
        self.num_trees += 1
        self.num_nodes += len(tree)

    def observe(self, tree: DraftTree, num_verified_nodes: int, accepted_path: list[int]) -> None:
        """Counts what a verifier found: the first `num_verified_nodes` nodes were looked at, the path was accepted."""
        probs = tree.probs[:num_verified_nodes].astype(np.float64)
        deciles = np.minimum((probs * NUM_DECILES).astype(np.int64), NUM_DECILES - 1)
        accepted = np.zeros(num_verified_nodes)
        accepted[accepted_path] = 1.0
        for row, values in zip(self.verified_per_decile, (np.ones(num_verified_nodes), probs, accepted), strict=True):
            row += np.bincount(deciles, values, NUM_DECILES)
        self.num_verified += num_verified_nodes
        self.num_accepted += len(accepted_path)


@dataclass(slots=True, eq=False)
class _Sequence:
    buffer: TokenBuffer
    pool: str
    model: str
    acceptance: Acceptance
    last_tree: DraftTree | None = None


class Drafter:
    """The sequences of one draft stream. Not thread-safe: one call at a time.

    Args:
        provider: gives each sequence's sources, asked anew for every tree.
        fingerprint: tokenizer of the stream's sequences.
        vocab_size: token ids of trees are below it.
        params: how matches become probabilities.
        max_sequences: most open at once.

    Raises:
        InvalidRequest: fingerprint or vocab_size is out of range.
    """

    def __init__(
        self,
        provider: SourceProvider,
        fingerprint: str,
        vocab_size: int,
        params: DraftParams | None = None,
        max_sequences: int = 4096,
    ) -> None:
        if not fingerprint:
            raise InvalidRequest("tokenizer_fingerprint is '', must be given", field="tokenizer_fingerprint")
        if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
            raise InvalidRequest(f"vocab_size is {vocab_size}, must be from 1 to {MAX_VOCAB_SIZE}", field="vocab_size")
        self._provider = provider
        self._fingerprint = fingerprint
        self._vocab_size = vocab_size
        self._tree_drafter = TreeDrafter(params or DraftParams(), vocab_size)
        self._max_sequences = max_sequences
        self._sequences: dict[int, _Sequence] = {}
        self.feedback = Feedback()

    def __len__(self) -> int:
        return len(self._sequences)

    def open(
        self,
        sequence_id: int,
        pool: str,
        token_ids: ArrayLike,
        num_prompt_tokens: int,
        *,
        model: str = "",
        acceptance: Acceptance | None = None,
    ) -> PoolStatus:
        """Takes up a sequence.

        Args:
            sequence_id: not open yet.
            pool: pool id, or "": drafted from the sequence itself only.
            token_ids: int32[T], prompt and output so far, copied.
            num_prompt_tokens: how many of them are prompt, 1 to T.
            model, acceptance: what probabilities are calibrated for.

        Returns:
            What became of the pool.

        Raises:
            InvalidRequest: names the field and what would be right.
        """
        if sequence_id in self._sequences:
            raise InvalidRequest(f"sequence_id {sequence_id} is open already", field="sequence_id")
        if len(self._sequences) >= self._max_sequences:
            raise InvalidRequest(
                f"sequence_id {sequence_id} is one too many: at most {self._max_sequences} may be open on a stream",
                field="sequence_id",
            )
        if pool:
            check_pool_id(pool)
        tokens = self._check_tokens(token_ids)
        if not 1 <= num_prompt_tokens <= len(tokens):
            raise InvalidRequest(
                f"num_prompt_tokens is {num_prompt_tokens}, must be from 1 to the {len(tokens)} token_ids",
                field="num_prompt_tokens",
            )
        buffer = TokenBuffer(num_prompt_tokens)
        buffer.extend(tokens)
        self._sequences[sequence_id] = _Sequence(buffer, pool, model, acceptance or Strict())
        return self._provider.sources(pool, self._fingerprint)[0]

    def advance(
        self,
        sequence_id: int,
        position: int,
        token_ids: ArrayLike,
        num_verified_nodes: int = 0,
        accepted_node_idx: int = -1,
    ) -> None:
        """Appends what a step emitted, and takes in what became of the last tree. A fault closes the sequence.

        Args:
            sequence_id: an open one.
            position: its number of tokens before the step.
            token_ids: int32[], at least one.
            num_verified_nodes: how many nodes of the last tree were verified.
            accepted_node_idx: the deepest accepted of them, or -1.

        Raises:
            InvalidRequest: names the field and what would be right.
        """
        sequence = self._open_sequence(sequence_id)
        try:
            if position != sequence.buffer.num_tokens:
                raise InvalidRequest(
                    f"position is {position}, must be {sequence.buffer.num_tokens}, the tokens of the sequence so far",
                    field="position",
                )
            tokens = self._check_tokens(token_ids)
            self._take_feedback(sequence, tokens, num_verified_nodes, accepted_node_idx)
        except InvalidRequest:
            self.close(sequence_id)
            raise
        sequence.buffer.extend(tokens)
        sequence.last_tree = None

    def draft(self, sequence_id: int, node_budget: int) -> DraftTree:
        """The draft tree at the sequence's end, of at most `node_budget` nodes (0 to MAX_NODES).

        Raises:
            InvalidRequest: unknown sequence, or the budget is out of range; the latter closes the sequence.
        """
        sequence = self._open_sequence(sequence_id)
        if not 0 <= node_budget <= MAX_NODES:
            self.close(sequence_id)
            raise InvalidRequest(f"node_budget is {node_budget}, must be from 0 to {MAX_NODES}", field="node_budget")
        _, sources = self._provider.sources(sequence.pool, self._fingerprint)
        tree = self._tree_drafter.draft([DraftRequest(sequence.buffer, sources, node_budget)])[0]
        sequence.last_tree = tree
        self.feedback.drafted(tree)
        return tree

    def close(self, sequence_id: int) -> None:
        """Forgets a sequence; an unknown one is ignored."""
        self._sequences.pop(sequence_id, None)

    def _open_sequence(self, sequence_id: int) -> _Sequence:
        try:
            return self._sequences[sequence_id]
        except KeyError:
            raise InvalidRequest(
                f"sequence_id {sequence_id} is not open, must be one of an Open on this stream", field="sequence_id"
            ) from None

    def _check_tokens(self, token_ids: ArrayLike) -> NDArray[np.int32]:
        tokens = np.asarray(token_ids, np.int32)
        if tokens.ndim != 1 or not len(tokens):
            raise InvalidRequest("token_ids is empty, must hold at least one token", field="token_ids")
        wrong = np.flatnonzero((tokens < 0) | (tokens >= self._vocab_size))
        if len(wrong):
            raise InvalidRequest(
                f"token_ids[{wrong[0]}] is {tokens[wrong[0]]}, must be from 0 to {self._vocab_size - 1}",
                field="token_ids",
            )
        return tokens

    def _take_feedback(
        self, sequence: _Sequence, tokens: NDArray[np.int32], num_verified_nodes: int, accepted_node_idx: int
    ) -> None:
        tree = sequence.last_tree if sequence.last_tree is not None else DraftTree.empty(0)
        if not 0 <= num_verified_nodes <= len(tree):
            raise InvalidRequest(
                f"num_verified_nodes is {num_verified_nodes}, must be from 0 to the {len(tree)} nodes of the last tree",
                field="num_verified_nodes",
            )
        if not -1 <= accepted_node_idx < num_verified_nodes:
            raise InvalidRequest(
                f"accepted_node_idx is {accepted_node_idx}, must be from -1 to {num_verified_nodes - 1}",
                field="accepted_node_idx",
            )
        if not num_verified_nodes:
            return
        path = tree.path(accepted_node_idx)
        if len(path) > len(tokens) or not np.array_equal(tree.token_ids[path], tokens[: len(path)]):
            raise InvalidRequest(
                f"accepted_node_idx is {accepted_node_idx}, but the emitted token_ids do not begin with its path",
                field="accepted_node_idx",
            )
        self.feedback.observe(tree, num_verified_nodes, path)
