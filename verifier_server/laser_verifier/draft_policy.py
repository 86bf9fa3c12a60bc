"""What drafting is worth at present: how long to wait for trees, which nodes to verify, how many to ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from laser_protocol.tree import DraftTree
from laser_verifier.calibration import Calibration
from laser_verifier.config import EngineConfig
from laser_verifier.draft_budget import Choice, choose_nodes
from laser_verifier.step_cost import LearnedCost, StepCost


class DraftPolicy:
    """Verifies the nodes that are worth their cost, over the whole batch, and asks for few where few are.

    Args:
        config: `draft_policy` "all" verifies and asks for all that may be, and waits the full time.
        measured: cost of a forward; None only with "all".
    """

    # A gain below this is within the error of the costs: drafts are then asked for only now and then.
    _MIN_GAIN = 1.02
    _PROBE_STEPS = 16
    _RATE = 0.1
    # Of looks now and then: there are few of them, and what they show should count soon.
    _RATE_PROBING = 0.3

    def __init__(self, config: EngineConfig, measured: StepCost | None) -> None:
        if measured is None and config.draft_policy != "all":
            raise ValueError(f"draft_policy is {config.draft_policy!r}, which needs the measured cost of a step")
        self._config = config
        self.cost = LearnedCost(measured) if measured is not None else None
        self.calibration = Calibration()
        # Averages over the last steps: of the gain, of nodes chosen per sequence. Hopeful at first.
        self.gain = 2.0
        self.num_chosen = float(config.max_draft_nodes)
        self._drafting_s = 0.0
        self._num_steps = 0

    @property
    def _takes_all(self) -> bool:
        return self._config.draft_policy == "all" or self.cost is None

    def wait_s(self, num_sequences: int) -> float:
        """Longest wait for missing trees: a quarter of a plain step, and no more than they are worth."""
        longest_s = self._config.draft_wait_ms / 1e3
        if self.cost is None:
            return longest_s
        # Where drafting does not pay, trees are asked for to see whether that still holds: then they should be seen.
        share = 0.25 if self._takes_all or self.gain < self._MIN_GAIN else min(0.25, self.gain - 1.0)
        return min(longest_s, share * self.cost.now.of(num_sequences))

    def choose(self, trees: Sequence[DraftTree], num_verified_tokens: int, num_sequences: int) -> Choice:
        """How many nodes of each tree to verify.

        Args:
            trees: checked. num_verified_tokens: tokens the step runs anyway, prefill included.
            num_sequences: that get tokens from this step, at least 1.
        """
        probs = [self.calibration(tree.probs) for tree in trees]
        if self._takes_all or self.cost is None:
            return Choice([len(tree) for tree in trees], float(sum(p.sum() for p in probs)), 0.0, math.inf)
        choice = choose_nodes(probs, num_verified_tokens, num_sequences, self.cost.now, self._drafting_s)
        if trees:
            rate = self._RATE if self.gain >= self._MIN_GAIN else self._RATE_PROBING
            self.gain += rate * (min(choice.gain, 4.0) - self.gain)
            self.num_chosen += self._RATE * (sum(choice.num_nodes) / len(trees) - self.num_chosen)
        return choice

    def node_budget(self) -> int:
        """Nodes to ask for per sequence; 0 where drafting does not pay, but for a look now and then."""
        most = self._config.max_draft_nodes
        if self._takes_all:
            return most
        if self.gain < self._MIN_GAIN and self._num_steps % self._PROBE_STEPS:
            return 0
        # Some more than were chosen of late: a text that is met again gives a long tree at once.
        return min(most, 4 + math.ceil(4 * self.num_chosen))

    def observe(self, num_tokens: int, seconds: float, is_plain: bool) -> None:
        """Takes a step's forward.

        Args:
            num_tokens: M. seconds: it took. is_plain: it prefilled nothing; only these correct the cost, since rows of
                a prompt have no logits and attend to little.
        """
        self._num_steps += 1
        if is_plain and self.cost is not None:
            self.cost.observe(num_tokens, seconds)

    def observe_drafting(self, seconds: float) -> None:
        """Takes what a step spent on collecting and choosing from the trees it had asked for."""
        self._drafting_s += self._RATE * (seconds - self._drafting_s)

    def observe_trees(self, outcomes: Sequence[tuple[DraftTree, Sequence[int]]]) -> None:
        """Takes what became of a step's verified trees: each with the node indices on the emitted path."""
        if not any(len(tree) for tree, _ in outcomes):
            return
        masks = [np.zeros(len(tree), bool) for tree, _ in outcomes]
        for mask, (_, path) in zip(masks, outcomes, strict=True):
            mask[list(path)] = True
        self.calibration.observe(np.concatenate([tree.probs for tree, _ in outcomes]), np.concatenate(masks))
