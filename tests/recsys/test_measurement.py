from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laser_recsys.measurement import Run, agreement, common_prefix_len, repetition_share, summarise
from tests.recsys.conftest import MakeGeneration


def test_rates_are_sum_over_sum_and_never_a_mean_of_ratios(make_generation: MakeGeneration) -> None:
    run = Run("strict", (make_generation(range(90), num_steps=10), make_generation(range(10), num_steps=10)), 4.0)
    assert run.tokens_per_step == pytest.approx(100 / 20)
    assert run.tokens_per_second == pytest.approx(25.0)


def test_runs_add_up(make_generation: MakeGeneration) -> None:
    total = Run("plain", (), 0.0) + Run("plain", (make_generation([1, 2]),), 1.0)
    total += Run("plain", (make_generation([3]),), 2.0)
    assert (total.num_tokens, total.seconds, len(total.generations)) == (3, 3.0, 2)


def test_a_run_of_nothing_has_rates_of_zero() -> None:
    assert Run("plain", (), 0.0).tokens_per_second == 0.0
    assert Run("plain", (), 0.0).tokens_per_step == 0.0


def test_speedup_is_the_ratio_of_tokens_per_second(make_generation: MakeGeneration) -> None:
    plain = Run("plain", (make_generation(range(100)),), 10.0)
    strict = Run("strict", (make_generation(range(100), num_steps=25),), 4.0)
    assert summarise(strict, plain).speedup == pytest.approx(2.5)
    assert summarise(plain, plain).speedup == 1.0


def test_agreement_counts_identical_outputs_and_tokens_before_the_first_difference(
    make_generation: MakeGeneration,
) -> None:
    plain = [make_generation([1, 2, 3, 4]), make_generation([1, 2, 3, 4])]
    ours = [make_generation([1, 2, 3, 4]), make_generation([1, 9, 3, 4])]
    compared = agreement(ours, plain)
    assert (compared.num_identical, compared.num_outputs) == (1, 2)
    assert compared.prefix_share == pytest.approx(5 / 8)


def test_ends_are_early_or_missing_in_comparison_with_plain(make_generation: MakeGeneration) -> None:
    stop, length = "stop", "length"
    plain = [(4, length), (4, length), (3, stop), (3, stop), (3, stop)]
    ours = [(4, length), (2, stop), (4, length), (2, stop), (3, stop)]
    runs = [
        Run("x", tuple(make_generation(range(count), finish_reason=reason) for count, reason in ends), 1.0)
        for ends in (ours, plain)
    ]
    summary = summarise(*runs)
    assert (summary.num_stops, summary.num_early_stops, summary.num_missing_stops) == (3, 2, 1)


def test_relaxed_share_is_of_all_tokens(make_generation: MakeGeneration) -> None:
    run = Run("relaxed", (make_generation(range(10), num_relaxed_tokens=1), make_generation(range(10))), 1.0)
    assert summarise(run, run).relaxed_share == pytest.approx(0.05)


def test_repetition_is_zero_without_a_repeated_ngram_and_counts_every_further_one() -> None:
    assert repetition_share([list(range(20))]) == 0.0
    assert repetition_share([[1, 2, 1, 2, 1, 2]], n=2) == pytest.approx(3 / 5)
    assert repetition_share([[1, 2, 3]]) == 0.0


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_prefix_is_common_and_cannot_be_longer(a: list[int], b: list[int]) -> None:
    length = common_prefix_len(a, b)
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]
