"""One immutable part of a pool on disk: documents, their suffix array, and what it replaces.

A segment is a directory `seg-<ulid>` with the little-endian arrays `tokens.i32`, `offsets.i64`, `suffixes.i32`,
`times.i64` and `checks.u32` (the CRC-32 of each document), and `meta.json`. It is written beside, fsynced, and
published by a rename; so a directory of that name is finished, and what is damaged in it shows when it is opened.
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ulid import ULID

from laser_retriever import checked_json
from laser_retriever.checked_json import DamagedJson, OtherVersion
from laser_retriever.durable import Disk
from laser_retriever.index import TokenIndex, build_index
from laser_retriever.suffix_array import BEGIN_MARK, build_context_array

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3
PREFIX = "seg-"
UNFINISHED = ".tmp"
_DTYPES = {"tokens.i32": "<i4", "offsets.i64": "<i8", "suffixes.i32": "<i4", "times.i64": "<i8", "checks.u32": "<u4"}
# A mapped file keeps a descriptor, of which a process may have a thousand: only what grows with the tokens is mapped,
# and that only in segments large enough to be worth it.
_MAPPED = ("tokens.i32", "suffixes.i32")
MIN_MAPPED_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20

Array = NDArray[Any]


class CorruptSegment(Exception):
    """A segment that cannot be trusted; the message says which of its files is wrong, and what would be right."""


class UnsupportedSegment(CorruptSegment):
    """A segment that another version of this program wrote."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredDocument:
    """A document on its way into a segment: its id, int32[] tokens, and when it came, in milliseconds since 1970."""

    document_id: str
    token_ids: NDArray[np.int32]
    time_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class SegmentContent:
    """What a segment is to hold.

    Attributes:
        documents: with distinct ids, oldest first.
        tombstones: ids deleted in its range that older segments may hold.
        first_sequence, end_sequence: the log records [first, end) whose effect the segment holds.
        replaces: names of segments that this one makes obsolete.
    """

    documents: Sequence[StoredDocument]
    tombstones: Sequence[str]
    first_sequence: int
    end_sequence: int
    replaces: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class SegmentMeta:
    """What `meta.json` holds: see SegmentContent; beside that `checksums`, the CRC-32 of each array file."""

    format_version: int
    first_sequence: int
    end_sequence: int
    replaces: tuple[str, ...]
    ids: tuple[str, ...]
    tombstones: tuple[str, ...]
    checksums: dict[str, int]

    def to_json(self) -> bytes:
        """The content of `meta.json`."""
        return checked_json.encode({field.name: getattr(self, field.name) for field in fields(self)})

    @staticmethod
    def from_json(data: bytes) -> SegmentMeta:
        """Raises CorruptSegment for anything but what `to_json` gave."""
        try:
            values = checked_json.decode(data, FORMAT_VERSION)
            for name in ("replaces", "ids", "tombstones"):
                values[name] = tuple(values[name])
            return SegmentMeta(**values)
        except OtherVersion as error:
            raise UnsupportedSegment(f"meta.json: {error}") from error
        except (DamagedJson, KeyError, TypeError) as error:
            raise CorruptSegment(f"meta.json: {error}") from error


@dataclass(frozen=True, eq=False)
class Segment:
    """A published segment, opened. Mapped arrays stay valid after its files are removed.

    Attributes:
        name: of its directory.
        meta: what it says of itself.
        index: its documents, none of them dead.
        times_ms: int64[D], when each document came.
        size_bytes: on disk.
    """

    name: str
    meta: SegmentMeta
    index: TokenIndex
    times_ms: NDArray[np.int64]
    size_bytes: int

    @cached_property
    def document_idxs(self) -> dict[str, int]:
        """Index of each document by its id."""
        return {document_id: i for i, document_id in enumerate(self.meta.ids)}

    @cached_property
    def tombstones(self) -> frozenset[str]:
        """Ids that were deleted in its range; older segments may hold them."""
        return frozenset(self.meta.tombstones)


def write_segment(disk: Disk, pool_directory: Path, content: SegmentContent) -> str:
    """Builds, writes and publishes a segment; durable when it returns.

    Args:
        disk: where the pool lies.
        pool_directory: where it is published.
        content: what it holds.

    Returns:
        Its name.

    Raises:
        OSError: the storage failed; nothing is published.
    """
    index = build_index([document.token_ids for document in content.documents])
    num_documents = len(content.documents)
    times_ms = np.fromiter((document.time_ms for document in content.documents), np.int64, num_documents)
    checks = _document_checks(index.tokens, index.offsets)
    arrays: tuple[Array, ...] = (index.tokens, index.offsets, index.suffixes, times_ms, checks)
    name = PREFIX + str(ULID()).lower()
    temporary = pool_directory / (name + UNFINISHED)
    disk.make_directory(temporary)
    try:
        checksums = {}
        for (file_name, dtype), array in zip(_DTYPES.items(), arrays, strict=True):
            data = _bytes_of(array.astype(dtype, copy=False))
            checksums[file_name] = zlib.crc32(data)
            disk.write_file(temporary / file_name, data)
        meta = SegmentMeta(
            format_version=FORMAT_VERSION,
            first_sequence=content.first_sequence,
            end_sequence=content.end_sequence,
            replaces=tuple(content.replaces),
            ids=tuple(document.document_id for document in content.documents),
            tombstones=tuple(content.tombstones),
            checksums=checksums,
        )
        disk.write_file(temporary / "meta.json", meta.to_json())
        disk.sync_directory(temporary)
        disk.rename(temporary, pool_directory / name)
    except BaseException:
        with contextlib.suppress(OSError):  # else the next writer removes it
            disk.remove_tree(temporary)
        raise
    disk.sync_directory(pool_directory)
    return name


