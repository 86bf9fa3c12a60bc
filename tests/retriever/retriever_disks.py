"""File layers for tests: one that syncs nothing, one that fails at a chosen operation, one that records all of them."""

from __future__ import annotations

import errno
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from laser_retriever.durable import Disk


class UnsyncedDisk(Disk):
    """Durable enough for tests that lose no power, and a hundred times faster."""

    def sync(self, descriptor: int) -> None:
        """Nothing."""

    def sync_data(self, descriptor: int) -> None:
        """Nothing."""


class FailingDisk(UnsyncedDisk):
    """Fails at the n-th operation (from 0) of those that change the disk, and, with `for_good`, at all later ones.

    Attributes:
        error: what is raised; None: nothing fails, operations are counted.
        num_operations: so far.
    """

    def __init__(self, error: OSError | None = None, at: int = 0, *, for_good: bool = False) -> None:
        self.error = error
        self.num_operations = 0
        self._at = at
        self._for_good = for_good

    def die(self, at: int) -> None:
        """From the operation `at` from now on, all fail."""
        self.error, self.num_operations, self._at, self._for_good = OSError(errno.EIO, "dead"), 0, at, True

    def _step(self) -> None:
        n = self.num_operations
        self.num_operations += 1
        if self.error is not None and (n >= self._at if self._for_good else n == self._at):
            raise OSError(self.error.errno, self.error.strerror)

    def open(self, path: Path, flags: int) -> int:
        if flags & os.O_CREAT:
            self._step()
        return super().open(path, flags)

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        half = len(data) // 2
        try:
            self._step()
        except OSError:
            super().write(descriptor, data[:half], offset)  # a full disk takes what still fits
            raise
        return super().write(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        self._step()
        super().truncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        self._step()

    def sync_data(self, descriptor: int) -> None:
        self._step()

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)

    def make_directory(self, path: Path) -> None:
        self._step()
        super().make_directory(path)

    def remove_directory(self, path: Path) -> None:
        self._step()
        super().remove_directory(path)


