"""What every dataset is read into: ratings as arrays, items and users by number, and splits by time that leak nothing.

Knows no file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from laser_recsys.errors import RecsysError

SplitBy = Literal["user", "time"]


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
    """Ratings cut by time. Groups, prompts and training may know `past` only.

    Attributes:
        past: before the cut.
        validation: after it; chooses the epoch.
        test: after validation; is only scored.
    """

    past: Ratings
    validation: Ratings
    test: Ratings


def split(ratings: Ratings, by: SplitBy = "user", one_in: int = 5) -> Split:
    """Past, validation and test.

    Args:
        ratings: all.
        by: "user" cuts at every user's own time, so that all but the least active users are in all parts: the last
            `len // one_in` of each are held back, the older half of these (rounded up) is validation. "time" cuts at
            two points in time for all users, so that nothing of anyone's future is known: users may be missing before.
        one_in: the share held back is 1 / one_in.
    """
    if by == "time":
        first, second = np.quantile(ratings.timestamps, [1 - 1 / one_in, 1 - 0.5 / one_in], method="higher")
        is_past = ratings.timestamps < first
        is_test = ratings.timestamps >= second
    else:
        counts, ranks = _counts_and_ranks(ratings)
        is_past = ranks < counts - counts // one_in
        is_test = ranks >= counts - (counts // one_in) // 2
    return Split(ratings.take(is_past), ratings.take(~is_past & ~is_test), ratings.take(is_test))


def _counts_and_ranks(ratings: Ratings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each rating, how many its user has, and how many of these are older: int64[R] both."""
    _, starts, counts = np.unique(ratings.user_ids, return_index=True, return_counts=True)
    ranks = np.arange(len(ratings)) - np.repeat(starts, counts)
    return np.repeat(counts, counts), ranks
