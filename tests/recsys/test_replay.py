from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from laser_protocol.errors import PoolMismatch, StorageUnavailable
from laser_protocol.packing import unpack_token_ids
from laser_protocol.tree import DraftTree
from laser_recsys.demo.replay import NODE_BUDGET, Known, Replay, ReplayFailed, TokenizerFacts, accepted_path
from tests.recsys.scripted import Draft, ScriptedRetriever, serving

FACTS = TokenizerFacts("f" * 64, 1000, "tiny")


@contextmanager
def replaying(draft: Draft, pool: str = "replay") -> Iterator[tuple[Replay, ScriptedRetriever]]:
    retriever = ScriptedRetriever(draft)
    with serving(retriever=retriever) as address, grpc.insecure_channel(address) as channel:
        yield Replay(channel, FACTS, pool), retriever


def nothing(tokens: list[int], num_documents: int) -> Sequence[tuple[int, int]]:
    return []


def counting(tokens: list[int], num_documents: int) -> Sequence[tuple[int, int]]:
    """A wrong sibling, then the next three numbers in a chain."""
    last = tokens[-1]
    return [(999, -1), (last + 1, -1), (last + 2, 1), (last + 3, 2)]


def test_without_drafts_every_step_gives_one_token() -> None:
    with replaying(nothing) as (replay, _):
        assert replay.tokens_per_step([Known([1, 2], [3, 4, 5]), Known([1], [2])]) == 1.0


def test_a_chain_of_three_along_the_output_gives_four_tokens_a_step() -> None:
    with replaying(counting) as (replay, retriever):
        assert replay.tokens_per_step([Known([1, 2], list(range(3, 11)))]) == 4.0
    assert [unpack_token_ids(message.token_ids) for message in retriever.advances] == [[3, 4, 5, 6]]
    first = retriever.advances[0]
    assert (first.position, first.num_verified_nodes, first.accepted_node_idx) == (2, 4, 3)


def test_the_last_token_is_the_bonus_so_a_draft_never_reaches_behind_the_output() -> None:
    with replaying(counting) as (replay, _):
        assert replay.tokens_per_step([Known([1], [2, 3])]) == 2.0
        assert replay.tokens_per_step([Known([1], [2, 3, 4, 5, 6])]) == pytest.approx(5 / 2)


def test_a_wrong_draft_costs_nothing_but_its_place() -> None:
    with replaying(lambda tokens, num_documents: [(999, -1)]) as (replay, retriever):
        assert replay.tokens_per_step([Known([1], [2, 3, 4])]) == 1.0
    assert {message.accepted_node_idx for message in retriever.advances} == {-1}


def test_sequences_are_opened_with_pool_prompt_model_and_budget() -> None:
    with replaying(nothing) as (replay, retriever):
        replay.tokens_per_step([Known([1, 2], [3])])
    opened = retriever.opens[0]
    assert (opened.pool, opened.num_prompt_tokens, opened.model) == ("replay", 2, "tiny")
    assert unpack_token_ids(opened.token_ids) == [1, 2]
    assert opened.node_budget == NODE_BUDGET
    assert opened.acceptance.HasField("strict")


def test_a_series_measures_with_the_first_so_many_documents_in_the_pool() -> None:
    documents = [[number] for number in range(5)]

    def once_there(tokens: list[int], num_documents: int) -> Sequence[tuple[int, int]]:
        return counting(tokens, num_documents) if num_documents >= 2 else []

    done: list[None] = []
    with replaying(once_there) as (replay, retriever):
        points = replay.series([Known([1], [2, 3, 4, 5])], documents, [0, 2, 5, 9], on_done=lambda: done.append(None))
    assert [(point.num_documents, point.tokens_per_step) for point in points] == [(0, 1.0), (2, 4.0), (5, 4.0)]
    assert retriever.documents == documents
    assert len(done) == 3


def test_a_sequence_that_the_retriever_closes_is_an_error_with_its_reason() -> None:
    with replaying(nothing) as (replay, _), pytest.raises(ReplayFailed, match="closed sequence 0: token_ids holds 666"):
        replay.tokens_per_step([Known([1, 666], [2, 3])])


def test_a_refused_document_raises_the_error_of_that_status() -> None:
    with replaying(nothing, pool="full") as (replay, _), pytest.raises(Exception, match="no space left") as caught:
        replay.add([[1]])
    assert not isinstance(caught.value, StorageUnavailable | PoolMismatch)  # the scripted status carries no class


def test_the_accepted_path_follows_the_output_through_siblings() -> None:
    tree = DraftTree(
        0,
        np.array([7, 8, 9, 9, 5], np.int32),
        np.array([-1, -1, 0, 1, 3], np.int32),
        np.full(5, 0.1, np.float32),
    )
    assert accepted_path(tree, [8, 9, 5, 1]) == [1, 3, 4]
    assert accepted_path(tree, [7, 9, 5, 1]) == [0, 2]
    assert accepted_path(tree, [4, 4]) == []
    assert accepted_path(tree, []) == []
