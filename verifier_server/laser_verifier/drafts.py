"""Where drafts come from, as the engine sees it: a Protocol. Production passes the gRPC adapter, tests any object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from laser_protocol.acceptance import Acceptance
from laser_protocol.tree import DraftTree
from laser_verifier.sequence import DraftStatus


@dataclass(frozen=True, slots=True)
class Opened:
    """A sequence begins.

    Attributes:
        pool: pool id or empty.
        token_ids: int32[T], the prompt.
        acceptance, temperature: of the request.
        node_budget: largest tree wanted.
    """

    sequence_id: int
    pool: str
    token_ids: NDArray[np.int32]
    acceptance: Acceptance
    temperature: float
    node_budget: int


@dataclass(frozen=True, slots=True)
class Advanced:
    """What a step made of a sequence's tree.

    Attributes:
        position: tokens before the step's emission.
        token_ids: int32[n], n >= 1, emitted.
        num_verified_nodes: prefix of the tree that was verified.
        accepted_node_idx: deepest accepted node, -1 for none.
        node_budget: largest tree wanted next.
    """

    sequence_id: int
    position: int
    token_ids: NDArray[np.int32]
    num_verified_nodes: int
    accepted_node_idx: int
    node_budget: int


class DraftSource(Protocol):
    """Gives draft trees. No method blocks longer than it says, none raises: drafts are hints."""

    def open(self, opened: Opened) -> None:
        """Begins a sequence; its first tree is for the end of the prompt."""

    def advance(self, steps: list[Advanced]) -> None:
        """Tells what became of the last trees and asks for the next ones."""

    def close(self, sequence_id: int) -> None:
        """Ends a sequence."""

    def collect(self, positions: Mapping[int, int], timeout_s: float) -> dict[int, DraftTree]:
        """The trees that are there for these positions, waiting at most `timeout_s` for missing ones.

        Args:
            positions: sequence_id to the number of its tokens.

        Returns:
            sequence_id to a tree, not yet checked. Sequences without one are absent.
        """

    def status(self, sequence_id: int) -> DraftStatus:
        """What an open sequence is drafted from."""


class NoDrafts:
    """No retriever: plain decoding."""

    def open(self, opened: Opened) -> None:
        """Nothing to do."""

    def advance(self, steps: list[Advanced]) -> None:
        """Nothing to do."""

    def close(self, sequence_id: int) -> None:
        """Nothing to do."""

    def collect(self, positions: Mapping[int, int], timeout_s: float) -> dict[int, DraftTree]:
        """No trees."""
        return {}

    def status(self, sequence_id: int) -> DraftStatus:
        """No retriever."""
        return DraftStatus.NO_RETRIEVER
