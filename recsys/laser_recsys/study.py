"""Who is asked what: warm-up users, whose texts fill the pools, and held-out users, who are measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laser_recsys.grouping import UserGroups, group_by_genre
from laser_recsys.knowledge import Task, pool_id
from laser_recsys.movielens import MovieLens, TimeSplit
from laser_recsys.prompts import kar_user_prompt


@dataclass(frozen=True, slots=True)
class Study:
    """Who is asked what: disjoint warm-up and held-out tasks, and the groups behind their pools."""

    warm_up: tuple[Task, ...]
    held_out: tuple[Task, ...]
    groups: UserGroups


def split_users(num_users: int) -> tuple[int, int]:
    """How many of so many users are warm-up and held out: every sixth is held out, 24 at most.

    Raises:
        ValueError: fewer than 6.
    """
    if num_users < 6:
        raise ValueError(f"--users is {num_users}, must be at least 6")
    num_held_out = min(24, num_users // 6)
    return num_users - num_held_out, num_held_out


def plan_study(
    dataset: MovieLens, split: TimeSplit, num_warm_up: int, num_held_out: int, num_groups: int = 3, seed: int = 0
) -> Study:
    """Groups all users by their past and draws warm-up and held-out users among them; the same seed draws the same.

    Raises:
        ValueError: more users asked for than there are.
    """
    groups = group_by_genre(split.past, dataset.movies, num_groups, seed)
    num_users = num_warm_up + num_held_out
    if num_users > len(groups.user_ids):
        raise ValueError(f"{num_users} users asked for, the dataset has {len(groups.user_ids)}")
    drawn = np.random.default_rng(seed).permutation(groups.user_ids)[:num_users]
    tasks = []
    for user_id in drawn.tolist():
        prompt = kar_user_prompt(user_id, split.past, dataset.movies)
        group = groups.of_user(user_id)
        tasks.append(Task(prompt, pool_id(dataset.name, prompt.framework, prompt.kind, group)))
    return Study(tuple(tasks[:num_warm_up]), tuple(tasks[num_warm_up:]), groups)
