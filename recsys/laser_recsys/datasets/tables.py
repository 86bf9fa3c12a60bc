"""Text tables as published: decoded, checked, and with errors that name file, line, value and what would be right.

Two ways in: `rows` for the small files (items, users), line by line; `rating_columns` for the large one, through Arrow.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow
import pyarrow.csv
from numpy.typing import NDArray

from laser_recsys.datasets.dataset import DatasetError

Row = tuple[int, tuple[str, ...]]  # line number, cells


@dataclass(frozen=True, slots=True)
class RatingColumns:
    """The four columns of a ratings file: where they stand, and what separates them.

    Attributes:
        names: of all columns, in the file's order, among them "user", "item", "stars" and "time".
        delimiter: one character. `::` is `:` with unnamed columns ("") between.
        header: the first line as it must read; None: the file starts with data.
        time_unit_s: length of one unit of the time column in seconds: 1 or 0.001.
    """

    names: tuple[str, ...]
    delimiter: str
    header: tuple[str, ...] | None = None
    time_unit_s: float = 1.0


# Of any dataset here; a scale that goes further is another one.
MIN_STARS, MAX_STARS = 0.0, 5.0


def decode(name: str, data: bytes, encoding: str = "utf8", first_line: int = 1) -> str:
    """The text of a file, or of its lines from `first_line` on.

    Raises:
        DatasetError: a byte is not in the encoding; names its line. Every byte is a letter in Latin-1, so there a text
            with letters of UTF-8 is refused: the file was converted, and its letters would be read as pairs.
    """
    if encoding == "latin1" and not data.isascii():
        try:
            data.decode("utf8")
        except UnicodeDecodeError:
            return data.decode(encoding)
        line = first_line + data[: next(i for i, byte in enumerate(data) if byte > 127)].count(b"\n")
        raise DatasetError(
            f"{name}, line {line}: the file is UTF-8, the published one LATIN1: convert it (iconv -t latin1) or "
            "download it again"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + first_line
        raise DatasetError(
            f"{name}, line {line}: byte 0x{data[error.start]:02x} is not {encoding.upper()}; the published file is: "
            f"convert it (iconv -t {encoding}) or download it again"
        ) from None


@contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked if its name ends in .gz.

    Raises:
        DatasetError: while it is read: the file is cut off or damaged.
    """
    try:
        with cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"{path.name} is cut off or damaged ({error}): download it again") from error


def rows(name: str, text: str, delimiter: str, num_columns: int) -> Iterator[Row]:
    """(line number, cells) of every line that is not empty; cells are as they stand, without quoting.

    Raises:
        DatasetError: a line has another number of cells.
    """
    # Not splitlines: it also ends lines at letters that some encodings have.
    for number, ended in enumerate(text.split("\n"), start=1):
        if line := ended.rstrip("\r"):
            cells = tuple(line.split(delimiter))
            _check_width(name, number, cells, num_columns)
            yield number, cells


def headed_rows(name: str, text: str, columns: Sequence[str], delimiter: str, quoting: bool = False) -> Iterator[Row]:
    """(line number, the asked columns' cells) of a table whose first line names its columns.

    Args:
        name: of the file, for messages.
        text: its contents. A column's name ends at a ':' (RecBole's atomic files add the type there).
        columns: which to give, in this order.
        delimiter: between cells.
        quoting: cells may be quoted as in RFC 4180; otherwise quotes are letters.

    Raises:
        DatasetError: a column is missing, or a line has another number of cells.
    """
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE)
    header = [cell.split(":")[0] for cell in next(reader, [])]
    missing = [column for column in columns if column not in header]
    if missing:
        raise DatasetError(f"{name} has columns {header}, lacks {missing}")
    places = [header.index(column) for column in columns]
    for cells in reader:
        if cells:
            _check_width(name, reader.line_num, cells, len(header))
            yield reader.line_num, tuple(cells[place] for place in places)


def whole_number(name: str, line: int, field: str, cell: str) -> int:
    """The cell as an integer.

    Raises:
        DatasetError: names file, line, field and value.
    """
    try:
        return int(cell)
    except ValueError:
        raise DatasetError(f"{name}, line {line}: {field} is {cell!r}, must be a whole number") from None


def check_unique(name: str, kind: str, lines: dict[int, int], key: int, line: int) -> None:
    """Notes that `key` stands on `line`.

    Raises:
        DatasetError: it stood on an earlier line already.
    """
    if key in lines:
        raise DatasetError(f"{name}, line {line}: {kind} {key} stands on line {lines[key]} already; must be once")
    lines[key] = line


