"""What the engine tells whoever watches it, as a Protocol: metrics in production, nothing by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from laser_verifier.sequence import FinishReason, GenerationStats


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step.

    Attributes:
        num_sequences: that got tokens. num_prompt_tokens: prefilled. num_reused_tokens: of prompts, copied instead.
        num_offered_nodes: nodes of valid trees. num_nodes: of them, verified. expected_tokens: that those were to emit.
        num_missing_trees: sequences whose tree was asked for and was not there.
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
    num_missing_trees: int
    accepted_lengths: tuple[int, ...]
    num_relaxed_tokens: int
    num_output_tokens: int
    price: float
    gain: float
    draft_s: float
    forward_s: float
    host_s: float


class Observer(Protocol):
    """Called by the engine thread; must not block."""

    def step(self, record: StepRecord) -> None:
        """A step ended."""

    def finished(self, reason: FinishReason, stats: GenerationStats) -> None:
        """A request ended well."""

    def ended(self, reason: str) -> None:
        """A request ended otherwise: "cancelled", "overloaded" or "error"."""

    def dropped_tree(self, reason: str) -> None:
        """A tree was not used: "stale" or "malformed"."""


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
