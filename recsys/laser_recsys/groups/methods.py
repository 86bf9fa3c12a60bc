"""The ways to group, by name."""

from __future__ import annotations

import numpy as np

from laser_recsys.datasets.dataset import Dataset, Ratings
from laser_recsys.groups.attributes import group_items_by_genre, group_users_by_genre
from laser_recsys.groups.collaborative import UserModel, train_user_groups
from laser_recsys.groups.groups import Groups, random_groups, single_group


def user_groups(
    method: str, dataset: Dataset, past: Ratings, num_groups: int, seed: int
) -> tuple[Groups, UserModel | None]:
    """Groups of the users by "collaborative" (with the model that assigns newcomers), "genre", "random" or "single".

    Raises:
        ValueError: the method is unknown, or num_groups out of range.
    """
    if method == "collaborative":
        model, groups = train_user_groups(dataset, past, num_groups, seed)
        return groups, model
    if method == "genre":
        return group_users_by_genre(past, dataset.items, num_groups, seed), None
    return _control(method, np.array(sorted(dataset.users), np.int64), num_groups, seed), None


def item_groups(method: str, dataset: Dataset, num_groups: int, seed: int) -> Groups:
    """Groups of the items by "genre", "random" or "single".

    Raises:
        ValueError: the method is unknown, or num_groups out of range.
    """
    if method == "genre":
        return group_items_by_genre(dataset.items, num_groups)
    return _control(method, np.array(sorted(dataset.items), np.int64), num_groups, seed)


def _control(method: str, keys: np.ndarray[tuple[int], np.dtype[np.int64]], num_groups: int, seed: int) -> Groups:
    if method == "single":
        return single_group(keys)
    if method == "random":
        return random_groups(keys, num_groups, seed)
    raise ValueError(f"method is {method!r}, must be collaborative (users), genre, random or single")
