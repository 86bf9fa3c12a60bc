from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laser_recsys.datasets.dataset import Dataset, DatasetError, Ratings, SplitBy, split
from laser_recsys.datasets.prepared import read_prepared, write_prepared


def ratings_of(rows: list[tuple[int, int, int]]) -> Ratings:
    users, items, times = (np.array([row[column] for row in rows], np.int64) for column in range(3))
    return Ratings.sort(users, items, np.ones(len(rows), np.float32), times)


RATINGS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 30)), min_size=1).map(ratings_of)


@given(RATINGS, st.sampled_from(["user", "time"]))
def test_every_rating_is_in_exactly_one_part(ratings: Ratings, by: SplitBy) -> None:
    parts = split(ratings, by)
    assert len(parts.past) + len(parts.validation) + len(parts.test) == len(ratings)


@given(RATINGS)
def test_split_by_user_no_past_rating_is_newer_than_a_held_back_one_of_the_same_user(ratings: Ratings) -> None:
    parts = split(ratings, "user")
    for user_id in set(ratings.user_ids.tolist()):
        older = parts.past.of_user(user_id), parts.validation.of_user(user_id)
        newer = parts.validation.of_user(user_id), parts.test.of_user(user_id)
        for before, after in zip(older, newer, strict=True):
            if len(before) and len(after):
                assert before.timestamps.max() <= after.timestamps.min()


@given(RATINGS)
def test_split_by_time_nothing_past_is_as_new_as_anything_held_back_by_anyone(ratings: Ratings) -> None:
    parts = split(ratings, "time")
    for before, after in ((parts.past, parts.validation), (parts.past, parts.test), (parts.validation, parts.test)):
        if len(before) and len(after):
            assert before.timestamps.max() < after.timestamps.min()


@given(RATINGS, st.integers(1, 4))
def test_in_a_core_every_user_and_item_has_enough_ratings_and_a_core_is_its_own_core(ratings: Ratings, k: int) -> None:
    core = ratings.core(k)
    for ids in (core.user_ids, core.item_ids):
        assert len(core) == 0 or np.unique(ids, return_counts=True)[1].min() >= k
    assert len(core.core(k)) == len(core)


@pytest.mark.parametrize("by", ["user", "time"])
def test_a_prepared_dataset_is_read_back_as_it_was(dataset: Dataset, by: SplitBy, tmp_path: Path) -> None:
    parts = write_prepared(tmp_path / "data", dataset, by)
    read, read_parts = read_prepared(tmp_path / "data")
    assert (read.name, read.noun, read.items, read.users) == (dataset.name, dataset.noun, dataset.items, dataset.users)
    for ours, theirs in (
        (read.ratings, dataset.ratings),
        (read_parts.past, parts.past),
        (read_parts.validation, parts.validation),
        (read_parts.test, parts.test),
    ):
        for name in ("user_ids", "item_ids", "stars", "timestamps"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))


def test_a_folder_without_a_prepared_dataset_says_which_command_makes_one(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no prepared dataset \(laser-recsys prepare makes one\)"):
        read_prepared(tmp_path)


def test_a_folder_that_holds_another_split_or_dataset_is_not_overwritten(dataset: Dataset, tmp_path: Path) -> None:
    write_prepared(tmp_path, dataset, "user")
    write_prepared(tmp_path, dataset, "user")
    with pytest.raises(DatasetError, match="holds ml-100k with split_by 'user', asked for is 'time': name another"):
        write_prepared(tmp_path, dataset, "time")
    with pytest.raises(DatasetError, match="holds ml-100k with name 'ml-100k', asked for is 'other'"):
        write_prepared(tmp_path, dataclasses.replace(dataset, name="other"), "user")
    fewer = dataclasses.replace(dataset, ratings=dataset.ratings.take(slice(1, None)))
    with pytest.raises(DatasetError, match="holds ml-100k with num_ratings"):
        write_prepared(tmp_path, fewer, "user")
    assert read_prepared(tmp_path)[0].name == "ml-100k"


def test_a_half_written_dataset_is_not_read(dataset: Dataset, tmp_path: Path) -> None:
    write_prepared(tmp_path, dataset)
    (tmp_path / "prepared.json").unlink()
    with pytest.raises(DatasetError, match="holds no prepared dataset"):
        read_prepared(tmp_path)
