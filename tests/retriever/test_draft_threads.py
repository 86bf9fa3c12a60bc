"""Which processors drafting threads run on."""

from __future__ import annotations

import os
import threading

import pytest

from laser_retriever.draft_threads import draft_executor, usable_processors


def processors_of(num_threads: int) -> list[tuple[int, ...]]:
    """Where each of an executor's threads may run."""
    together = threading.Barrier(num_threads)

    def look() -> tuple[int, ...]:
        together.wait()  # so that every thread takes one
        return tuple(sorted(os.sched_getaffinity(0)))

    with draft_executor(num_threads) as executor:
        return sorted(future.result() for future in [executor.submit(look) for _ in range(num_threads)])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot tell")
def test_threads_keep_to_a_processor_each_where_there_is_one_for_each() -> None:
    processors = usable_processors()
    assert processors_of(len(processors)) == [(processor,) for processor in processors]
    assert processors_of(len(processors) + 1) == [tuple(processors)] * (len(processors) + 1)
    assert usable_processors() == processors, "the caller is not moved"


def test_a_processor_that_was_taken_away_stops_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, processors: set[int]) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    with draft_executor(len(usable_processors())) as executor:
        assert executor.submit(lambda: 1).result() == 1
