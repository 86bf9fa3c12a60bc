"""Long computations at low priority."""

import os
import threading

import numpy as np
import pytest

from laser_retriever import suffix_array
from laser_retriever.low_priority import NICENESS, at_low_priority


def niceness(thread_id: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread_id)


def test_a_computation_runs_behind_its_caller_who_keeps_his_priority() -> None:
    mine = niceness(threading.get_native_id())
    theirs = at_low_priority(lambda by: niceness(threading.get_native_id()) + by, 0)
    assert theirs == min(mine + NICENESS, 19)
    assert niceness(threading.get_native_id()) == mine


def test_without_the_right_to_change_priorities_it_is_computed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(by: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "nice", refuse)
    assert at_low_priority(lambda: 7) == 7


def test_faults_come_through() -> None:
    with pytest.raises(ZeroDivisionError):
        at_low_priority(lambda: 1 // 0)


def test_long_builds_alone_give_way_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(1).integers(0, 50, 1000).astype(np.int32)
    behind: list[int] = []

    def watched(function, *arguments):  # type: ignore[no-untyped-def]
        behind.append(len(arguments[0]))
        return at_low_priority(function, *arguments)

    monkeypatch.setattr(suffix_array, "at_low_priority", watched)
    expected = suffix_array.build_context_array(tokens)
    assert not behind
    monkeypatch.setattr(suffix_array, "LONG_BUILD", 1000)
    assert suffix_array.build_context_array(tokens).tolist() == expected.tolist()
    assert behind == [1000]
