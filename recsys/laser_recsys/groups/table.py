"""groups.parquet: the group of every user and item, by published id, between the steps.

Not by the dataset's own numbers: those of some datasets are others once the file has grown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow

from laser_recsys.datasets.dataset import Dataset, Item, User
from laser_recsys.groups.groups import Groups
from laser_recsys.parquet_files import marked, read_rows, splits_of, write_parquet

SCHEMA = pyarrow.schema(
    [
        ("dataset", pyarrow.string()),
        ("kind", pyarrow.string()),
        ("id", pyarrow.string()),
        ("group", pyarrow.int32()),
        ("num_groups", pyarrow.int32()),
        ("how", pyarrow.string()),
    ]
)


def write_groups(path: Path, groups: Mapping[str, Groups], dataset: Dataset, split: str = "") -> None:
    """Writes the groups of "user" and "item" of a dataset, marked with the split whose past they were made from."""
    tables = [
        pyarrow.Table.from_pydict(
            {
                "dataset": [dataset.name] * len(made.keys),
                "kind": [kind] * len(made.keys),
                "id": [_known(dataset, kind)[key].id for key in made.keys.tolist()],
                "group": made.group_idx.astype(np.int32),
                "num_groups": [made.num_groups] * len(made.keys),
                "how": [made.how] * len(made.keys),
            },
            schema=SCHEMA,
        )
        for kind, made in groups.items()
    ]
    write_parquet(path, pyarrow.concat_tables(tables).replace_schema_metadata(marked(SCHEMA, split).metadata))


def read_groups(path: Path, kind: str, dataset: Dataset, split: str = "") -> Groups:
    """The groups of a dataset's users or items; whom the dataset does not know is passed over.

    Raises:
        ValueError: the file is not to be read, lacks a column, says that it is of another split, or holds none of that
            kind and dataset.
    """
    key_of = {member.id: key for key, member in _known(dataset, kind).items()}
    # Ids are numbers in many datasets, so those of another one may all be found here.
    rows = [
        row
        for row in read_rows(path, SCHEMA)
        if (row["dataset"], row["kind"]) == (dataset.name, kind) and row["id"] in key_of
    ]
    if not rows:
        raise ValueError(f"{path} holds no groups of kind {kind!r} of {dataset.name}")
    if split and (others := splits_of(path) - {split}):
        raise ValueError(
            f"{path} was made for another split ({', '.join(sorted(others))}), must be for the data's ({split}): who "
            "shares a group may tell ratings that this one holds back"
        )
    rows.sort(key=lambda row: key_of[row["id"]])
    keys = np.array([key_of[row["id"]] for row in rows], np.int64)
    if len(np.unique(keys)) < len(keys):
        raise ValueError(f"{path} holds a {kind} twice; each must be once")
    group_idx = np.array([row["group"] for row in rows], np.int64)
    num_groups = rows[0]["num_groups"]
    outside = (group_idx < 0) | (group_idx >= num_groups)
    if outside.any():
        raise ValueError(f"{path}: group is {group_idx[outside][0]}, must be from 0 to {num_groups - 1}")
    return Groups(keys, group_idx, num_groups, rows[0]["how"])


def _known(dataset: Dataset, kind: str) -> Mapping[int, User] | Mapping[int, Item]:
    return dataset.users if kind == "user" else dataset.items
