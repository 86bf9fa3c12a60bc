"""The group of each user or item, and how alike two groupings are. Knows nothing of how groups are found."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score


@dataclass(frozen=True, slots=True)
class Groups:
    """The group of each of N users or items.

    Attributes:
        keys: int64[N], increasing: the dataset's numbers of them.
        group_idx: int64[N], 0 to num_groups - 1.
        num_groups: k; a group may be empty.
        how: one line: what they were grouped by.
    """

    keys: NDArray[np.int64]
    group_idx: NDArray[np.int64]
    num_groups: int
    how: str

    def of(self, key: int) -> int:
        """The group of one.

        Raises:
            KeyError: it was not grouped.
        """
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            raise KeyError(key)
        return int(self.group_idx[place])

    def sizes(self) -> NDArray[np.int64]:
        """int64[num_groups]: members per group."""
        return np.bincount(self.group_idx, minlength=self.num_groups)

    def empty(self) -> list[int]:
        """The groups without members."""
        return [int(group) for group in np.flatnonzero(self.sizes() == 0)]


def check_num_groups(num_groups: int, num_members: int, kind: str) -> None:
    """Returns if so many groups can be made.

    Raises:
        ValueError: names the value and the range.
    """
    if not 1 <= num_groups <= num_members:
        raise ValueError(f"num_groups is {num_groups}, must be from 1 to the {num_members} {kind}")


def largest_first(keys: NDArray[np.int64], labels: NDArray[np.int64], num_groups: int) -> NDArray[np.int64]:
    """int64[num_groups]: the new number of each label. k-means numbers its clusters as they come: largest first, ties
    by their smallest key, is a name that lasts."""
    sizes = np.bincount(labels, minlength=num_groups)
    first_key = [int(keys[labels == label].min(initial=np.iinfo(np.int64).max)) for label in range(num_groups)]
    return np.argsort(np.lexsort((np.array(first_key), -sizes)))


def stability(runs: Sequence[Groups]) -> float:
    """Mean adjusted Rand index over all pairs of runs on the same members: 1 equal groups, 0 as alike as by chance."""
    pairs = list(itertools.combinations(runs, 2))
    if not pairs:
        raise ValueError("stability needs at least 2 runs")
    return float(np.mean([adjusted_rand_score(a.group_idx, b.group_idx) for a, b in pairs]))


def random_groups(keys: NDArray[np.int64], num_groups: int, seed: int = 0) -> Groups:
    """The control for likeness: groups of equal size (within one), drawn."""
    check_num_groups(num_groups, len(keys), "members")
    labels = np.random.default_rng(seed).permutation(np.arange(len(keys)) % num_groups)
    return Groups(keys, labels.astype(np.int64), num_groups, f"drawn at random, seed {seed}")


def single_group(keys: NDArray[np.int64]) -> Groups:
    """The control for size: one group of all."""
    return Groups(keys, np.zeros(len(keys), np.int64), 1, "one group of all")
