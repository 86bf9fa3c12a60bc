"""What the engine tells whoever watches it, as a Protocol: metrics in production, nothing by default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from laser_protocol.tree import MAX_SOURCE, DraftTree
from laser_verifier.sequence import FinishReason, GenerationStats


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step.

    Attributes:
        num_sequences: that got tokens. num_prompt_tokens: prefilled. num_reused_tokens: of prompts, copied instead.
        num_offered_nodes: nodes of valid trees. num_nodes: of them, verified. expected_tokens: that those were to emit.
        nodes_by_source, accepted_by_source: verified and accepted nodes, index as in DraftTree.sources, last: not said.
        accepted_lengths: of the sequences that had a tree. num_output_tokens: emitted.
        price: probability below which a node was not worth its place. gain: see `Choice`.
        draft_s, forward_s, host_s: wait for drafts and choosing; the runner; everything else.
    """

    num_sequences: int
    num_prompt_tokens: int
    num_reused_tokens: int
    num_offered_nodes: int
    num_nodes: int
    expected_tokens: float
    nodes_by_source: tuple[int, ...]
    accepted_by_source: tuple[int, ...]
    accepted_lengths: tuple[int, ...]
    num_relaxed_tokens: int
    num_output_tokens: int
    price: float
    gain: float
    draft_s: float
    forward_s: float
    host_s: float


def count_sources(chosen: Iterable[tuple[DraftTree, Sequence[int]]]) -> tuple[int, ...]:
    """How many nodes each source speaks for.

    Args:
        chosen: trees, each with the indices of its nodes that count.

    Returns:
        Index as in DraftTree.sources, and one more for nodes that do not say.
    """
    counts = [0] * (MAX_SOURCE + 2)
    for tree, node_idxs in chosen:
        if tree.sources is None:
            counts[-1] += len(node_idxs)
            continue
        sources = tree.sources.tolist()
        for node_idx in node_idxs:
            counts[sources[node_idx]] += 1
    return tuple(counts)


class Observer(Protocol):
    """Called by the engine thread, of ended requests and dropped trees also by others; must not block."""

    def step(self, record: StepRecord) -> None:
        """A step ended."""

    def finished(self, reason: FinishReason, stats: GenerationStats) -> None:
        """A request ended well."""

    def ended(self, reason: str) -> None:
        """A request ended otherwise: "cancelled", "overloaded" or "error"."""

    def dropped_tree(self, reason: str) -> None:
        """A tree was not used: "stale" (for a step that is over) or "malformed"."""


class NoObserver:
    """Watches nothing."""

    def step(self, record: StepRecord) -> None:
        """Nothing to do."""

    def finished(self, reason: FinishReason, stats: GenerationStats) -> None:
        """Nothing to do."""

    def ended(self, reason: str) -> None:
        """Nothing to do."""

    def dropped_tree(self, reason: str) -> None:
        """Nothing to do."""
