"""Disk full, read-only, failing: a clear error, reads go on, writes come back once the cause is gone."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pytest
from retriever_clocks import HandClock
from retriever_disks import FailingDisk, SmallDisk, UnsyncedDisk

from laser_protocol.errors import StorageUnavailable
from laser_retriever import checked_json, log
from laser_retriever.config import RetrieverConfig
from laser_retriever.contents import FORMAT_VERSION, IDENTITY_NAME, PoolReader
from laser_retriever.counters import Event
from laser_retriever.limits import PoolLimits
from laser_retriever.pool import Pool
from laser_retriever.pools import Pools
from laser_retriever.segment import FORMAT_VERSION as SEGMENT_VERSION
from laser_retriever.writer_lock import WriterLock

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")
REASONS = {errno.ENOSPC: "disk full", errno.EROFS: "not writable"}

Model = dict[str, list[int]]
Change = dict[str, list[int] | None]  # None: deleted


def add(pool: Pool, documents: Model) -> None:
    pool.writer.add("f", [(key, np.array(tokens, np.int32)) for key, tokens in documents.items()])


def contents(pool: Pool) -> Model:
    pool.refresh()
    return {key: index.document(i).tolist() for key, index, i in pool.snapshot.documents()}


def live(root: Path, disk: FailingDisk) -> tuple[Pool, list[str]]:
    """A pool's life in which any step may fail. Gives what the failures said. Checks every step against a dict."""
    pool = Pool("a/b", RetrieverConfig(pools=root, max_segments=2, unlink_after_s=0), str, disk)
    model: Change = {}
    doubtful: dict[str, list[list[int] | None]] = {}  # what a failed write may or may not have left
    said: list[str] = []

    def holds(pool: Pool) -> bool:
        found = contents(pool)
        return all(found.get(key) in doubtful.get(key, [model.get(key)]) for key in {*found, *model, *doubtful})

    def step(change: Change, work: Callable[[], object]) -> None:
        try:
            work()
        except StorageUnavailable as error:
            said.append(str(error))
            doubtful.update({key: [*doubtful.get(key, [model.get(key)]), tokens] for key, tokens in change.items()})
        else:
            model.update(change)
            for key in change:
                doubtful.pop(key, None)
        assert holds(pool), "nothing is lost or made up"

    for i in range(4):
        step({f"{i}": [i + 1]}, lambda i=i: add(pool, {f"{i}": [i + 1]}))
        step({"x": [i]}, lambda i=i: add(pool, {"x": [i]}))
        if i > 0 and model:
            step({}, pool.writer.seal)
    for _ in range(2):  # what failed is asked for again
        step({"1": None}, lambda: pool.writer.delete(["1"]))
    step({"y": [5]}, lambda: add(pool, {"y": [5]}))
    step({}, pool.writer.compact)
    step({}, pool.writer.tidy)
    step({"last": [9]}, lambda: add(pool, {"last": [9]}))
    pool.writer.close()
    reopened = Pool("a/b", RetrieverConfig(pools=root), str, UnsyncedDisk())
    assert holds(reopened)
    return reopened, said


def test_a_failure_at_any_one_operation_is_said_and_loses_nothing(memory_path: Path) -> None:
    counting = FailingDisk()
    live(memory_path / "counting", counting)
    assert counting.num_operations > 80
    for at in range(counting.num_operations):
        _, said = live(memory_path / str(at), FailingDisk(NO_SPACE, at))
        assert all("disk full" in message for message in said)
        assert len(said) <= 1, "the next write comes through"


@pytest.mark.parametrize("error", [NO_SPACE, READ_ONLY], ids=["full", "read-only"])
def test_from_any_operation_on_all_writes_are_refused_and_reads_go_on(memory_path: Path, error: OSError) -> None:
    for at in range(30, 90, 7):
        disk = FailingDisk(error, at, for_good=True)
        pool, said = live(memory_path / str(at), disk)
        assert said and all(REASONS[error.errno or 0] in message for message in said)
        disk.error = None
        add(pool, {"after": [1]})
        assert contents(pool)["after"] == [1]
        pool.writer.close()


@pytest.mark.parametrize("how", ["delete", "evict"])
def test_a_long_deletion_that_failed_in_its_middle_is_made_when_it_is_asked_for_again(
    memory_path: Path, how: str
) -> None:
    """Its first pieces may be on the disk, and read, without having been acknowledged."""
    disk = FailingDisk()
    pool = Pool("p", RetrieverConfig(pools=memory_path, limits=PoolLimits(max_documents=1)), str, disk)
    documents: Model = {f"{i:0100}": [i] for i in range(2_000)}
    gone = list(documents)[:-1]

    def remove() -> int:
        return pool.writer.delete(gone) if how == "delete" else pool.writer.evict(0.0)

    add(pool, documents)
    disk.error, disk.num_operations, disk._at, disk._for_good = NO_SPACE, 0, 1, True
    with pytest.raises(StorageUnavailable, match="disk full"):
        remove()
    assert disk.num_operations > 1, "more than one piece"
    with pytest.raises(StorageUnavailable, match="disk full"):
        remove()
    disk.error = None
    assert remove() == len(gone)
    add(pool, {"y": [1]})
    assert contents(pool) == {f"{1_999:0100}": [1_999], "y": [1]}


