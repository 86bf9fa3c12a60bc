"""A folder for one process at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laser_recsys.errors import RecsysError


class FolderLocked(RecsysError):
    """Another process of this host works in the folder. The message says what to do."""


@contextmanager
def alone_in(folder: Path, lock_path: Path) -> Iterator[None]:
    """While the body runs, no other process of this host writes to `folder`, by a lock on a file, made if missing.

    Raises:
        FolderLocked: another one does.
        OSError: the lock's file cannot be written.
    """
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderLocked(f"another process works in {folder}: wait for it, or name another folder") from None
        yield
