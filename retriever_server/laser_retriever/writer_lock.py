"""The lock that makes one process at a time the writer of a pool: `flock` on `writer.lock`, which names the holder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from laser_protocol.errors import WriterElsewhere
from laser_retriever.durable import DISK_FULL, Disk

LOCK_NAME = "writer.lock"


class WriterLock:
    """A held lock. The kernel releases it when the process dies, however it dies."""

    def __init__(self, disk: Disk, descriptor: int) -> None:
        self._disk = disk
        self._descriptor = descriptor

    @staticmethod
    def acquire(disk: Disk, directory: Path, pool: str, holder: str) -> WriterLock:
        """Takes the pool's lock without waiting.

        Args:
            disk: where the pool lies.
            directory: the pool's directory.
            pool: its id, for the message.
            holder: HOST:PORT written into the lock, where others are sent.

        Raises:
            WriterElsewhere: another process (or another instance in this one) holds it; says which.
            OSError: the file cannot be opened or written; the lock is not held.
        """
        path = directory / LOCK_NAME
        while True:
            descriptor = disk.open(path, os.O_RDWR | os.O_CREAT)
            try:
                _lock(descriptor, pool)
                if _is_file(path, descriptor):
                    _write_name(disk, descriptor, holder)
                    return WriterLock(disk, descriptor)
            except BaseException:  # a descriptor left open would hold the lock until the process ends
                disk.close(descriptor)
                raise
            disk.close(descriptor)  # dropped together with its pool since it was opened

    @staticmethod
    def last_holder(directory: Path) -> str:
        """HOST:PORT of who holds the pool's lock, or, if that was killed, held it last; "" where it was given up."""
        try:
            return (directory / LOCK_NAME).read_text(errors="replace").strip()
        except OSError:
            return ""

    def release(self) -> None:
        """Gives the lock up."""
        try:
            with contextlib.suppress(OSError):  # else the name stays, as that of a killed holder
                self._disk.truncate(self._descriptor, 0)
        finally:
            self._disk.close(self._descriptor)


def _lock(descriptor: int, pool: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        address = os.pread(descriptor, 512, 0).decode(errors="replace").strip()
        raise WriterElsewhere(
            f"pool {pool!r} is being written by {address or 'another retriever'}; write there",
            holder=address or None,
            retry_after_s=1.0,
        ) from None


def _write_name(disk: Disk, descriptor: int, holder: str) -> None:
    try:
        disk.truncate(descriptor, 0)
        disk.write_all(descriptor, holder.encode(), 0)
    except OSError as error:
        # Without a name on a full disk: the holder may be about to make room there.
        if error.errno not in DISK_FULL:
            raise


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
