"""Ratings to CTR samples: did this user like this item? Nothing later than the rating is a feature of it.

Targets in training are past ratings that no prompt showed: a user's text is written from the newest ones, so with those
as targets the text would hold the answer. Validation and test lie after everything that groups, prompts and training
know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laser_recsys.datasets.dataset import Dataset, Ratings, Split

LIKED_STARS = 4.0
HISTORY_LEN = 20
SHOWN_IN_PROMPTS = 20  # the longest history that a built-in framework shows


@dataclass(frozen=True, slots=True)
class Samples:
    """N samples. Indices start at 1; 0 stands for none.

    Attributes:
        fields: int64[N, F]: user, item, the item's first genre, then the user's attributes.
        history: int64[N, HISTORY_LEN]: items liked before, oldest first, padded behind by 0.
        history_lens: int64[N].
        labels: float32[N]: 1 liked, 0 not.
    """

    fields: NDArray[np.int64]
    history: NDArray[np.int64]
    history_lens: NDArray[np.int64]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_users(self) -> int:
        """Users that have samples here."""
        return len(np.unique(self.fields[:, 0]))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Index spaces of the fields.

    Attributes:
        user_keys, item_keys: int64, increasing: the dataset's numbers; index = place + 1.
        names: of the fields.
        sizes: of their index spaces, 0 included.
    """

    user_keys: NDArray[np.int64]
    item_keys: NDArray[np.int64]
    names: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SampleSplit:
    """The samples of the three parts, and the vocabulary of all."""

    vocabulary: Vocabulary
    train: Samples
    validation: Samples
    test: Samples


def make_samples(dataset: Dataset, parts: Split, num_shown: int = SHOWN_IN_PROMPTS) -> SampleSplit:
    """Samples of a split dataset.

    Args:
        dataset: attributes of users and items.
        parts: its ratings, split.
        num_shown: a user's newest past ratings that prompts may have shown: no targets.

    Raises:
        ValueError: a part has no samples, or only one kind of label.
    """
    user_keys = np.array(sorted(dataset.users), np.int64)
    item_keys = np.array(sorted(dataset.items), np.int64)
    genre = _indices([items.genres[0] if items.genres else "" for _, items in sorted(dataset.items.items())])
    names = sorted({name for user in dataset.users.values() for name in user.attributes})
    attributes = [
        _indices([user.attributes.get(name, "") for _, user in sorted(dataset.users.items())]) for name in names
    ]
    every = Ratings.sort(
        *(np.concatenate([getattr(part, name) for part in (parts.past, parts.validation, parts.test)])
          for name in ("user_ids", "item_ids", "stars", "timestamps"))
    )  # fmt: skip
    users, items = np.searchsorted(user_keys, every.user_ids), np.searchsorted(item_keys, every.item_ids)
    labels = (every.stars >= LIKED_STARS).astype(np.float32)
    history, lens = _histories(users, items + 1, labels > 0)
    fields = np.stack([users + 1, items + 1, genre[items], *(column[users] for column in attributes)], 1)
    part = _parts_of(every, parts, num_shown)
    made = []
    for number, name in enumerate(("training", "validation", "test")):
        chosen = part == number
        if len(np.unique(labels[chosen])) < 2:
            raise ValueError(
                f"{dataset.name}: {name} has {int(chosen.sum())} samples, must have liked and disliked ones"
            )
        made.append(Samples(fields[chosen], history[chosen], lens[chosen], labels[chosen]))
    sizes = [len(user_keys) + 1, len(item_keys) + 1, *(int(column.max()) + 1 for column in (genre, *attributes))]
    return SampleSplit(Vocabulary(user_keys, item_keys, ("user", "item", "genre", *names), tuple(sizes)), *made)


def _parts_of(every: Ratings, parts: Split, num_shown: int) -> NDArray[np.int64]:
    """int64[R]: 0 training, 1 validation, 2 test, -1 none. Each part is a run of each user's ratings by time."""
    users, starts, counts = np.unique(every.user_ids, return_index=True, return_counts=True)
    ranks = np.arange(len(every)) - np.repeat(starts, counts)

    def per_rating(ratings: Ratings) -> NDArray[np.int64]:
        known, sizes = np.unique(ratings.user_ids, return_counts=True)
        table = np.zeros(len(users), np.int64)
        table[np.searchsorted(users, known)] = sizes
        return np.repeat(table, counts)

    num_past, num_validation = per_rating(parts.past), per_rating(parts.validation)
    part = np.full(len(every), 2, np.int64)
    part[ranks < num_past + num_validation] = 1
    part[ranks < num_past] = -1
    part[ranks < num_past - num_shown] = 0
    return part


def _histories(
    users: NDArray[np.int64], items: NDArray[np.int64], liked: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of ratings sorted by user and time, the last liked items before each: int64[R, HISTORY_LEN], int64[R]."""
    liked_items = items[liked]
    num_liked_before: NDArray[np.int64] = (
        np.cumsum(liked) - liked
    )  # over all users; a user's own start where the user's rows do
    is_first = np.append(True, users[1:] != users[:-1])
    first_place = np.maximum.accumulate(np.where(is_first, num_liked_before, 0))
    lens = np.minimum(num_liked_before - first_place, HISTORY_LEN)
    places = (num_liked_before - lens)[:, None] + np.arange(HISTORY_LEN)
    inside = np.arange(HISTORY_LEN) < lens[:, None]
    padded = np.append(liked_items, 0)
    return np.where(inside, padded[np.minimum(places, len(liked_items))], 0), lens


def _indices(values: list[str]) -> NDArray[np.int64]:
    """int64[N]: 1 + place among the sorted values; 0 for an empty one."""
    place = {value: number for number, value in enumerate(sorted(set(values) - {""}), start=1)}
    return np.array([place.get(value, 0) for value in values], np.int64)
