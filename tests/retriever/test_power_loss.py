"""Power loss at every point: what was acknowledged is there afterwards, whatever of the rest reached the disk."""

from __future__ import annotations

import logging
import shutil
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
    one_kept,
    one_lost,
    torn,
)

from laser_retriever.config import RetrieverConfig
from laser_retriever.durable import Disk
from laser_retriever.limits import PoolLimits
from laser_retriever.pool import Pool

POOL = "shop/user"
DELETED, DROPPED, EMPTIED = 77_777, 88_888, 99_999  # tokens whose bytes must go with their documents
MAX_UNSYNCED = 4

Model = dict[str, list[int]]


class Lost(AssertionError):
    """The disk does not hold what was acknowledged."""


@dataclass
class History:
    """What was acknowledged, and after how many operations of the disk.

    Attributes:
        states: (operations, documents, tokens whose bytes are gone), in order.
    """

    disk: RecordingDisk
    states: list[tuple[int, Model, set[int]]] = field(default_factory=lambda: [(0, {}, set())])

    def acknowledged(self, documents: Model, *gone: int) -> None:
        self.states.append((len(self.disk.operations), dict(documents), {*gone, *self.states[-1][2]}))

    def around(self, num_operations: int) -> tuple[Model, Model, set[int]]:
        """(acknowledged by then, what was under way, whose bytes must be gone)."""
        i = max(i for i, state in enumerate(self.states) if state[0] <= num_operations)
        return self.states[i][1], self.states[min(i + 1, len(self.states) - 1)][1], self.states[i][2]


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
    """A pool's life: founded, filled, sealed, merged, evicted, compacted, killed, taken over, dropped, new, emptied."""
    root.mkdir()
    disk = RecordingDisk(root, skipped)
    history = History(disk)
    model: Model = {}
    pool = open_pool(root, disk)

    def adds(**documents: list[int]) -> None:
        add(pool, model, documents)
        history.acknowledged(model)

    adds(a=[DELETED, 1], b=[2])
    adds(a=[DELETED, 3], c=[4, 4])
    pool.writer.seal()
    history.acknowledged(model)
    adds(d=[5])
    pool.writer.delete(["b"])
    del model["b"]
    history.acknowledged(model)
    pool.writer.seal()
    adds(e=[6], f=[7], g=[8])
    assert pool.writer.evict(0.0) == 1
    del model["a"]
    history.acknowledged(model)
    pool.writer.seal()
    pool.writer.compact()
    pool.writer.tidy()
    history.acknowledged(model, DELETED)
    pool.writer.tidy()

    pool = open_pool(root, disk)  # another process takes over
    adds(h=[DROPPED])
    disk.dies_at = "sync_data"
    with pytest.raises(Killed):
        pool.writer.delete(["c"])
    history.acknowledged(model)  # nothing was; it may have come through nevertheless
    del model["c"]
    pool.writer.close()
    pool = open_pool(root, disk)
    pool.writer.delete(["c"])  # the next process finds none of that id, and acknowledges
    history.acknowledged(model)

    pool.writer.drop()
    model.clear()
    history.acknowledged(model, DROPPED)
    adds(a=[10], b=[11])
    pool.writer.seal()
    adds(c=[12])
    disk.dies_at = "remove_directory"
    with pytest.raises(Killed):
        pool.writer.drop()
    model.clear()
    history.acknowledged(model)  # nothing was, but the pool is found to be gone from here on
    pool.writer.close()
    pool = open_pool(root, disk)
    adds(d=[EMPTIED])
    pool.writer.delete(["d"])
    del model["d"]
    history.acknowledged(model)
    pool.writer.seal()  # nothing is left of the log
    history.acknowledged(model, EMPTIED)
    adds(e=[13])
    pool.writer.close()
    return history


def check(history: History, num_operations: int, keep: Keep, directory: Path, seen: set[int]) -> None:
    """Raises Lost unless the disk after a power loss holds what it must, and can be written to."""
    acknowledged, pending, gone = history.around(num_operations)
    files = sorted(after_power_loss(history.disk, num_operations, keep))
    key = hash((tuple(files), str(acknowledged), str(pending), tuple(gone)))
    if key in seen:
        return
    seen.add(key)
    shutil.rmtree(directory, ignore_errors=True)
    for path, data in files:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    for token in gone:
        if left := [str(path) for path, data in files if np.array([token], "<i4").tobytes() in data]:
            raise Lost(f"bytes of {token} are back in {left}")
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


def survives(history: History, directory: Path, num_random: int) -> int:
    """How many different disks were looked at. Raises Lost."""
    seen: set[int] = set()
    single = [make(n) for n in range(MAX_UNSYNCED) for make in (one_lost, one_kept)]
    chances = [torn(seed) for seed in range(num_random)]
    for keep in (all_lost, *single, names_kept, contents_kept, all_kept, *chances):
        for num_operations in range(len(history.disk.operations) + 1):
            check(history, num_operations, keep, directory, seen)
    return len(seen)


def test_whatever_of_the_unsynced_reached_the_disk_all_acknowledged_documents_are_there(
    memory_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    history = record(memory_path / "pools")
    assert survives(history, memory_path / "after", num_random=4) > 150


def test_no_sync_can_be_left_out(memory_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    sites = list(record(memory_path / "pools").disk.sites)
    assert len(sites) > 10
    superfluous = []
    for n, site in enumerate(sites):
        history = record(memory_path / str(n), frozenset({site}))
        try:
            survives(history, memory_path / "after", num_random=0)
            superfluous.append(site)
        except Lost:
            pass
    assert not superfluous, "\n".join(superfluous)


def test_directories_are_made_durable_also_where_a_killed_founder_left_them(tmp_path: Path) -> None:
    synced: list[str] = []

    class Noting(Disk):
        def sync_directory(self, path: Path) -> None:
            synced.append(path.name)

    root = tmp_path / "pools"
    (root / "shop").mkdir(parents=True)
    Noting().make_directories(root / "shop" / "user", root)
    assert synced == ["pools", "shop"]
    Noting().make_directories(root / "shop" / "user", root)
    assert synced == ["pools", "shop", "shop"]
    Noting().make_directories(root, root)
    assert len(synced) == 3, "what holds the root is not ours, and may not be readable"
