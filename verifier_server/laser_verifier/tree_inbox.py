"""Draft trees between the event loop, to which they come, and the engine thread, which waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from laser_protocol.tree import DraftTree
from laser_verifier.drafts import Advanced
from laser_verifier.observer import Observer
from laser_verifier.sequence import DraftStatus
from laser_verifier.shard_patience import ShardPatience


@dataclass(slots=True)
class DraftCounters:
    """What became of the traffic; read by tests and metrics."""

    num_trees: int = 0
    num_malformed: int = 0
    num_missing: int = 0
    num_late: int = 0
    num_failovers: int = 0
    num_faults: int = 0


class TreeInbox:
    """At most one tree for each open sequence, and whether a step should wait for those that are not there yet.

    Thread-safe. Of a shard it knows its patience, which stands for it: every connection has another.

    Args:
        observer: told of trees that nobody read. counters: written here and by whoever made them.
    """

    def __init__(self, observer: Observer, counters: DraftCounters) -> None:
        self._observer = observer
        self._counters = counters
        # Guards the rest, and the patience of shards.
        self._condition = threading.Condition()
        self._trees: dict[int, DraftTree] = {}
        self._statuses: dict[int, DraftStatus] = {}
        self._shard_of: dict[int, ShardPatience] = {}
        # Opened, but the event loop did not come to choose a shard yet.
        self._unassigned: set[int] = set()
        # When each sequence's outstanding tree was asked for, and how long the engine waits at most.
        self._asked_s: dict[int, float] = {}
        self._allowed_s = 0.0

    # From the engine thread.

    def open(self, sequence_id: int, node_budget: int) -> None:
        """A sequence begins; without a budget no tree is asked for, and none can be late."""
        with self._condition:
            self._unassigned.add(sequence_id)
            if node_budget:
                self._asked_s[sequence_id] = time.monotonic()

    def advance(self, steps: Iterable[Advanced]) -> None:
        """The next trees are asked for."""
        now_s = time.monotonic()
        with self._condition:
            for step in steps:
                self._asked_s.pop(step.sequence_id, None)
                if step.node_budget:
                    self._asked_s[step.sequence_id] = now_s

    def collect(self, positions: Mapping[int, int], timeout_s: float) -> dict[int, DraftTree]:
        """See DraftSource. Waits only for shards that did not miss three times in a row."""
        deadline = time.monotonic() + timeout_s
        with self._condition:
            self._allowed_s = timeout_s
            while missing := [i for i in positions if self._is_worth_waiting_for(i, positions[i])]:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._condition.wait(left_s):
                    break
            late = {self._shard_of[i] for i in missing if i in self._shard_of}
            for shard in late:
                shard.missed()
            found = {i: self._trees.pop(i) for i, position in positions.items() if self._has(i, position)}
            self._counters.num_missing += sum(i in self._shard_of for i in positions if i not in found)
            for i, position in positions.items():
                self._drop_stale(i, position)
            # A shard that answers some sequences and never others is late all the same.
            for shard in {self._shard_of[i] for i in found if i in self._shard_of} - late:
                if all(i in found for i in positions if self._shard_of.get(i) is shard):
                    shard.kept()
            return found

    def status(self, sequence_id: int) -> DraftStatus:
        """See DraftSource."""
        with self._condition:
            return self._statuses.get(sequence_id, DraftStatus.NO_RETRIEVER)

    # From the event loop.

    def assign(self, sequence_id: int, shard: ShardPatience | None) -> None:
        """A shard was chosen for a sequence, or there is none."""
        with self._condition:
            self._unassigned.discard(sequence_id)
            if shard is not None:
                self._shard_of[sequence_id] = shard
            self._condition.notify_all()

    def unassign(self, sequence_ids: Iterable[int]) -> None:
        """The sequences' shard is lost, or gave them up: whoever waits for it waits for nothing."""
        with self._condition:
            for sequence_id in sequence_ids:
                self._shard_of.pop(sequence_id, None)
            self._condition.notify_all()

    def forget(self, sequence_id: int) -> None:
        """A sequence has ended."""
        with self._condition:
            self._trees.pop(sequence_id, None)
            self._statuses.pop(sequence_id, None)
            self._shard_of.pop(sequence_id, None)
            self._unassigned.discard(sequence_id)
            self._asked_s.pop(sequence_id, None)
            self._condition.notify_all()

    def deliver(
        self, shard: ShardPatience, trees: Mapping[int, DraftTree], statuses: Mapping[int, DraftStatus | None]
    ) -> None:
        """A shard answered: trees and what it drafts from, by sequence. What is not its sequence's any more is late."""
        with self._condition:
            for sequence_id, status in statuses.items():
                if status is not None and self._shard_of.get(sequence_id) is shard:
                    self._statuses[sequence_id] = status
            for sequence_id, tree in trees.items():
                if self._shard_of.get(sequence_id) is shard:
                    self._drop_stale(sequence_id, tree.position)
                    self._trees[sequence_id] = tree
                    self._counters.num_trees += 1
                else:
                    self._counters.num_late += 1
            self._judge(shard, trees)
            self._condition.notify_all()

    def holds(self, sequence_id: int, position: int) -> bool:
        """Whether a tree for this position is there."""
        with self._condition:
            return self._has(sequence_id, position)

    # With the condition held.

    def _is_worth_waiting_for(self, sequence_id: int, position: int) -> bool:
        if self._has(sequence_id, position):
            return False
        shard = self._shard_of.get(sequence_id)
        if shard is None:
            return sequence_id in self._unassigned
        return shard.is_worth_waiting

    def _has(self, sequence_id: int, position: int) -> bool:
        tree = self._trees.get(sequence_id)
        return tree is not None and tree.position == position

    def _drop_stale(self, sequence_id: int, position: int) -> None:
        """Drops a tree for an earlier position than this one: nobody read it in time."""
        tree = self._trees.get(sequence_id)
        if tree is not None and tree.position < position:
            del self._trees[sequence_id]
            self._observer.dropped_tree("stale")

    def _judge(self, shard: ShardPatience, trees: Mapping[int, DraftTree]) -> None:
        """Has the shard's patience know how long this answer took, unless another one is overdue."""
        now_s = time.monotonic()
        asked = [self._asked_s.pop(i) for i in trees if i in self._asked_s and self._shard_of.get(i) is shard]
        waiting = [at for i, at in self._asked_s.items() if self._shard_of.get(i) is shard]
        if not asked or (waiting and now_s - min(waiting) > self._allowed_s):
            return
        shard.answered(now_s - min(asked), self._allowed_s)
