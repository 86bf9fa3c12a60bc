"""Which processors the helpers of a draft run on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from laser_retriever.helpers import DraftHelpers

NUM_HELPERS = 3


@pytest.fixture
def processors() -> Iterator[list[int]]:
    """All that this thread may use; it gets them back."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the system cannot tell")
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        pytest.skip("needs two processors")
    yield found
    os.sched_setaffinity(0, found)


def processors_of(helpers: DraftHelpers) -> list[set[int]]:
    """Where each of them may run."""
    together = threading.Barrier(NUM_HELPERS)

    def look() -> set[int]:
        together.wait()  # so that every thread takes one
        return os.sched_getaffinity(0)

    return [future.result() for future in [helpers.submit(look) for _ in range(NUM_HELPERS)]]


def test_helpers_keep_off_the_processor_from_which_they_are_given_work(processors: list[int]) -> None:
    with DraftHelpers(NUM_HELPERS) as helpers:
        for here in (processors[0], processors[-1], processors[0]):
            helpers._current_processor = lambda here=here: here  # type: ignore[misc]
            assert processors_of(helpers) == [set(processors) - {here}] * NUM_HELPERS
            assert os.sched_getaffinity(0) == set(processors), "whoever submits is not moved"


def test_where_they_are_is_known_here(processors: list[int]) -> None:
    with DraftHelpers(NUM_HELPERS) as helpers:
        for here in (processors[0], processors[-1]):
            os.sched_setaffinity(0, {here})
            assert helpers._current_processor is not None and helpers._current_processor() == here


def test_with_one_processor_they_share_it(processors: list[int]) -> None:
    os.sched_setaffinity(0, processors[:1])
    with DraftHelpers(NUM_HELPERS) as helpers:
        assert processors_of(helpers) == [set(processors[:1])] * NUM_HELPERS


def test_a_processor_that_was_taken_away_stops_no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, processors: set[int]) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    with DraftHelpers(2) as helpers:
        assert [helpers.submit(lambda: 1).result() for _ in range(3)] == [1, 1, 1]
