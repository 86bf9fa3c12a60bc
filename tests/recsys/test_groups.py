from __future__ import annotations

import numpy as np
import pytest

from laser_recsys.datasets.dataset import Dataset
from laser_recsys.groups.attributes import genre_profiles, group_users_by_genre


def test_users_of_the_same_taste_fall_into_the_same_group(dataset: Dataset) -> None:
    groups = group_users_by_genre(dataset.ratings, dataset.items, num_groups=2)
    odd = {groups.of(user_id) for user_id in range(1, 13, 2)}
    even = {groups.of(user_id) for user_id in range(2, 13, 2)}
    assert len(odd) == len(even) == 1
    assert odd != even


def test_the_same_seed_gives_the_same_groups(dataset: Dataset) -> None:
    first = group_users_by_genre(dataset.ratings, dataset.items, num_groups=2, seed=5)
    second = group_users_by_genre(dataset.ratings, dataset.items, num_groups=2, seed=5)
    assert np.array_equal(first.group_idx, second.group_idx)


def test_group_0_is_the_largest_and_every_user_is_counted_once(dataset: Dataset) -> None:
    sizes = group_users_by_genre(dataset.ratings, dataset.items, num_groups=2).sizes()
    assert sizes.sum() == 12
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)


def test_a_profile_holds_mean_stars_per_genre_and_the_users_own_mean_where_nothing_was_rated(
    dataset: Dataset,
) -> None:
    user_ids, profiles = genre_profiles(dataset.ratings.of_user(1).take(slice(0, 2)), dataset.items)
    genres = ["Action", "Adventure", "Animation", "Children's", "Comedy", "Thriller"]
    assert user_ids.tolist() == [1]
    assert dict(zip(genres, profiles[0].tolist(), strict=True)) == {
        "Action": 5, "Adventure": 3, "Animation": 1, "Children's": 1, "Comedy": 1, "Thriller": 5,
    }  # fmt: skip


@pytest.mark.parametrize("num_groups", [0, 13])
def test_more_groups_than_users_or_none_is_an_error(dataset: Dataset, num_groups: int) -> None:
    with pytest.raises(ValueError, match=f"num_groups is {num_groups}, must be from 1 to the 12 users"):
        group_users_by_genre(dataset.ratings, dataset.items, num_groups)


def test_a_user_who_was_not_grouped_is_a_key_error(dataset: Dataset) -> None:
    with pytest.raises(KeyError):
        group_users_by_genre(dataset.ratings, dataset.items, num_groups=2).of(13)
