"""Draft trees for tests: Hypothesis strategies and DraftSources that give good, random or hostile ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import strategies as st

from laser_protocol.tree import DraftTree
from laser_verifier.drafts import Advanced, Opened
from laser_verifier.sequence import DraftStatus


def make_tree(position: int, token_ids: Sequence[int], parents: Sequence[int]) -> DraftTree:
    """A tree with falling probabilities."""
    n = len(token_ids)
    probs = np.linspace(0.9, 0.1, n) if n else np.empty(0)
    return DraftTree(position, np.asarray(token_ids, np.int32), np.asarray(parents, np.int32), probs.astype(np.float32))


@st.composite
def trees(draw: st.DrawFn, vocab_size: int, max_nodes: int = 12, position: int = 0) -> DraftTree:
    """Any valid tree."""
    token_ids: list[int] = []
    parents: list[int] = []
    taken: set[tuple[int, int]] = set()
    for i in range(draw(st.integers(0, max_nodes))):
        parent = draw(st.integers(-1, i - 1)) if i else -1
        token_id = draw(st.integers(0, vocab_size - 1))
        if (parent, token_id) in taken:
            parent, token_id = next(
                (p, t) for p in range(-1, len(token_ids)) for t in range(vocab_size) if (p, t) not in taken
            )
        taken.add((parent, token_id))
        token_ids.append(token_id)
        parents.append(parent)
    return make_tree(position, token_ids, parents)


class ScriptedDrafts:
    """Remembers each sequence's tokens and gives the tree that `_tree` makes of them. Counts what was accepted."""

    def __init__(self, vocab_size: int, seed: int = 0, num_nodes: int = 8) -> None:
        self.vocab_size = vocab_size
        self.num_nodes = num_nodes
        self.rng = np.random.default_rng(seed)
        self.sequences: dict[int, list[int]] = {}
        self.pools: dict[int, str] = {}
        self.budgets: dict[int, int] = {}
        self.num_accepted = 0
        self.advanced: list[Advanced] = []

    def open(self, opened: Opened) -> None:
        self.sequences[opened.sequence_id] = opened.token_ids.tolist()
        self.pools[opened.sequence_id] = opened.pool
        self.budgets[opened.sequence_id] = opened.node_budget

    def advance(self, steps: list[Advanced]) -> None:
        for step in steps:
            assert step.position == len(self.sequences[step.sequence_id])
            self.sequences[step.sequence_id].extend(step.token_ids.tolist())
            self.budgets[step.sequence_id] = step.node_budget
            self.num_accepted += len(step.token_ids) - 1
        self.advanced.extend(steps)

    def close(self, sequence_id: int) -> None:
        del self.sequences[sequence_id]

    def status(self, sequence_id: int) -> DraftStatus:
        return DraftStatus.OK

    def collect(self, positions: Mapping[int, int], timeout_s: float) -> dict[int, DraftTree]:
        trees = {i: self._tree(i, self.sequences[i]) for i in positions}
        return {i: tree for i, tree in trees.items() if tree is not None}

    def _tree(self, sequence_id: int, token_ids: list[int]) -> DraftTree | None:
        raise NotImplementedError


class RandomDrafts(ScriptedDrafts):
    """Valid trees of random shape and tokens."""

    def _tree(self, sequence_id: int, token_ids: list[int]) -> DraftTree:
        tokens = self.rng.choice(self.vocab_size, self.num_nodes, replace=False)
        parents = [int(self.rng.integers(-1, i)) for i in range(self.num_nodes)]
        return make_tree(len(token_ids), tokens.tolist(), parents)


class GoodDrafts(ScriptedDrafts):
    """The true continuation among decoys, broken off after a random length.

    Args:
        continuations: prompt to the output plain decoding gives.
    """

    def __init__(self, vocab_size: int, continuations: Mapping[tuple[int, ...], Sequence[int]], seed: int = 0) -> None:
        super().__init__(vocab_size, seed)
        self.full = {(*prompt, *output): len(prompt) for prompt, output in continuations.items()}

    def _tree(self, sequence_id: int, token_ids: list[int]) -> DraftTree | None:
        n = len(token_ids)
        whole = next((full for full in self.full if full[:n] == tuple(token_ids)), None)
        if whole is None:
            return None
        right = list(whole[n : n + int(self.rng.integers(1, self.num_nodes))])
        tokens: list[int] = []
        parents: list[int] = []
        last = -1
        for token_id in right:
            decoy = (token_id + 1 + int(self.rng.integers(self.vocab_size - 1))) % self.vocab_size
            # The decoy comes first half of the time, so that accepted nodes are not simply a prefix.
            for value in [decoy, token_id] if self.rng.random() < 0.5 else [token_id, decoy]:
                tokens.append(value)
                parents.append(last)
            last = len(tokens) - 1 if tokens[-1] == token_id else len(tokens) - 2
        budget = self.budgets[sequence_id]
        return make_tree(n, tokens[:budget], parents[:budget])


class HostileDrafts(ScriptedDrafts):
    """Malformed in every way there is, stale, for no sequence, or of the right shape and nonsense."""

    def _tree(self, sequence_id: int, token_ids: list[int]) -> DraftTree:
        n, kind = len(token_ids), int(self.rng.integers(9))
        good = make_tree(n, [1, 2, 3], [-1, 0, 1])
        if kind == 0:
            return make_tree(n, [1, 2, 3], [0, 0, 1])
        if kind == 1:
            return make_tree(n, [1, 2, 3], [-2, 0, 1])
        if kind == 2:
            return make_tree(n, [1, self.vocab_size, 3], [-1, 0, 1])
        if kind == 3:
            return make_tree(n, [1, 1], [-1, -1])
        if kind == 4:
            return make_tree(n + 1, [1, 2], [-1, 0])
        if kind == 5:
            return DraftTree(n, good.token_ids, good.parents[:2], good.probs)
        if kind == 6:
            return DraftTree(n, good.token_ids, good.parents, np.asarray([np.nan, 0.5, 0.4], np.float32))
        if kind == 7:
            return make_tree(n, [token_ids[-1]] * self.num_nodes, list(range(-1, self.num_nodes - 1)))
        tokens = self.rng.choice(self.vocab_size, self.num_nodes, replace=False)
        return make_tree(n, tokens.tolist(), [-1] * self.num_nodes)

    def collect(self, positions: Mapping[int, int], timeout_s: float) -> dict[int, DraftTree]:
        trees = super().collect(positions, timeout_s)
        return {**trees, 10**9: make_tree(3, [1], [-1])}
