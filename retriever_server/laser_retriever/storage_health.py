"""Whether pools can be written to: what failed, and whether it still does; what another version wrote."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from laser_retriever.durable import Disk

logger = logging.getLogger(__name__)


class StorageHealth:
    """Directories in which writing failed, or must not be tried. Thread-safe.

    Args:
        disk: the file system.
        root: directory of the pools; tried at once.
    """

    def __init__(self, disk: Disk, root: Path) -> None:
        self._disk = disk
        self._root = root
        self._mutex = threading.Lock()
        self._failing: dict[Path, str] = {}
        self._unreadable: dict[Path, str] = {}
        if (reason := self._try(root)) is not None:
            self.failed(root, reason)

    @property
    def writable(self) -> bool:
        """Whether nothing is known to fail, nor to be in the way."""
        return not self._failing and not self._unreadable

    def is_failing(self, directory: Path) -> bool:
        """Whether writing in this directory failed and was not possible since."""
        return directory in self._failing

    def why_unreadable(self, directory: Path) -> str:
        """Why writing in this directory must not be tried; "": it may."""
        return self._unreadable.get(directory, "")

    def failed(self, directory: Path, reason: str) -> None:
        """Takes note that writing in a directory failed."""
        with self._mutex:
            if directory not in self._failing:
                logger.error(
                    "storage.failed directory=%s reason=%s; writes are refused, reads go on", directory, reason
                )
            self._failing[directory] = reason

    def set_unreadable(self, directory: Path, reason: str) -> None:
        """Takes note of what keeps a pool from being written to for as long as it lies there; "": nothing."""
        with self._mutex:
            before = self._unreadable.get(directory, "")
            if reason:
                self._unreadable[directory] = reason
            elif before:
                del self._unreadable[directory]
        if reason and reason != before:
            logger.error(
                "storage.unreadable directory=%s reason=%s; writes are refused, what can be read is served",
                directory, reason,
            )  # fmt: skip

    def probe(self) -> None:
        """Tries the failing directories again; forgets those in which a file can be stored."""
        for directory in list(self._failing):
            if self._try(directory) is None:
                with self._mutex:
                    del self._failing[directory]
                logger.warning("storage.recovered directory=%s", directory)

    def _try(self, directory: Path) -> str | None:
        while directory != self._root and not directory.is_dir():
            directory = directory.parent
        try:
            self._disk.probe(directory)
        except OSError as error:
            return error.strerror or type(error).__name__
        return None
