"""Writes results and documents as JSON lines or Parquet, one row each, in the order given."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Protocol

from laser_client.generation import Generation
from laser_protocol.errors import InvalidRequest, LaserError

_ROWS_PER_GROUP = 1024

MakeSchema = Callable[[Any], Any]


class RowWriter(Protocol):
    """Takes one row after the other."""

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row."""

    def close(self) -> None:
        """Finishes the file. Also after an interrupt, if what was written is to stay."""

    def abort(self) -> None:
        """Gives the file up: what stood at its path before stays there, unless a row was written in its place."""


@contextlib.contextmanager
def finishing(writer: RowWriter) -> Iterator[RowWriter]:
    """Closes the writer at the end, and aborts it instead where that is an error."""
    try:
        yield writer
    except BaseException:
        writer.abort()
        raise
    writer.close()


def make_row(row_id: str | int, outcome: Generation | LaserError) -> dict[str, Any]:
    """The row of one prompt: its generation, or its error."""
    if isinstance(outcome, LaserError):
        return {"id": row_id, "error": f"{type(outcome).__name__}: {outcome}"}
    return {
        "id": row_id,
        "text": outcome.text,
        "token_ids": outcome.token_ids,
        "finish_reason": outcome.finish_reason,
        "stats": {**asdict(outcome.stats), "tokens_per_step": outcome.stats.tokens_per_step},
    }


def open_writer(
    path: Path | None, stdout: IO[str] | None, make_schema: MakeSchema | None = None, *, in_place: bool = True
) -> RowWriter:
    """A writer for the format that the path's ending names; without a path, JSON lines to `stdout`.

    Args:
        path: ends in .jsonl or .parquet.
        stdout: where the lines go without a path.
        make_schema: of Parquet rows, given pyarrow; None: that of `make_row`.
        in_place: JSON lines stand at the path as they come; False: all at once, when they are finished.

    Raises:
        InvalidRequest: another ending, or the file cannot be written, or Parquet without pyarrow.
    """
    if path is None:
        assert stdout is not None
        return JsonLinesWriter(stdout, owned=False)
    try:
        if path.suffix == ".jsonl":
            return JsonLinesWriter(path.open("a", encoding="utf8"), owned=True) if in_place else WholeJsonLines(path)
        if path.suffix == ".parquet":
            return ParquetWriter(path, make_schema or _generation_schema)
    except OSError as error:
        raise InvalidRequest(f"output {path}: {error.strerror}", field="output") from error
    raise InvalidRequest(f"output is {str(path)!r}, must end in .jsonl or .parquet", field="output")


class JsonLinesWriter:
    """A line per row, flushed at once: a kill loses only what had not ended.

    What stood in the file before goes with the first line, or when it is closed without any.
    """

    def __init__(self, file: IO[str], *, owned: bool) -> None:
        self._file = file
        self._owned = owned
        # A pipe holds nothing, and cannot be cut.
        self._is_old = owned and stat.S_ISREG(os.fstat(file.fileno()).st_mode)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a line."""
        self._clear()
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file, if it is ours."""
        self._clear()
        if self._owned:
            self._file.close()

    def abort(self) -> None:
        """Closes the file, if it is ours, with what it holds: its lines were there for all to read."""
        if self._owned:
            self._file.close()

    def _clear(self) -> None:
        if self._is_old:
            self._file.truncate(0)
            self._is_old = False


class WholeJsonLines(JsonLinesWriter):
    """Lines that are written beside the path and moved there when finished."""

    def __init__(self, path: Path) -> None:
        self._path, self._partial = path, _partial_path(path)
        super().__init__(self._partial.open("w", encoding="utf8"), owned=True)

    def close(self) -> None:
        """Finishes the file and moves it to its place."""
        try:
            super().close()
            self._partial.replace(self._path)
        finally:
            _remove(self._partial)

    def abort(self) -> None:
        """Removes the file."""
        try:
            super().abort()
        finally:
            _remove(self._partial)


class ParquetWriter:
    """Row groups of 1,024. Written beside the path and moved there when finished: Parquet is unreadable before."""

    def __init__(self, path: Path, make_schema: MakeSchema) -> None:
        pyarrow = import_pyarrow(path, "output")
        self._pyarrow = pyarrow
        self._path = path
        self._partial = _partial_path(path)
        self._schema = make_schema(pyarrow)
        self._writer = pyarrow.parquet.ParquetWriter(self._partial, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row; ids become strings."""
        self._rows.append({**row, "id": str(row["id"])})
        if len(self._rows) >= _ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Finishes the file and moves it to its place."""
        try:
            self._flush()
            self._writer.close()
            self._partial.replace(self._path)
        finally:
            _remove(self._partial)

    def abort(self) -> None:
        """Removes the file."""
        try:
            self._writer.close()
        finally:
            _remove(self._partial)

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._pyarrow.Table.from_pylist(self._rows, self._schema))
            self._rows = []


def _partial_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def import_pyarrow(path: Path, field: str) -> Any:
    """pyarrow with its Parquet part, or an InvalidRequest that says what to install."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        message = f"{field} {path}: Parquet needs pyarrow: pip install '.[parquet]' in the project's folder"
        raise InvalidRequest(message, field=field) from error
    return pyarrow


def _generation_schema(pyarrow: Any) -> Any:
    counts = ("prompt_tokens", "output_tokens", "steps", "draft_tokens", "accepted_tokens", "relaxed_tokens")
    times = ("queue_ms", "prefill_ms", "decode_ms")
    stats = [
        *((f"num_{name}", pyarrow.int64()) for name in counts),
        *((name, pyarrow.float64()) for name in times),
        ("draft_status", pyarrow.string()),
        ("tokens_per_step", pyarrow.float64()),
    ]
    return pyarrow.schema(
        [
            ("id", pyarrow.string()),
            ("text", pyarrow.string()),
            ("token_ids", pyarrow.list_(pyarrow.int32())),
            ("finish_reason", pyarrow.string()),
            ("stats", pyarrow.struct(stats)),
            ("error", pyarrow.string()),
        ]
    )
