"""Ratings to CTR samples: did this user like this item? Nothing later than the rating is a feature of it.

Texts know the past only, which lies before the targets of training as it does before those of validation and test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laser_recsys.datasets.dataset import Dataset, Ratings, Split

LIKED_STARS = 4.0
_MAX_SIZE = 2**24  # indices that a float32 holds exactly, as networks.py has them
HISTORY_LEN = 20


@dataclass(frozen=True, slots=True)
class Samples:
    """N samples. Indices start at 1; 0 stands for none.

    Attributes:
        fields: int32[N, F]: user, item, the item's first genre, then the user's attributes.
        liked: int32[L], of all samples together: what each user liked, user by user, oldest first.
        history_ends: int64[N]: of each sample, the place in `liked` behind the last item liked before.
        history_lens: int64[N]: how many of those before that place count, at most HISTORY_LEN.
        labels: float32[N]: 1 liked, 0 not.
    """

    fields: NDArray[np.int32]
    liked: NDArray[np.int32]
    history_ends: NDArray[np.int64]
    history_lens: NDArray[np.int64]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def histories(self, places: NDArray[np.int64] | slice) -> NDArray[np.int32]:
        """int32[B, HISTORY_LEN] of some samples: items liked before, oldest first, padded behind by 0.

        Made when wanted: of all samples of MovieLens-32M they would be gigabytes.
        """
        lens = self.history_lens[places, None]
        offsets = np.arange(HISTORY_LEN)
        inside = offsets < lens
        found = self.liked[np.where(inside, self.history_ends[places, None] - lens + offsets, 0)]
        return np.where(inside, found, np.int32(0))

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


def make_samples(dataset: Dataset, parts: Split) -> SampleSplit:
    """Samples of a split dataset.

    Args:
        dataset: attributes of users and items.
        parts: its ratings, split.

    Raises:
        ValueError: a part has no samples, or only one kind of label; there are too many users or items.
    """
    user_keys = np.array(sorted(dataset.users), np.int64)
    item_keys = np.array(sorted(dataset.items), np.int64)
    genre = _indices([items.genres[0] if items.genres else "" for _, items in sorted(dataset.items.items())])
    names = sorted({name for user in dataset.users.values() for name in user.attributes})
    attributes = [
        _indices([user.attributes.get(name, "") for _, user in sorted(dataset.users.items())]) for name in names
    ]
    every = Ratings.sort(
        *(np.concatenate([getattr(part, name) for part in (parts.past, parts.training, parts.validation, parts.test)])
          for name in ("user_ids", "item_ids", "stars", "timestamps"))
    )  # fmt: skip
    users, items = np.searchsorted(user_keys, every.user_ids), np.searchsorted(item_keys, every.item_ids)
    labels = (every.stars >= LIKED_STARS).astype(np.float32)
    liked, ends, lens = _liked_before(users, items + 1, labels > 0)
    columns = (users + 1, items + 1, genre[items], *(column[users] for column in attributes))
    fields = np.stack([column.astype(np.int32) for column in columns], 1)
    part = _parts_of(every, parts)
    made = []
    for number, name in enumerate(("training", "validation", "test")):
        chosen = part == number
        if len(np.unique(labels[chosen])) < 2:
            raise ValueError(
                f"{dataset.name}: {name} has {int(chosen.sum())} samples, must have liked and disliked ones"
            )
        made.append(Samples(fields[chosen], liked, ends[chosen], lens[chosen], labels[chosen]))
    sizes = [len(user_keys) + 1, len(item_keys) + 1, *(int(column.max()) + 1 for column in (genre, *attributes))]
    if max(sizes) > _MAX_SIZE:
        raise ValueError(
            f"{dataset.name} has {len(user_keys)} users and {len(item_keys)} items, must be below {_MAX_SIZE} of each: "
            "the networks' library looks them up by float32"
        )
    return SampleSplit(Vocabulary(user_keys, item_keys, ("user", "item", "genre", *names), tuple(sizes)), *made)


def _parts_of(every: Ratings, parts: Split) -> NDArray[np.int64]:
    """int64[R]: -1 past, 0 training, 1 validation, 2 test. Each part is a run of each user's ratings by time."""
    users, starts, counts = np.unique(every.user_ids, return_index=True, return_counts=True)
    ranks = np.arange(len(every)) - np.repeat(starts, counts)
    part = np.full(len(every), -1, np.int64)
    num_before = np.zeros(len(users), np.int64)
    for ratings in (parts.past, parts.training, parts.validation):
        known, sizes = np.unique(ratings.user_ids, return_counts=True)
        num_before[np.searchsorted(users, known)] += sizes
        part += ranks >= np.repeat(num_before, counts)
    return part


def _liked_before(
    users: NDArray[np.int64], items: NDArray[np.int64], liked: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Of ratings sorted by user and time `Samples.liked`, `history_ends` and `history_lens`; liked is never empty."""
    ends: NDArray[np.int64] = np.cumsum(liked) - liked  # over all users; a user's own start where the user's rows do
    is_first = np.append(True, users[1:] != users[:-1])
    first = np.maximum.accumulate(np.where(is_first, ends, 0))
    return np.append(items[liked], 0).astype(np.int32), ends, np.minimum(ends - first, HISTORY_LEN)


def _indices(values: list[str]) -> NDArray[np.int64]:
    """int64[N]: 1 + place among the sorted values; 0 for an empty one."""
    place = {value: number for number, value in enumerate(sorted(set(values) - {""}), start=1)}
    return np.array([place.get(value, 0) for value in values], np.int64)
