"""Users to groups by what they like: k-means on the mean rating per genre.

One pool serves one group, so that drafts come from texts about similar users. Source: PAPER.md's method groups by
collaborative vectors (LightGCN) and falls back to attributes for cold users; this is the attribute form, for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from laser_recsys.movielens import Movie, Ratings


@dataclass(frozen=True, slots=True)
class UserGroups:
    """The group of each user.

    Attributes:
        user_ids: int64[U], increasing.
        group_idx: int64[U], 0 to num_groups - 1; group 0 is the largest.
        num_groups: k.
    """

    user_ids: NDArray[np.int64]
    group_idx: NDArray[np.int64]
    num_groups: int

    def of_user(self, user_id: int) -> int:
        """The user's group.

        Raises:
            KeyError: the user had no ratings to be grouped by.
        """
        place = int(np.searchsorted(self.user_ids, user_id))
        if place == len(self.user_ids) or self.user_ids[place] != user_id:
            raise KeyError(user_id)
        return int(self.group_idx[place])

    def sizes(self) -> NDArray[np.int64]:
        """int64[num_groups]: users per group."""
        return np.bincount(self.group_idx, minlength=self.num_groups)


def group_by_genre(ratings: Ratings, movies: Mapping[int, Movie], num_groups: int = 3, seed: int = 0) -> UserGroups:
    """Groups all users of `ratings`; the same input and seed give the same groups.

    Args:
        ratings: what the groups may know: the past only, never held-back ratings.
        movies: the genres, by item id.
        num_groups: k, 1 to the number of users.
        seed: of k-means' starting points.

    Raises:
        ValueError: num_groups out of range.
    """
    user_ids, profiles = genre_profiles(ratings, movies)
    if not 1 <= num_groups <= len(user_ids):
        raise ValueError(f"num_groups is {num_groups}, must be from 1 to the {len(user_ids)} users")
    labels = KMeans(num_groups, n_init=10, random_state=seed).fit_predict(profiles)
    # k-means numbers its clusters as they come: largest first, ties by their smallest user, is a name that lasts.
    sizes = np.bincount(labels, minlength=num_groups)
    first_user = [int(user_ids[labels == label].min(initial=np.iinfo(np.int64).max)) for label in range(num_groups)]
    order = np.lexsort((np.array(first_user), -sizes))
    return UserGroups(user_ids, np.argsort(order)[labels].astype(np.int64), num_groups)


def genre_profiles(ratings: Ratings, movies: Mapping[int, Movie]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """int64[U] user ids and float64[U, G] mean stars per genre (sorted by name); the user's overall mean where none."""
    user_ids, user_idx = np.unique(ratings.user_ids, return_inverse=True)
    item_ids, item_idx = np.unique(ratings.item_ids, return_inverse=True)
    genres = sorted({genre for movie in movies.values() for genre in movie.genres})
    stars = ratings.stars.astype(np.float64)
    means = np.bincount(user_idx, stars) / np.bincount(user_idx)
    profiles = np.repeat(means[:, None], len(genres), axis=1)
    for column, genre in enumerate(genres):
        rated = np.array([genre in movies[int(item_id)].genres for item_id in item_ids])[item_idx]
        counts = np.bincount(user_idx[rated], minlength=len(user_ids))
        sums = np.bincount(user_idx[rated], stars[rated], minlength=len(user_ids))
        np.divide(sums, counts, out=profiles[:, column], where=counts > 0)
    return user_ids, profiles
