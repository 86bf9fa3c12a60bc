"""Whether the engine waits for a shard's trees."""

from __future__ import annotations

from dataclasses import dataclass

_MISSES_TO_STOP_WAITING = 3
# Answers that came a little too late between two trials of a shard, at most.
_MAX_TRIAL_GAP = 64


@dataclass(slots=True, eq=False)
class ShardPatience:
    """After three steps in a row without its trees a shard is not waited for, until it answers in time again.

    Without waiting no tree is there when it is collected, so that alone would never bring a shard back: what counts
    then is how long its answers take. A retriever on the verifier's own processors is slower while nobody waits for it:
    one that answers within twice the time is tried once more, after one such answer, then after two, four and so on.
    """

    num_misses: int = 0
    num_near_misses: int = 0
    next_trial: int = 1

    @property
    def is_worth_waiting(self) -> bool:
        """Whether a step should wait for its trees."""
        return self.num_misses < _MISSES_TO_STOP_WAITING

    def missed(self) -> None:
        """A step went on without a tree of its."""
        self.num_misses += 1

    def kept(self) -> None:
        """A step had all trees of its."""
        self.num_misses, self.next_trial = 0, 1

    def answered(self, took_s: float, allowed_s: float) -> None:
        """It answered after `took_s`, where the engine waits `allowed_s` at most."""
        if took_s <= allowed_s:
            self.num_misses = 0
        elif took_s <= 2 * allowed_s and not self.is_worth_waiting:
            self.num_near_misses += 1
            if self.num_near_misses >= self.next_trial:
                self.num_misses = _MISSES_TO_STOP_WAITING - 1
                self.num_near_misses, self.next_trial = 0, min(2 * self.next_trial, _MAX_TRIAL_GAP)
