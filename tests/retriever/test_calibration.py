"""Probabilities follow what is fed back, within bounds, and trees stay valid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from retriever_oracles import FixedSources

from laser_protocol.acceptance import Relaxed, Strict
from laser_protocol.tree import DraftTree
from laser_retriever.calibration import SHIFT, SLOPE, Calibration, CalibrationParams, key_of
from laser_retriever.drafter import Drafter
from laser_retriever.growth import Trees
from laser_retriever.index import build_index
from laser_retriever.sources import PoolStatus, Source, Sources

NUM_LEVELS = 10
STRICT = key_of("m", Strict(), "root/a")


def trees_of(probs: list[float], origin: int = 1) -> Trees:
    """Trees of one node each, of these probabilities."""
    trees = Trees.room(len(probs), 1)
    trees.parents[:] = -1
    trees.origins[:] = origin
    trees.levels[:] = 2
    trees.conditionals[:, 0] = probs
    return trees


def outcomes_of(emitted: list[bool]) -> NDArray[np.int64]:
    """Of such trees, all verified, and a token behind them."""
    return np.array([(i, 1, 0 if each else -1, 2) for i, each in enumerate(emitted)], np.int64)


def feed(calibration: Calibration, prob: float, share: float, num_trees: int, origin: int = 1) -> None:
    """Trees of one node of that probability, of which every so many is emitted."""
    emitted = [int((i + 1) * share) > int(i * share) for i in range(num_trees)]
    calibration.observe(STRICT, trees_of([prob] * num_trees, origin), outcomes_of(emitted))


def scaled(calibration: Calibration, prob: float, origin: int = 1) -> float:
    cell = calibration.scalings(STRICT).values[origin, 2]
    return float(1 / (1 + np.exp(-cell[SLOPE] * np.log(prob / (1 - prob)) - cell[SHIFT])))


@pytest.mark.parametrize(("prob", "share"), [(0.5, 0.9), (0.5, 0.1), (0.9, 0.6), (0.1, 0.4)])
def test_a_probability_that_comes_true_more_or_less_often_moves_to_that_share(prob: float, share: float) -> None:
    calibration = Calibration(NUM_LEVELS)
    feed(calibration, prob, share, 2000)
    assert scaled(calibration, prob) == pytest.approx(share, abs=0.05)


def test_slope_and_shift_are_found_together() -> None:
    calibration = Calibration(NUM_LEVELS)
    random = np.random.default_rng(0)
    probs = random.uniform(0.05, 0.95, 8000)
    real = 1 / (1 + np.exp(-1.4 * np.log(probs / (1 - probs)) + 0.5))
    emitted = random.uniform(size=8000) < real
    calibration.observe(STRICT, trees_of(probs.tolist()), outcomes_of(emitted.tolist()))
    assert calibration.scalings(STRICT).values[1, 2] == pytest.approx([1.4, -0.5], abs=0.15)


def test_what_changes_is_followed_as_the_older_outcomes_fade() -> None:
    calibration = Calibration(NUM_LEVELS, CalibrationParams(memory=300))
    feed(calibration, 0.5, 0.9, 3000)
    feed(calibration, 0.5, 0.2, 3000)
    assert scaled(calibration, 0.5) == pytest.approx(0.2, abs=0.07)


def test_only_the_key_the_source_and_the_length_that_were_observed_move() -> None:
    calibration = Calibration(NUM_LEVELS)
    feed(calibration, 0.5, 0.9, 100)
    moved = calibration.scalings(STRICT).values
    assert np.argwhere(moved[..., SHIFT]).tolist() == [[1, 2]]
    assert calibration.scalings(key_of("m", Strict(), "root/b")).values is moved, "pools below one root share a table"
    for other in (
        ("n", Strict(), "root"), ("m", Relaxed(), "root"), ("m", Strict(), "other"), ("m", Strict(), "root", 0.7),
    ):  # fmt: skip
        assert not calibration.scalings(key_of(*other)).values[..., SHIFT].any()


def test_sources_beyond_the_first_ancestor_share_a_row() -> None:
    calibration = Calibration(NUM_LEVELS)
    feed(calibration, 0.5, 0.9, 50, origin=8)
    assert np.argwhere(calibration.scalings(STRICT).values[..., SHIFT]).tolist() == [[3, 2]]


@pytest.mark.parametrize(
    ("num_verified", "accepted", "num_emitted", "num_observed"),
    [
        (5, -1, 1, 2),  # roots only: 0 and 1
        (5, 0, 2, 4),  # and the children of 0
        (3, 0, 2, 3),  # of which one was not verified
        (5, 0, 1, 2),  # the text ended behind 0
        (5, 2, 3, 5),  # and the child of 2
        (0, -1, 1, 0),
    ],
)
def test_a_node_has_an_outcome_if_its_parent_was_emitted_and_something_followed(
    num_verified: int, accepted: int, num_emitted: int, num_observed: int
) -> None:
    calibration = Calibration(NUM_LEVELS)
    trees = Trees.room(2, 6)  # the second row of wider ones, as trees of one message lie
    trees.parents[1, :5] = [-1, -1, 0, 0, 2]
    trees.origins[1, :5] = 1
    trees.levels[1, :5] = np.arange(5)
    trees.conditionals[1, :5] = 0.5
    calibration.observe(STRICT, trees, np.array([[1, num_verified, accepted, num_emitted]]))
    assert np.count_nonzero(calibration.scalings(STRICT).values[..., SHIFT]) == num_observed


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=200))
def test_no_feedback_however_false_moves_a_scaling_out_of_its_bounds(outcomes: list[tuple[float, bool]]) -> None:
    params = CalibrationParams(prior=0.01, slope_prior=0.01)
    calibration = Calibration(NUM_LEVELS, params)
    calibration.observe(STRICT, trees_of([prob for prob, _ in outcomes]), outcomes_of([each for _, each in outcomes]))
    scalings = calibration.scalings(STRICT).values
    assert np.isfinite(scalings).all()
    assert (np.abs(scalings[..., SHIFT]) <= params.max_shift).all()
    assert (scalings[..., SLOPE] >= 1 / params.max_slope).all() and (scalings[..., SLOPE] <= params.max_slope).all()


def test_keys_are_limited_and_the_one_used_longest_ago_goes_first() -> None:
    calibration = Calibration(NUM_LEVELS, CalibrationParams(max_keys=2))
    for model in ("a", "b", "a", "c"):
        calibration.observe(key_of(model, Strict(), "p"), trees_of([0.5]), outcomes_of([True]))
    assert calibration.num_keys == 2
    assert calibration.scalings(key_of("a", Strict(), "p")).values[..., SHIFT].any()
    assert not calibration.scalings(key_of("b", Strict(), "p")).values[..., SHIFT].any()


def test_what_was_given_out_does_not_change_and_trees_together_count_as_one_after_the_other() -> None:
    together, apart = Calibration(NUM_LEVELS), Calibration(NUM_LEVELS)
    feed(together, 0.5, 0.8, 50)
    before = together.scalings(STRICT)
    kept = before.values.copy()
    feed(together, 0.5, 0.8, 50)
    for _ in range(2):
        for i in range(50):
            apart.observe(STRICT, trees_of([0.5]), outcomes_of([int((i + 1) * 0.8) > int(i * 0.8)]))
    assert np.array_equal(before.values, kept)
    assert np.array_equal(together.scalings(STRICT).values, apart.scalings(STRICT).values)


@pytest.mark.parametrize(
    "wrong", [{"prior": 0.0}, {"memory": float("nan")}, {"max_slope": 0.5}, {"max_keys": 0}, {"slope_prior": -1.0}]
)
def test_parameters_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CalibrationParams(**wrong)  # type: ignore[arg-type]


def biased_drafter(calibration: Calibration, *, accepts: bool) -> tuple[DraftTree, DraftTree]:
    """The first and the last tree for one text, while a verifier takes the first node always, or never."""
    documents = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6, 4], [1, 7, 3, 4]] * 3
    index = build_index([np.array(document, np.int32) for document in documents])
    drafter = Drafter(FixedSources((index,)), "f", 50, calibration=calibration)
    trees = []
    for _ in range(200):
        drafter.open(0, "p", [30, 1], 1)
        tree = drafter.draft(0, 16)
        tree.check(16, 50)
        trees.append(tree)
        drafter.advance(0, 2, [int(tree.token_ids[0]), 9] if accepts else [9], 1, 0 if accepts else -1)
        drafter.close(0)
    return trees[0], trees[-1]


@pytest.mark.parametrize("accepts", [True, False])
def test_trees_stay_valid_and_exclusive_while_a_biased_acceptance_moves_them(accepts: bool) -> None:
    first, last = biased_drafter(Calibration(NUM_LEVELS), accepts=accepts)
    assert (last.probs[0] > first.probs[0]) == accepts
    for tree in (first, last):
        for parent in range(-1, len(tree)):
            limit = 1.0 if parent < 0 else float(tree.probs[parent])
            assert tree.probs[tree.parents == parent].sum() <= limit + 1e-6


def test_a_node_is_said_to_come_from_the_sequence_only_if_no_pool_has_it() -> None:
    pool = build_index([np.array([1, 2, 3], np.int32)])
    parent = build_index([np.array([1, 2, 3], np.int32), np.array([1, 4, 5], np.int32)])

    class PoolAndParent:
        def sources(self, pool_id: str, fingerprint: str) -> tuple[PoolStatus, Sources]:
            return PoolStatus.OK, Sources.of([Source(pool), Source(parent, 1)])

    drafter = Drafter(PoolAndParent(), "f", 50)
    drafter.open(0, "p/q", [1, 6, 1, 2, 1], 4)
    tree = drafter.draft(0, 32)
    assert tree.sources is not None
    roots = {int(t): int(s) for t, s, p in zip(tree.token_ids, tree.sources, tree.parents, strict=True) if p < 0}
    assert roots == {2: 1, 4: 2, 6: 0}
