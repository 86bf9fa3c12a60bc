"""All pools of a directory: ancestors' samples, what a sequence is drafted from, instances side by side."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from retriever_clocks import HandClock
from retriever_disks import UnsyncedDisk

import laser_retriever.writer
from laser_protocol.errors import InvalidRequest, StorageUnavailable, UnknownPool, WriterElsewhere
from laser_retriever.config import RetrieverConfig
from laser_retriever.durable import Disk
from laser_retriever.limits import PoolLimits
from laser_retriever.pool import Pool
from laser_retriever.pools import Pools
from laser_retriever.samples import MAX_WAIT_S, Sample, Samples
from laser_retriever.segment import SegmentContent
from laser_retriever.snapshot import PoolSnapshot
from laser_retriever.sources import PoolStatus, Sources
from laser_retriever.writer import Documents, PoolWriter
from laser_retriever.writer_lock import WriterLock


@contextmanager
def pools_at(directory: Path, **settings: float) -> Iterator[Pools]:
    pools = Pools(RetrieverConfig(pools=directory, rescan_s=0.05, sample_interval_s=0, **settings))  # type: ignore[arg-type]
    try:
        yield pools
    finally:
        pools.close()


def add(pools: Pools, pool: str, documents: dict[str, list[int]], fingerprint: str = "f") -> None:
    pools.add_documents(pool, fingerprint, [(k, np.array(v, np.int32)) for k, v in documents.items()])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come about within 10 s"
        time.sleep(0.01)


def texts(sources: Sources) -> list[tuple[int, list[list[int]]]]:
    """(distance, documents that are not skipped) per source."""
    return [
        (
            int(distance),
            sorted(index.document(i).tolist() for i in range(index.num_documents) if index.offsets[i] not in skipped),
        )
        for distance, index, skipped in zip(sources.distances, sources.indexes, sources.skipped, strict=True)
    ]


def test_a_sequence_is_drafted_from_its_pool_and_its_ancestors_only(tmp_path: Path) -> None:
    with pools_at(tmp_path) as pools:
        add(pools, "a/b/c", {"1": [1]})
        add(pools, "a/b/d", {"1": [2]})
        add(pools, "a", {"1": [3]})
        add(pools, "z", {"1": [4]})
        until(lambda: len(texts(pools.sources("a/b/c", "f")[1])) == 3)
        status, sources = pools.sources("a/b/c", "f")
        assert status is PoolStatus.OK
        assert texts(sources) == [(0, [[1]]), (1, [[2]]), (2, [[3]])]


def test_an_unknown_pool_is_drafted_from_its_ancestors(tmp_path: Path) -> None:
    with pools_at(tmp_path) as pools:
        add(pools, "a/b", {"1": [1]})
        until(lambda: bool(texts(pools.sources("a/new", "f")[1])))
        assert pools.sources("a/new", "f")[0] is PoolStatus.NO_POOL
        assert texts(pools.sources("", "f")[1]) == []
        assert pools.sources("", "f")[0] is PoolStatus.NO_POOL


def test_a_pool_that_exists_only_as_an_ancestor_is_drafted_from_its_sample_and_that_is_ok(tmp_path: Path) -> None:
    with pools_at(tmp_path) as pools:
        add(pools, "a/b/c", {"1": [1]})
        until(lambda: bool(texts(pools.sources("a", "f")[1])))
        for pool in ("a", "a/b"):
            assert pools.sources(pool, "f")[0] is PoolStatus.OK
        assert pools.sources("a", "g")[0] is PoolStatus.NO_POOL


def test_nothing_is_drafted_from_pools_of_another_tokenizer(tmp_path: Path) -> None:
    with pools_at(tmp_path) as pools:
        add(pools, "a/b", {"1": [1]}, "f")
        add(pools, "a/c", {"1": [2]}, "g")
        until(lambda: bool(texts(pools.sources("a/x", "f")[1]) and texts(pools.sources("a/x", "g")[1])))
        assert texts(pools.sources("a/x", "f")[1]) == [(1, [[1]])]
        assert texts(pools.sources("a/x", "g")[1]) == [(1, [[2]])]
        assert pools.sources("a/b", "g")[0] is PoolStatus.TOKENIZER_MISMATCH
        assert texts(pools.sources("a/b", "g")[1]) == []


def test_an_ancestors_sample_is_bounded_and_the_same_in_every_instance(tmp_path: Path) -> None:
    with pools_at(tmp_path, sample_documents=5) as one, pools_at(tmp_path, sample_documents=5) as two:
        for pool in ("a/b", "a/c", "a/d"):
            add(one, pool, {str(i): [i + 1] for i in range(10)})
        for pools in (one, two):
            until(lambda pools=pools: len(getattr(pools._samples.get("a"), "snapshots", ())) == 3)  # type: ignore[misc]
        first, second = texts(one.sources("a", "f")[1]), texts(two.sources("a", "f")[1])
        assert first == second
        assert len(first[0][1]) == 5


def test_writes_are_taken_in_and_samples_served_while_further_samples_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pools_at(tmp_path) as pools:
        for root in ("a", "b"):
            add(pools, f"{root}/x", {"1": [1], "2": [2]})
    build, built = Samples._build, []

    def build_slowly(self: Samples, snapshots: Sequence[PoolSnapshot]) -> Sample:
        pool = snapshots[0].pool
        if not built:
            pools.delete_documents("a/x" if pool == "b/x" else "b/x", ["1"])
            until(lambda: texts(pools.sources("a/x" if pool == "b/x" else "b/x", "f")[1])[0] == (0, [[2]]))
        else:
            assert self.get(built[0].split("/")[0]) is not None, "the first is served already"
        built.append(pool)
        return build(self, snapshots)

    monkeypatch.setattr(Samples, "_build", build_slowly)
    with pools_at(tmp_path) as pools:
        until(lambda: set(built) == {"a/x", "b/x"})


def test_a_sample_holds_no_more_tokens_than_it_may_and_the_nearer_one_what_the_further_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laser_retriever.samples.MAX_TOKENS", 10)
    with pools_at(tmp_path) as pools:
        for pool in ("a/b/c", "a/b/d", "a/e"):
            add(pools, pool, {str(i): [i] * 3 for i in range(4)})
        pools.refresh()
        near, far = pools._samples.get("a/b"), pools._samples.get("a")
        assert near is not None and far is not None
        assert near.indexes["f"].num_documents == far.indexes["f"].num_documents == 3
        kept = far.tokens_below("a/b", "f")
        of_near = {tuple(near.indexes["f"].document(i).tolist()) for i in range(3)}
        index = far.indexes["f"]
        assert {tuple(index.document(i).tolist()) for i in range(3) if index.offsets[i] in kept} <= of_near


def test_deletions_carry_over_to_ancestors_and_other_instances(tmp_path: Path) -> None:
    with pools_at(tmp_path) as one, pools_at(tmp_path) as two:
        add(one, "a/b", {"1": [1], "2": [2]})
        until(lambda: texts(two.sources("a", "f")[1]) == [(0, [[1], [2]])])
        one.delete_documents("a/b", ["1"])
        until(lambda: texts(two.sources("a", "f")[1]) == [(0, [[2]])])
        assert texts(two.sources("a/b", "f")[1]) == [(0, [[2]])]


def test_no_document_is_drafted_from_twice(tmp_path: Path) -> None:
    with pools_at(tmp_path) as pools:
        add(pools, "a/b/c", {"1": [1]})
        until(lambda: bool(texts(pools.sources("a", "f")[1])))
        assert texts(pools.sources("a/b/c", "f")[1]) == [(0, [[1]])]
        assert texts(pools.sources("a/b/x", "f")[1]) == [(1, [[1]])]
        # "a/b-" sorts between "a/b" and "a/b/c" as text, and is not below "a/b".
        for pool, tokens in (("a/d", [2]), ("a/b-", [3]), ("a/b", [4]), ("a/b/e", [5])):
            add(pools, pool, {"1": tokens})
        until(lambda: len(texts(pools.sources("a", "f")[1])[0][1]) == 5)
        until(lambda: len(texts(pools.sources("a/b/x", "f")[1])[1][1]) == 2)
        assert texts(pools.sources("a/b/c", "f")[1]) == [(0, [[1]]), (1, [[4]]), (1, [[5]]), (2, [[2], [3]])]
        assert texts(pools.sources("a/b/x", "f")[1]) == [(1, [[4]]), (1, [[1], [5]]), (2, [[2], [3]])]
        assert texts(pools.sources("a/b", "f")[1]) == [(0, [[4]]), (0, [[1], [5]]), (1, [[2], [3]])]


def test_ancestors_of_the_same_pools_share_one_sample_which_comes_after_the_start(tmp_path: Path) -> None:
    with pools_at(tmp_path) as pools:
        add(pools, "a/b/c", {"1": [1]})
    pools = Pools(RetrieverConfig(pools=tmp_path, rescan_s=1e6))
    try:
        assert texts(pools.sources("a/b/c", "f")[1]) == [(0, [[1]])]
        assert pools._samples.get("a") is None
        assert pools.sources("a", "f")[0] is PoolStatus.OK, "there are pools below it, whatever became of its sample"
        pools.refresh_soon()
        until(lambda: pools._samples.get("a") is not None)
        assert pools._samples.get("a") is pools._samples.get("a/b")
    finally:
        pools.close()


def test_what_is_deleted_is_not_drafted_from_5_s_later_nor_60_s_later_from_ancestors_by_any_instance(
    tmp_path: Path,
) -> None:
    hand = HandClock()
    config = RetrieverConfig(pools=tmp_path)
    assert config.rescan_s + 1 < 5, "looks follow each other in time: rescan_s and at most 1 s between two"
    assert MAX_WAIT_S + config.rescan_s + 1 < 60
    config = RetrieverConfig(pools=tmp_path, rescan_s=1e6, sample_interval_s=1e6)
    one, two = Pools(config, UnsyncedDisk(), hand.clock), Pools(config, UnsyncedDisk(), hand.clock)
    try:
        add(one, "a/b", {"1": [1], "2": [2]})
        two.refresh()
        assert texts(two.sources("a/b", "f")[1]) == [(0, [[1], [2]])]
        assert texts(two.sources("a/other", "f")[1]) == [(1, [[1], [2]])]
        one.delete_documents("a/b", ["1"])
        two.refresh()
        assert texts(two.sources("a/b", "f")[1]) == [(0, [[2]])]
        assert texts(two.sources("a/other", "f")[1]) == [(1, [[1], [2]])]
        hand.advance(MAX_WAIT_S)
        two.refresh()
        assert texts(two.sources("a/other", "f")[1]) == [(1, [[2]])]
    finally:
        one.close(), two.close()


def test_replaced_segments_are_unlinked_60_s_later_and_the_lock_is_given_up_30_s_after_the_last_write(
    tmp_path: Path,
) -> None:
    hand = HandClock()
    pools = Pools(RetrieverConfig(pools=tmp_path, rescan_s=1e6), UnsyncedDisk(), hand.clock)
    try:
        add(pools, "a", {"1": [1], "2": [2]})
        pools.compact("a")
        pools.delete_documents("a", ["1"])
        pools.compact("a")
        segments = lambda: len(list((tmp_path / "a").glob("seg-*")))  # noqa: E731
        writer = pools._pools["a"].writer
        pools.upkeep()
        assert segments() > 1, "another process may be about to open them"
        hand.advance(59)
        pools.upkeep()
        assert segments() > 1 and writer.holds_lock, "nobody else would remove them"
        hand.advance(2)
        until(lambda: pools.upkeep() or segments() == 1)
        hand.advance(28)
        pools.upkeep()
        assert writer.holds_lock
        hand.advance(3)
        until(lambda: pools.upkeep() or not writer.holds_lock)
        assert WriterLock.last_holder(tmp_path / "a") == ""
    finally:
        pools.close()


def test_what_a_killed_writer_left_to_unlink_the_next_instance_removes(tmp_path: Path) -> None:
    hand = HandClock()
    with pools_at(tmp_path) as pools:
        for i in range(2):
            add(pools, "a", {str(i): [i]})
            pools.compact("a")
    pools = Pools(RetrieverConfig(pools=tmp_path, rescan_s=1e6), UnsyncedDisk(), hand.clock)
    try:
        pools.upkeep()
        assert len(list((tmp_path / "a").glob("seg-*"))) > 1
        hand.advance(61)
        until(lambda: pools.upkeep() or len(list((tmp_path / "a").glob("seg-*"))) == 1)
    finally:
        pools.close()


def test_pools_on_a_network_file_system_are_read_into_memory(tmp_path: Path) -> None:
    with pools_at(tmp_path, read_into_memory=True) as pools:
        add(pools, "a", {"1": [1, 2, 3]})
        pools.compact("a")
        segment = pools.describe("a").segments[0]
        assert segment.index.tokens.flags.owndata and segment.index.suffixes.flags.owndata
        assert texts(pools.sources("a", "f")[1]) == [(0, [[1, 2, 3]])]


def test_no_call_waits_while_a_segment_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    building, go_on = threading.Event(), threading.Event()
    write = laser_retriever.writer.write_segment

    def slow_write(disk: Disk, directory: Path, content: SegmentContent) -> str:
        building.set()
        assert go_on.wait(20)
        return write(disk, directory, content)

    with pools_at(tmp_path) as pools:
        add(pools, "a", {"1": [1], "2": [2]})
        monkeypatch.setattr(laser_retriever.writer, "write_segment", slow_write)
        compacting = threading.Thread(target=pools.compact, args=("a",))
        compacting.start()
        assert building.wait(20)
        add(pools, "a", {"3": [3], "1": [4]})
        pools.delete_documents("a", ["2"])
        assert pools.describe("a").num_documents == 2
        assert texts(pools.sources("a", "f")[1]) == [(0, [[3], [4]])]
        go_on.set()
        compacting.join(20)
        assert texts(pools.sources("a", "f")[1])[-1] == (0, [[3], [4]])
        assert pools.describe("a").num_documents == 2
    with pools_at(tmp_path) as pools:
        assert sorted(key for key, _, _ in pools.describe("a").documents()) == ["1", "3"]


def test_drafting_does_not_wait_for_a_file_system_that_is_asked_for_a_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[bool] = []

    def is_file(path: Path) -> bool:
        drafting = threading.Thread(target=pools.sources, args=("b/new", "f"))
        drafting.start()
        drafting.join(5)
        waited.append(drafting.is_alive())
        return False

    with pools_at(tmp_path) as pools:
        add(pools, "a", {"1": [1]})
        monkeypatch.setattr(Path, "is_file", is_file)
        with pytest.raises(UnknownPool):
            pools.describe("b")
        assert waited == [False]


def test_pools_that_are_not_there_are_forgotten(tmp_path: Path) -> None:
    with pools_at(tmp_path) as pools:
        for pool in ("a/b", "c"):
            add(pools, pool, {"1": [1]})
        with pytest.raises(InvalidRequest):
            add(pools, "c/writer.lock", {"1": [1]})
        pools.drop("a/b")
        until(lambda: pools._pools.keys() == {"c"})
        add(pools, "a/b", {"2": [2]})
        until(lambda: texts(pools.sources("a/b", "f")[1]) == [(0, [[2]])])
        assert [snapshot.pool for snapshot in pools.list_pools()] == ["a/b", "c"]


def test_a_pool_that_is_being_founded_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_at_once = PoolWriter.add

    def add_late(writer: PoolWriter, fingerprint: str, documents: Documents) -> None:
        pools.refresh()
        add_at_once(writer, fingerprint, documents)

    monkeypatch.setattr(PoolWriter, "add", add_late)
    with pools_at(tmp_path) as pools:
        add(pools, "a", {"1": [1]})
        add(pools, "a", {"2": [2]})
        assert pools.describe("a").num_documents == 2, "the lock is held by the pool that is asked"


def test_a_pool_that_is_there_and_cannot_be_served_is_not_looked_at_anew_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pools_at(tmp_path) as pools:
        add(pools, "a", {"1": [1]})
    (tmp_path / "a" / "log.json").write_bytes(b"{}")
    pools = Pools(RetrieverConfig(pools=tmp_path, rescan_s=1e6))
    try:
        pools.refresh(), pools.refresh()
        assert caplog.text.count("pool.unreadable") == 1
    finally:
        pools.close()


def test_nothing_is_written_before_the_start(tmp_path: Path) -> None:
    with pools_at(tmp_path) as pools:
        add(pools, "a", {"1": [1], "2": [2]})
    config = RetrieverConfig(pools=tmp_path, rescan_s=0.01, limits=PoolLimits(max_documents=1))
    pools = Pools(config, started=False)
    try:
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("pools-")]
        assert pools.describe("a").num_documents == 2
        pools.advertise("here:1")
        pools.start()
        until(lambda: pools.describe("a").num_documents == 1)
        assert WriterLock.last_holder(tmp_path / "a") == "here:1"
    finally:
        pools.close()
    Pools(config, started=False).close()


def test_a_long_log_is_sealed_in_the_background(tmp_path: Path) -> None:
    with pools_at(tmp_path, seal_tokens=50) as pools:
        add(pools, "a", {str(i): [1] * 10 for i in range(10)})
        until(lambda: len(pools.describe("a").segments) == 1)
        assert (pools.describe("a").num_documents, len(pools.describe("a").tail_ids)) == (10, 0)


def test_lists_are_sorted_and_limited_to_a_root(tmp_path: Path) -> None:
    with pools_at(tmp_path) as pools:
        for pool in ("b", "a/c", "a", "ab"):
            add(pools, pool, {"1": [1]})
        assert [snapshot.pool for snapshot in pools.list_pools()] == ["a", "a/c", "ab", "b"]
        assert [snapshot.pool for snapshot in pools.list_pools("a")] == ["a", "a/c"]
        pools.drop("a")
        assert [snapshot.pool for snapshot in pools.list_pools()] == ["a/c", "ab", "b"]


@pytest.mark.parametrize("pool", ["..", "a/../b", "/a", "a/", "", "A", "a/seg-1", "log", "a/b/c/d/e/f/g/h/i", "a\n"])
def test_a_pool_id_that_is_no_pool_id_touches_no_file(tmp_path: Path, pool: str) -> None:
    with pools_at(tmp_path / "pools") as pools:
        with pytest.raises(InvalidRequest) as caught:
            add(pools, pool, {"1": [1]})
        assert caught.value.field == "pool"
        with pytest.raises(InvalidRequest):
            pools.describe(pool)
        assert list((tmp_path / "pools").iterdir()) == []


def test_unknown_pools_are_named(tmp_path: Path) -> None:
    with pools_at(tmp_path) as pools:
        for call in (pools.describe, pools.drop, pools.compact):
            with pytest.raises(UnknownPool, match="'a/b' is not known"):
                call("a/b")


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnavailable, match="pools is"):
        Pools(RetrieverConfig(pools=tmp_path / "file" / "pools"))


def test_a_wrong_setting_is_named_with_its_value(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rescan_s is 0"):
        RetrieverConfig(pools=tmp_path, rescan_s=0)
    with pytest.raises(ValueError, match="name is ''"):
        RetrieverConfig(pools=tmp_path, name="")


def test_a_pool_that_cannot_be_read_does_not_keep_others_from_being_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pools_at(tmp_path) as pools:
        add(pools, "bad", {"1": [1]})
        add(pools, "good", {"1": [2]})
    refresh = Pool.refresh

    def fail_for_one(pool: Pool) -> bool:
        if pool.pool == "bad":
            raise PermissionError(13, "Permission denied")
        return refresh(pool)

    monkeypatch.setattr(Pool, "refresh", fail_for_one)
    with pools_at(tmp_path) as pools:
        assert texts(pools.sources("good", "f")[1]) == [(0, [[2]])]
        assert not pools.storage.writable
    assert "bad reason=its files cannot be read: Permission denied" in caplog.text


def test_a_directory_that_cannot_be_listed_is_told_once_and_its_pools_are_not_called_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    denied = PermissionError(13, "Permission denied", str(tmp_path / "a"))
    walk = os.walk

    def fail(top: Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
        onerror(denied)
        return walk(top)

    monkeypatch.setattr("laser_retriever.pools.os.walk", fail)
    monkeypatch.setattr(Path, "is_file", Mock(side_effect=denied))
    with pools_at(tmp_path) as pools:
        pools.list_pools()
        with pytest.raises(StorageUnavailable, match="Permission denied"):
            pools.describe("a/b")
    assert caplog.text.count("pools.unlistable") == 1


def test_a_stop_gives_up_what_nobody_builds_at_once(tmp_path: Path) -> None:
    with pools_at(tmp_path) as pools:
        for pool in ("idle", "busy"):
            add(pools, pool, {"1": [1]})
        with pools._pools["busy"].writer._building:
            pools.give_up_locks()
            with pools_at(tmp_path) as other:
                add(other, "idle", {"2": [2]})
                with pytest.raises(WriterElsewhere):
                    add(other, "busy", {"2": [2]})


def test_a_pool_is_founded_although_its_parent_is_removed_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pools_at(tmp_path) as pools:
        add(pools, "a/b", {"1": [1]})
        acquire = WriterLock.acquire

        def drop_beside(disk: Disk, directory: Path, pool: str, holder: str) -> WriterLock:
            if pool == "a/c":
                monkeypatch.setattr(WriterLock, "acquire", acquire)
                directory.rmdir()
                pools.drop("a/b")
                assert not (tmp_path / "a").exists()
            return acquire(disk, directory, pool, holder)

        monkeypatch.setattr(WriterLock, "acquire", drop_beside)
        add(pools, "a/c", {"1": [1]})
        assert pools.describe("a/c").num_documents == 1
