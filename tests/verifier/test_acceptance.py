"""The acceptance kernels against the definition, written out node by node in tests/oracles.py."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_protocol.acceptance import Acceptance, Relaxed, Strict
from laser_protocol.tree import DraftTree
from laser_verifier.acceptance import SampledRows, inverse_cdf, target_tokens, top_tokens, verify
from laser_verifier.batch import StepInput, pack
from laser_verifier.sampling import uniform
from tests import oracles
from tests.verifier.trees import make_tree, trees

VOCAB_SIZE = 6
EOS = (2,)
CPU = torch.device("cpu")

acceptances = st.one_of(
    st.just(Strict()),
    st.builds(Relaxed, top_k=st.integers(1, VOCAB_SIZE), min_prob=st.sampled_from([0.0, 0.05, 0.1, 0.3, 1.0])),
)


def step_input(slot_idx: int, tree: DraftTree, acceptance: Acceptance, max_depth: int = 100) -> StepInput:
    last = np.asarray([VOCAB_SIZE - 1], np.int32)
    return StepInput(slot_idx, 3, last, dataclasses.replace(tree, position=4), acceptance, 0.0, 0, 0, max_depth)


def run(inputs: list[StepInput], logits: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """Accepted node, bonus token per sequence and the relaxed flags per row."""
    batch = pack(inputs, CPU)
    assert batch.trees is not None
    decided = verify(torch.from_numpy(logits), batch.trees, torch.tensor(EOS), batch.relaxed, batch.sampled).tolist()
    n = len(inputs)
    return decided[:n], decided[n : 2 * n], decided[2 * n :]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_sequence_of_a_batch_gets_what_the_definition_gives_it(data: st.DataObject) -> None:
    inputs = [
        step_input(slot, data.draw(trees(VOCAB_SIZE)), data.draw(acceptances), data.draw(st.integers(1, 6)))
        for slot in range(data.draw(st.integers(1, 4)))
    ]
    num_rows = sum(1 + len(entry.tree) for entry in inputs if entry.tree is not None)
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    logits = rng.normal(size=(num_rows, VOCAB_SIZE)) * data.draw(st.sampled_from([0.3, 1.0, 3.0]))
    nodes, bonuses, _ = run(inputs, logits)
    start = 0
    for entry, node, bonus in zip(inputs, nodes, bonuses, strict=True):
        assert entry.tree is not None
        rows = logits[start : start + 1 + len(entry.tree)]
        expected = oracles.verify_tree(rows, entry.tree, entry.acceptance, EOS, entry.max_depth)
        assert (node, bonus) == expected
        start += len(rows)


def logits_of(rows: list[dict[int, float]]) -> np.ndarray:
    """Rows of log probabilities; what is not named is very improbable."""
    logits = np.full((len(rows), VOCAB_SIZE), -50.0)
    for i, row in enumerate(rows):
        for token_id, prob in row.items():
            logits[i, token_id] = np.log(prob)
    return logits


def test_relaxed_follows_the_second_choice_when_its_probability_exceeds_min_prob() -> None:
    tree = make_tree(0, [1, 4], [-1, 0])
    logits = logits_of([{0: 0.6, 1: 0.4}, {4: 1.0}, {5: 1.0}])
    nodes, bonuses, relaxed = run([step_input(0, tree, Relaxed(2, 0.1))], logits)
    assert (nodes, bonuses, relaxed[1:]) == ([1], [5], [1, 0])
    assert run([step_input(0, tree, Relaxed(2, 0.4))], logits)[:2] == ([-1], [0])
    assert run([step_input(0, tree, Relaxed(1, 0.1))], logits)[:2] == ([-1], [0])
    assert run([step_input(0, tree, Strict())], logits)[:2] == ([-1], [0])


def test_among_equally_deep_branches_the_more_probable_path_wins() -> None:
    tree = make_tree(0, [1, 0, 4, 4], [-1, -1, 0, 1])
    logits = logits_of([{0: 0.6, 1: 0.4}, {4: 1.0}, {4: 0.9, 5: 0.1}, {3: 1.0}, {3: 1.0}])
    assert run([step_input(0, tree, Relaxed(2, 0.1))], logits)[0] == [3]


def test_a_longer_relaxed_branch_wins_over_a_shorter_one_of_argmaxes() -> None:
    tree = make_tree(0, [0, 1, 4], [-1, -1, 1])
    logits = logits_of([{0: 0.6, 1: 0.4}, {5: 1.0}, {4: 1.0}, {3: 1.0}])
    assert run([step_input(0, tree, Relaxed(2, 0.1))], logits)[:2] == ([2], [3])


def test_an_eos_is_accepted_only_as_the_argmax_and_never_replaced() -> None:
    eos = EOS[0]
    improbable_eos = make_tree(0, [eos], [-1])
    logits = logits_of([{0: 0.6, eos: 0.4}, {5: 1.0}])
    assert run([step_input(0, improbable_eos, Relaxed(2, 0.1))], logits)[:2] == ([-1], [0])
    instead_of_eos = make_tree(0, [1], [-1])
    logits = logits_of([{eos: 0.6, 1: 0.4}, {5: 1.0}])
    assert run([step_input(0, instead_of_eos, Relaxed(2, 0.1))], logits)[:2] == ([-1], [eos])


def test_nothing_is_accepted_after_an_eos() -> None:
    eos = EOS[0]
    tree = make_tree(0, [eos, 1], [-1, 0])
    logits = logits_of([{eos: 1.0}, {1: 1.0}, {3: 1.0}])
    assert run([step_input(0, tree, Strict())], logits)[0] == [0]


def test_no_node_deeper_than_the_remaining_tokens_is_accepted() -> None:
    tree = make_tree(0, [0, 1, 3], [-1, 0, 1])
    logits = logits_of([{0: 1.0}, {1: 1.0}, {3: 1.0}, {4: 1.0}])
    assert [run([step_input(0, tree, Strict(), depth)], logits)[0] for depth in (1, 2, 3)] == [[0], [1], [2]]


def test_a_chain_deeper_than_any_power_of_two_is_followed_to_its_end() -> None:
    length = 37
    tree = make_tree(0, [i % 2 for i in range(length)], list(range(-1, length - 1)))
    logits = logits_of([{i % 2: 1.0} for i in range(length)] + [{5: 1.0}])
    assert run([step_input(0, tree, Strict(), 100)], logits)[:2] == ([length - 1], [5])


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**20))
def test_uniforms_lie_in_the_half_open_unit_interval_and_depend_on_seed_and_position_only(
    seed: int, position: int
) -> None:
    assert 0.0 <= uniform(seed, position) < 1.0
    assert uniform(seed, position) == uniform(seed, position)
    assert uniform(seed, position) != uniform(seed, position + 1)


def test_uniforms_of_neighbouring_seeds_are_spread_and_uncorrelated() -> None:
    values = np.asarray([[uniform(seed, t) for t in range(500)] for seed in range(20)])
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(values.std() - np.sqrt(1 / 12)) < 0.01
    correlations = np.corrcoef(values) - np.eye(20)
    assert np.abs(correlations).max() < 0.2


def test_what_is_sampled_does_not_depend_on_how_many_rows_are_looked_at_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = torch.randn(11, VOCAB_SIZE, generator=torch.Generator().manual_seed(5))
    rows = torch.tensor([0, 1, 2, 4, 5, 6, 7, 9, 10])
    uniforms = torch.tensor([uniform(7, t) for t in range(len(rows))], dtype=torch.float64)
    sampled = SampledRows(rows, torch.full((len(rows),), 1.3), uniforms)
    expected = target_tokens(logits, sampled)
    assert not torch.equal(expected, target_tokens(logits, None))
    monkeypatch.setattr("laser_verifier.acceptance._SAMPLED_ROWS", 4)
    assert torch.equal(target_tokens(logits, sampled), expected)


def test_top_k_of_one_is_strict_beside_any_other_where_logits_tie() -> None:
    logits = np.zeros((3, VOCAB_SIZE), np.float32)  # the argmax is the first token
    for token in range(1, VOCAB_SIZE):
        inputs = [
            step_input(0, make_tree(4, [token], [-1]), Relaxed(top_k=1, min_prob=0.0)),
            step_input(1, make_tree(4, [], []), Relaxed(top_k=5, min_prob=0.0)),
        ]
        assert run(inputs, logits)[0] == [-1, -1]


def test_inverse_cdf_draws_tokens_as_often_as_their_probability_says() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -30.0]])
    n = 4000
    uniforms = torch.tensor([uniform(7, t) for t in range(n)], dtype=torch.float64)
    drawn = inverse_cdf(logits.expand(n, 4), torch.full((n,), 0.7), uniforms)
    expected = torch.softmax(logits[0] / 0.7, dim=0).numpy()
    np.testing.assert_allclose(np.bincount(drawn.numpy(), minlength=4) / n, expected, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [5, 255, 256, 257, 511, 769, 2048, 49152])
def test_top_tokens_are_those_of_a_sort_and_the_first_of_equals_for_one(size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(size)
    # Few different values, so that there are ties; one row all alike; then a NaN.
    logits = torch.randint(-9, 9, (12, size), generator=generator).to(dtype) + torch.randn(12, 1, generator=generator)
    logits = logits.to(dtype)
    logits[3] = -1.5
    first = top_tokens(logits, 1)
    assert torch.equal(first, logits.double().argmax(dim=-1, keepdim=True))
    for k in (2, 3, 5):
        tokens = top_tokens(logits, k)
        assert all(len(set(row)) == k for row in tokens.tolist())
        assert torch.equal(logits.gather(-1, tokens), logits.sort(dim=-1, descending=True).values[:, :k])
    logits[7, size // 2] = torch.nan
    assert top_tokens(logits, 1)[7].item() == size // 2
