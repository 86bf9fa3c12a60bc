"""The open sequences of one draft stream: opened, advanced by what was emitted, drafted for, closed.

The draft stream's adapter and in-process users (tests, `benchmarks/replay.py`) drive the same object.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laser_protocol.acceptance import Acceptance, Strict
from laser_protocol.errors import InvalidRequest
from laser_protocol.fingerprint import check_fingerprint
from laser_protocol.pool_id import check_pool_id
from laser_protocol.tree import MAX_NODES, MAX_VOCAB_SIZE, DraftTree
from laser_retriever.calibration import Calibration, Key, key_of, no_scalings
from laser_retriever.feedback import Feedback, begins_with_path, first_outside
from laser_retriever.outcomes import Outcomes
from laser_retriever.sources import PoolStatus, SourceProvider
from laser_retriever.tree_drafter import Draft, DraftBatch, DraftParams, DraftRequest, TokenBuffer, TreeDrafter

# Trees grown together: a sequence keeps the arrays of its last batch, so these stay small.
MAX_TREES_PER_BATCH = 64
# Trees of one kernel call: many enough to make the call cheap, few enough to look at the clock between them. Of long
# texts fewer: a lookup goes over all of a sequence's own tokens.
MAX_TREES_PER_CALL = 8
MAX_TOKENS_PER_CALL = 65_536
# Below so many a message is not worth a second thread.
MIN_TREES_PER_THREAD = 8


@dataclass(slots=True, eq=False)
class _Sequence:
    buffer: TokenBuffer
    pool: str
    calibration_key: Key
    last_draft: Draft | None = None


class Drafter:
    """The sequences of one draft stream. Not thread-safe: one call at a time.

    Args:
        provider: gives each sequence's sources, asked anew for every tree.
        fingerprint: tokenizer of the stream's sequences.
        vocab_size: token ids of trees are below it.
        params: how matches become probabilities.
        max_sequences: most open at once.
        num_threads: most that draft for the stream at once.
        calibration: shared by all streams of a process; None: one of its own.

    Attributes:
        feedback: what became of the trees.
        num_late: trees left empty because the deadline had passed.

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
        num_threads: int = 1,
        calibration: Calibration | None = None,
    ) -> None:
        check_fingerprint(fingerprint)
        if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
            raise InvalidRequest(f"vocab_size is {vocab_size}, must be from 1 to {MAX_VOCAB_SIZE}", field="vocab_size")
        self._provider = provider
        self._fingerprint = fingerprint
        self._vocab_size = vocab_size
        params = params or DraftParams()
        self._no_scalings = no_scalings(len(params.level_lengths))
        self._tree_drafters = [TreeDrafter(params, vocab_size) for _ in range(num_threads)]
        self._calibration = Calibration(len(params.level_lengths)) if calibration is None else calibration
        self._max_sequences = max_sequences
        self._sequences: dict[int, _Sequence] = {}
        # Of trees that were grown together, by their identity, and are calibrated alike.
        self._outcomes: dict[tuple[int, Key], Outcomes] = {}
        self.feedback = Feedback()
        self.num_late = 0

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
        temperature: float = 0.0,
    ) -> PoolStatus:
        """Takes up a sequence.

        Args:
            sequence_id: not open yet.
            pool: pool id, or "": drafted from the sequence itself only.
            token_ids: int32[T], prompt and output so far, copied.
            num_prompt_tokens: how many of them are prompt, 1 to T.
            model, acceptance, temperature: what probabilities are calibrated for.

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
        if not (math.isfinite(temperature) and temperature >= 0.0):
            raise InvalidRequest(f"temperature is {temperature}, must be a number from 0", field="temperature")
        buffer = TokenBuffer(num_prompt_tokens)
        buffer.extend(tokens)
        key = key_of(model, acceptance or Strict(), pool, temperature)
        self._sequences[sequence_id] = _Sequence(buffer, pool, key)
        return self._provider.sources(pool, self._fingerprint)[0]

    def advance(
        self,
        sequence_id: int,
        position: int,
        token_ids: ArrayLike,
        num_verified_nodes: int = 0,
        accepted_node_idx: int = -1,
    ) -> None:
        """Appends what a step emitted, and notes what became of the last tree. A fault closes the sequence.

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
            self._note_outcome(sequence, tokens, num_verified_nodes, accepted_node_idx)
        except InvalidRequest:
            self.close(sequence_id)
            raise
        sequence.buffer.extend(tokens)
        sequence.last_draft = None

    def draft(self, sequence_id: int, node_budget: int) -> DraftTree:
        """The draft tree at the sequence's end, of at most `node_budget` nodes (0 to MAX_NODES); calibrates before.

        Raises:
            InvalidRequest: unknown sequence, or the budget is out of range; the latter closes the sequence.
        """
        self.check_budget(sequence_id, node_budget)
        self.calibrate()
        return self.draft_all([(sequence_id, node_budget)])[0].tree

    def check_budget(self, sequence_id: int, node_budget: int) -> None:
        """What `draft_all` relies on.

        Raises:
            InvalidRequest: as for `draft`.
        """
        self._open_sequence(sequence_id)
        if not 0 <= node_budget <= MAX_NODES:
            self.close(sequence_id)
            raise InvalidRequest(f"node_budget is {node_budget}, must be from 0 to {MAX_NODES}", field="node_budget")

    def draft_all(
        self, wanted: Sequence[tuple[int, int]], helpers: Executor | None = None, deadline_s: float = math.inf
    ) -> list[Draft]:
        """The trees of several sequences.

        Args:
            wanted: sequence ids and node budgets that `check_budget` let pass, each sequence once.
            helpers: its threads draft beside the caller's as far as they have nothing else to do.
            deadline_s: by `time.monotonic`; trees not begun then stay empty and count as late.

        Returns:
            The trees, in that order, once all are grown or their time is over.
        """
        sequences = [self._sequences[sequence_id] for sequence_id, _ in wanted]
        requests = [self._request(sequence, budget) for sequence, (_, budget) in zip(sequences, wanted, strict=True)]
        batches = [
            DraftBatch(requests[start : start + MAX_TREES_PER_BATCH], self._no_scalings)
            for start in range(0, len(requests), MAX_TREES_PER_BATCH)
        ]
        num_threads = max(-(-len(wanted) // MIN_TREES_PER_THREAD), 1)
        own, *others = self._tree_drafters[:num_threads]
        helped = [helpers.submit(_grow, other, batches, deadline_s) for other in others] if helpers else []
        _grow(own, batches, deadline_s)
        for future in helped:
            if not future.cancel():  # else it had not begun, and has nothing left to do
                future.result()
        drafts = [draft for batch in batches for draft in batch.drafts()]
        for sequence, draft in zip(sequences, drafts, strict=True):
            sequence.last_draft = draft
        num_late = sum(batch.num_late for batch in batches)
        self.num_late += num_late
        self.feedback.drafted(len(drafts) - num_late, sum(draft.num_nodes for draft in drafts))
        return drafts

    def calibrate(self) -> None:
        """Takes in what became of trees since the last time. Apart from `advance`, so that no tree waits for it."""
        for (_, key), outcomes in self._outcomes.items():
            table = outcomes.table()
            self.feedback.observe(outcomes.trees, table)
            self._calibration.observe(key, outcomes.trees, table)
        self._outcomes.clear()

    def _request(self, sequence: _Sequence, node_budget: int) -> DraftRequest:
        _, sources = self._provider.sources(sequence.pool, self._fingerprint)
        return DraftRequest(
            sequence.buffer, sources, node_budget, self._calibration.scalings(sequence.calibration_key)
        )  # fmt: skip

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
        wrong = first_outside(tokens, self._vocab_size)
        if wrong >= 0:
            raise InvalidRequest(
                f"token_ids[{wrong}] is {tokens[wrong]}, must be from 0 to {self._vocab_size - 1}",
                field="token_ids",
            )
        return tokens

    def _note_outcome(
        self, sequence: _Sequence, tokens: NDArray[np.int32], num_verified_nodes: int, accepted_node_idx: int
    ) -> None:
        draft = sequence.last_draft
        num_nodes = 0 if draft is None else draft.num_nodes
        if not 0 <= num_verified_nodes <= num_nodes:
            raise InvalidRequest(
                f"num_verified_nodes is {num_verified_nodes}, must be from 0 to the {num_nodes} nodes of the last tree",
                field="num_verified_nodes",
            )
        if not -1 <= accepted_node_idx < num_verified_nodes:
            raise InvalidRequest(
                f"accepted_node_idx is {accepted_node_idx}, must be from -1 to {num_verified_nodes - 1}",
                field="accepted_node_idx",
            )
        if not num_verified_nodes or draft is None:
            return
        trees = draft.batch
        if not begins_with_path(trees.parents, trees.token_ids, draft.row, accepted_node_idx, tokens):
            raise InvalidRequest(
                f"accepted_node_idx is {accepted_node_idx}, but the emitted token_ids do not begin with its path",
                field="accepted_node_idx",
            )
        alike = (id(trees), sequence.calibration_key)
        outcomes = self._outcomes.get(alike)
        if outcomes is None:
            outcomes = self._outcomes[alike] = Outcomes(trees)
        outcomes.rows.append((draft.row, num_verified_nodes, accepted_node_idx, len(tokens)))


def _grow(tree_drafter: TreeDrafter, batches: Sequence[DraftBatch], deadline_s: float) -> None:
    """Grows trees until none is left or the time is over."""
    for batch in batches:
        num_trees = min(max(MAX_TOKENS_PER_CALL // batch.longest_text, 1), MAX_TREES_PER_CALL)
        while not batch.is_taken and time.monotonic() <= deadline_s:
            tree_drafter.grow(batch, num_trees)
