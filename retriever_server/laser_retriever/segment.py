"""One immutable part of a pool on disk: documents, their suffix array, and what it replaces.

A segment is a directory `seg-<ulid>` with `tokens.i32`, `offsets.i64`, `suffixes.i32` (little-endian arrays of an
index) and `meta.json`. It is written beside, fsynced, and published by a rename; so a directory of that name is
finished, and what is damaged in it shows in sizes and checksums when it is opened.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ulid import ULID

from laser_retriever.durable import json_bytes, sync_directory, write_file
from laser_retriever.index import MARKS_PER_DOCUMENT, TokenIndex, build_index

FORMAT_VERSION = 2
PREFIX = "seg-"
UNFINISHED = ".tmp"
_FILES = (("tokens.i32", "<i4"), ("offsets.i64", "<i8"), ("suffixes.i32", "<i4"))


class CorruptSegment(Exception):
    """A segment that cannot be trusted; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class SegmentMeta:
    """What `meta.json` holds.

    Attributes:
        format_version: FORMAT_VERSION of the writer.
        first_sequence, end_sequence: the log records [first, end) whose effect the segment holds.
        replaces: names of segments that this one makes obsolete.
        ids: document ids, in order.
        tombstones: ids deleted in that range that older segments may hold.
        checksums: CRC-32 of each array file.
    """

    format_version: int
    first_sequence: int
    end_sequence: int
    replaces: tuple[str, ...]
    ids: tuple[str, ...]
    tombstones: tuple[str, ...]
    checksums: dict[str, int]

    @staticmethod
    def from_json(data: bytes) -> SegmentMeta:
        """Raises CorruptSegment for anything but what `asdict` of a meta gave, or another format version."""
        try:
            fields: dict[str, Any] = json.loads(data)
            version = fields["format_version"]
            if version != FORMAT_VERSION:
                raise CorruptSegment(f"format version is {version}, this program reads {FORMAT_VERSION}")
            for name in ("replaces", "ids", "tombstones"):
                fields[name] = tuple(str(item) for item in fields[name])
            checksums = {str(key): int(value) for key, value in fields["checksums"].items()}
            return SegmentMeta(**{**fields, "checksums": checksums})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptSegment(f"meta.json is damaged: {error!r}") from error


@dataclass(frozen=True, eq=False)
class Segment:
    """A published segment, opened. Its arrays are memory-mapped and stay valid after its files are removed."""

    name: str
    meta: SegmentMeta
    index: TokenIndex
    size_bytes: int

    @cached_property
    def document_idxs(self) -> dict[str, int]:
        """Index of each document by its id."""
        return {document_id: i for i, document_id in enumerate(self.meta.ids)}


def write_segment(
    pool_directory: Path,
    documents: Sequence[tuple[str, NDArray[np.int32]]],
    *,
    tombstones: Sequence[str] = (),
    first_sequence: int,
    end_sequence: int,
    replaces: Sequence[str] = (),
) -> Segment:
    """Builds, writes and publishes a segment; durable when it returns.

    Args:
        pool_directory: where it is published.
        documents: (id, int32 tokens) pairs with distinct ids.
        tombstones, first_sequence, end_sequence, replaces: see SegmentMeta.

    Raises:
        OSError: the storage failed; nothing is published.
    """
    index = build_index([tokens for _, tokens in documents])
    name = PREFIX + str(ULID()).lower()
    temporary = pool_directory / (name + UNFINISHED)
    temporary.mkdir()
    try:
        checksums = {}
        arrays: tuple[NDArray[Any], ...] = (index.tokens, index.offsets, index.suffixes)
        for (file_name, dtype), array in zip(_FILES, arrays, strict=True):
            data = _bytes_of(array.astype(dtype, copy=False))
            checksums[file_name] = zlib.crc32(data)
            write_file(temporary / file_name, data)
        meta = SegmentMeta(
            format_version=FORMAT_VERSION,
            first_sequence=first_sequence,
            end_sequence=end_sequence,
            replaces=tuple(replaces),
            ids=tuple(document_id for document_id, _ in documents),
            tombstones=tuple(tombstones),
            checksums=checksums,
        )
        write_file(temporary / "meta.json", json_bytes(asdict(meta)))
        sync_directory(temporary)
        temporary.rename(pool_directory / name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(pool_directory)
    return open_segment(pool_directory / name)


def open_segment(path: Path) -> Segment:
    """Opens a published segment and checks sizes, checksums and structure.

    Raises:
        CorruptSegment: it is damaged, incomplete or of another format version.
        FileNotFoundError: it is gone altogether.
    """
    try:
        meta = SegmentMeta.from_json((path / "meta.json").read_bytes())
        arrays = [_map_array(path / file_name, dtype, meta) for file_name, dtype in _FILES]
    except FileNotFoundError as error:
        if not path.is_dir():
            raise
        raise CorruptSegment(f"{Path(error.filename).name} is missing") from error
    tokens, offsets, suffixes = arrays
    num_documents = len(meta.ids)
    if len(offsets) != num_documents + 1 or offsets[0] != 0 or offsets[-1] != len(tokens):
        raise CorruptSegment(f"offsets.i64 does not fit {num_documents} documents of {len(tokens)} tokens")
    if len(suffixes) != len(tokens) or (num_documents and int(np.diff(offsets).min()) <= MARKS_PER_DOCUMENT):
        raise CorruptSegment("suffixes.i32 or offsets.i64 does not fit tokens.i32")
    size_bytes = sum(file.stat().st_size for file in path.iterdir())
    return Segment(path.name, meta, TokenIndex(tokens, offsets, suffixes), size_bytes)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return memoryview(array.view(np.uint8).data)


def _map_array(path: Path, dtype: str, meta: SegmentMeta) -> NDArray[Any]:
    size = path.stat().st_size
    item = np.dtype(dtype).itemsize
    if size % item:
        raise CorruptSegment(f"{path.name} has {size} bytes, no multiple of {item}")
    array: NDArray[Any] = np.asarray(np.memmap(path, dtype, "r")) if size else np.empty(0, dtype)
    found = zlib.crc32(_bytes_of(array))
    if found != meta.checksums.get(path.name):
        raise CorruptSegment(f"{path.name} has CRC-32 {found:#010x}, meta.json says {meta.checksums.get(path.name)}")
    return array
