"""`laser-recsys group`: which users and items share a pool."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

HELP = "group users and items: each group has its own pool"
EPILOG = """\
methods:
  collaborative  users by vectors of what they and others rated (ALS), k-means; users with little history by attributes
  genre          users by mean stars per genre; items by the rarest of their genres among the most frequent ones
  random, single controls: groups of equal size, drawn; one group of all

--model assigns the users to the groups of an earlier run, new users too, without training again.

examples:
  laser-recsys group --data data
  laser-recsys group --data data --users random --output data/groups-random.parquet
  laser-recsys group --data data-of-today --model data/groups.model.npz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `laser-recsys group`."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what 'prepare' wrote")
    methods = ("collaborative", "genre", "random", "single")
    parser.add_argument("--users", choices=methods, help="method (default: collaborative)")
    parser.add_argument("--items", choices=methods[1:], default="genre", help="method (default: %(default)s)")
    parser.add_argument("--num-user-groups", type=int, metavar="K", help="default: 3")
    parser.add_argument("--num-item-groups", type=int, default=9, metavar="K", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--stability-runs", type=int, default=3, metavar="N",
        help="runs with other seeds whose likeness is reported; 1: none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, metavar="FILE", help="groups.model.npz of an earlier run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: DIR/groups.parquet")


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Runs it.

    Raises:
        DatasetError: no prepared dataset.
        ValueError: an argument does not fit the dataset.
    """
    from laser_recsys.datasets.prepared import read_prepared, split_mark
    from laser_recsys.groups.collaborative import UserModel
    from laser_recsys.groups.groups import stability
    from laser_recsys.groups.methods import item_groups, user_groups
    from laser_recsys.groups.table import write_groups

    dataset, parts = read_prepared(arguments.data)
    output = arguments.output or arguments.data / "groups.parquet"
    if arguments.model is not None:
        for name in ("users", "num_user_groups"):
            if getattr(arguments, name) is not None:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is given beside --model, which knows the users' groups: leave one out")
        users, num_cold = UserModel.load(arguments.model).assign(dataset, parts.past)
        say(f"assigned by {arguments.model}, {num_cold} of {len(users.keys)} users by attributes")
    else:
        made = [
            user_groups(
                arguments.users or "collaborative",
                dataset,
                parts.past,
                3 if arguments.num_user_groups is None else arguments.num_user_groups,
                arguments.seed + run,
            )
            for run in range(max(arguments.stability_runs, 1))
        ]
        users, model = made[0]
        if model is not None:
            model.save(output.with_suffix(".model.npz"))
        if len(made) > 1 and users.num_groups > 1:
            say(f"stability of the users' groups over {len(made)} seeds: {stability([each for each, _ in made]):.3f} "
                "(adjusted Rand index: 1 the same, 0 chance)")  # fmt: skip
    items = item_groups(arguments.items, dataset, arguments.num_item_groups, arguments.seed)
    for kind, groups in (("users", users), ("items", items)):
        say(f"{kind}: {groups.num_groups} groups of {', '.join(map(str, groups.sizes()))}, by {groups.how}")
        for group in groups.empty():
            say(f"warning: group {group} of the {kind} is empty: its pool will stay empty; fewer groups would do")
    # Which split an earlier model was trained on is not known.
    split = split_mark(arguments.data) if arguments.model is None else ""
    write_groups(output, {"user": users, "item": items}, dataset, split)
    say(f"written: {output}")
