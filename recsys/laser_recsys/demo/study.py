"""Who is asked what: warm-up users, whose texts fill the pools, and held-out users, who are measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laser_recsys.datasets.dataset import Dataset, Ratings
from laser_recsys.frameworks.prompts import PromptWriter
from laser_recsys.frameworks.template import load_framework
from laser_recsys.groups.collaborative import train_user_groups
from laser_recsys.groups.groups import Groups
from laser_recsys.knowledge.rows import Task, pool_id


@dataclass(frozen=True, slots=True)
class Study:
    """Who is asked what: disjoint warm-up and held-out tasks, and the groups behind their pools."""

    warm_up: tuple[Task, ...]
    held_out: tuple[Task, ...]
    groups: Groups


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
    dataset: Dataset, past: Ratings, num_warm_up: int, num_held_out: int, num_groups: int = 3, seed: int = 0
) -> Study:
    """Groups all users by their past and draws warm-up and held-out users among them; the same seed draws the same.

    Raises:
        ValueError: more users asked for than there are.
    """
    _, groups = train_user_groups(dataset, past, num_groups, seed)
    num_users = num_warm_up + num_held_out
    user_ids = np.unique(past.user_ids)
    if num_users > len(user_ids):
        raise ValueError(f"{num_users} users asked for, the dataset has {len(user_ids)}")
    drawn = np.random.default_rng(seed).permutation(user_ids)[:num_users]
    writer = PromptWriter(load_framework("kar"), dataset, past)
    tasks = []
    for user_id in drawn.tolist():
        prompt = writer.user(user_id)
        group = groups.of(user_id)
        tasks.append(Task(prompt, pool_id(dataset.name, prompt.framework, prompt.kind, group)))
    return Study(tuple(tasks[:num_warm_up]), tuple(tasks[num_warm_up:]), groups)
