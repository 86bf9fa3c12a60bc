"""A pool on disk: add, replace, delete, seal, compact, reopen, and who may write."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from retriever_disks import FailingDisk, UnsyncedDisk

from laser_protocol.errors import (
    InvalidRequest,
    PoolMismatch,
    StorageUnavailable,
    UnknownPool,
    WriterElsewhere,
)
from laser_retriever import compaction
from laser_retriever.config import RetrieverConfig
from laser_retriever.limits import PoolLimits
from laser_retriever.log import HEADER_SIZE
from laser_retriever.log_writer import LogMark, LogWriter
from laser_retriever.pool import Pool
from laser_retriever.writer import PoolWriter

FINGERPRINT = "f" * 64
POOL = "shop/user/1"


def pool_at(directory: Path, pool: str = POOL, address: str = "here:1", **settings_: float) -> Pool:
    config = RetrieverConfig(pools=directory, **settings_)  # type: ignore[arg-type]
    opened = Pool(pool, config, lambda: address, UnsyncedDisk())
    opened.refresh()
    return opened


def add(pool: Pool, documents: dict[str, list[int]], fingerprint: str = FINGERPRINT) -> None:
    pool.writer.add(fingerprint, [(key, np.array(tokens, np.int32)) for key, tokens in documents.items()])


def contents(pool: Pool) -> dict[str, list[int]]:
    pool.refresh()
    listed = [(key, index.document(i).tolist()) for key, index, i in pool.snapshot.documents()]
    assert len(listed) == len(dict(listed)), "an id stands twice"
    return dict(listed)


def test_added_documents_are_there_and_survive_reopening(tmp_path: Path) -> None:
    pool = pool_at(tmp_path)
    assert not pool.snapshot.exists
    add(pool, {"a": [1, 2], "b": [3]})
    assert contents(pool) == {"a": [1, 2], "b": [3]}
    assert (pool.snapshot.num_documents, pool.snapshot.num_tokens, pool.snapshot.fingerprint) == (2, 3, FINGERPRINT)
    pool.writer.close()
    assert contents(pool_at(tmp_path)) == {"a": [1, 2], "b": [3]}


def test_a_killed_writer_loses_nothing_acknowledged(tmp_path: Path) -> None:
    program = f"""
import os, numpy
from pathlib import Path
from laser_retriever.config import RetrieverConfig
from laser_retriever.limits import PoolLimits
from laser_retriever.pool import Pool
pool = Pool({POOL!r}, RetrieverConfig(pools=Path({str(tmp_path)!r})))
pool.writer.add({FINGERPRINT!r}, [("a", numpy.array([1, 2], numpy.int32))])
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    pool = pool_at(tmp_path)
    assert contents(pool) == {"a": [1, 2]}
    add(pool, {"b": [3]})
    assert contents(pool) == {"a": [1, 2], "b": [3]}
    pool.writer.close()


def test_adding_an_id_again_replaces_its_document_wherever_it_lies(tmp_path: Path) -> None:
    pool = pool_at(tmp_path)
    add(pool, {"a": [1], "b": [2]})
    pool.writer.seal()
    add(pool, {"a": [3]})
    assert contents(pool) == {"b": [2], "a": [3]}
    pool.writer.seal()
    add(pool, {"a": [4], "c": [5]})
    assert contents(pool) == {"b": [2], "a": [4], "c": [5]}
    assert pool.snapshot.num_tokens == 3
    pool.writer.close()


def test_deleted_documents_are_gone_and_only_existing_ids_count(tmp_path: Path) -> None:
    pool = pool_at(tmp_path)
    add(pool, {"a": [1], "b": [2]})
    pool.writer.seal()
    add(pool, {"c": [3]})
    assert pool.writer.delete(["a", "c", "nobody", "a"]) == 2
    assert contents(pool) == {"b": [2]}
    pool.writer.seal()
    assert pool.writer.delete(["a"]) == 0
    assert contents(pool) == {"b": [2]}
    pool.writer.close()
    assert contents(pool_at(tmp_path)) == {"b": [2]}


def test_compaction_leaves_one_segment_without_the_bytes_of_deleted_documents(tmp_path: Path) -> None:
    pool = pool_at(tmp_path, unlink_after_s=0)
    add(pool, {"a": [77_777], "b": [2]})
    pool.writer.seal()
    add(pool, {"c": [3]})
    pool.writer.delete(["a"])
    pool.writer.compact()
    assert contents(pool) == {"b": [2], "c": [3]}
    assert len(pool.snapshot.segments) == 1
    pool.writer.tidy()
    secret = np.array([77_777], "<i4").tobytes()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]
    pool.writer.close()
    assert contents(pool_at(tmp_path)) == {"b": [2], "c": [3]}


