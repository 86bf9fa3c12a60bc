from __future__ import annotations

import pytest

from laser_recsys.datasets.dataset import Dataset, split
from laser_recsys.demo.run import replay_sizes
from laser_recsys.demo.study import plan_study, split_users


def test_warm_up_and_held_out_users_are_disjoint_and_asked_in_the_pool_of_their_group(dataset: Dataset) -> None:
    study = plan_study(dataset, split(dataset.ratings).seen, num_warm_up=7, num_held_out=5, num_groups=2)
    warm_up = {task.prompt.id for task in study.warm_up}
    held_out = {task.prompt.id for task in study.held_out}
    assert (len(warm_up), len(held_out), len(warm_up | held_out)) == (7, 5, 12)
    for task in (*study.warm_up, *study.held_out):
        assert task.pool == f"ml-100k/kar/user/{study.groups.of(int(task.prompt.id))}"


def test_the_same_seed_draws_the_same_users_and_another_seed_others(dataset: Dataset) -> None:
    past = split(dataset.ratings).seen
    first, again, other = (
        [task.prompt.id for task in plan_study(dataset, past, 6, 4, num_groups=2, seed=seed).warm_up]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_more_users_than_the_dataset_has_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="13 users asked for, the dataset has 12"):
        plan_study(dataset, split(dataset.ratings).seen, 9, 4, num_groups=2)


@pytest.mark.parametrize("num_users", [6, 30, 96, 943])
def test_all_users_are_split_and_at_most_24_are_held_out(num_users: int) -> None:
    num_warm_up, num_held_out = split_users(num_users)
    assert num_warm_up + num_held_out == num_users
    assert 1 <= num_held_out <= 24
    assert num_warm_up >= num_held_out


def test_the_pools_size_is_swept_from_none_to_all() -> None:
    assert replay_sizes(100) == [0, 10, 40, 100]
    assert replay_sizes(3) == [0, 3]
    assert replay_sizes(48) == [0, 10, 48]
