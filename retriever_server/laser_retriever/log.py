"""The write-ahead log of a pool as a format, and following it. `log_writer.py` writes it.

File: a header (magic, format version, number of the first record, random id of the file, CRC-32 of these), then frames:
magic, payload length, CRC-32 of the payload, payload. A payload is the record's number, its time, whether it deletes,
the document id and its tokens. Header and records stand there twice, so that one damaged place loses no document that
lies nowhere else yet. Readers take the valid frames; what follows the last of them was never acknowledged (or is not
written to the end yet).
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

LOG_NAME = "log.wal"
FORMAT_VERSION = 2
COPIES = 2
BYTES_PER_TOKEN = 4 * COPIES
_HEADER = struct.Struct("<8sIQQ")  # magic, format version, first record's number, random id of the file
_CHECKSUM = struct.Struct("<I")
_HEADER_MAGIC = b"LASERLOG"
_FRAME = struct.Struct("<4sII")  # magic, payload length, CRC-32 of the payload
# In no id, which is UTF-8, and refused in a document's tokens: readers go on at the next one behind a damaged place.
FRAME_MAGIC = b"\xf1LSR"
_PAYLOAD = struct.Struct("<QqBH")  # record's number, time, kind, length of the id
_ADD, _DELETE = 1, 2
_HEADER_COPY_SIZE = _HEADER.size + _CHECKSUM.size
HEADER_SIZE = COPIES * _HEADER_COPY_SIZE


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One change to a pool: a document added (or replaced), or, with `token_ids` None, deleted.

    Attributes:
        document_id: of the document.
        token_ids: int32[], or None.
        time_ms: when, in milliseconds since 1970.
    """

    document_id: str
    token_ids: NDArray[np.int32] | None
    time_ms: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """What a log begins with: the number of its first record, and an id that no other log file has."""

    first_sequence: int
    file_id: int


class UnreadableLog(Exception):
    """The file is no log of this format; the message says why."""


def encode_header(first_sequence: int) -> bytes:
    """The header of a new log file."""
    fields = _HEADER.pack(_HEADER_MAGIC, FORMAT_VERSION, first_sequence, int.from_bytes(os.urandom(8)))
    return (fields + _CHECKSUM.pack(zlib.crc32(fields))) * COPIES


def decode_header(data: bytes) -> Header:
    """The header in the first bytes of a log.

    Raises:
        UnreadableLog: both copies are damaged, or it is of another format version.
    """
    for start in range(0, HEADER_SIZE, _HEADER_COPY_SIZE):
        copy = data[start : start + _HEADER_COPY_SIZE]
        if len(copy) < _HEADER_COPY_SIZE or zlib.crc32(copy[: _HEADER.size]) != _CHECKSUM.unpack(copy[-4:])[0]:
            continue
        magic, version, first_sequence, file_id = _HEADER.unpack_from(copy)
        if magic == _HEADER_MAGIC and version == FORMAT_VERSION:
            return Header(first_sequence, file_id)
    if data[:8] == _HEADER_MAGIC and len(data) >= _HEADER.size and _HEADER.unpack_from(data)[1] != FORMAT_VERSION:
        version = _HEADER.unpack_from(data)[1]
        raise UnreadableLog(f"its format version is {version}, this program reads {FORMAT_VERSION}")
    raise UnreadableLog(f"its header is damaged: {len(data)} bytes without a valid copy")


def encode_frames(first_sequence: int, records: Sequence[Record]) -> bytes:
    """The bytes of records with consecutive numbers, as they are appended in one piece."""
    return b"".join(_encode_frame(first_sequence + i, record) for i, record in enumerate(records)) * COPIES


def _encode_frame(sequence: int, record: Record) -> bytes:
    document_id = record.document_id.encode()
    kind = _DELETE if record.token_ids is None else _ADD
    tokens = b"" if record.token_ids is None else np.ascontiguousarray(record.token_ids, "<i4").tobytes()
    payload = _PAYLOAD.pack(sequence, record.time_ms, kind, len(document_id)) + document_id + tokens
    return _FRAME.pack(FRAME_MAGIC, len(payload), zlib.crc32(payload)) + payload


