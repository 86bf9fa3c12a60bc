"""A prepared dataset on disk: items.parquet, users.parquet and ratings.parquet, each rating with its part of the
split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from laser_recsys.datasets.dataset import Dataset, DatasetError, Item, Ratings, Split, SplitBy, User, split
from laser_recsys.files import building

PARTS = ("past", "training", "validation", "test")
_FORMAT = 2

ITEM_SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.int64()),
        ("id", pyarrow.string()),
        ("title", pyarrow.string()),
        ("year", pyarrow.int32()),
        ("genres", pyarrow.list_(pyarrow.string())),
        ("creator", pyarrow.string()),
        ("description", pyarrow.string()),
    ]
)
USER_SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.int64()),
        ("id", pyarrow.string()),
        ("attributes", pyarrow.map_(pyarrow.string(), pyarrow.string())),
    ]
)
RATING_SCHEMA = pyarrow.schema(
    [
        ("user", pyarrow.int64()),
        ("item", pyarrow.int64()),
        ("stars", pyarrow.float32()),
        ("timestamp", pyarrow.int64()),
        ("part", pyarrow.dictionary(pyarrow.int8(), pyarrow.string())),
    ]
)


def write_prepared(folder: Path, dataset: Dataset, by: SplitBy = "user") -> Split:
    """Splits and writes a dataset; prepared.json calls it unfinished until all of it is there.

    Returns:
        The split.

    Raises:
        DatasetError: the folder holds another dataset, or another split of it: what was made from that (groups,
            prompts, knowledge) would know this split's held-back ratings.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "format": _FORMAT, "name": dataset.name, "noun": dataset.noun, "split_by": by,
        "num_ratings": len(dataset.ratings), "ratings": _digest(dataset),
    }  # fmt: skip
    _check_same(folder / "prepared.json", facts)
    _write_facts(folder, {**facts, "unfinished": True})
    parts = split(dataset.ratings, by)
    items = [{"key": key, **asdict(item)} for key, item in sorted(dataset.items.items())]
    users = [
        {"key": key, "id": user.id, "attributes": list(user.attributes.items())}
        for key, user in sorted(dataset.users.items())
    ]
    _write(folder / "items.parquet", pyarrow.Table.from_pylist(items, ITEM_SCHEMA))
    _write(folder / "users.parquet", pyarrow.Table.from_pylist(users, USER_SCHEMA))
    _write(folder / "ratings.parquet", pyarrow.concat_tables(map(_rating_table, _each(parts), range(len(PARTS)))))
    _write_facts(folder, facts)
    return parts


def _digest(dataset: Dataset) -> str:
    """Of the ratings, 16 hex digits: others, also a core of the same ones, are split otherwise."""
    digest = hashlib.sha256()
    for array in (
        dataset.ratings.user_ids,
        dataset.ratings.item_ids,
        dataset.ratings.stars,
        dataset.ratings.timestamps,
    ):
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _write_facts(folder: Path, facts: Mapping[str, object]) -> None:
    _publish(folder / "prepared.json", lambda path: path.write_text(json.dumps(facts, indent=1), encoding="utf8"))


def _check_same(path: Path, facts: Mapping[str, object]) -> None:
    try:
        stored = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return  # nothing that could be read is there
    for name, value in facts.items():
        if stored.get(name) != value:
            raise DatasetError(
                f"{path.parent} holds {stored.get('name')} with {name} {stored.get(name)!r}, asked for is {value!r}: "
                "name another folder, or remove that one"
            )


def read_prepared(folder: Path) -> tuple[Dataset, Split]:
    """Reads what `write_prepared` wrote.

    Raises:
        DatasetError: there is none, or it is unfinished, damaged or of another format.
    """
    facts = _read_facts(folder)
    try:
        tables = [pyarrow.parquet.read_table(folder / f"{name}.parquet") for name in ("items", "users", "ratings")]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder} is damaged (laser-recsys prepare mends it): {error}") from error
    items, users, ratings = tables
    known_items = {
        row.pop("key"): Item(**{**row, "genres": tuple(row["genres"])}) for row in items.to_pylist()
    }  # fmt: skip
    known_users = {row["key"]: User(row["id"], dict(row["attributes"])) for row in users.to_pylist()}
    part_idx = ratings["part"].combine_chunks().indices.to_numpy()
    columns = [ratings[name].to_numpy() for name in ("user", "item", "stars", "timestamp")]
    parts = Split(*(Ratings(*(column[part_idx == idx] for column in columns)) for idx in range(len(PARTS))))
    dataset = Dataset(facts["name"], facts["noun"], known_items, known_users, Ratings.sort(*columns))
    dataset.check()
    return dataset, parts


def split_mark(folder: Path) -> str:
    """What names a prepared split to files that are made from it, its way and its ratings: "user 0123456789abcdef".

    Raises:
        DatasetError: there is none, or it is unfinished or of another format.
    """
    facts = _read_facts(folder)
    return f"{facts['split_by']} {facts['ratings']}"


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / "prepared.json").read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder} holds no prepared dataset (laser-recsys prepare makes one): {error}") from error
    if facts.get("unfinished"):
        raise DatasetError(f"{folder} was not prepared to the end: run the same laser-recsys prepare again")
    if facts.get("format") != _FORMAT:
        raise DatasetError(f"{folder}/prepared.json has format {facts.get('format')!r}, must be {_FORMAT}")
    return facts


def _each(parts: Split) -> tuple[Ratings, Ratings, Ratings, Ratings]:
    return parts.past, parts.training, parts.validation, parts.test


def _rating_table(ratings: Ratings, part_idx: int) -> pyarrow.Table:
    indices = pyarrow.array(np.full(len(ratings), part_idx, np.int8))
    part = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(PARTS))
    columns = [ratings.user_ids, ratings.item_ids, ratings.stars, ratings.timestamps, part]
    return pyarrow.Table.from_arrays([pyarrow.array(column) for column in columns], schema=RATING_SCHEMA)


def _write(path: Path, table: pyarrow.Table) -> None:
    _publish(path, lambda built: pyarrow.parquet.write_table(table, built, compression="zstd"))


def _publish(path: Path, write: Callable[[Path], object]) -> None:
    with building(path) as built:
        write(built)
        built.replace(path)
