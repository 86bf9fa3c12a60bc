"""Parquet files between the steps: read by columns, written whole, marked with the split that they were made from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from laser_recsys.files import building

_SPLIT_KEY = b"laser.split"


def marked(schema: pyarrow.Schema, split: str) -> pyarrow.Schema:
    """The schema of a file that is made from the past of this split (`split_mark`); empty: it does not say."""
    return schema.with_metadata({_SPLIT_KEY: split} if split else None)


def splits_of(path: Path) -> set[str]:
    """The splits that a Parquet file, or the files of a directory, were made from, as far as they say."""
    told = [part.physical_schema.metadata or {} for part in pyarrow.parquet.ParquetDataset(path).fragments]
    return {metadata[_SPLIT_KEY].decode() for metadata in told if _SPLIT_KEY in metadata}


def read_rows(path: Path, schema: pyarrow.Schema, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a Parquet file, or of all files of a directory, with the schema's columns or some of them.

    Raises:
        ValueError: the file is not to be read or lacks a column.
    """
    wanted = list(columns) if columns is not None else schema.names
    try:
        found = pyarrow.parquet.ParquetDataset(path).schema.names
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(f"{path} has the columns {found}, lacks {missing}")
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path, columns=wanted).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    return rows


def write_parquet(path: Path, table: pyarrow.Table) -> None:
    """Writes a table; the file appears complete and on the disk, or not at all."""
    with building(path) as built:
        with built.open("wb") as file:
            pyarrow.parquet.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        built.replace(path)