class SmallDisk(UnsyncedDisk):
    """Holds so many bytes in the files below a directory.

    Attributes:
        capacity: bytes; None: any number.
    """

    def __init__(self, root: Path, capacity: int | None = None) -> None:
        self._root = root
        self.capacity = capacity

    @property
    def used(self) -> int:
        """Bytes in all files."""
        return sum(path.stat().st_size for path in self._root.rglob("*") if path.is_file())

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        growth = max(offset + len(data) - os.fstat(descriptor).st_size, 0)
        if self.capacity is not None and self.used + growth > self.capacity:
            fitting = max(len(data) - (self.used + growth - self.capacity), 0)
            super().write(descriptor, data[:fitting], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(descriptor, data, offset)


# Operations on inodes, which are numbered as they are made; 0 is the root directory.


@dataclass(frozen=True)
class Write:
    """Bytes into a file."""

    inode: int
    data: bytes
    offset: int


@dataclass(frozen=True)
class Truncate:
    """A file's content is gone."""

    inode: int


@dataclass(frozen=True)
class Link:
    """A name appears in a directory (and, of a rename, another vanishes from it at the same moment)."""

    inode: int
    name: str
    target: int
    old_name: str | None = None


@dataclass(frozen=True)
class Unlink:
    """A name vanishes from a directory."""

    inode: int
    name: str


@dataclass(frozen=True)
class Sync:
    """What was done to the inode so far is durable."""

    inode: int


Operation = Write | Truncate | Link | Unlink | Sync


class Killed(BaseException):
    """The process is dead."""


@dataclass
class RecordingDisk(Disk):
    """Does everything really, syncs nothing, and keeps what a power loss would be about.

    Attributes:
        root: what lies outside is not recorded.
        skipped: call sites (as `sites` names them) whose syncs are left out.
        operations: in order.
        sites: of all syncs so far: functions and lines of the package, from the sync outwards.
        dies_at: name of the method whose next call kills the process instead.
    """

    root: Path
    skipped: frozenset[str] = frozenset()
    operations: list[Operation] = field(default_factory=list)
    sites: dict[str, None] = field(default_factory=dict)
    dies_at: str = ""
    directories: set[int] = field(default_factory=lambda: {0})
    _num_inodes: int = 0
    _inodes: dict[Path, int] = field(default_factory=dict)
    _open: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._inodes[self.root] = 0

    def _live(self, dies: bool) -> None:
        if dies:
            self.dies_at = ""
            raise Killed

    def _new_inode(self, path: Path) -> int:
        self._num_inodes += 1
        inode = self._inodes[path] = self._num_inodes
        self.operations.append(Link(self._inodes[path.parent], path.name, inode))
        return inode

    def open(self, path: Path, flags: int) -> int:
        if path not in self._inodes:
            self._new_inode(path)
        elif flags & os.O_TRUNC:
            self.operations.append(Truncate(self._inodes[path]))
        descriptor = super().open(path, flags)
        self._open[descriptor] = self._inodes[path]
        return descriptor

    def close(self, descriptor: int) -> None:
        del self._open[descriptor]
        super().close(descriptor)

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        self.operations.append(Write(self._open[descriptor], bytes(data), offset))
        return super().write(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        assert size == 0, "the model knows empty files only"
        self.operations.append(Truncate(self._open[descriptor]))
        super().truncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        site = _call_site()
        self.sites[site] = None
        if site not in self.skipped:
            self.operations.append(Sync(self._open[descriptor]))

    def sync_data(self, descriptor: int) -> None:
        self._live(self.dies_at == "sync_data")
        self.sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        assert source.parent == target.parent, "the model knows renames within a directory only"
        inode = self._inodes.pop(source)
        for path in [path for path in self._inodes if source in path.parents]:
            self._inodes[target / path.relative_to(source)] = self._inodes.pop(path)
        self._inodes[target] = inode
        self.operations.append(Link(self._inodes[source.parent], target.name, inode, source.name))
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        del self._inodes[path]
        self.operations.append(Unlink(self._inodes[path.parent], path.name))

    def make_directory(self, path: Path) -> None:
        super().make_directory(path)
        self.directories.add(self._new_inode(path))

    def remove_directory(self, path: Path) -> None:
        self._live(self.dies_at == "remove_directory")
        super().remove_directory(path)
        del self._inodes[path]
        self.operations.append(Unlink(self._inodes[path.parent], path.name))


def _call_site() -> str:
    frame: FrameType | None = sys._getframe(1)
    names = []
    while frame is not None:
        if "/laser_retriever/" in frame.f_code.co_filename:
            names.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(names)


# Of the n-th last of the operations that no sync made durable: what of it reached the disk, or None.
Keep = Callable[[int, Operation], Operation | None]


def after_power_loss(disk: RecordingDisk, num_operations: int, keep: Keep) -> Iterator[tuple[Path, bytes]]:
    """The files, by path below the root, that a disk holds when the power fails after so many operations.

    Args:
        disk: what was recorded.
        num_operations: that had been done.
        keep: says what became of those that are not durable.
    """
    done = disk.operations[:num_operations]
    last_sync = {op.inode: n for n, op in enumerate(done) if isinstance(op, Sync)}
    contents: dict[int, bytearray] = {}
    entries: dict[int, dict[str, int]] = {}
    unsynced = [n for n, op in enumerate(done) if not isinstance(op, Sync) and n > last_sync.get(op.inode, -1)]
    ages = {n: len(unsynced) - i - 1 for i, n in enumerate(unsynced)}
    for n, operation in enumerate(done):
        kept = keep(ages[n], operation) if n in ages else operation
        match kept:
            case Write(inode, data, offset):
                content = contents.setdefault(inode, bytearray())
                content.extend(bytes(max(0, offset + len(data) - len(content))))
                content[offset : offset + len(data)] = data
            case Truncate(inode):
                contents[inode] = bytearray()
            case Link(inode, name, target, old_name):
                names = entries.setdefault(inode, {})
                names[name] = target
                if old_name is not None:
                    names.pop(old_name, None)
            case Unlink(inode, name):
                entries.setdefault(inode, {}).pop(name, None)
    yield from _walk(disk, contents, entries, 0, Path())


def _walk(
    disk: RecordingDisk, contents: dict[int, bytearray], entries: dict[int, dict[str, int]], inode: int, path: Path
) -> Iterator[tuple[Path, bytes]]:
    for name, target in entries.get(inode, {}).items():
        if target in disk.directories:
            yield from _walk(disk, contents, entries, target, path / name)
        else:
            yield path / name, bytes(contents.get(target, b""))


def all_lost(n: int, operation: Operation) -> Operation | None:
    """Nothing but what was synced."""
    return None


def all_kept(n: int, operation: Operation) -> Operation | None:
    """Everything, as after the death of a process."""
    return operation


def names_kept(n: int, operation: Operation) -> Operation | None:
    """Directories' entries, not files' contents: what some file systems do."""
    return None if isinstance(operation, Write | Truncate) else operation


def contents_kept(n: int, operation: Operation) -> Operation | None:
    """Files' contents, not directories' entries."""
    return operation if isinstance(operation, Write | Truncate) else None


def one_lost(which: int) -> Keep:
    """All but one."""
    return lambda n, operation: None if n == which else operation


def one_kept(which: int) -> Keep:
    """One only, as if the disk had put it before all others."""
    return lambda n, operation: operation if n == which else None


def torn(seed: int) -> Keep:
    """Some of them, some writes in part."""
    chance = random.Random(seed)

    def keep(n: int, operation: Operation) -> Operation | None:
        if chance.random() < 0.5:
            return None
        if isinstance(operation, Write) and chance.random() < 0.5:
            return Write(operation.inode, operation.data[: chance.randrange(len(operation.data) + 1)], operation.offset)
        return operation

    return keep
