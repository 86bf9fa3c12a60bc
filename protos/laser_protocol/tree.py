"""The draft tree: a proposal for one sequence in one step. Needs numpy; the client never imports it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laser_protocol.v1 import draft_tree_pb2

MAX_NODES = 256
MAX_VOCAB_SIZE = 2**31 - 1
# A pool id has at most 8 components, so a pool at most 7 ancestors.
MAX_SOURCE = 8


class MalformedTree(ValueError):
    """A tree that cannot be verified. It is dropped and counted; the sequence goes on."""


@dataclass(frozen=True, slots=True)
class DraftTree:
    """N nodes in the order grown, so that any prefix of the arrays is a valid tree.

    Attributes:
        position: number of tokens (prompt + output) that the tree continues.
        token_ids: int32[N], token of each node.
        parents: int32[N], -1 <= parents[i] < i; -1 is the last verified token.
        probs: float32[N], probability that the node lies on the emitted path; non-increasing.
        sources: uint8[N], what speaks for the node: 0 only the sequence's own text, 1 the pool, 1 + n its n-th
            ancestor; or None: not said.
    """

    position: int
    token_ids: NDArray[np.int32]
    parents: NDArray[np.int32]
    probs: NDArray[np.float32]
    sources: NDArray[np.uint8] | None = None

    @staticmethod
    def empty(position: int) -> DraftTree:
        """The tree of no nodes."""
        none = np.empty(0, np.int32)
        return DraftTree(position, none, none, np.empty(0, np.float32))

    def __len__(self) -> int:
        return len(self.token_ids)

    def prefix(self, num_nodes: int) -> DraftTree:
        """The tree of the first `num_nodes` nodes (views, no copy)."""
        return DraftTree(
            self.position,
            self.token_ids[:num_nodes],
            self.parents[:num_nodes],
            self.probs[:num_nodes],
            None if self.sources is None else self.sources[:num_nodes],
        )

    def path(self, node_idx: int) -> list[int]:
        """Node indices from the root's child down to `node_idx`; empty for -1."""
        path: list[int] = []
        while node_idx >= 0:
            path.append(node_idx)
            node_idx = int(self.parents[node_idx])
        return path[::-1]

    def depths(self) -> NDArray[np.int32]:
        """int32[N]: depth of each node, 1 for children of the last verified token."""
        depths = np.zeros(len(self), np.int32)
        for i, parent in enumerate(self.parents):
            depths[i] = 1 if parent < 0 else depths[parent] + 1
        return depths

    def check(self, budget: int, vocab_size: int) -> None:
        """Checks all that a verifier relies on.

        Args:
            budget: most nodes allowed.
            vocab_size: token ids must be below it.

        Raises:
            MalformedTree: names the array, the node and what would be right.
        """
        n = len(self.token_ids)
        if len(self.parents) != n or len(self.probs) != n:
            raise MalformedTree(f"lengths differ: {n} token_ids, {len(self.parents)} parents, {len(self.probs)} probs")
        if self.sources is not None and (len(self.sources) != n or (n and self.sources.max() > MAX_SOURCE)):
            raise MalformedTree(f"sources must be none or {n} values from 0 to {MAX_SOURCE}")
        if n > budget:
            raise MalformedTree(f"{n} nodes, at most {budget} were asked for")
        if n == 0:
            return
        # On lists: for the few nodes of a tree that takes half as long as numpy's calls, and it is done for every tree.
        token_ids, parents, probs = self.token_ids.tolist(), self.parents.tolist(), self.probs.tolist()
        if min(token_ids) < 0 or max(token_ids) >= vocab_size:
            raise MalformedTree(f"token_ids must be from 0 to {vocab_size - 1}")
        wrong = next((i for i, parent in enumerate(parents) if not -1 <= parent < i), None)
        if wrong is not None:
            raise MalformedTree(f"parents[{wrong}] is {parents[wrong]}, must be from -1 to {wrong - 1}")
        # Not `any(p > before)`: a NaN must fail too.
        if not all(0.0 <= p <= before for before, p in zip([1.0, *probs], probs, strict=False)):
            raise MalformedTree("probs must be from 0 to 1 and non-increasing")
        if len(set(zip(parents, token_ids, strict=True))) != n:
            raise MalformedTree("siblings must have distinct token_ids")


def tree_to_message(sequence_id: int, tree: DraftTree) -> draft_tree_pb2.DraftTree:
    """The message of a tree."""
    return draft_tree_pb2.DraftTree(
        sequence_id=sequence_id,
        position=tree.position,
        token_ids=np.ascontiguousarray(tree.token_ids, "<i4").tobytes(),
        parents=np.ascontiguousarray(tree.parents, "<i4").tobytes(),
        probs=np.ascontiguousarray(tree.probs, "<f4").tobytes(),
        sources=b"" if tree.sources is None else tree.sources.tobytes(),
    )


def tree_from_message(message: draft_tree_pb2.DraftTree) -> DraftTree:
    """The tree of a message, not yet checked (`DraftTree.check`). Its arrays are read-only views of the message.

    Raises:
        MalformedTree: an array's bytes are no multiple of 4.
    """
    for field in ("token_ids", "parents", "probs"):
        size = len(getattr(message, field))
        if size % 4:
            raise MalformedTree(f"{field} has {size} bytes, must be a multiple of 4")
    return DraftTree(
        message.position,
        np.frombuffer(message.token_ids, "<i4"),
        np.frombuffer(message.parents, "<i4"),
        np.frombuffer(message.probs, "<f4"),
        np.frombuffer(message.sources, np.uint8) if message.sources else None,
    )
