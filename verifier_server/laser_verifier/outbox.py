"""What waits to be sent to one shard, and the sequences that it is about."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from laser_protocol.acceptance import Acceptance, acceptance_to_message
from laser_protocol.v1 import retriever_pb2
from laser_verifier.drafts import Advanced


@dataclass(slots=True)
class RemoteSequence:
    """All a shard needs to take a sequence over.

    Attributes:
        token_ids: prompt and output so far.
        node_budget: largest tree wanted next.
    """

    sequence_id: int
    pool: str
    acceptance: Acceptance
    temperature: float
    num_prompt_tokens: int
    token_ids: list[int]
    node_budget: int


@dataclass(slots=True)
class Outbox:
    """What waits to be sent to one shard. Bounded by the number of sequences: later advances join earlier ones."""

    _opens: dict[int, RemoteSequence] = field(default_factory=dict)
    _advances: dict[int, retriever_pb2.AdvanceSequence] = field(default_factory=dict)
    _closes: list[int] = field(default_factory=list)

    def open(self, sequence: RemoteSequence) -> None:
        """Adds a sequence, which is sent as it will be then."""
        self._opens[sequence.sequence_id] = sequence

    def advance(self, step: Advanced) -> None:
        """Adds a step. If the one before was not sent yet, the shard is behind: no tree of its was verified since."""
        if step.sequence_id in self._opens:
            # Not opened there yet: the open will carry these tokens.
            return
        packed = np.ascontiguousarray(step.token_ids, "<i4").tobytes()
        waiting = self._advances.get(step.sequence_id)
        if waiting is not None:
            waiting.token_ids += packed
            waiting.node_budget = step.node_budget
            return
        self._advances[step.sequence_id] = retriever_pb2.AdvanceSequence(
            sequence_id=step.sequence_id,
            position=step.position,
            token_ids=packed,
            num_verified_nodes=step.num_verified_nodes,
            accepted_node_idx=step.accepted_node_idx,
            node_budget=step.node_budget,
        )

    def close(self, sequence_id: int) -> None:
        """Forgets what waits for a sequence and adds its close."""
        self._advances.pop(sequence_id, None)
        if self._opens.pop(sequence_id, None) is None:
            self._closes.append(sequence_id)

    def take(self, model: str, max_bytes: int) -> retriever_pb2.DraftRequest:
        """What waits, as one message; what finds no room stays for the next one.

        Args:
            model: name of the target model.
            max_bytes: a message of that size takes no more in, so it is larger by one sequence's tokens at most.
        """
        request = retriever_pb2.DraftRequest(closes=self._closes)
        self._closes = []
        size_bytes = request.ByteSize()
        # Sequences that run already wait for their trees; one that opens has a prompt to go through first.
        while self._advances and size_bytes < max_bytes:
            advance = self._advances.pop(next(iter(self._advances)))
            request.advances.append(advance)
            size_bytes += advance.ByteSize()
        while self._opens and size_bytes < max_bytes:
            sequence = self._opens.pop(next(iter(self._opens)))
            opened = request.opens.add(
                sequence_id=sequence.sequence_id,
                pool=sequence.pool,
                token_ids=np.asarray(sequence.token_ids, "<i4").tobytes(),
                num_prompt_tokens=sequence.num_prompt_tokens,
                model=model,
                acceptance=acceptance_to_message(sequence.acceptance),
                temperature=sequence.temperature,
                node_budget=sequence.node_budget,
            )
            size_bytes += opened.ByteSize()
        return request

    def __bool__(self) -> bool:
        return bool(self._opens or self._advances or self._closes)
