"""The one place where pools' files are written, synced, renamed and removed.

`Disk` builds operations that survive power loss out of primitives that map to one system call each. Tests put another
`Disk` in its place that records the primitives, drops what was not synced, or fails; nothing else in the package may
call them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# A write of many megabytes keeps its processor for milliseconds, from a drafting thread too.
MAX_WRITE_BYTES = 1 << 18
# Of an OSError: there is no room, or the user may take no more of it.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def unfinished(name: str) -> str:
    """What a file is called while it is written, and stays called if that fails."""
    return f"{name}.tmp"


class Disk:
    """File operations on a local or network file system. Stateless; every method may raise OSError."""

    # Primitives

    def open(self, path: Path, flags: int) -> int:
        """A descriptor; with os.O_CREAT the file is made."""
        return os.open(path, flags | os.O_CLOEXEC, 0o644)

    def close(self, descriptor: int) -> None:
        """Gives a descriptor back."""
        os.close(descriptor)

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Writes at an offset. Returns how many bytes were written, maybe fewer than given."""
        return os.pwrite(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cuts a file to a size in bytes."""
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        """Makes a file's content, or a directory's entries, durable."""
        os.fsync(descriptor)

    def sync_data(self, descriptor: int) -> None:
        """Makes a file's content and size durable, not its times."""
        os.fdatasync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Renames within a file system; a file at the target is replaced."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Removes a file."""
        path.unlink()

    def make_directory(self, path: Path) -> None:
        """Makes a directory; none may stand there."""
        path.mkdir()

    def remove_directory(self, path: Path) -> None:
        """Removes an empty directory."""
        path.rmdir()

    # What is built of them

    def write_all(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        """Writes all bytes, not yet durable."""
        view = memoryview(data)
        while view:
            written = self.write(descriptor, view[:MAX_WRITE_BYTES], offset)
            view = view[written:]
            offset += written

    def write_file(self, path: Path, *parts: bytes | memoryview) -> None:
        """Writes a file and makes its content durable; its name becomes durable with its directory.

        In parts, which are not put together first: of many megabytes that would hold up every other thread.
        """
        with self._opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            offset = 0
            for part in parts:
                self.write_all(descriptor, part, offset)
                offset += len(part)
            self.sync(descriptor)

    def replace_file(self, path: Path, *parts: bytes) -> None:
        """Writes a file so that at every moment either the old or the new content stands there, whole. Durable."""
        temporary = path.with_name(unfinished(path.name))
        try:
            self.write_file(temporary, *parts)
            self.rename(temporary, path)
        except OSError:
            with suppress(OSError):  # on a full disk others need the room
                self.unlink(temporary)
            raise
        self.sync_directory(path.parent)

    def sync_directory(self, path: Path) -> None:
        """Makes the directory's entries (created, renamed, removed names) durable."""
        with self._opened(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            self.sync(descriptor)

    def make_directories(self, path: Path, within: Path) -> None:
        """Makes a directory and its missing parents, each durable in the one above.

        Below `within` also where it is there already: who made it may have been killed before it was durable.

        Raises:
            NotADirectoryError, FileExistsError: a file stands in the way.
        """
        is_there = path.is_dir()
        if is_there and within not in path.parents:
            return
        if not is_there:
            self.make_directories(path.parent, within)
            try:
                self.make_directory(path)
            except FileExistsError:
                if not path.is_dir():  # else another process made it in the meantime
                    raise
        self.sync_directory(path.parent)

    def remove_tree(self, path: Path) -> None:
        """Removes a directory and the files in it; its name is durably gone with the next sync of its parent."""
        for file in path.iterdir():
            self.unlink(file)
        self.remove_directory(path)

    def probe(self, directory: Path) -> None:
        """Writes, syncs and removes a small file.

        Raises:
            OSError: nothing can be stored there at present.
        """
        path = directory / f"log.probe-{os.getpid()}"
        try:
            self.write_file(path, bytes(4096))
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _opened(self, path: Path, flags: int) -> Iterator[int]:
        descriptor = self.open(path, flags)
        try:
            yield descriptor
        finally:
            self.close(descriptor)
