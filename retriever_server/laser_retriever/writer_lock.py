"""The lock that makes one process at a time the writer of a pool: `flock` on `writer.lock`, which names the holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from laser_protocol.errors import WriterElsewhere

LOCK_NAME = "writer.lock"


class WriterLock:
    """A held lock. The kernel releases it when the process dies, however it dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @staticmethod
    def acquire(directory: Path, pool: str, holder: str) -> WriterLock:
        """Takes the pool's lock without waiting.

        Args:
            directory: the pool's directory.
            pool: its id, for the message.
            holder: HOST:PORT written into the lock, where others are sent.

        Raises:
            WriterElsewhere: another process (or another instance in this one) holds it; says which.
            OSError: the file cannot be opened.
        """
        path = directory / LOCK_NAME
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                address = os.pread(descriptor, 512, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise WriterElsewhere(
                    f"pool {pool!r} is being written by {address or 'another retriever'}; write there",
                    holder=address or None,
                    retry_after_s=1.0,
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            if _is_file(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, holder.encode(), 0)
                return WriterLock(descriptor)
            os.close(descriptor)  # dropped together with its pool since it was opened

    @staticmethod
    def last_holder(directory: Path) -> str:
        """HOST:PORT of who holds the pool's lock, or, if that was killed, held it last; "" where it was given up."""
        try:
            return (directory / LOCK_NAME).read_text(errors="replace").strip()
        except OSError:
            return ""

    def release(self) -> None:
        """Gives the lock up."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