def test_dropped_means_gone_but_pools_below_stay(tmp_path: Path) -> None:
    pool, below = pool_at(tmp_path, "shop"), pool_at(tmp_path, "shop/user")
    add(pool, {"a": [1]})
    add(below, {"b": [2]})
    pool.writer.seal()
    pool.writer.drop()
    assert contents(pool) == {}
    assert not pool.snapshot.exists
    with pytest.raises(UnknownPool):
        pool.writer.delete(["a"])
    assert contents(pool_at(tmp_path, "shop/user")) == {"b": [2]}
    add(pool, {"c": [3]}, "0" * 64)
    assert contents(pool) == {"c": [3]}
    below.writer.drop()
    pool.writer.drop()
    assert list(tmp_path.iterdir()) == []


def test_documents_of_another_tokenizer_are_refused_naming_both(tmp_path: Path) -> None:
    pool = pool_at(tmp_path)
    add(pool, {"a": [1]})
    with pytest.raises(PoolMismatch, match=f"'other'.*{FINGERPRINT}") as caught:
        add(pool, {"b": [2]}, "other")
    assert caught.value.field == "tokenizer_fingerprint"
    pool.writer.close()


def test_a_second_writer_is_sent_to_the_first_until_it_gives_up_the_lock(tmp_path: Path) -> None:
    first, second = pool_at(tmp_path, address="first:1", lock_idle_s=0), pool_at(tmp_path, address="second:2")
    add(first, {"a": [1]})
    with pytest.raises(WriterElsewhere, match="first:1") as caught:
        add(second, {"b": [2]})
    assert caught.value.holder == "first:1"
    assert contents(second) == {"a": [1]}, "readers need no lock"
    first.writer.tidy()
    add(second, {"b": [2]})
    with pytest.raises(WriterElsewhere, match="second:2"):
        first.writer.delete(["a"])
    assert contents(first) == contents(second) == {"a": [1], "b": [2]}
    second.writer.close()


def test_segments_are_merged_only_as_far_as_one_can_number_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_at(tmp_path, max_segments=1)
    monkeypatch.setattr(compaction, "MAX_TOKENS", 24)
    for i in range(4):
        add(pool, {f"{i}": list(range(8)), "same": [i] * 2})  # 14 tokens with their marks
        pool.writer.seal()
    add(pool, {"2": [9]})
    pool.writer.compact()
    assert contents(pool) == {"0": list(range(8)), "1": list(range(8)), "2": [9], "3": list(range(8)), "same": [3, 3]}
    sizes = [len(segment.index.tokens) for segment in pool.snapshot.segments]
    assert len(sizes) > 1 and max(sizes) <= 24
    pool.writer.delete(["0", "2"])
    pool.writer.compact()
    assert contents(pool) == {"1": list(range(8)), "3": list(range(8)), "same": [3, 3]}
    names = [segment.name for segment in pool.snapshot.segments]
    pool.writer.compact()
    assert contents(pool) == {"1": list(range(8)), "3": list(range(8)), "same": [3, 3]}
    assert [segment.name for segment in pool.snapshot.segments] == names, "what cannot become less is left alone"


def test_a_reader_follows_sealing_and_compaction_by_another_process(tmp_path: Path) -> None:
    writer, reader = pool_at(tmp_path), pool_at(tmp_path)
    expected: dict[str, list[int]] = {}
    for i in range(12):
        add(writer, {f"d{i}": [i + 1]})
        expected[f"d{i}"] = [i + 1]
        writer.writer.seal()
        assert contents(reader) == expected
    assert len(reader.snapshot.segments) <= 8
    writer.writer.compact()
    assert contents(reader) == expected
    writer.writer.close()


def test_a_damaged_segment_is_skipped_with_a_message_and_the_rest_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_at(tmp_path)
    add(pool, {"a": [1, 2, 3]})
    pool.writer.seal()
    add(pool, {"b": [4]})
    pool.writer.seal()
    pool.writer.close()
    first = min(path for path in (tmp_path / POOL).iterdir() if path.name.startswith("seg-"))
    data = bytearray((first / "tokens.i32").read_bytes())
    data[5] ^= 1
    (first / "tokens.i32").write_bytes(data)
    with caplog.at_level(logging.ERROR):
        assert contents(pool_at(tmp_path)) == {"b": [4]}
    assert first.name in caplog.text
    assert "CRC-32" in caplog.text


def test_what_a_damaged_segment_deleted_or_replaced_does_not_come_back(tmp_path: Path) -> None:
    pool = pool_at(tmp_path)
    add(pool, {"a": [1], "b": [2], "c": [3]})
    pool.writer.seal()
    add(pool, {"a": [4]})
    pool.writer.delete(["b"])
    pool.writer.seal()
    pool.writer.close()
    second = max(path for path in (tmp_path / POOL).iterdir() if path.name.startswith("seg-"))
    (second / "tokens.i32").write_bytes(b"")
    pool = pool_at(tmp_path)
    assert contents(pool) == {"c": [3]}
    pool.writer.compact()
    assert contents(pool) == {"c": [3]}
    pool.writer.close()