def scan_frames(data: bytes, source: str) -> tuple[list[tuple[int, Record]], int]:
    """Reads the valid frames of a log's bytes (without header).

    What is damaged before a valid frame is skipped and reported.

    Returns:
        (number, record) pairs in order of their numbers, each once; and where the last valid frame ends.
    """
    records: dict[int, Record] = {}
    offset = valid_end = 0
    while offset < len(data):
        frame = _decode_frame(data, offset)
        if frame is not None:
            sequence, record, offset = frame
            records.setdefault(sequence, record)
            valid_end = offset
            continue
        following = _next_valid_frame(data, offset + 1)
        if following is None:
            break
        logger.error(
            "log.damaged source=%s offset=%d skipped_bytes=%d: reading on behind it; its copy is used if it is whole",
            source, HEADER_SIZE + offset, following - offset,
        )  # fmt: skip
        offset = following
    ordered = sorted(records.items())
    for first, end in _gaps([sequence for sequence, _ in ordered]):
        logger.error("log.lost source=%s records=%d-%d: all copies are damaged", source, first, end - 1)
    return ordered, valid_end


def _gaps(sequences: Sequence[int]) -> Iterator[tuple[int, int]]:
    for before, after in pairwise(sequences):
        if after != before + 1:
            yield before + 1, after


def _decode_frame(data: bytes, offset: int) -> tuple[int, Record, int] | None:
    """(number, record, end) of the frame at `offset`; None: it is not valid."""
    if len(data) - offset < _FRAME.size:
        return None
    magic, length, checksum = _FRAME.unpack_from(data, offset)
    start = offset + _FRAME.size
    end = start + length
    if magic != FRAME_MAGIC or length < _PAYLOAD.size or end > len(data):
        return None
    payload = memoryview(data)[start:end]
    if zlib.crc32(payload) != checksum:
        return None
    sequence, time_ms, kind, id_len = _PAYLOAD.unpack_from(payload)
    tokens_start = _PAYLOAD.size + id_len
    if (length - tokens_start) % 4:
        return None
    document_id = bytes(payload[_PAYLOAD.size : tokens_start]).decode(errors="replace")
    tokens = None if kind == _DELETE else np.frombuffer(payload[tokens_start:], "<i4").astype(np.int32)
    return sequence, Record(document_id, tokens, time_ms), end


def _next_valid_frame(data: bytes, offset: int) -> int | None:
    while (offset := data.find(FRAME_MAGIC, offset)) >= 0:
        if _decode_frame(data, offset) is not None:
            return offset
        offset += 1
    return None


class LogReader:
    """Follows a pool's log, whoever writes it. Not thread-safe.

    Attributes:
        size_bytes: of the file.
        unreadable: why nothing of it is served; "": it is, or there is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header: Header | None = None
        self._offset = 0
        self._next_sequence = 0
        self.size_bytes = 0
        self.unreadable = ""

    def poll(self) -> tuple[bool, list[tuple[int, Record]]]:
        """Reads what is new.

        Returns:
            (restarted, records): whether the log is another file than before, so that the records are all there are;
            and the (number, record) pairs not returned before.
        """
        try:
            # Unbuffered: a buffer's rest and what follows would be put together, while no other thread may run.
            with self._path.open("rb", buffering=0) as file:
                header = decode_header(file.read(HEADER_SIZE))
                size_bytes = os.fstat(file.fileno()).st_size
                restarted = header != self._header or size_bytes < self._offset
                if header == self._header and restarted:
                    logger.error("log.shrunk path=%s: %d bytes that were there are gone, and the documents in them",
                                 self._path, self._offset - size_bytes)  # fmt: skip
                file.seek(HEADER_SIZE if restarted else self._offset)
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            self.unreadable = ""
            return self._forget(), []
        except UnreadableLog as error:
            logger.error("log.unreadable path=%s: %s; its documents are not served", self._path, error)
            self.unreadable = str(error)
            return self._forget(), []
        self.unreadable = ""
        if restarted:  # noted only now: a read that failed must find it again
            self._header, self._offset, self._next_sequence = header, HEADER_SIZE, 0
        records, valid_end = scan_frames(data, str(self._path))
        self._offset += valid_end
        self.size_bytes = size_bytes
        # The second copies of records may be read later than the first.
        fresh = [(sequence, record) for sequence, record in records if sequence >= self._next_sequence]
        if fresh:
            self._next_sequence = fresh[-1][0] + 1
        return restarted, fresh

    def _forget(self) -> bool:
        known, self._header = self._header is not None, None
        self._offset = self.size_bytes = 0
        return known
