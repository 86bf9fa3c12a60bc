from __future__ import annotations

from pathlib import Path

import pytest

from laser_recsys.datasets.dataset import Dataset, DatasetError, split
from laser_recsys.datasets.movielens import read_ml_100k
from tests.recsys.conftest import INTER, WriteWheel


def test_movies_users_and_ratings_are_read_as_the_files_have_them(dataset: Dataset) -> None:
    assert dataset.items[2].title == "GoldenEye"
    assert dataset.items[2].year == 1995
    assert dataset.items[2].genres == ("Action", "Adventure", "Thriller")
    assert dataset.users[3].attributes == {"age": "23", "gender": "M", "occupation": "technician"}
    assert len(dataset.ratings) == 60
    first = dataset.ratings.of_user(1)
    assert first.item_ids.tolist() == [3, 1, 2, 4, 5]
    assert first.stars.tolist() == [5, 1, 5, 1, 1]


def test_a_year_left_in_the_title_is_cut_and_an_unknown_movie_has_neither_year_nor_genre(dataset: Dataset) -> None:
    assert dataset.items[4].title == "Land Before Time III: The Time of the Great Giving"
    assert dataset.items[5].year is None
    assert dataset.items[5].genres == ()


def test_ratings_of_the_same_second_keep_the_order_of_the_file(write_wheel: WriteWheel) -> None:
    inter = INTER + "7\t3\t3\t100\n7\t1\t4\t100\n7\t2\t5\t99\n"
    own = read_ml_100k(write_wheel(inter=inter)).ratings.of_user(7)
    assert own.item_ids.tolist() == [2, 3, 1]


def test_of_several_ratings_of_one_item_the_newest_counts(write_wheel: WriteWheel) -> None:
    again = read_ml_100k(
        write_wheel(inter=INTER + "7\t2\t4\t10\n7\t3\t5\t11\n7\t2\t1\t12\n7\t2\t2\t9\n")
    ).ratings.of_user(7)
    assert (again.item_ids.tolist(), again.stars.tolist()) == ([3, 2], [5.0, 1.0])


def test_the_last_fifth_of_each_users_ratings_is_held_back(dataset: Dataset) -> None:
    parts = split(dataset.ratings)
    assert (len(parts.past), len(parts.training), len(parts.seen)) == (36, 12, 48)
    assert parts.validation.item_ids.tolist() == [5] * 12
    for user_id in dataset.users:
        assert parts.seen.of_user(user_id).timestamps.max() < parts.validation.of_user(user_id).timestamps.min()


def test_nothing_of_a_user_with_fewer_than_five_ratings_is_held_back(write_wheel: WriteWheel) -> None:
    parts = split(read_ml_100k(write_wheel(inter=INTER + "7\t3\t3\t100\n7\t1\t4\t100\n")).ratings)
    assert (len(parts.past.of_user(7)), len(parts.training.of_user(7))) == (1, 1)
    assert len(parts.validation) == len(parts.test) == 0


def test_a_user_without_ratings_has_none(dataset: Dataset) -> None:
    assert len(dataset.ratings.of_user(999)) == 0


@pytest.mark.parametrize(
    ("inter", "message"),
    [
        ("user_id:token\titem_id:token\trating:float\n1\t1\t3\n", r"ml-100k.inter .* lacks \['timestamp'\]"),
        (INTER + "1\t1\t3\n", "ml-100k.inter, line 2: .* must have the columns"),
        (INTER + "1\t1\tthree\t100\n", "ml-100k.inter, line 2: stars is 'three', must be a number"),
        (INTER + "1\t77\t3\t100\n", "the ratings name item 77, which the items lack"),
        ("", "lacks"),
    ],
)
def test_a_malformed_file_is_named_with_the_place(write_wheel: WriteWheel, inter: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_ml_100k(write_wheel(inter=inter))


def test_a_file_that_is_no_wheel_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recbole-1.2.1-py3-none-any.whl"
    path.write_text("no zip")
    with pytest.raises(DatasetError, match="holds no ml-100k"):
        read_ml_100k(path)
