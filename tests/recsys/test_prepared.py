from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laser_recsys.datasets import prepared
from laser_recsys.datasets.dataset import Dataset, DatasetError, Ratings, Split, SplitBy, split
from laser_recsys.datasets.prepared import read_prepared, write_prepared


def ratings_of(rows: list[tuple[int, int, int]]) -> Ratings:
    users, items, times = (np.array([row[column] for row in rows], np.int64) for column in range(3))
    return Ratings.sort(users, items, np.ones(len(rows), np.float32), times)


RATINGS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 30)), min_size=1).map(ratings_of)


def in_order(parts: Split) -> tuple[Ratings, Ratings, Ratings, Ratings]:
    return parts.past, parts.training, parts.validation, parts.test


@given(RATINGS, st.sampled_from(["user", "time", "none"]))
def test_every_rating_is_in_exactly_one_part(ratings: Ratings, by: SplitBy) -> None:
    parts = split(ratings, by)
    rows = [row for part in in_order(parts) for row in zip(part.user_ids, part.item_ids, part.timestamps, strict=True)]
    assert sorted(rows) == sorted(zip(ratings.user_ids, ratings.item_ids, ratings.timestamps, strict=True))
    assert by != "none" or len(parts.past) == len(ratings)


@given(RATINGS)
def test_split_by_user_no_part_is_newer_than_the_next_one_of_the_same_user(ratings: Ratings) -> None:
    parts = split(ratings, "user")
    for user_id in set(ratings.user_ids.tolist()):
        theirs = [part.of_user(user_id) for part in in_order(parts)]
        for before, after in itertools.combinations([part for part in theirs if len(part)], 2):
            assert before.timestamps.max() <= after.timestamps.min()


@given(RATINGS)
def test_split_by_time_nothing_in_a_part_is_as_new_as_anything_in_the_next_by_anyone(ratings: Ratings) -> None:
    parts = split(ratings, "time")
    for before, after in itertools.combinations([part for part in in_order(parts) if len(part)], 2):
        assert before.timestamps.max() < after.timestamps.min()


@given(RATINGS, st.integers(1, 4))
def test_in_a_core_every_user_and_item_has_enough_ratings_and_a_core_is_its_own_core(ratings: Ratings, k: int) -> None:
    core = ratings.core(k)
    for ids in (core.user_ids, core.item_ids):
        assert len(core) == 0 or np.unique(ids, return_counts=True)[1].min() >= k
    assert len(core.core(k)) == len(core)


@pytest.mark.parametrize("by", ["user", "time", "none"])
def test_a_prepared_dataset_is_read_back_as_it_was(dataset: Dataset, by: SplitBy, tmp_path: Path) -> None:
    parts = write_prepared(tmp_path / "data", dataset, by)
    read, read_parts = read_prepared(tmp_path / "data")
    assert (read.name, read.noun, read.items, read.users) == (dataset.name, dataset.noun, dataset.items, dataset.users)
    for ours, theirs in (
        (read.ratings, dataset.ratings),
        *zip(in_order(read_parts), in_order(parts), strict=True),
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


def test_a_half_written_dataset_is_not_read_nor_overwritten_by_another_split(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prepared(tmp_path, dataset, "user")
    with monkeypatch.context() as killed, pytest.raises(ZeroDivisionError):
        killed.setattr(prepared, "split", lambda ratings, by: 1 / 0)
        write_prepared(tmp_path, dataset, "user")
    with pytest.raises(DatasetError, match="was not prepared to the end: run the same laser-recsys prepare again"):
        read_prepared(tmp_path)
    with pytest.raises(DatasetError, match="split_by 'user', asked for is 'time'"):
        write_prepared(tmp_path, dataset, "time")
    write_prepared(tmp_path, dataset, "user")
    assert read_prepared(tmp_path)[0].name == "ml-100k"
