"""Limits of pools: the oldest documents go, durably, and their bytes with the next compaction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retriever_clocks import HandClock
from retriever_disks import UnsyncedDisk

from laser_retriever.clock import Clock
from laser_retriever.config import RetrieverConfig
from laser_retriever.limits import PoolLimits
from laser_retriever.log import BYTES_PER_TOKEN, HEADER_SIZE, Record, encode_frames
from laser_retriever.pool import Pool, Upkeep

DAY_S = 86_400.0


def open_pool(root: Path, limits: PoolLimits, clock: HandClock) -> Pool:
    pool = Pool("p", RetrieverConfig(pools=root, limits=limits, unlink_after_s=0), str, UnsyncedDisk(), clock.clock)
    pool.refresh()
    return pool


def add(pool: Pool, **documents: int) -> None:
    """Documents of so many tokens."""
    pool.writer.add("f", [(key, np.full(num_tokens, ord(key), np.int32)) for key, num_tokens in documents.items()])
    pool.refresh()


def ids(pool: Pool) -> list[str]:
    pool.refresh()
    return [document_id for document_id, _, _ in pool.snapshot.documents()]


documents_strategy = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=12)


@given(documents_strategy, st.integers(0, 6), st.integers(0, 30), st.integers(0, 9))
def test_what_is_left_is_within_all_limits_and_nothing_goes_without_need(
    documents: list[tuple[int, int]], max_documents: int, max_tokens: int, max_age_s: int
) -> None:
    limits = PoolLimits(max_documents, max_tokens, max_age_s)
    now_s = 9.0
    listed = [(str(i), num_tokens, second * 1000) for i, (num_tokens, second) in enumerate(documents)]
    num_tokens, times_ms = (np.array([entry[i] for entry in listed], np.int64) for i in (1, 2))
    gone = limits.evicted(num_tokens, times_ms, now_s).tolist()
    kept = [document for i, document in enumerate(listed) if i not in gone]
    oldest_ms = min((time_ms for _, _, time_ms in kept), default=0)
    assert not limits.exceeded(len(kept), sum(n for _, n, _ in kept), oldest_ms, now_s)
    young = [document for document in listed if not max_age_s or document[2] >= (now_s - max_age_s) * 1000]
    assert kept == young[len(young) - len(kept) :], "the newest of those young enough"
    if len(kept) < len(young):
        more = young[len(young) - len(kept) - 1 :]
        assert limits.exceeded(len(more), sum(n for _, n, _ in more), int(now_s * 1000), now_s)


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        (PoolLimits(max_documents=2), ["c", "d"]),
        (PoolLimits(max_tokens=7), ["c", "d"]),
        (PoolLimits(max_age_s=1.5 * DAY_S), ["c", "d"]),
        (PoolLimits(max_tokens=2), []),
        (PoolLimits(), ["a", "b", "c", "d"]),
    ],
)
@pytest.mark.parametrize("sealed", [False, True])
def test_the_oldest_go_wherever_they_lie_and_stay_away_after_a_restart(
    tmp_path: Path, limits: PoolLimits, left: list[str], sealed: bool
) -> None:
    clock = HandClock()
    pool = open_pool(tmp_path, limits, clock)
    for key in "abcd":
        add(pool, **{key: 3})
        clock.advance(DAY_S)
        if sealed:
            pool.writer.seal()
    clock.advance(-0.75 * DAY_S)
    pool.refresh()
    assert pool.upkeep().num_evicted == 4 - len(left)
    assert ids(pool) == left
    assert pool.upkeep() == Upkeep()
    pool.writer.close()
    assert ids(open_pool(tmp_path, limits, clock)) == left


def test_a_replaced_document_is_a_new_one(tmp_path: Path) -> None:
    clock = HandClock()
    pool = open_pool(tmp_path, PoolLimits(max_documents=2, max_age_s=DAY_S), clock)
    add(pool, a=1, b=1)
    clock.advance(0.75 * DAY_S)
    add(pool, a=1)
    clock.advance(0.5 * DAY_S)
    pool.upkeep()
    assert ids(pool) == ["a"]
    assert pool.snapshot.oldest_ms == pool.snapshot.newest_ms == int((clock.now_s - 0.5 * DAY_S) * 1000)
    pool.writer.close()


def test_documents_grow_old_without_anyone_writing(tmp_path: Path) -> None:
    clock = HandClock()
    pool = open_pool(tmp_path, PoolLimits(max_age_s=DAY_S), clock)
    add(pool, a=1)
    pool.writer.close()
    pool = open_pool(tmp_path, PoolLimits(max_age_s=DAY_S), clock)
    assert pool.upkeep().num_evicted == 0
    clock.advance(DAY_S + 1)
    assert pool.upkeep().num_evicted == 1
    assert ids(pool) == []
    pool.writer.close()


def test_the_bytes_of_evicted_documents_go_with_the_next_compaction(tmp_path: Path) -> None:
    pool = open_pool(tmp_path, PoolLimits(max_documents=1), HandClock())
    add(pool, a=5)
    pool.writer.seal()
    add(pool, b=5)
    pool.upkeep()
    assert ids(pool) == ["b"] and pool.snapshot.num_dead_tokens == 5
    pool.writer.compact()
    pool.writer.tidy()
    assert ids(pool) == ["b"] and pool.snapshot.num_dead_tokens == 0
    evicted = np.full(5, ord("a"), "<i4").tobytes()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and evicted in path.read_bytes()]
    pool.writer.close()


@pytest.mark.parametrize("num_ids", [4, 300], ids=["replaced", "evicted"])
def test_the_log_of_a_pool_that_stays_small_is_sealed_by_its_bytes(tmp_path: Path, num_ids: int) -> None:
    config = RetrieverConfig(pools=tmp_path, seal_tokens=100, unlink_after_s=0, limits=PoolLimits(max_documents=4))
    pool = Pool("p", config, str, UnsyncedDisk())
    for i in range(300):
        pool.writer.add("f", [(str(i % num_ids), np.full(10, i, np.int32))])
        pool.refresh()
        pool.upkeep()
        pool.refresh()
        one_more_bytes = len(encode_frames(i, [Record("299", np.zeros(10, np.int32)), Record("299", None)]))
        assert pool.snapshot.log_size_bytes <= HEADER_SIZE + 2 * BYTES_PER_TOKEN * 100 + one_more_bytes
        assert pool.snapshot.size_bytes < 30_000, "what is dead in segments goes too"
    pool.writer.close()
    reopened = Pool("p", config, str, UnsyncedDisk())
    assert ids(reopened) == [str(i % num_ids) for i in range(296, 300)]
    assert [index.document(i)[0] for _, index, i in reopened.snapshot.documents()] == [296, 297, 298, 299]


def test_a_pool_that_is_mostly_dead_is_compacted_by_itself(tmp_path: Path) -> None:
    config = RetrieverConfig(pools=tmp_path, seal_tokens=10, limits=PoolLimits(max_documents=1))
    pool = Pool("p", config, str, UnsyncedDisk())
    for key in "abcdefgh":
        add(pool, **{key: 9})
    done = pool.upkeep()
    pool.refresh()
    done = pool.upkeep() if not done.num_compactions else done
    for _ in range(3):
        pool.refresh()
        pool.upkeep()
    assert ids(pool) == ["h"]
    assert pool.snapshot.num_dead_tokens <= 9 + 10
    pool.writer.close()


@pytest.mark.parametrize("field", ["max_documents", "max_tokens", "max_age_s"])
def test_a_negative_limit_is_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is -1"):
        PoolLimits(**{field: -1})


def test_a_clock_that_jumps_ahead_is_believed_only_after_ten_minutes(tmp_path: Path) -> None:
    hand, offset_s = HandClock(), 0.0
    clock = Clock(lambda: hand.now_s + offset_s, lambda: hand.now_s)
    config = RetrieverConfig(pools=tmp_path, limits=PoolLimits(max_age_s=DAY_S))
    pool = Pool("p", config, str, UnsyncedDisk(), clock)
    add(pool, a=1)
    offset_s = 2 * DAY_S
    assert pool.upkeep() == Upkeep()
    hand.advance(300)
    offset_s = 0.0
    assert pool.upkeep() == Upkeep()
    offset_s = 2 * DAY_S
    assert pool.upkeep() == Upkeep()
    hand.advance(599)
    assert pool.upkeep() == Upkeep() and ids(pool) == ["a"]
    hand.advance(1)
    assert pool.upkeep() == Upkeep(num_evicted=1)
