"""MovieLens in its published formats: 100k out of the `recbole` wheel; 1M, 10M, 25M and 32M from downloaded folders.

Source: F. M. Harper, J. A. Konstan, "The MovieLens Datasets", TiiS 2015, and the README of each archive. 100k lies in
the wheel as RecBole's "atomic files": tab-separated, each column headed `name:type`.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow

from laser_recsys.cache import WheelPin
from laser_recsys.datasets.dataset import Dataset, DatasetError, Item, Ratings, User
from laser_recsys.datasets.tables import (
    RatingColumns,
    Row,
    check_unique,
    decode,
    headed_rows,
    numbers,
    parse_ratings,
    rating_columns,
    rows,
    whole_number,
)

ML_100K_WHEEL = WheelPin("recbole", "1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407")
_MEMBER = "recbole/dataset_example/ml-100k/ml-100k."
_YEAR_SUFFIX = re.compile(r"\s*\((\d{4})\)\s*$")
_NO_GENRE = {"", "unknown", "(no genres listed)"}

_ATOMIC = RatingColumns(
    ("user", "item", "stars", "time"), "\t", header=("user_id", "item_id", "rating", "timestamp")
)  # fmt: skip
_DOUBLE_COLON = RatingColumns(("user", "", "item", "", "stars", "", "time"), ":")
_CSV = RatingColumns(("user", "item", "stars", "time"), ",", header=("userId", "movieId", "rating", "timestamp"))

# README of ml-1m: age groups and occupations by code.
_AGES = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56+"}
_OCCUPATIONS = (
    "other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service",
    "doctor/health care", "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer",
    "retired", "sales/marketing", "scientist", "self-employed", "technician/engineer", "tradesman/craftsman",
    "unemployed", "writer",
)  # fmt: skip


def read_ml_100k(wheel: Path) -> Dataset:
    """Reads MovieLens-100k from a `recbole` wheel.

    Raises:
        DatasetError: the file is no wheel, lacks a member, or a member lacks a column or has a malformed line.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            inter, item, user = (archive.read(_MEMBER + name) for name in ("inter", "item", "user"))
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise DatasetError(f"{wheel} holds no ml-100k under {_MEMBER}*: {error}") from error
    items: dict[int, Item] = {}
    lines: dict[int, int] = {}
    columns = ("item_id", "movie_title", "release_year", "class")
    for line, (key, title, year, genres) in headed_rows("ml-100k.item", decode("ml-100k.item", item), columns, "\t"):
        item_id = whole_number("ml-100k.item", line, "item_id", key)
        check_unique("ml-100k.item", "item", lines, item_id, line)
        items[item_id] = _movie(key, title, genres.split(" "), int(year) if year.isdigit() else None)
    columns = ("user_id", "age", "gender", "occupation")
    users = _users("ml-100k.user", headed_rows("ml-100k.user", decode("ml-100k.user", user), columns, "\t"))
    ratings = _ratings(parse_ratings("ml-100k.inter", io.BytesIO(inter), _ATOMIC, pyarrow.int64()))
    return _checked(Dataset("ml-100k", "movie", items, users, ratings))


def read_ml_1m(folder: Path) -> Dataset:
    """Reads ml-1m: ratings.dat, movies.dat, users.dat (`::` between columns, ISO-8859-1).

    Raises:
        DatasetError: a file is malformed.
    """
    items = _double_colon_movies(folder / "movies.dat", "latin1")
    name = "users.dat"
    text = decode(name, (folder / name).read_bytes(), "latin1")
    users = _users(
        name,
        (
            (line, (key, _AGES.get(age, age), gender, _occupation(line, occupation)))
            for line, (key, gender, age, occupation, _) in rows(name, text, "::", 5)
        ),
    )
    ratings = _ratings(rating_columns(folder / "ratings.dat", _DOUBLE_COLON, pyarrow.int64()))
    return _checked(Dataset("ml-1m", "movie", items, users, ratings))


def read_ml_10m(folder: Path) -> Dataset:
    """Reads ml-10m: ratings.dat, movies.dat (`::` between columns, UTF-8). Nothing is known of its users.

    Raises:
        DatasetError: a file is malformed.
    """
    items = _double_colon_movies(folder / "movies.dat", "utf8")
    ratings = _ratings(rating_columns(folder / "ratings.dat", _DOUBLE_COLON, pyarrow.int64()))
    return _checked(Dataset("ml-10m", "movie", items, _unknown_users(ratings), ratings))


def read_ml_csv(folder: Path, name: str) -> Dataset:
    """Reads ml-25m or ml-32m: ratings.csv, movies.csv (RFC 4180, headed, UTF-8). Nothing is known of their users.

    Raises:
        DatasetError: a file is malformed.
    """
    text = decode("movies.csv", (folder / "movies.csv").read_bytes())
    items: dict[int, Item] = {}
    lines: dict[int, int] = {}
    for line, (key, title, genres) in headed_rows("movies.csv", text, ("movieId", "title", "genres"), ",", True):
        item_id = whole_number("movies.csv", line, "movieId", key)
        check_unique("movies.csv", "movie", lines, item_id, line)
        items[item_id] = _movie(key, title, genres.split("|"))
    ratings = _ratings(rating_columns(folder / "ratings.csv", _CSV, pyarrow.int64()))
    return _checked(Dataset(name, "movie", items, _unknown_users(ratings), ratings))


def _movie(key: str, title: str, genres: list[str], year: int | None = None) -> Item:
    """A movie; its year stands in brackets behind the title unless the file has a column for it."""
    match = _YEAR_SUFFIX.search(title)
    if match and year is None:
        year = int(match[1])
    return Item(key, _YEAR_SUFFIX.sub("", title), year, tuple(genre for genre in genres if genre not in _NO_GENRE))


def _double_colon_movies(path: Path, encoding: str) -> dict[int, Item]:
    items: dict[int, Item] = {}
    lines: dict[int, int] = {}
    for line, (key, title, genres) in rows(path.name, decode(path.name, path.read_bytes(), encoding), "::", 3):
        item_id = whole_number(path.name, line, "MovieID", key)
        check_unique(path.name, "movie", lines, item_id, line)
        items[item_id] = _movie(key, title, genres.split("|"))
    return items


def _users(name: str, found: Iterable[Row]) -> dict[int, User]:
    """Users of (line, (id, age, gender, occupation))."""
    users: dict[int, User] = {}
    lines: dict[int, int] = {}
    for line, (key, age, gender, occupation) in found:
        user_id = whole_number(name, line, "user_id", key)
        check_unique(name, "user", lines, user_id, line)
        users[user_id] = User(key, {"age": age, "gender": gender, "occupation": occupation})
    return users


def _occupation(line: int, code: str) -> str:
    index = whole_number("users.dat", line, "occupation", code)
    if not 0 <= index < len(_OCCUPATIONS):
        raise DatasetError(f"users.dat, line {line}: occupation is {code}, must be 0 to {len(_OCCUPATIONS) - 1}")
    return _OCCUPATIONS[index]


def _unknown_users(ratings: Ratings) -> dict[int, User]:
    return {user_id: User(str(user_id), {}) for user_id in np.unique(ratings.user_ids).tolist()}


def _ratings(table: pyarrow.Table) -> Ratings:
    stars = table["stars"].to_numpy().astype(np.float32)
    every = Ratings.sort(numbers(table, "user"), numbers(table, "item"), stars, numbers(table, "time"))
    # The published files hold none twice, one's own in their format may: a prompt would name what is to be predicted.
    return every.newest()


def _checked(dataset: Dataset) -> Dataset:
    dataset.check()
    return dataset