def open_segment(path: Path, *, into_memory: bool = False) -> Segment:
    """Opens a published segment and checks sizes, checksums and structure.

    Offsets, suffixes and times that are damaged are made anew in memory; of damaged tokens the documents that are whole
    are kept, and the others hide what older segments hold of them, as they did. Both with a message.

    Args:
        path: its directory.
        into_memory: read the arrays instead of mapping them, for file systems on which mapped files may change or
            vanish. Small segments, and what a large one holds of each document, are read in any case.

    Raises:
        CorruptSegment: what it says of itself is damaged or missing.
        UnsupportedSegment: it is of another format version.
        FileNotFoundError: it is gone altogether.
        OSError: its documents cannot be read; they may be whole.
    """
    try:
        meta = SegmentMeta.from_json((path / "meta.json").read_bytes())
    except FileNotFoundError as error:
        if not path.is_dir():
            raise
        raise CorruptSegment("meta.json: is missing") from error
    size_bytes = sum(file.stat().st_size for file in path.iterdir())
    into_memory = into_memory or size_bytes < MIN_MAPPED_BYTES
    try:
        tokens = _read_array(path, "tokens.i32", meta, into_memory)
    except (CorruptSegment, FileNotFoundError) as error:
        return _salvage(path, meta, size_bytes, str(error))
    num_documents = len(meta.ids)

    def array_or(file_name: str, length: int, derive: Callable[[], Array]) -> Array:
        try:
            array = _read_array(path, file_name, meta, into_memory)
            if len(array) != length:
                raise CorruptSegment(f"{file_name}: has {len(array)} items, must have {length}")
            return array
        except (CorruptSegment, OSError) as error:
            reason = error if isinstance(error, CorruptSegment) else f"{file_name}: {error.strerror}"
            logger.error("segment.repaired segment=%s reason=%s: made anew in memory; compact the pool", path, reason)
            return derive()

    index = TokenIndex(
        tokens,
        array_or("offsets.i64", num_documents + 1, lambda: _derive_offsets(tokens)),
        array_or("suffixes.i32", len(tokens), lambda: build_context_array(tokens)),
    )
    times_ms = array_or("times.i64", num_documents, lambda: np.full(num_documents, _created_ms(path.name), np.int64))
    return Segment(path.name, meta, index, times_ms, size_bytes)


def _salvage(path: Path, meta: SegmentMeta, size_bytes: int, reason: str) -> Segment:
    """The documents of a segment with damaged tokens that have their checksums; in memory."""
    try:
        offsets = _read_array(path, "offsets.i64", meta, into_memory=True)
        expected = _read_array(path, "checks.u32", meta, into_memory=True)
        times_ms = _read_array(path, "times.i64", meta, into_memory=True)
        data = (path / "tokens.i32").read_bytes()
        tokens = np.frombuffer(data[: len(data) // 4 * 4], "<i4").astype(np.int32)
        whole = np.flatnonzero(_document_checks(tokens, offsets) == expected).tolist()
    except (CorruptSegment, FileNotFoundError):
        whole, offsets, times_ms, tokens = [], np.zeros(1, np.int64), np.empty(0, np.int64), np.empty(0, np.int32)
    kept = frozenset(whole)
    lost = [document_id for i, document_id in enumerate(meta.ids) if i not in kept]
    logger.error(
        "segment.damaged segment=%s reason=%s: lost_documents=%d of %d, the first of them %r",
        path, reason, len(lost), len(meta.ids), lost[:3],
    )  # fmt: skip
    index = build_index([tokens[offsets[i] + 1 : offsets[i + 1] - 1] for i in whole])
    ids = tuple(meta.ids[i] for i in whole)
    meta = replace(meta, ids=ids, tombstones=(*meta.tombstones, *lost))
    return Segment(path.name, meta, index, times_ms[whole], size_bytes)


def _document_checks(tokens: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
    """uint32[D]: the CRC-32 of each document with its marks."""
    data = _bytes_of(tokens)
    bounds = pairwise(map(int, 4 * offsets))
    return np.fromiter((zlib.crc32(data[start:end]) for start, end in bounds), np.uint32, len(offsets) - 1)


def _derive_offsets(tokens: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.append(np.flatnonzero(tokens == BEGIN_MARK), len(tokens)).astype(np.int64)


def _created_ms(name: str) -> int:
    try:
        return ULID.from_str(name.removeprefix(PREFIX).upper()).milliseconds
    except ValueError:
        return 0


def _file_checksum(path: Path) -> int:
    """The CRC-32 of a file. Not of its mapping: of that a place that cannot be read would end the process."""
    checksum = 0
    with path.open("rb", buffering=0) as file:
        while data := file.read(_PIECE_BYTES):
            checksum = zlib.crc32(data, checksum)
    return checksum


def _bytes_of(array: Array) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return memoryview(array.view(np.uint8).data)


def _read_array(directory: Path, file_name: str, meta: SegmentMeta, into_memory: bool) -> Array:
    path = directory / file_name
    dtype = _DTYPES[file_name]
    size = path.stat().st_size
    item = np.dtype(dtype).itemsize
    if size % item:
        raise CorruptSegment(f"{file_name}: has {size} bytes, must have a multiple of {item}")
    if into_memory or not size or file_name not in _MAPPED:
        array: Array = np.fromfile(path, dtype)
        found = zlib.crc32(_bytes_of(array))
    else:
        found = _file_checksum(path)
        array = np.asarray(np.memmap(path, dtype, "r"))
    expected = meta.checksums.get(file_name)
    if found != expected:
        raise CorruptSegment(f"{file_name}: has CRC-32 {found:#010x}, must have {expected or 0:#010x} by meta.json")
    return array
