"""prompts.parquet: what is to be asked, written once and read as a stream, so that a job of millions fits into
memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from laser_recsys.files import building
from laser_recsys.frameworks.prompts import Prompt
from laser_recsys.knowledge.rows import KEY_COLUMNS, Task, TaskKey, key_of_row
from laser_recsys.parquet_files import marked, splits_of

_BATCH = 1024
_ROW_GROUP = 8192
_NEEDED = (*KEY_COLUMNS, "pool", "prompt")
_TEXT = (pyarrow.string(), pyarrow.large_string())

SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("kind", pyarrow.string()),
        ("framework", pyarrow.string()),
        ("pool", pyarrow.string()),
        ("system", pyarrow.string()),
        ("prompt", pyarrow.string()),
        ("num_dropped", pyarrow.int32()),
        ("answer", pyarrow.string()),
    ]
)


class PromptFiles:
    """The tasks of one or many prompt files, in their order; may be iterated again.

    Args:
        paths: files of `write_prompts`.

    Raises:
        ValueError: a file is not to be read, lacks a column or has one of another type, a value that a task needs is
            null, a task stands twice, or two files are of different splits.

    Attributes:
        split: that the prompts were made from (`split_mark`); empty: no file says.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._num_rows: int = sum(_open(path).metadata.num_rows for path in self._paths)
        self.split = self._common_split()
        self._check_rows()

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[Task]:
        for path in self._paths:
            for batch in _open(path).iter_batches(_BATCH, columns=SCHEMA.names):
                yield from map(task_of_row, batch.to_pylist())

    def sha256(self) -> str:
        """Of the files' bytes, in their order; hex."""
        digest = hashlib.sha256()
        for path in self._paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def json_frameworks(self) -> list[str]:
        """The frameworks among them that ask for JSON."""
        return sorted({task.prompt.framework for task in self if task.prompt.answer == "json"})

    def _common_split(self) -> str:
        found = {split: path for path in self._paths for split in splits_of(path)}
        if len(found) > 1:
            told = ", ".join(f"{path} of {split!r}" for split, path in found.items())
            raise ValueError(f"prompts are of different splits, must be of one: {told}")
        return next(iter(found), "")

    def _check_rows(self) -> None:
        seen: set[TaskKey] = set()
        for path in self._paths:
            for batch in _open(path).iter_batches(_BATCH, columns=list(_NEEDED)):
                for name in _NEEDED:
                    if batch[name].null_count:
                        raise ValueError(f"{path}: column {name} holds a null, must hold none")
                for row in batch.select(list(KEY_COLUMNS)).to_pylist():
                    key = key_of_row(row)
                    if key in seen:
                        raise ValueError(f"{path}: {' '.join(key)} stands twice; must be once")
                    seen.add(key)


def write_prompts(path: Path, tasks: Iterable[Task], split: str = "") -> int:
    """Writes prompts.parquet as the tasks come; the file appears complete and on the disk, or, without any, not at all.

    Args:
        path: of the file.
        tasks: each at most once.
        split: that they were made from (`split_mark`); empty: the file does not say.

    Returns:
        How many there are.
    """
    num_rows, rows = 0, map(_row, tasks)
    with building(path) as built:
        with built.open("wb") as file:
            with pyarrow.parquet.ParquetWriter(file, marked(SCHEMA, split), compression="zstd") as writer:
                while batch := list(islice(rows, _ROW_GROUP)):
                    writer.write_table(pyarrow.Table.from_pylist(batch, schema=SCHEMA))
                    num_rows += len(batch)
            file.flush()
            os.fsync(file.fileno())
        if num_rows:
            built.replace(path)
    return num_rows


def _row(task: Task) -> dict[str, Any]:
    named = {"prompt" if name == "text" else name: value for name, value in asdict(task.prompt).items()}
    return named | {"pool": task.pool}


def task_of_row(row: Mapping[str, Any]) -> Task:
    """The task of one row."""
    named = {"text" if name == "prompt" else name: row[name] for name in row if name != "pool"}
    return Task(Prompt(**named), row["pool"])


def _open(path: Path) -> Any:
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
    if missing:
        raise ValueError(f"{path} has the columns {file.schema_arrow.names}, lacks {missing}")
    for wanted in SCHEMA:
        found = file.schema_arrow.field(wanted.name).type
        if not (found in _TEXT if wanted.type in _TEXT else pyarrow.types.is_integer(found)):
            raise ValueError(f"{path}: column {wanted.name} is of type {found}, must be {wanted.type}")
    return file