def test_an_unfinished_segment_is_ignored_and_removed_by_the_next_writer(tmp_path: Path) -> None:
    pool = pool_at(tmp_path)
    add(pool, {"a": [1]})
    pool.writer.close()
    (tmp_path / POOL / "seg-x.tmp").mkdir()
    reopened = pool_at(tmp_path)
    add(reopened, {"b": [2]})
    assert contents(reopened) == {"a": [1], "b": [2]}
    assert not (tmp_path / POOL / "seg-x.tmp").exists()
    reopened.writer.close()


def test_a_log_of_which_nothing_is_left_becomes_no_segment_but_for_what_it_deletes_in_older_ones(
    tmp_path: Path,
) -> None:
    pool = pool_at(tmp_path)
    log = tmp_path / POOL / "log.wal"
    add(pool, {"a": [1]})
    pool.writer.delete(["a"])
    pool.writer.seal()
    assert contents(pool) == {} and pool.snapshot.segments == () and log.stat().st_size == HEADER_SIZE
    add(pool, {"b": [2], "c": [3]})
    pool.writer.seal()
    add(pool, {"d": [4]})
    pool.writer.delete(["b", "d"])
    pool.writer.seal()
    assert [segment.meta.tombstones for segment in pool_at(tmp_path).snapshot.segments] == [(), ("b",)]
    assert log.stat().st_size == HEADER_SIZE
    pool.writer.close()
    pool = pool_at(tmp_path)
    assert contents(pool) == {"c": [3]}
    add(pool, {"d": [5]})
    assert contents(pool) == {"c": [3], "d": [5]}
    pool.writer.close()


def test_what_a_seal_cut_short_left_in_the_log_goes_with_the_next_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(log: LogWriter, mark: LogMark) -> None:
        raise OSError(5, "Input/output error")

    pool = pool_at(tmp_path)
    add(pool, {"a": [1]})
    with monkeypatch.context() as patch:
        patch.setattr(LogWriter, "drop_before", fail)
        with pytest.raises(StorageUnavailable):
            pool.writer.seal()
    pool.writer.close()
    pool = pool_at(tmp_path)
    pool.writer.compact()
    assert (tmp_path / POOL / "log.wal").stat().st_size == HEADER_SIZE
    assert contents(pool) == {"a": [1]}
    pool.writer.close()


def test_sealing_drops_nothing_of_a_log_that_its_reader_cannot_read(tmp_path: Path) -> None:
    pool = pool_at(tmp_path)
    add(pool, {"a": [1]})
    path = tmp_path / POOL / "log.json"
    whole = path.read_bytes()
    path.write_bytes(b"{}")
    with pytest.raises(StorageUnavailable, match="can be read only in part"):
        pool.writer.seal()
    pool.writer.close()
    path.write_bytes(whole)
    assert contents(pool_at(tmp_path)) == {"a": [1]}


def test_a_storage_that_refuses_names_the_reason_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_at(tmp_path)
    add(pool, {"a": [1]})
    pool.writer.close()

    def refuse(*arguments: object) -> int:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(StorageUnavailable, match=r"not writable.*Read-only"):
            add(pool, {"b": [2]})
    assert contents(pool) == {"a": [1]}


def test_a_pool_named_like_a_file_of_another_pool_is_refused(tmp_path: Path) -> None:
    pool = pool_at(tmp_path, "shop")
    add(pool, {"a": [1]})
    with pytest.raises(InvalidRequest) as caught:
        add(pool_at(tmp_path, "shop/writer.lock"), {"b": [2]})
    assert caught.value.field == "pool"
    pool.writer.close()


