"""Trees for the engine's sequences: asked for, collected, checked, and cut to what is worth verifying."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from laser_protocol.tree import DraftTree, MalformedTree
from laser_verifier.counters import EngineCounters
from laser_verifier.draft_budget import Choice
from laser_verifier.draft_policy import DraftPolicy
from laser_verifier.drafts import DraftSource, Opened
from laser_verifier.observer import Observer
from laser_verifier.sequence import Sequence
from laser_verifier.throttle import Throttle

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepDrafts:
    """A step's trees.

    Attributes:
        trees: by sequence_id, cut to what is verified.
        num_asked: trees asked for.
        num_offered_nodes: of the trees before they were cut.
        choice: how they were cut.
    """

    trees: dict[int, DraftTree]
    num_asked: int
    num_offered_nodes: int
    choice: Choice


class Drafting:
    """Stands between the engine and a DraftSource. Used by the engine thread.

    Args:
        source: gives trees. policy: says which nodes are worth it. vocab_size: token ids must be below it.
        counters, observer: told of trees that are dropped.
    """

    def __init__(
        self,
        source: DraftSource,
        policy: DraftPolicy,
        vocab_size: int,
        counters: EngineCounters,
        observer: Observer,
    ) -> None:
        self._source = source
        self._policy = policy
        self._vocab_size = vocab_size
        self._counters = counters
        self._observer = observer
        self._warnings = Throttle()

    def open(self, sequence: Sequence) -> None:
        """Begins a sequence: its first tree is asked for."""
        request = sequence.request
        budget = self.ask(sequence)
        self._source.open(
            Opened(sequence.sequence_id, request.pool, sequence.prompt, request.acceptance, request.temperature, budget)
        )

    def ask(self, sequence: Sequence) -> int:
        """Nodes to ask for in the sequence's next tree."""
        # The last token needs no draft: the bonus token is it.
        sequence.node_budget = self._policy.node_budget() if sequence.num_remaining > 1 else 0
        return sequence.node_budget

    def collect(self, scheduled: Seq[tuple[Sequence, int]]) -> StepDrafts:
        """The trees of a step's sequences, given with how many of their pending tokens run."""
        at_end = [sequence for sequence, num_tokens in scheduled if num_tokens == sequence.num_pending]
        drafting = [s for s in at_end if s.request.draft and s.node_budget]
        if not drafting:
            return StepDrafts({}, 0, 0, Choice([], 0.0, 0.0, 1.0))
        timeout_s = self._policy.wait_s(len(at_end))
        collected = self._source.collect({s.sequence_id: s.num_tokens for s in drafting}, timeout_s)
        trees: dict[int, DraftTree] = {}
        for sequence in drafting:
            tree = collected.get(sequence.sequence_id)
            if tree is None:
                continue
            if tree.position != sequence.num_tokens:
                self._counters.num_stale_trees += 1
                self._observer.dropped_tree("stale")
                continue
            if not self._is_well_formed(sequence, tree):
                # As good as an empty one, and counted as that: else better ones would be waited for, for ever.
                tree = DraftTree.empty(sequence.num_tokens)
            trees[sequence.sequence_id] = _up_to_depth(tree, sequence.num_remaining - 1)
        num_verified_tokens = sum(num_tokens for _, num_tokens in scheduled)
        choice = self._policy.choose(list(trees.values()), num_verified_tokens, len(at_end))
        return StepDrafts(
            {i: tree.prefix(n) for (i, tree), n in zip(trees.items(), choice.num_nodes, strict=True)},
            len(drafting),
            sum(len(tree) for tree in trees.values()),
            choice,
        )

    def _is_well_formed(self, sequence: Sequence, tree: DraftTree) -> bool:
        try:
            tree.check(sequence.node_budget, self._vocab_size)
        except MalformedTree as error:
            self._counters.num_malformed_trees += 1
            self._observer.dropped_tree("malformed")
            if num_told := self._warnings.count():
                logger.warning(
                    "draft.malformed sequence_id=%d num_told=%d error=%s", sequence.sequence_id, num_told, error
                )
            return False
        return True


def _up_to_depth(tree: DraftTree, max_depth: int) -> DraftTree:
    """The longest prefix without a deeper node: deeper ones cannot be emitted, and would stand beyond the context."""
    if len(tree) <= max_depth:
        return tree
    too_deep = np.flatnonzero(tree.depths() > max_depth)
    return tree.prefix(int(too_deep[0])) if len(too_deep) else tree