def rating_columns(path: Path, columns: RatingColumns, ids: pyarrow.DataType) -> pyarrow.Table:
    """A ratings file as a table of "user", "item" (both of type `ids`), "stars" (float32) and "time" (int64, seconds).

    Memory: about 28 bytes per rating with integer ids.

    Raises:
        DatasetError: the file lacks a column or holds a value that is not of its type; names line, field and value.
    """
    with open_binary(path) as file:
        return parse_ratings(path.name, file, columns, ids)


def parse_ratings(name: str, file: IO[bytes], columns: RatingColumns, ids: pyarrow.DataType) -> pyarrow.Table:
    """As `rating_columns`, from an open file that can be read twice."""
    if columns.header is not None:
        _check_header(name, file.readline(), columns)
    start = file.tell()
    # "::" gives empty columns between: every column needs a name of its own.
    named = [column or f"gap {place}" for place, column in enumerate(columns.names)]
    try:
        table = pyarrow.csv.read_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(column_names=named),
            parse_options=pyarrow.csv.ParseOptions(delimiter=columns.delimiter, quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={"user": ids, "item": ids, "stars": pyarrow.float32(), "time": pyarrow.float64()},
                include_columns=["user", "item", "stars", "time"],
                null_values=[],
            ),
        )
    except pyarrow.ArrowInvalid as error:
        file.seek(start)
        raise _first_fault(name, file, columns, ids, str(error)) from error
    stars, times = table["stars"].to_numpy(), table["time"].to_numpy()
    if not (((stars >= MIN_STARS) & (stars <= MAX_STARS)).all() and np.isfinite(times).all()):
        file.seek(start)
        raise _first_fault(name, file, columns, ids, "a rating or a time is out of range")
    seconds = np.floor(table["time"].to_numpy() * columns.time_unit_s).astype(np.int64)
    return table.set_column(table.schema.get_field_index("time"), "time", pyarrow.array(seconds))


def numbers(table: pyarrow.Table, column: str) -> NDArray[np.int64]:
    """An integer column as int64[R]."""
    values: NDArray[np.int64] = table[column].to_numpy().astype(np.int64)
    return values


def _check_width(name: str, line: int, cells: Sequence[str], num_columns: int) -> None:
    if len(cells) != num_columns:
        raise DatasetError(f"{name}, line {line}: {len(cells)} columns, must be {num_columns}")


def _check_header(name: str, line: bytes, columns: RatingColumns) -> None:
    assert columns.header is not None
    found = [cell.split(":")[0] for cell in decode(name, line).strip("\r\n").split(columns.delimiter)]
    missing = [column for column in columns.header if column not in found]
    if missing:
        raise DatasetError(f"{name} has columns {found}, lacks {missing}")
    if found != list(columns.header):
        raise DatasetError(f"{name} has columns {found}, must be {list(columns.header)} in this order")


def _first_fault(
    name: str, file: IO[bytes], columns: RatingColumns, ids: pyarrow.DataType, reason: str
) -> DatasetError:
    """The first line that does not parse, found by reading again slowly: Arrow's own message names no line."""
    checks = {"user": int if ids == pyarrow.int64() else str, "item": int if ids == pyarrow.int64() else str}
    kinds = {**checks, "stars": float, "time": float}
    for number, line in enumerate(file, start=1 if columns.header is None else 2):
        cells = decode(name, line, first_line=number).strip("\r\n").split(columns.delimiter)
        if cells == [""]:
            continue
        if len(cells) != len(columns.names):
            shown = [column for column in columns.names if column]
            return DatasetError(f"{name}, line {number}: {line[:80]!r} must have the columns {shown}")
        for field, cell in zip(columns.names, cells, strict=True):
            try:
                value = kinds.get(field, str)(cell)
            except ValueError:
                return DatasetError(f"{name}, line {number}: {field} is {cell!r}, must be a number")
            if field == "stars" and not MIN_STARS <= float(value) <= MAX_STARS:
                return DatasetError(f"{name}, line {number}: stars is {cell}, must be from {MIN_STARS} to {MAX_STARS}")
            if field == "time" and not math.isfinite(float(value)):
                return DatasetError(f"{name}, line {number}: time is {cell}, must be a number of seconds")
    return DatasetError(f"{name}: {reason}")
