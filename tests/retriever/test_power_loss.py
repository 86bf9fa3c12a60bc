"""Power loss at every point: what was acknowledged is there afterwards, whatever of the rest reached the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from retriever_disks import (
    Keep,
    Killed,
    RecordingDisk,
    UnsyncedDisk,
    after_power_loss,
    all_kept,
    all_lost,
    contents_kept,
    names_kept,
    torn,
)

from laser_retriever.config import RetrieverConfig
from laser_retriever.durable import Disk
from laser_retriever.limits import PoolLimits
from laser_retriever.pool import Pool

POOL = "shop/user"
SECRET = 77_777

Model = dict[str, list[int]]


class Lost(AssertionError):
    """The disk does not hold what was acknowledged."""


@dataclass
class History:
    """What was acknowledged, and after how many operations of the disk.

    Attributes:
        states: (operations, documents, whether the bytes of SECRET are gone), in order.
    """

    disk: RecordingDisk
    states: list[tuple[int, Model, bool]] = field(default_factory=lambda: [(0, {}, True)])

    def acknowledged(self, documents: Model, *, gone: bool = False) -> None:
        self.states.append((len(self.disk.operations), dict(documents), gone))

    def around(self, num_operations: int) -> tuple[Model, Model, bool]:
        """(acknowledged by then, what was under way, whether SECRET must be gone)."""
        i = max(i for i, state in enumerate(self.states) if state[0] <= num_operations)
        following = self.states[min(i + 1, len(self.states) - 1)]
        return self.states[i][1], following[1], self.states[i][2] and following[2]


def open_pool(root: Path, disk: Disk) -> Pool:
    limits = PoolLimits(max_documents=5)
    config = RetrieverConfig(pools=root, max_segments=2, unlink_after_s=0, lock_idle_s=0, limits=limits)
    pool = Pool(POOL, config, disk=disk)
    pool.refresh()
    return pool


def add(pool: Pool, model: Model, documents: Model) -> None:
    pool.writer.add("f", [(key, np.array(tokens, np.int32)) for key, tokens in documents.items()])
    model.update(documents)


def record(root: Path, skipped: frozenset[str] = frozenset()) -> History:
    """A pool's life: founded, filled, sealed, merged, evicted, compacted, killed, taken over, dropped, founded anew."""
    root.mkdir()
    disk = RecordingDisk(root, skipped)
    history = History(disk)
    model: Model = {}
    pool = open_pool(root, disk)

    def adds(**documents: list[int]) -> None:
        add(pool, model, documents)
        history.acknowledged(model)

    adds(a=[SECRET, 1], b=[2])
    adds(a=[SECRET, 3], c=[4, 4])
    pool.writer.seal()
    history.acknowledged(model)
    adds(d=[5])
    pool.writer.delete(["b"])
    del model["b"]
    history.acknowledged(model)
    pool.writer.seal()
    adds(e=[6], f=[7], g=[8])
    assert pool.writer.evict() == 1
    del model["a"]
    history.acknowledged(model)
    pool.writer.seal()
    pool.writer.compact()
    pool.writer.tidy()
    history.acknowledged(model, gone=True)
    pool.writer.tidy()

    pool = open_pool(root, disk)  # another process takes over
    adds(h=[9])
    disk.dies_at_data_sync = True
    with pytest.raises(Killed):
        pool.writer.delete(["c"])
    model.pop("c")  # which may have come through, or not
    history.states.append((len(disk.operations), {**history.states[-1][1]}, False))
    pool.writer.close()
    pool = open_pool(root, disk)
    pool.writer.delete(["c"])  # there is none any more to the new process, so nothing is written
    history.acknowledged(model)

    pool.writer.drop()
    model.clear()
    history.acknowledged(model)
    adds(a=[10])
    pool.writer.close()
    return history


def check(history: History, num_operations: int, keep: Keep, directory: Path, seen: set[int]) -> None:
    """Raises Lost unless the disk after a power loss holds what it must, and can be written to."""
    acknowledged, pending, gone = history.around(num_operations)
    files = sorted(after_power_loss(history.disk, num_operations, keep))
    key = hash((tuple(files), str(acknowledged), str(pending), gone))
    if key in seen:
        return
    seen.add(key)
    shutil.rmtree(directory, ignore_errors=True)
    for path, data in files:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    if gone and (left := [path for path, data in files if np.array([SECRET], "<i4").tobytes() in data]):
        raise Lost(f"bytes of a deleted document are back in {left}")
    for _ in range(2):  # what the first process leaves, the next one must find
        pool = open_pool(directory, UnsyncedDisk())
        found = contents(pool)
        for key_ in acknowledged.keys() | pending.keys() | found.keys() - {"new"}:
            if found.get(key_) not in (acknowledged.get(key_), pending.get(key_)):
                raise Lost(f"{key_} is {found.get(key_)}, must be {acknowledged.get(key_)} or {pending.get(key_)}")
        try:
            add(pool, {}, {"new": [1]})
        except Exception as error:
            raise Lost(f"it cannot be written to: {error}") from error
        if contents(pool) != {**found, "new": [1]}:
            raise Lost("what is added does not come to what was there")
        pool.writer.close()


def contents(pool: Pool) -> Model:
    pool.refresh()
    return {key: index.document(i).tolist() for key, index, i in pool.snapshot.documents()}


def losses(history: History) -> Iterator[tuple[int, Keep]]:
    for num_operations in range(len(history.disk.operations) + 1):
        for keep in (all_lost, all_kept, names_kept, contents_kept, torn(2 * num_operations), torn(2 * num_operations + 1)):
            yield num_operations, keep


def test_whatever_of_the_unsynced_reached_the_disk_all_acknowledged_documents_are_there(tmp_path: Path) -> None:
    history = record(tmp_path / "pools")
    seen: set[int] = set()
    for num_operations, keep in losses(history):
        check(history, num_operations, keep, tmp_path / "after", seen)
    assert len(seen) > 150


def test_no_sync_can_be_left_out(tmp_path: Path) -> None:
    sites = list(record(tmp_path / "pools").disk.sites)
    assert len(sites) > 10
    superfluous = []
    for n, site in enumerate(sites):
        history = record(tmp_path / str(n), frozenset({site}))
        seen: set[int] = set()
        try:
            for num_operations, keep in losses(history):
                check(history, num_operations, keep, tmp_path / "after", seen)
            superfluous.append(site)
        except Lost:
            pass
    assert superfluous == []
