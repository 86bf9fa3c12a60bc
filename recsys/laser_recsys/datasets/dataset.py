"""What every dataset is read into: ratings as arrays, items and users by number, and splits by time that leak nothing.

Knows no file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from laser_recsys.errors import RecsysError

SplitBy = Literal["user", "time", "none"]
_CUTS = (0.5, 0.8, 0.9)  # shares of the ratings that are older


class DatasetError(RecsysError, ValueError):
    """A dataset's file is missing or not in its format. The message names the file and what would be right."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item.

    Attributes:
        id: as the dataset names it.
        title: without the year.
        year: of release; None where the dataset has none.
        genres: genres or categories, the most general first; may be empty.
        creator: author or brand; empty where unknown.
        description: the dataset's own text about it; empty where it has none.
    """

    id: str
    title: str
    year: int | None = None
    genres: tuple[str, ...] = ()
    creator: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class User:
    """One user and the attributes that the dataset has of them, by name; often none."""

    id: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ratings:
    """R ratings, sorted by user, then time, then their order in the file.

    Attributes:
        user_ids: int64[R], non-decreasing; keys of `Dataset.users`.
        item_ids: int64[R]; keys of `Dataset.items`.
        stars: float32[R], 0.5 to 5.
        timestamps: int64[R], seconds since 1970.
    """

    user_ids: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    stars: NDArray[np.float32]
    timestamps: NDArray[np.int64]

    @staticmethod
    def sort(
        user_ids: NDArray[np.int64], item_ids: NDArray[np.int64], stars: NDArray[np.float32], times: NDArray[np.int64]
    ) -> Ratings:
        """Ratings in any order, sorted; ties keep their order."""
        order = np.lexsort((times, user_ids))
        return Ratings(user_ids[order], item_ids[order], stars[order], times[order])

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, which: NDArray[np.bool_] | slice) -> Ratings:
        """The ratings at `which`, a bool[R] mask or a slice (then views)."""
        return Ratings(self.user_ids[which], self.item_ids[which], self.stars[which], self.timestamps[which])

    def of_user(self, user_id: int) -> Ratings:
        """One user's ratings, oldest first (views)."""
        start, end = np.searchsorted(self.user_ids, [user_id, user_id + 1])
        return self.take(slice(int(start), int(end)))

    def newest(self) -> Ratings:
        """Of several ratings of one item by one user the newest: people rate again."""
        order = np.lexsort((np.arange(len(self)), self.item_ids, self.user_ids))
        users, items = self.user_ids[order], self.item_ids[order]
        is_last = np.append((users[1:] != users[:-1]) | (items[1:] != items[:-1]), True)
        kept = np.zeros(len(self), np.bool_)
        kept[order[is_last]] = True
        return self.take(kept)

    def core(self, min_ratings: int) -> Ratings:
        """The largest subset in which every user and every item has at least `min_ratings` ratings (the k-core)."""
        kept = self
        while len(kept):
            per_user, per_item = np.bincount(kept.user_ids), np.bincount(kept.item_ids)
            enough = (per_user[kept.user_ids] >= min_ratings) & (per_item[kept.item_ids] >= min_ratings)
            if enough.all():
                break
            kept = kept.take(enough)
        return kept


@dataclass(frozen=True, slots=True)
class Dataset:
    """Ratings with the items and users they speak of, by number.

    Attributes:
        name: "ml-100k"; also the first component of its pools' ids.
        noun: what an item is in a prompt: "movie" or "book".
        items, users: by the numbers that `ratings` uses.
        ratings: all of them.
    """

    name: str
    noun: str
    items: Mapping[int, Item]
    users: Mapping[int, User]
    ratings: Ratings

    def check(self) -> None:
        """Returns if every rating's user and item exist.

        Raises:
            DatasetError: names the first that does not.
        """
        for kind, known, rated in (
            ("item", self.items, self.ratings.item_ids),
            ("user", self.users, self.ratings.user_ids),
        ):
            unknown = set(np.unique(rated).tolist()) - known.keys()
            if unknown:
                raise DatasetError(f"{self.name}: the ratings name {kind} {min(unknown)}, which the {kind}s lack")


@dataclass(frozen=True, slots=True)
class Split:
    """Ratings cut by time into four parts. Of one user none is newer than the next; those of one second may be on both
    sides of the user's own cut.

    Attributes:
        past: what groups, prompts and so texts may know.
        training: targets of the CTR models. Later than all that texts know, as the ratings that are predicted are; else
            models would learn to read the answer out of the texts, and meet texts in the test that do not hold it.
        validation: chooses the epoch.
        test: is only scored.
    """

    past: Ratings
    training: Ratings
    validation: Ratings
    test: Ratings

    @property
    def seen(self) -> Ratings:
        """Past and training: all that is not held back, for what proves nothing about CTR models."""
        both = zip(_columns(self.past), _columns(self.training), strict=True)
        return Ratings.sort(*map(np.concatenate, both))


def split(ratings: Ratings, by: SplitBy = "user") -> Split:
    """Past, training, validation and test.

    Args:
        ratings: all.
        by: "user" cuts at every user's own times, so that all but the least active users are in all parts: the older
            half (rounded up) of each is past; the last fifth (rounded down) is held back, the older half of these
            (rounded up) for validation. "time" cuts at three points in time for all users, in the same shares, so that
            nothing of anyone's future is known: users may be missing before. "none": all is past.
    """
    if by == "none":
        part = np.zeros(len(ratings), np.int64)
    elif by == "time":
        cuts = np.quantile(ratings.timestamps, _CUTS, method="higher")
        part = np.searchsorted(cuts, ratings.timestamps, side="right")
    else:
        counts, ranks = _counts_and_ranks(ratings)
        held_back = counts // 5
        firsts = (counts - counts // 2, counts - held_back, counts - held_back // 2)
        part = np.sum([ranks >= first for first in firsts], axis=0)
    return Split(*(ratings.take(part == number) for number in range(len(_CUTS) + 1)))


def _columns(ratings: Ratings) -> tuple[NDArray[Any], ...]:
    return ratings.user_ids, ratings.item_ids, ratings.stars, ratings.timestamps


def _counts_and_ranks(ratings: Ratings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each rating, how many its user has, and how many of these are older: int64[R] both."""
    _, starts, counts = np.unique(ratings.user_ids, return_index=True, return_counts=True)
    ranks = np.arange(len(ratings)) - np.repeat(starts, counts)
    return np.repeat(counts, counts), ranks
