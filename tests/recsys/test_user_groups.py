from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from laser_recsys.datasets.dataset import Dataset, Item, Ratings, User
from laser_recsys.groups.attributes import group_items_by_genre
from laser_recsys.groups.collaborative import UserModel, train_user_groups
from laser_recsys.groups.groups import Groups, random_groups, single_group, stability
from laser_recsys.groups.table import read_groups, write_groups

NUM_USERS, NUM_ITEMS = 60, 40


@pytest.fixture(scope="module")
def taste() -> Dataset:
    """Users 0-29 rate the first twenty items, users 30-59 the others; ages and genres go with it. User 60 rated
    nothing."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(NUM_USERS):
        start = 0 if user < 30 else 20
        rows += [(user, start + item, time) for time, item in enumerate(random.permutation(20)[:12])]
    users, items, times = np.array(rows, np.int64).T
    ratings = Ratings.sort(users, items, np.full(len(rows), 4, np.float32), times)
    known = {user: User(str(user), {"age": "20" if user < 30 else "60"}) for user in range(NUM_USERS)}
    known[NUM_USERS] = User("60", {"age": "21"})
    titles = {
        item: Item(str(item), f"Item {item}", None, ("War" if item < 20 else "Romance",)) for item in range(NUM_ITEMS)
    }
    return Dataset("taste", "movie", titles, known, ratings)


@pytest.fixture(scope="module")
def trained(taste: Dataset) -> tuple[UserModel, Groups]:
    return train_user_groups(taste, taste.ratings, num_groups=2)


def test_users_who_rate_the_same_items_fall_into_the_same_group(trained: tuple[UserModel, Groups]) -> None:
    groups = trained[1]
    assert len({groups.of(user) for user in range(30)}) == len({groups.of(user) for user in range(30, 60)}) == 1
    assert groups.of(0) != groups.of(59)


def test_groups_are_stable_over_seeds_and_equal_for_one_seed(taste: Dataset) -> None:
    runs = [train_user_groups(taste, taste.ratings, 2, seed)[1] for seed in (0, 0, 1)]
    assert np.array_equal(runs[0].group_idx, runs[1].group_idx)
    assert stability(runs) == 1.0


def test_a_user_who_rated_nothing_is_grouped_with_users_of_like_attributes(trained: tuple[UserModel, Groups]) -> None:
    assert trained[1].of(60) == trained[1].of(0)
    assert "1 users with fewer than" in trained[1].how


def test_a_new_user_is_assigned_without_training_by_ratings_or_by_genres_if_there_are_few(
    taste: Dataset, trained: tuple[UserModel, Groups], tmp_path: Path
) -> None:
    model, groups = trained
    model.save(tmp_path / "model.npz")
    model = UserModel.load(tmp_path / "model.npz")
    rows = [(100, item) for item in range(25, 35)] + [(101, 3), (102, 999)]
    users, items = np.array(rows, np.int64).T
    past = Ratings.sort(users, items, np.full(len(rows), 5, np.float32), np.arange(len(rows)))
    newcomers = {user: User(str(user), {}) for user in (100, 101, 102)}
    titles = {**taste.items, 999: Item("999", "New", None, ("Romance",))}
    assigned, num_cold = model.assign(dataclasses.replace(taste, items=titles, users=newcomers), past)
    assert assigned.of(100) == groups.of(59)
    assert assigned.of(101) == groups.of(0)
    assert assigned.of(102) == groups.of(59)
    assert num_cold == 2


def test_folding_in_a_trained_user_gives_the_group_training_gave(
    taste: Dataset, trained: tuple[UserModel, Groups]
) -> None:
    model, groups = trained
    some = dataclasses.replace(taste, users={user: taste.users[user] for user in (3, 33)})
    again, _ = model.assign(some, taste.ratings)
    assert [again.of(3), again.of(33)] == [groups.of(3), groups.of(33)]


def test_users_who_are_all_alike_leave_a_group_empty_and_that_is_told() -> None:
    users, items = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    ratings = Ratings.sort(users, items, np.full(12, 4, np.float32), np.arange(12))
    known = {user: User(str(user), {}) for user in range(4)}
    titles = {item: Item(str(item), "T") for item in range(3)}
    _, groups = train_user_groups(Dataset("alike", "movie", titles, known, ratings), ratings, num_groups=2)
    assert groups.empty() == [1]


def test_a_file_that_is_no_model_says_which_command_writes_one(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    np.savez(path, vectors=np.zeros(100))
    cut_off = path.read_bytes()[:-30]
    for data in (b"", b"no zip", cut_off):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is no model of user groups"):
            UserModel.load(path)


def test_more_groups_than_users_with_history_is_an_error(taste: Dataset) -> None:
    with pytest.raises(ValueError, match="num_groups is 61, must be from 1 to the 60 users with at least 3 ratings"):
        train_user_groups(taste, taste.ratings, 61)


def test_items_go_to_the_rarest_of_their_frequent_genres_and_the_rest_to_the_last_group() -> None:
    genres = [("Drama",)] * 5 + [("Drama", "War")] * 3 + [("War", "Film-Noir")] + [()]
    items = {key: Item(str(key), "T", None, named) for key, named in enumerate(genres)}
    groups = group_items_by_genre(items, 3)
    assert groups.group_idx.tolist() == [0] * 5 + [1] * 3 + [1] + [2]


def test_controls_are_groups_of_equal_size_and_one_group_of_all() -> None:
    keys = np.arange(100, dtype=np.int64)
    assert random_groups(keys, 3, seed=1).sizes().tolist() == [34, 33, 33]
    assert stability([random_groups(keys, 3, seed) for seed in range(3)]) < 0.1
    assert single_group(keys).sizes().tolist() == [100]


def test_groups_are_read_back_as_written_and_a_doubled_or_outlying_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "groups.parquet"
    dataset = named({1: "a", 5: "b"}, {7: "x"})
    users = Groups(np.array([1, 5], np.int64), np.array([0, 1], np.int64), 2, "by hand")
    write_groups(path, {"user": users, "item": single_group(np.array([7], np.int64))}, dataset)
    read = read_groups(path, "user", dataset)
    assert (read.keys.tolist(), read.group_idx.tolist(), read.num_groups, read.how) == ([1, 5], [0, 1], 2, "by hand")
    assert read_groups(path, "item", dataset).of(7) == 0
    with pytest.raises(ValueError, match="holds no groups of kind 'user' of named"):
        read_groups(path, "user", named({1: "c"}, {}))
    with pytest.raises(ValueError, match="holds no groups of kind 'user' of other"):
        read_groups(path, "user", dataclasses.replace(dataset, name="other"))
    write_groups(path, {"user": Groups(np.array([1, 1], np.int64), np.array([0, 1], np.int64), 2, "")}, dataset)
    with pytest.raises(ValueError, match="holds a user twice"):
        read_groups(path, "user", dataset)
    write_groups(path, {"user": Groups(np.array([1], np.int64), np.array([4], np.int64), 2, "")}, dataset)
    with pytest.raises(ValueError, match="group is 4, must be from 0 to 1"):
        read_groups(path, "user", dataset)


def test_groups_and_model_hold_when_the_datasets_numbers_are_others(
    taste: Dataset, trained: tuple[UserModel, Groups], tmp_path: Path
) -> None:
    path = tmp_path / "groups.parquet"
    users = Groups(np.array([1, 5], np.int64), np.array([0, 1], np.int64), 2, "by hand")
    write_groups(path, {"user": users}, named({1: "a", 5: "b"}, {}))
    read = read_groups(path, "user", named({2: "b", 3: "a", 4: "newcomer"}, {}))
    assert (read.of(2), read.of(3)) == (1, 0)
    with pytest.raises(KeyError):
        read.of(4)
    model, groups = trained
    turned = {NUM_ITEMS - 1 - key: item for key, item in taste.items.items()}
    past = Ratings.sort(
        taste.ratings.user_ids, NUM_ITEMS - 1 - taste.ratings.item_ids, taste.ratings.stars, taste.ratings.timestamps
    )
    again, _ = model.assign(
        dataclasses.replace(taste, items=turned, users={user: taste.users[user] for user in (3, 33)}), past
    )
    assert [again.of(3), again.of(33)] == [groups.of(3), groups.of(33)]
    with pytest.raises(ValueError, match="the model knows none of the 1 items: train one on this dataset"):
        model.assign(dataclasses.replace(taste, items={0: Item("book", "B")}), past)
    with pytest.raises(ValueError, match="the model is of the dataset 'taste', not of 'other'"):
        model.assign(dataclasses.replace(taste, name="other"), taste.ratings)


def named(users: dict[int, str], items: dict[int, str]) -> Dataset:
    none = np.zeros(0, np.int64)
    return Dataset(
        "named", "movie", {key: Item(name, name) for key, name in items.items()},
        {key: User(name, {}) for key, name in users.items()}, Ratings.sort(none, none, none.astype(np.float32), none),
    )  # fmt: skip