def test_what_does_not_fit_on_the_disk_takes_no_room_from_what_does(memory_path: Path) -> None:
    disk = SmallDisk(memory_path)
    pool = Pool("p", RetrieverConfig(pools=memory_path), str, disk)
    add(pool, {"a": list(range(1_000))})
    disk.capacity = disk.used + 20_000
    used = disk.used
    for _ in range(2):
        with pytest.raises(StorageUnavailable, match="disk full"):
            add(pool, {"big": list(range(5_000))})
        assert disk.used <= used
    add(pool, {"b": [1]})
    assert contents(pool) == {"a": list(range(1_000)), "b": [1]}


def test_on_a_full_disk_pools_are_dropped_and_replaced_segments_removed(memory_path: Path) -> None:
    hand, disk = HandClock(), SmallDisk(memory_path)
    pools = Pools(RetrieverConfig(pools=memory_path, rescan_s=1e6), disk, hand.clock)
    try:
        for pool in ("a", "b"):
            for i in range(2):
                pools.add_documents(pool, "f", [(str(i), np.arange(5_000, dtype=np.int32))])
                pools.compact(pool)
        pools.upkeep()
        disk.capacity = disk.used
        with pytest.raises(StorageUnavailable, match="disk full"):
            pools.add_documents("a", "f", [("2", np.arange(5_000, dtype=np.int32))])
        segments = lambda pool: len(list((memory_path / pool).glob("seg-*")))  # noqa: E731
        assert segments("a") == segments("b") == 3 and not pools.storage.writable
        hand.advance(61)
        pools.upkeep()
        pools.upkeep()
        assert segments("a") == segments("b") == 1 and pools.storage.writable
        disk.capacity = disk.used
        for pool in ("a", "b"):
            pools._pools[pool].writer.close()  # as if the process were a new one
            pools.drop(pool)
        assert disk.used == 0
    finally:
        pools.close()


