"""Appends to a pool's log and begins it anew. Only whoever holds the pool's writer lock may do so."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from laser_protocol.errors import StorageUnavailable
from laser_retriever.durable import DISK_FULL, Disk
from laser_retriever.log import (
    HEADER_SIZE,
    Record,
    UnreadableLog,
    decode_header,
    encode_frames,
    encode_header,
    scan_frames,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogMark:
    """A place in a log: all records below `sequence` lie before `offset`."""

    offset: int
    sequence: int


class LogWriter:
    """The log of a pool, open for appending.

    Opening recovers: what is valid in the log is written to a new file, so that nothing is appended behind a torn or
    damaged end, or to pages of which nobody knows whether they reached the disk. The same is done after a failed write
    or sync, before anything more is acknowledged.

    Args:
        disk: where the file lies.
        path: of the log.
        first_sequence: least number that the next record may have.

    Raises:
        OSError: the storage failed.
        StorageUnavailable: the file is no log of this format.
    """

    def __init__(self, disk: Disk, path: Path, first_sequence: int) -> None:
        self._disk = disk
        self._path = path
        self._descriptor = -1
        least, records = _recover(path)
        self.next_sequence = max(first_sequence, least, records[-1][0] + 1 if records else 0)
        # One batch per record: numbers may have gaps where records were lost.
        frames = b"".join(encode_frames(sequence, [record]) for sequence, record in records)
        self._begin(min([self.next_sequence, *(sequence for sequence, _ in records)]), frames)

    def append(self, records: Sequence[Record]) -> None:
        """Appends records; all of them are durable when it returns.

        Raises:
            StorageUnavailable: the storage failed; none may be assumed stored.
        """
        data = encode_frames(self.next_sequence, records)
        try:
            self.heal()
            # Until the sync is through nobody knows what the file holds behind its acknowledged end.
            self._failed = True
            self._disk.write_all(self._descriptor, data, self._end)
            self._disk.sync_data(self._descriptor)
        except OSError as error:
            logger.error("log.write_failed path=%s reason=%s", self._path, error.strerror)
            if error.errno in DISK_FULL:  # the new file needs the room
                with contextlib.suppress(OSError):
                    self._disk.truncate(self._descriptor, self._end)
            raise storage_error(error) from error
        self._failed = False
        self._end += len(data)
        self.next_sequence += len(records)

    def heal(self) -> None:
        """After a failed write or sync: goes on in a new file with what was acknowledged before it.

        Raises:
            OSError: the storage still fails.
        """
        if self._failed:
            self._begin(self._first_sequence, self._read(HEADER_SIZE))

    def mark(self) -> LogMark:
        """Where the log ends now."""
        return LogMark(self._end, self.next_sequence)

    def drop_before(self, mark: LogMark) -> None:
        """Goes on in a new file with the records behind the mark.

        Raises:
            OSError: the storage failed; nothing is lost, and the log holds more than it should.
        """
        self._begin(mark.sequence, self._read(mark.offset))

    def close(self) -> None:
        """Releases the file."""
        self._disk.close(self._descriptor)

    def _read(self, offset: int) -> bytes:
        """The acknowledged bytes from `offset` on; those are on the disk, whatever failed since.

        Raises:
            OSError: they cannot be read, or not all of them: what replaces the log must not be shorter.
        """
        parts = []
        while offset < self._end:
            part = os.pread(self._descriptor, self._end - offset, offset)  # Linux gives 2 GiB at most
            if not part:
                raise OSError(errno.EIO, f"{self._path.name} ends at {offset}, must have {self._end} bytes")
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _begin(self, first_sequence: int, frames: bytes) -> None:
        """Goes on in a new file. Should this fail, the old one stays open and is tried again by the next append."""
        self._failed = True
        header = encode_header(first_sequence)
        self._disk.replace_file(self._path, header, frames)
        old, self._descriptor = self._descriptor, self._disk.open(self._path, os.O_RDWR)
        if old >= 0:
            self._disk.close(old)
        self._first_sequence = first_sequence
        self._end = len(header) + len(frames)
        self._failed = False


def _recover(path: Path) -> tuple[int, list[tuple[int, Record]]]:
    """Of the log at `path`, if there is one, the first number and the valid records; says what is cut off."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0, []
    try:
        header = decode_header(data)
    except UnreadableLog as error:
        raise StorageUnavailable(f"{path.name} cannot be written to: {error}") from error
    records, valid_end = scan_frames(data[HEADER_SIZE:], str(path))
    if HEADER_SIZE + valid_end < len(data):
        logger.warning(
            "log.recovered path=%s cut_bytes=%d at=%d: the end was torn and never acknowledged",
            path, len(data) - HEADER_SIZE - valid_end, HEADER_SIZE + valid_end,
        )  # fmt: skip
    return header.first_sequence, records


def storage_error(error: OSError) -> StorageUnavailable:
    """The caller's error for a failed file operation, without paths of this machine."""
    reason = error.strerror or type(error).__name__
    if error.errno in DISK_FULL:
        reason = f"disk full ({reason})"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        reason = f"not writable ({reason})"
    return StorageUnavailable(f"the pool directory cannot be used: {reason}")
