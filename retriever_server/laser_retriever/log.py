"""The write-ahead log of a pool: documents added and deleted since the last segment, each record durable.

File: a header (magic, format version, number of the first record, CRC-32), then frames: magic, payload length, CRC-32
of the payload, payload. A payload is the record's number, whether it deletes, the document id and its tokens. Readers
take the valid frames; what follows the last of them was never acknowledged (or is not written to the end yet).
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laser_protocol.errors import StorageUnavailable
from laser_retriever.durable import replace_file

logger = logging.getLogger(__name__)

LOG_NAME = "log.wal"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sIQI")  # magic, format version, first record's number, CRC-32 of the fields before
_HEADER_MAGIC = b"LASERLOG"
_FRAME = struct.Struct("<4sII")  # magic, payload length, CRC-32 of the payload
_FRAME_MAGIC = b"\xf1LSR"
_PAYLOAD = struct.Struct("<QBH")  # record's number, kind, length of the id
_ADD, _DELETE = 1, 2
HEADER_SIZE = _HEADER.size


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One change to a pool: a document added (or replaced), or, with `token_ids` None, deleted."""

    document_id: str
    token_ids: NDArray[np.int32] | None


def new_log_bytes(first_sequence: int) -> bytes:
    """The file of an empty log whose first record will have this number."""
    fields = struct.pack("<8sIQ", _HEADER_MAGIC, FORMAT_VERSION, first_sequence)
    return fields + struct.pack("<I", zlib.crc32(fields))


def read_header(data: bytes) -> int | None:
    """The number of the log's first record; None: this is no log of this format."""
    if len(data) < HEADER_SIZE:
        return None
    magic, version, first_sequence, checksum = _HEADER.unpack_from(data)
    if magic != _HEADER_MAGIC or version != FORMAT_VERSION or checksum != zlib.crc32(data[: HEADER_SIZE - 4]):
        return None
    return int(first_sequence)


def encode_frame(sequence: int, record: Record) -> bytes:
    """The frame of a record."""
    document_id = record.document_id.encode()
    kind = _DELETE if record.token_ids is None else _ADD
    tokens = b"" if record.token_ids is None else np.ascontiguousarray(record.token_ids, "<i4").tobytes()
    payload = _PAYLOAD.pack(sequence, kind, len(document_id)) + document_id + tokens
    return _FRAME.pack(_FRAME_MAGIC, len(payload), zlib.crc32(payload)) + payload


def scan_frames(data: bytes, source: str) -> tuple[list[tuple[int, Record]], int]:
    """Reads the valid frames of a log's bytes (without header).

    A damaged frame with a valid one after it is skipped and reported: records after a flipped bit are not given up.

    Returns:
        (number, record) pairs, and where the last valid frame ends.
    """
    records: list[tuple[int, Record]] = []
    offset = valid_end = 0
    while offset < len(data):
        frame = _decode_frame(data, offset)
        if frame is not None:
            sequence, record, offset = frame
            records.append((sequence, record))
            valid_end = offset
            continue
        following = _next_valid_frame(data, offset + 1)
        if following is None:
            break
        logger.error(
            "log.damaged source=%s offset=%d skipped_bytes=%d: a frame is damaged, its document is lost; reading on",
            source, HEADER_SIZE + offset, following - offset,
        )  # fmt: skip
        offset = following
    return records, valid_end


def _decode_frame(data: bytes, offset: int) -> tuple[int, Record, int] | None:
    """(number, record, end) of the frame at `offset`; None: it is not valid."""
    if len(data) - offset < _FRAME.size:
        return None
    magic, length, checksum = _FRAME.unpack_from(data, offset)
    start = offset + _FRAME.size
    end = start + length
    if magic != _FRAME_MAGIC or length < _PAYLOAD.size or end > len(data):
        return None
    payload = memoryview(data)[start:end]
    if zlib.crc32(payload) != checksum:
        return None
    sequence, kind, id_len = _PAYLOAD.unpack_from(payload)
    tokens_start = _PAYLOAD.size + id_len
    document_id = bytes(payload[_PAYLOAD.size : tokens_start]).decode(errors="replace")
    if kind == _DELETE:
        return sequence, Record(document_id, None), end
    return sequence, Record(document_id, np.frombuffer(payload[tokens_start:], "<i4").astype(np.int32)), end


