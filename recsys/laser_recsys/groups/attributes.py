"""Groups by attributes: users by mean stars per genre, items by their genres.

Source: the method of arXiv 2408.05676 groups items by attribute (nine genre groups for MovieLens, ten categories for
Amazon-Books) and falls back to attributes for users with too little history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from laser_recsys.datasets.dataset import Item, Ratings
from laser_recsys.groups.groups import Groups, check_num_groups, largest_first

# Amazon-Books has thousands of categories: a table of users by genres must stay small.
MOST_GENRES = 64


def group_users_by_genre(ratings: Ratings, items: Mapping[int, Item], num_groups: int = 3, seed: int = 0) -> Groups:
    """Groups all users of `ratings` by k-means; the same input and seed give the same groups.

    Args:
        ratings: what the groups may know: the past only, never held-back ratings.
        items: the genres, by item.
        num_groups: k, 1 to the number of users.
        seed: of k-means' starting points.

    Raises:
        ValueError: num_groups out of range.
    """
    user_ids, profiles = genre_profiles(ratings, items)
    check_num_groups(num_groups, len(user_ids), "users")
    labels = KMeans(num_groups, n_init=10, random_state=seed).fit_predict(profiles)
    renamed = largest_first(user_ids, labels, num_groups)[labels]
    return Groups(user_ids, renamed.astype(np.int64), num_groups, "k-means on mean stars per genre")


def group_items_by_genre(items: Mapping[int, Item], num_groups: int) -> Groups:
    """Groups items by the `num_groups - 1` most frequent genres; an item of several goes to the rarest of them, as that
    says most about it. The last group takes items that have none of them.

    Raises:
        ValueError: num_groups out of range.
    """
    check_num_groups(num_groups, len(items), "items")
    chosen = frequent_genres(items, num_groups - 1)
    place = {genre: number for number, genre in enumerate(chosen)}
    keys = np.array(sorted(items), np.int64)
    groups = [
        max((place[genre] for genre in items[key].genres if genre in place), default=num_groups - 1)
        for key in keys.tolist()
    ]
    named = ", ".join([*chosen, "other"])
    return Groups(keys, np.array(groups, np.int64), num_groups, f"the rarest of its genres among: {named}")


def frequent_genres(items: Mapping[int, Item], most: int = MOST_GENRES) -> list[str]:
    """The genres of most items, the most frequent first."""
    frequency = Counter(genre for item in items.values() for genre in set(item.genres))
    return sorted(frequency, key=lambda genre: (-frequency[genre], genre))[:most]


def genre_profiles(ratings: Ratings, items: Mapping[int, Item]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """int64[U] user ids and float64[U, G] mean stars per frequent genre (sorted by name); the user's overall mean
    where none."""
    user_ids, user_idx = np.unique(ratings.user_ids, return_inverse=True)
    item_ids, item_idx = np.unique(ratings.item_ids, return_inverse=True)
    genres = sorted(frequent_genres(items))
    stars = ratings.stars.astype(np.float64)
    means = np.bincount(user_idx, stars) / np.bincount(user_idx)
    profiles = np.repeat(means[:, None], len(genres), axis=1)
    for column, genre in enumerate(genres):
        rated = np.array([genre in items[int(item_id)].genres for item_id in item_ids])[item_idx]
        counts = np.bincount(user_idx[rated], minlength=len(user_ids))
        sums = np.bincount(user_idx[rated], stars[rated], minlength=len(user_ids))
        np.divide(sums, counts, out=profiles[:, column], where=counts > 0)
    return user_ids, profiles
