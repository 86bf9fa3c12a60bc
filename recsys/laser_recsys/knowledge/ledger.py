"""What a knowledge job has done, on disk: settings, and parts that appear whole. A task is done when a part holds it.

DIR/job.json       what the job is; a resumed job must be the same
DIR/job.lock       held by the one process that runs it
DIR/parts/*.parquet
DIR/knowledge.parquet   all parts in one file, once all tasks are done or given up
DIR/refused.jsonl       what was given up, and why; only where something was
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet

from laser_recsys.errors import RecsysError
from laser_recsys.files import building
from laser_recsys.knowledge.rows import KEY_COLUMNS, SCHEMA, Knowledge, TaskKey, key_of_row, write_knowledge
from laser_recsys.lock import alone_in
from laser_recsys.parquet_files import marked, read_rows

_PUBLISHED = ("job.json", "knowledge.parquet", "refused.jsonl")


class LedgerError(RecsysError):
    """The job's directory belongs to another job, or what is in it is damaged. The message says what to do."""


class Ledger:
    """The directory of one job, held by this process. Make one with `open_ledger`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.merged = folder / "knowledge.parquet"
        self._parts = folder / "parts"
        self.done: set[TaskKey] = set()
        for part in self._sorted_parts():
            self._note(part)

    def record(self, knowledge: Sequence[Knowledge]) -> Path:
        """Writes a part. When this returns, the rows are done for good; before, none of them is.

        Raises:
            AssertionError: a row was done already.
            OSError: the part cannot be written.
        """
        keys = [row.key for row in knowledge]
        assert len(set(keys)) == len(keys) and not self.done.intersection(keys), "a task was done twice"
        number = 1 + max((int(part.stem) for part in self._sorted_parts()), default=0)
        path = self._parts / f"{number:06d}.parquet"
        write_knowledge(path, knowledge)
        _sync_directory(self._parts)
        self.done.update(keys)
        return path

    def rates(self) -> tuple[int, int]:
        """(output tokens, steps) of all that is done."""
        num_tokens = num_steps = 0
        for part in self._sorted_parts():
            table = pyarrow.parquet.read_table(part, columns=["token_ids", "num_steps"])
            num_tokens += len(table["token_ids"].combine_chunks().flatten())
            num_steps += sum(table["num_steps"].to_pylist())
        return num_tokens, num_steps

    def merge(self, split: str) -> Path:
        """Writes knowledge.parquet out of all parts, one part in memory at a time, marked with the prompts' split."""
        with building(self.merged) as built:
            with pyarrow.parquet.ParquetWriter(built, marked(SCHEMA, split), compression="zstd") as writer:
                for part in self._sorted_parts():
                    writer.write_table(pyarrow.parquet.read_table(part, schema=SCHEMA))
            built.replace(self.merged)
        return self.merged

    def _sorted_parts(self) -> list[Path]:
        return sorted(self._parts.glob("[0-9]*.parquet"))

    def _note(self, part: Path) -> None:
        for row in read_rows(part, SCHEMA, KEY_COLUMNS):
            key = key_of_row(row)
            if key in self.done:
                raise LedgerError(f"{part} holds {' '.join(key)}, which an earlier part holds: was a part copied in?")
            self.done.add(key)


@contextmanager
def open_ledger(folder: Path, settings: Mapping[str, object]) -> Iterator[Ledger]:
    """The ledger in `folder`, new or resumed, while the body runs.

    Args:
        folder: made if missing.
        settings: what makes this job another one than another: model, acceptance, limits. JSON values.

    Raises:
        FolderLocked: another process runs a job there.
        LedgerError: the job there has other settings, which it names, or job.json is damaged.
        OSError: the folder cannot be written.
    """
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    with alone_in(folder, folder / "job.lock"):
        for pattern in ("parts/.*", *(f".{name}-*" for name in _PUBLISHED)):
            for unfinished in folder.glob(pattern):
                if unfinished.is_dir():  # not what a file system or a desktop left there
                    shutil.rmtree(unfinished)  # what a killed process was writing
        keep_settings(folder / "job.json", folder, settings)
        yield Ledger(folder)


def keep_settings(path: Path, folder: Path, settings: Mapping[str, object]) -> None:
    """Writes what makes the job in `folder` this one, or returns if that is there already.

    Raises:
        LedgerError: there is another one, or the file is damaged.
    """
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf8"))
        except ValueError as error:
            raise LedgerError(
                f"{path} is no JSON ({error}): remove it if the parts beside it are this job's, or name another folder"
            ) from error
        for name in sorted(stored.keys() | settings.keys()):
            if stored.get(name) != settings.get(name):
                raise LedgerError(
                    f"{folder} holds a job with {name} {stored.get(name)!r}, asked for is {settings.get(name)!r}: "
                    "resume it as it was, or name another folder"
                )
        return
    with building(path) as built:
        with built.open("w", encoding="utf8") as file:
            json.dump(dict(settings), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        built.replace(path)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