def _next_valid_frame(data: bytes, offset: int) -> int | None:
    while (offset := data.find(_FRAME_MAGIC, offset)) >= 0:
        if _decode_frame(data, offset) is not None:
            return offset
        offset += 1
    return None


class LogReader:
    """Follows a pool's log, whoever writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self.size_bytes = 0

    def poll(self) -> tuple[bool, list[tuple[int, Record]]]:
        """Reads what is new.

        Returns:
            (restarted, records): whether the log is another file than before, so that the records are all there are;
            and the (number, record) pairs not returned before.
        """
        try:
            with self._path.open("rb") as file:
                stat = os.fstat(file.fileno())
                header = file.read(HEADER_SIZE)
                first_sequence = read_header(header)
                if first_sequence is None:
                    return self._restart(None, stat.st_size), []
                identity = (stat.st_ino, first_sequence)
                restarted = identity != self._identity or stat.st_size < self._offset
                if restarted:
                    self._restart(identity, stat.st_size)
                file.seek(self._offset)
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return self._restart(None, 0), []
        records, valid_end = scan_frames(data, str(self._path))
        self._offset += valid_end
        self.size_bytes = stat.st_size
        return restarted, records

    def _restart(self, identity: tuple[int, int] | None, size_bytes: int) -> bool:
        changed = identity != self._identity or identity is not None
        if identity is None and size_bytes:
            logger.error("log.unreadable path=%s: no header of format %d", self._path, FORMAT_VERSION)
        self._identity = identity
        self._offset = HEADER_SIZE
        self.size_bytes = size_bytes
        return changed


class LogWriter:
    """Appends to a pool's log. Only whoever holds the pool's writer lock may have one.

    Opening recovers: a torn end is cut off, with a message. After a failed sync `failed` is set for good.

    Raises:
        OSError: the storage failed.
        StorageUnavailable: the file is no log of this format.
    """

    def __init__(self, path: Path, first_sequence: int) -> None:
        self._path = path
        self.failed = False
        if not path.exists():
            replace_file(path, new_log_bytes(first_sequence))
        self._descriptor = os.open(path, os.O_RDWR)
        try:
            data = _read_all(self._descriptor)
            first = read_header(data)
            if first is None:
                raise StorageUnavailable(
                    f"{path.name} is damaged or of another format version, must be {FORMAT_VERSION}"
                )
            records, valid_end = scan_frames(data[HEADER_SIZE:], str(path))
            self._end = HEADER_SIZE + valid_end
            self.next_sequence = max([first, first_sequence, *(sequence + 1 for sequence, _ in records)])
            if self._end < len(data):
                logger.warning(
                    "log.recovered path=%s cut_bytes=%d at=%d: the end was torn and never acknowledged",
                    path, len(data) - self._end, self._end,
                )  # fmt: skip
                os.ftruncate(self._descriptor, self._end)
            os.fsync(self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise

    def append(self, records: Sequence[Record]) -> None:
        """Appends records; all of them are durable when it returns.

        Raises:
            StorageUnavailable: the storage failed now or before; none may be assumed stored.
        """
        if self.failed:
            raise StorageUnavailable("an earlier write to this pool's log failed; nothing more is stored in it")
        data = b"".join(encode_frame(self.next_sequence + i, record) for i, record in enumerate(records))
        try:
            _write_all(self._descriptor, data, self._end)
        except OSError as error:
            self._undo(error)
            raise storage_error(error) from error
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            # What the page cache holds after a failed sync is unknown: never trust this file again.
            self.failed = True
            raise storage_error(error) from error
        self._end += len(data)
        self.next_sequence += len(records)

    def _undo(self, error: OSError) -> None:
        """After a failed write: back to the last acknowledged end, or out of use."""
        logger.error("log.write_failed path=%s reason=%s", self._path, error.strerror)
        try:
            os.ftruncate(self._descriptor, self._end)
            os.fdatasync(self._descriptor)
        except OSError:
            self.failed = True

    def close(self) -> None:
        """Releases the file."""
        os.close(self._descriptor)


def storage_error(error: OSError) -> StorageUnavailable:
    """The caller's error for a failed file operation, without paths of this machine."""
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = f"disk full ({reason})"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        reason = f"not writable ({reason})"
    return StorageUnavailable(f"the pool directory cannot be used: {reason}")


def _read_all(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    parts: list[bytes] = []
    offset = 0
    while offset < size:
        part = os.pread(descriptor, size - offset, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written
