"""groups.parquet: the group of every user and item, between the steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow

from laser_recsys.groups.groups import Groups
from laser_recsys.knowledge.rows import read_rows, write_parquet

SCHEMA = pyarrow.schema(
    [
        ("kind", pyarrow.string()),
        ("key", pyarrow.int64()),
        ("group", pyarrow.int32()),
        ("num_groups", pyarrow.int32()),
        ("how", pyarrow.string()),
    ]
)


def write_groups(path: Path, groups: Mapping[str, Groups]) -> None:
    """Writes the groups of "user" and "item"."""
    tables = [
        pyarrow.Table.from_pydict(
            {
                "kind": [kind] * len(made.keys),
                "key": made.keys,
                "group": made.group_idx.astype(np.int32),
                "num_groups": [made.num_groups] * len(made.keys),
                "how": [made.how] * len(made.keys),
            },
            schema=SCHEMA,
        )
        for kind, made in groups.items()
    ]
    write_parquet(path, pyarrow.concat_tables(tables))


def read_groups(path: Path, kind: str) -> Groups:
    """The groups of one kind.

    Raises:
        ValueError: the file is not to be read, lacks a column, or holds none of that kind.
    """
    rows = sorted((row for row in read_rows(path, SCHEMA) if row["kind"] == kind), key=lambda row: int(row["key"]))
    if not rows:
        raise ValueError(f"{path} holds no groups of kind {kind!r}")
    keys = np.array([row["key"] for row in rows], np.int64)
    if len(np.unique(keys)) < len(keys):
        raise ValueError(f"{path} holds a {kind} twice; each must be once")
    group_idx = np.array([row["group"] for row in rows], np.int64)
    num_groups = rows[0]["num_groups"]
    outside = (group_idx < 0) | (group_idx >= num_groups)
    if outside.any():
        raise ValueError(f"{path}: group is {group_idx[outside][0]}, must be from 0 to {num_groups - 1}")
    return Groups(keys, group_idx, num_groups, rows[0]["how"])