class PoolMachine(RuleBasedStateMachine):
    """Two instances on one directory do what a dict does, through seal, compaction, eviction, crash and reopening."""

    LIMITS = PoolLimits(max_documents=4, max_tokens=20)

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.disks = [FailingDisk(), FailingDisk()]
        self.pools = [self.open(0), self.open(1)]
        self.model: dict[str, list[int]] = {}  # in order of arrival
        self.exists = False

    ids = st.sampled_from("abcdef")
    documents = st.dictionaries(ids, st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1)

    def open(self, which: int) -> Pool:
        self.disks[which] = FailingDisk()
        config = RetrieverConfig(
            pools=self.directory, seal_tokens=25, max_segments=3, unlink_after_s=0, limits=self.LIMITS
        )
        pool = Pool(POOL, config, lambda: f"instance:{which}", self.disks[which])
        pool.refresh()
        return pool

    def writer(self, which: int) -> PoolWriter:
        self.pools[1 - which].writer.close()
        return self.pools[which].writer

    def after_add(self, documents: dict[str, list[int]]) -> dict[str, list[int]]:
        return {**{key: tokens for key, tokens in self.model.items() if key not in documents}, **documents}

    @rule(which=st.integers(0, 1), documents=documents)
    def add(self, which: int, documents: dict[str, list[int]]) -> None:
        self.writer(which)
        add(self.pools[which], documents)
        self.model = self.after_add(documents)
        self.exists = True

    @precondition(lambda self: self.exists)
    @rule(which=st.integers(0, 1), ids=st.lists(ids, max_size=3))
    def delete(self, which: int, ids: list[str]) -> None:
        assert self.writer(which).delete(ids) == len(set(ids) & self.model.keys())
        for key in ids:
            self.model.pop(key, None)

    @precondition(lambda self: self.exists)
    @rule(which=st.integers(0, 1))
    def evict(self, which: int) -> None:
        num_evicted = self.writer(which).evict(0.0)
        while len(self.model) > 4 or sum(map(len, self.model.values())) > 20:
            del self.model[next(iter(self.model))]
            num_evicted -= 1
        assert num_evicted == 0

    @precondition(lambda self: self.exists)
    @rule(which=st.integers(0, 1), how=st.sampled_from(["seal", "compact"]))
    def rearrange(self, which: int, how: str) -> None:
        getattr(self.writer(which), how)()

    @precondition(lambda self: self.exists)
    @rule(which=st.integers(0, 1))
    def upkeep(self, which: int) -> None:
        self.evict(which)
        self.writer(which)
        self.pools[which].upkeep()

    @precondition(lambda self: self.exists)
    @rule(which=st.integers(0, 1))
    def drop(self, which: int) -> None:
        self.writer(which).drop()
        self.model.clear()
        self.exists = False

    @precondition(lambda self: self.exists)
    @rule(which=st.integers(0, 1), documents=documents)
    def second_writer(self, which: int, documents: dict[str, list[int]]) -> None:
        self.writer(which).delete([])
        with pytest.raises(WriterElsewhere) as caught:
            add(self.pools[1 - which], documents)
        assert caught.value.holder == f"instance:{which}"

    @precondition(lambda self: self.exists)
    @rule(
        which=st.integers(0, 1),
        at=st.integers(0, 20),
        how=st.sampled_from(["add", "delete", "seal", "compact"]),
        documents=documents,
    )
    def crash(self, which: int, at: int, how: str, documents: dict[str, list[int]]) -> None:
        """From some operation of the disk on nothing more reaches it; what was under way came through or did not."""
        writer = self.writer(which)
        writer.delete([])
        disk = self.disks[which]
        disk.die(at)
        after = self.model
        try:
            if how == "add":
                after = self.after_add(documents)
                add(self.pools[which], documents)
            elif how == "delete":
                after = {key: tokens for key, tokens in self.model.items() if key not in documents}
                writer.delete(list(documents))
            else:
                getattr(writer, how)()
            self.model = after
        except StorageUnavailable:
            pass
        writer.close()
        self.pools[which] = self.open(which)
        self.writer(which).delete([])  # recovers
        found = contents(self.pools[which])
        for key in self.model.keys() | after.keys() | found.keys():
            assert found.get(key) in (self.model.get(key), after.get(key))
        self.model = found

    @precondition(lambda self: self.exists)
    @rule(which=st.integers(0, 1), size=st.integers(1, 30))
    def torn_end(self, which: int, size: int) -> None:
        for pool in self.pools:
            pool.writer.close()
        with (self.directory / POOL / "log.wal").open("ab") as file:
            file.write(b"\xf1LSR" + bytes(size))
        self.pools[which] = self.open(which)

    @invariant()
    def both_see_the_model(self) -> None:
        for pool in self.pools:
            assert contents(pool) == self.model
            assert list(contents(pool)) == list(self.model), "the order of arrival is that of eviction"
            assert pool.snapshot.num_documents == len(self.model)
            assert pool.snapshot.num_tokens == sum(map(len, self.model.values()))
            assert len(pool.snapshot.segments) <= 4
            assert searchable(pool) == any(0 in tokens for tokens in self.model.values())

    def teardown(self) -> None:
        for pool in self.pools:
            pool.writer.close()
        shutil.rmtree(self.directory)


def searchable(pool: Pool) -> bool:
    """Whether a live document with token 0 is found through the suffix arrays."""
    for index in (*pool.snapshot.indexes, pool.snapshot.tail):
        for position in index.suffixes[index.tokens[index.suffixes] == 0].tolist():
            if index.dead is None or not (index.dead[position >> 3] >> (position & 7)) & 1:
                return True
    return False


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
