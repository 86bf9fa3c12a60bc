"""When trees are asked for and waited for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from laser_protocol.tree import DraftTree
from laser_verifier.config import EngineConfig
from laser_verifier.draft_policy import DraftPolicy
from laser_verifier.drafts import NoDrafts
from laser_verifier.step_cost import StepCost
from tests.verifier.tiny import TinyServer, tiny_model, tiny_network
from tests.verifier.trees import make_tree

# A step of up to 8 tokens costs 20 ms, each further one 4 ms: as much as a sequence's own token where 8 of them decode.
COST = StepCost(np.asarray([1, 8, 108]), np.asarray([0.02, 0.02, 0.42]))


def tree(prob: float, num_nodes: int = 8) -> DraftTree:
    chain = make_tree(10, range(num_nodes), range(-1, num_nodes - 1))
    return DraftTree(chain.position, chain.token_ids, chain.parents, np.full(num_nodes, prob, np.float32))


def run_steps(policy: DraftPolicy, prob: float, num_sequences: int, num_steps: int) -> list[int]:
    """Steps over sequences whose trees all have nodes of this probability. Returns the budgets asked for."""
    budgets: list[int] = []
    for _ in range(num_steps):
        budgets.append(policy.node_budget())
        trees = [tree(prob)] * num_sequences if budgets[-1] else []
        choice = policy.choose(trees, num_sequences, num_sequences)
        num_tokens = num_sequences + sum(choice.num_nodes)
        policy.observe(num_tokens, COST.of(num_tokens), is_plain=True)
    return budgets


def test_where_no_node_pays_trees_are_asked_for_now_and_then_only() -> None:
    policy = DraftPolicy(EngineConfig(), COST)
    budgets = run_steps(policy, prob=0.1, num_sequences=8, num_steps=200)
    assert budgets[0] == 32
    asked = [budget for budget in budgets[-64:] if budget]
    assert len(asked) == 4 and max(asked) < 8


def test_trees_that_are_refused_are_not_hoped_for(caplog: pytest.LogCaptureFixture) -> None:
    class Equal(NoDrafts):
        def collect(self, positions: Mapping[int, int], timeout_s: float) -> dict[int, DraftTree]:
            return {i: make_tree(position, [1, 1], [-1, -1]) for i, position in positions.items()}

    server = TinyServer(tiny_model(tiny_network("llama", seed=0)), Equal(), draft_policy="value", cost=COST)
    outcome = server.submit((1, 2, 3), 200)
    server.run()
    assert len(outcome.token_ids) == 200
    assert 8 < server.engine.counters.num_malformed_trees < 60, (
        "asked for now and then, as where drafts are worth nothing"
    )
    assert len([record for record in caplog.records if "draft.malformed" in record.getMessage()]) < 20


def test_drafting_comes_back_where_it_pays_again() -> None:
    policy = DraftPolicy(EngineConfig(), COST)
    run_steps(policy, prob=0.1, num_sequences=8, num_steps=200)
    assert policy.node_budget() in (0, 5, 6, 7)
    budgets = run_steps(policy, prob=0.9, num_sequences=1, num_steps=64)
    assert min(budgets[-16:]) > 8


def test_drafting_that_takes_longer_than_it_gains_is_left_off() -> None:
    policy = DraftPolicy(EngineConfig(), COST)
    for _ in range(100):
        policy.observe_drafting(1.0)
    budgets = run_steps(policy, prob=0.9, num_sequences=1, num_steps=200)
    assert sum(budget > 0 for budget in budgets[-64:]) == 4


def test_the_wait_for_trees_is_at_most_what_they_gain() -> None:
    config = EngineConfig()
    policy = DraftPolicy(config, COST)
    policy.gain = 1.1
    assert policy.wait_s(1) == pytest.approx(0.1 * 0.02)
    policy.gain = 3.0
    assert policy.wait_s(1) == config.draft_wait_ms / 1e3 <= 0.25 * 0.02


def test_the_policy_all_takes_and_asks_for_everything() -> None:
    policy = DraftPolicy(EngineConfig(draft_policy="all"), None)
    assert run_steps(policy, prob=0.0, num_sequences=4, num_steps=3) == [32, 32, 32]
    assert policy.choose([tree(0.0), tree(0.0, 3)], 2, 2).num_nodes == [8, 3]


def test_the_value_policy_needs_a_measured_cost() -> None:
    with pytest.raises(ValueError, match="draft_policy"):
        DraftPolicy(EngineConfig(), None)
