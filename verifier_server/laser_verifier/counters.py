"""What an engine did since it started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineCounters:
    """What the engine did since it started."""

    num_steps: int = 0
    num_output_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_malformed_trees: int = 0
    num_stale_trees: int = 0
    num_reused_tokens: int = 0
