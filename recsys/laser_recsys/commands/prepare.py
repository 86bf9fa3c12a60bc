"""`laser-recsys prepare`: a dataset in its published format to Parquet, split by time."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

HELP = "read a dataset, split it by time, write it as Parquet"
EPILOG = """\
datasets: ml-100k (comes with a package), ml-1m, ml-10m, ml-25m, ml-32m, amazon-books-2014, -2018, -2023 (from files
that you downloaded: without --source the message says which, and from where)

splits:
  user   the older half of each user's ratings is what groups and texts may know; CTR models are trained on the next
         three tenths, and the last fifth is held back (half of it validation, half test). Nearly every user is in every
         part. What other users do later is known; a user's own future is not.
  time   the same shares, cut at points in time for all users alike: nothing of the future is known, and users may be
         new.
  none   groups and texts know everything: for use, once `evaluate` has told what they are worth.

examples:
  laser-recsys prepare --output data
  laser-recsys prepare --dataset ml-1m --source ~/Downloads/ml-1m --split time --output data
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `laser-recsys prepare`."""
    parser.add_argument("--dataset", default="ml-100k", metavar="NAME", help="see below (default: %(default)s)")
    parser.add_argument("--source", type=Path, metavar="DIR", help="folder with the downloaded files")
    parser.add_argument(
        "--split", choices=("user", "time", "none"), default="user", help="see below (default: %(default)s)"
    )
    parser.add_argument(
        "--min-ratings",
        type=int,
        metavar="N",
        help="keep only users and items with at least N ratings of each other (default: 5 for amazon-books, else all)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the prepared dataset")


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Runs it.

    Raises:
        DatasetError, CacheError, OSError: see `read_dataset`.
    """
    from laser_recsys.datasets.catalogue import read_dataset
    from laser_recsys.datasets.prepared import write_prepared

    dataset = read_dataset(arguments.dataset, arguments.source, arguments.cache, arguments.min_ratings)
    parts = write_prepared(arguments.output, dataset, arguments.split)
    say(
        f"{dataset.name}: {len(dataset.users)} users, {len(dataset.items)} items, {len(dataset.ratings)} ratings: "
        f"{len(parts.past)} past, {len(parts.training)} training, {len(parts.validation)} validation, "
        f"{len(parts.test)} test (split by {arguments.split})"
    )
    say(f"written: {arguments.output}")