def test_a_segment_that_cannot_be_read_for_now_is_served_again_and_not_written_past(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = Pools(RetrieverConfig(pools=memory_path, rescan_s=1e6), UnsyncedDisk())
    pools.add_documents("p", "f", [("a", np.array([1, 2], np.int32))])
    pools.compact("p")
    pools.add_documents("p", "f", [("b", np.array([3], np.int32))])
    pools.close()
    with monkeypatch.context() as patched:
        fails = Mock(side_effect=OSError(errno.EIO, "Input/output error"))
        patched.setattr("laser_retriever.contents.open_segment", fails)
        pools = Pools(RetrieverConfig(pools=memory_path, rescan_s=1e6), UnsyncedDisk())
        assert [key for key, _, _ in pools.describe("p").documents()] == ["b"]
        assert not pools.storage.writable
        with pytest.raises(StorageUnavailable, match="cannot be read: Input/output error"):
            pools.delete_documents("p", ["a"])
        pools.close()
        pools = Pools(RetrieverConfig(pools=memory_path, rescan_s=1e6), UnsyncedDisk(), started=False)
        # A segment that its own writer cannot open is not passed by either.
        patched.undo()
        pools.add_documents("p", "f", [("c", np.array([4], np.int32))])
        patched.setattr("laser_retriever.contents.open_segment", fails)
        with pytest.raises(StorageUnavailable, match="cannot be read: Input/output error"):
            pools.compact("p")
        for write in (lambda: pools.delete_documents("p", ["c"]), lambda: pools._pools["p"].writer.seal()):
            with pytest.raises(StorageUnavailable, match="cannot be read: Input/output error"):
                write()
    try:
        assert [key for key, _, _ in pools.describe("p").documents()] == ["a", "b", "c"]
        assert pools.storage.writable
        assert pools.delete_documents("p", ["a"]) == 1
    finally:
        pools.close()


def test_a_pool_of_which_nothing_can_be_read_is_not_called_unknown(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pool("p", RetrieverConfig(pools=memory_path), str, UnsyncedDisk()).writer.add("f", [("a", np.ones(1, np.int32))])
    monkeypatch.setattr(log.LogReader, "poll", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    pools = Pools(RetrieverConfig(pools=memory_path, rescan_s=1e6), UnsyncedDisk())
    try:
        with pytest.raises(StorageUnavailable, match="Input/output error"):
            pools.describe("p")
        assert not pools.storage.writable
    finally:
        pools.close()


def test_what_is_added_after_a_drop_that_failed_anywhere_is_kept(memory_path: Path) -> None:
    at = 0
    while True:
        config, disk = RetrieverConfig(pools=memory_path / str(at)), FailingDisk()
        pool = Pool("p", config, str, disk)
        add(pool, {"sealed": [1]})
        pool.writer.seal()
        add(pool, {"logged": [2]})
        disk.error, disk.num_operations, disk._at = NO_SPACE, 0, at
        with contextlib.suppress(StorageUnavailable):
            pool.writer.drop()
        was_hit, disk.error = disk.num_operations > at, None
        add(pool, {"new": [3]})
        before = {"sealed": [1], "logged": [2]} if at == 0 else {}
        assert contents(pool) == {**before, "new": [3]}
        pool.writer.close()
        assert contents(Pool("p", config, str, UnsyncedDisk())) == {**before, "new": [3]}
        if not was_hit:
            break
        at += 1
    assert at > 8


def test_a_drop_removes_what_a_failed_replacement_of_the_log_left(memory_path: Path) -> None:
    disk = FailingDisk()
    pool = Pool("p", RetrieverConfig(pools=memory_path), str, disk)
    add(pool, {"a": [77_777]})
    disk.error, disk.num_operations, disk._at, disk._for_good = NO_SPACE, 0, 0, True
    with pytest.raises(StorageUnavailable):
        add(pool, {"b": [1]})
    disk.num_operations, disk._at = 0, 2  # the new log is written, and not synced
    with pytest.raises(StorageUnavailable):
        add(pool, {"b": [1]})
    assert len(list((memory_path / "p").glob("log.wal*"))) == 2
    disk.error = None
    pool.writer.drop()
    assert not list(memory_path.iterdir())


def test_records_read_before_the_directory_could_not_be_are_there_the_next_time(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool("p", RetrieverConfig(pools=memory_path), str, UnsyncedDisk())
    add(pool, {"a": [1]})
    reader = PoolReader("p", memory_path / "p")
    assert reader.poll().has("a")
    add(pool, {"b": [2]})
    with monkeypatch.context() as patched, pytest.raises(OSError, match="Too many"):
        patched.setattr(PoolReader, "_read_segments", Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
        reader.poll()
    assert reader.poll().has("b")


@pytest.mark.parametrize("at", range(3), ids=["open", "truncate", "write"])
def test_a_lock_in_which_the_holder_could_not_be_named_is_free_for_the_next(memory_path: Path, at: int) -> None:
    disk = FailingDisk()
    config = RetrieverConfig(pools=memory_path)
    first, second = (Pool("p", config, lambda: "first:1", disk), Pool("p", config, lambda: "second:2", UnsyncedDisk()))
    add(first, {"a": [1]})
    first.writer.close()
    disk.error, disk.num_operations, disk._at = READ_ONLY, 0, at
    with pytest.raises(StorageUnavailable, match="not writable"):
        add(first, {"b": [2]})
    assert disk.num_operations == at + 1
    add(second, {"c": [3]})
    second.writer.close()
    add(first, {"d": [4]})
    assert WriterLock.last_holder(memory_path / "p") == "first:1"
    assert contents(first) == {"a": [1], "c": [3], "d": [4]}
    first.writer.close()


def test_health_of_writes_follows_the_disk_and_failures_are_counted(
    memory_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FailingDisk()
    pools = Pools(RetrieverConfig(pools=memory_path, rescan_s=1000), disk)
    try:
        documents = [("a", np.array([1], np.int32))]
        pools.add_documents("p", "f", documents)
        assert pools.storage.writable
        disk.die(0)
        with pytest.raises(StorageUnavailable):
            pools.add_documents("p", "f", documents)
        pools.upkeep()
        assert not pools.storage.writable, "it is tried again, and fails again"
        assert pools.describe("p").num_documents == 1
        disk.error = None
        pools.upkeep()
        assert pools.storage.writable
        pools.add_documents("p", "f", documents)
        assert pools.counters.read()[Event.STORAGE_ERRORS] == 1
        assert caplog.text.count("storage.failed") == caplog.text.count("storage.recovered") == 1
    finally:
        pools.close()


def test_a_directory_that_is_read_only_from_the_start_is_served_and_known_not_to_be_writable(memory_path: Path) -> None:
    pools = Pools(RetrieverConfig(pools=memory_path, rescan_s=1000))
    pools.add_documents("p", "f", [("a", np.array([1], np.int32))])
    pools.close()
    pools = Pools(RetrieverConfig(pools=memory_path, rescan_s=1000), FailingDisk(READ_ONLY, for_good=True))
    try:
        assert not pools.storage.writable
        assert pools.describe("p").num_documents == 1
        assert len(pools.sources("p", "f")[1].indexes) == 1
    finally:
        pools.close()


@pytest.mark.parametrize("damage", ["version", "content"])
def test_a_pool_whose_identity_cannot_be_read_is_neither_served_nor_written_nor_lost(
    memory_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    pool = Pool("p", RetrieverConfig(pools=memory_path), str, UnsyncedDisk())
    add(pool, {"a": [1]})
    pool.writer.close()
    path = memory_path / "p" / IDENTITY_NAME
    whole = path.read_bytes()
    fields = checked_json.decode(whole, FORMAT_VERSION)
    path.write_bytes(checked_json.encode({**fields, "format_version": 99}) if damage == "version" else b"{}")
    pool = Pool("p", RetrieverConfig(pools=memory_path), str, UnsyncedDisk())
    with caplog.at_level(logging.ERROR):
        assert contents(pool) == {}
    message = "format version is 99, this program reads" if damage == "version" else "it is damaged"
    assert message in caplog.text and str(path) in caplog.text
    with pytest.raises(StorageUnavailable, match=message):
        add(pool, {"b": [2]})
    path.write_bytes(whole)
    assert contents(Pool("p", RetrieverConfig(pools=memory_path), str, UnsyncedDisk())) == {"a": [1]}


def test_one_flipped_bit_in_a_pools_identity_changes_nothing(memory_path: Path) -> None:
    pool = Pool("p", RetrieverConfig(pools=memory_path), str, UnsyncedDisk())
    add(pool, {"a": [1]})
    pool.writer.close()
    path = memory_path / "p" / IDENTITY_NAME
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        assert contents(Pool("p", RetrieverConfig(pools=memory_path), str, UnsyncedDisk())) == {"a": [1]}


def other_version(path: Path, what: str) -> None:
    """Rewrites what a file says of itself, as another version of the program would."""
    if what == "log":
        data = path.read_bytes()
        with patch.object(log, "FORMAT_VERSION", 99):
            path.write_bytes(log.encode_header(0) + data[log.HEADER_SIZE :])
        return
    fields = checked_json.decode(path.read_bytes(), FORMAT_VERSION if what == "identity" else SEGMENT_VERSION)
    path.write_bytes(checked_json.encode({**fields, "format_version": 99}))


@pytest.mark.parametrize("what", ["segment", "log", "identity"])
def test_what_another_version_wrote_keeps_a_pool_from_being_written_and_loses_nothing(
    memory_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    def opened() -> Pools:
        return Pools(RetrieverConfig(pools=memory_path, rescan_s=1000), UnsyncedDisk(), started=False)

    def documents_of(pools: Pools, pool: str) -> Model:
        return {key: index.document(i).tolist() for key, index, i in pools.describe(pool).documents()}

    pools = opened()
    for pool in ("p", "other"):
        pools.add_documents(pool, "f", [("a", np.array([1], np.int32)), ("b", np.array([2], np.int32))])
        pools.compact(pool)
        pools.add_documents(pool, "f", [("c", np.array([3], np.int32))])
    pools.close()
    names = {"segment": "seg-*/meta.json", "log": log.LOG_NAME, "identity": IDENTITY_NAME}
    path = next(path for path in memory_path.glob(f"p/{names[what]}"))
    whole = path.read_bytes()
    other_version(path, what)

    pools = opened()
    pools.refresh()
    assert not pools.storage.writable
    assert "99, this program reads" in caplog.text and caplog.text.count("storage.unreadable") == 1
    for write in (
        lambda: pools.delete_documents("p", ["a"]),
        lambda: pools.compact("p"),
        lambda: pools.add_documents("p", "f", [("d", np.array([4], np.int32))]),
    ):
        with pytest.raises(StorageUnavailable, match=r"format version is .*99"):
            write()
        pools.upkeep()
        assert not pools.storage.writable, "a disk that can be written to does not mend it"
    if what != "identity":
        assert documents_of(pools, "p") == ({"c": [3]} if what == "segment" else {"a": [1], "b": [2]})
    pools.delete_documents("other", ["a"])
    assert documents_of(pools, "other") == {"b": [2], "c": [3]}

    path.write_bytes(whole)
    if what == "segment":  # is opened once
        pools.close()
        pools = opened()
    pools.refresh()
    assert pools.storage.writable
    assert documents_of(pools, "p") == {"a": [1], "b": [2], "c": [3]}
    assert pools.delete_documents("p", ["a"]) == 1
    pools.close()

    other_version(path, what)
    pools = opened()
    pools.drop("p")
    assert [path.name for path in memory_path.iterdir()] == ["other"] and pools.storage.writable
    pools.close()
