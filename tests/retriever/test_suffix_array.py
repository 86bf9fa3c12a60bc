"""Suffix arrays and interval search against sorting and scanning."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from retriever_oracles import occurrences, sorted_suffixes

from laser_retriever.index import build_index, lay_out
from laser_retriever.suffix_array import BEGIN_MARK, END_MARK, SORT_DEPTH, build_suffix_array, find_interval

small_tokens = st.lists(st.integers(BEGIN_MARK, 3), max_size=80)
any_tokens = st.lists(st.integers(BEGIN_MARK, 2**31 - 1), max_size=40)
documents = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), max_size=6)


@given(small_tokens)
def test_the_suffix_array_is_the_sorted_suffixes(tokens: list[int]) -> None:
    assert build_suffix_array(np.array(tokens, np.int32)).tolist() == sorted_suffixes(tokens, SORT_DEPTH)


@given(any_tokens)
def test_token_ids_may_be_anything_of_31_bits(tokens: list[int]) -> None:
    assert build_suffix_array(np.array(tokens, np.int32)).tolist() == sorted_suffixes(tokens, SORT_DEPTH)


def test_a_run_of_equal_tokens_longer_than_the_sort_depth_is_ordered_by_position() -> None:
    tokens = [7] * (3 * SORT_DEPTH)
    assert build_suffix_array(np.array(tokens, np.int32)).tolist() == sorted_suffixes(tokens, SORT_DEPTH)


@given(documents, st.lists(st.integers(0, 3), min_size=1, max_size=SORT_DEPTH))
def test_an_interval_holds_exactly_the_occurrences_of_the_query(
    given_documents: list[list[int]], query: list[int]
) -> None:
    index = build_index([np.array(document, np.int32) for document in given_documents])
    low, high = find_interval(index.tokens, index.suffixes, np.array(query, np.int32), 0, len(query))
    assert sorted(index.suffixes[low:high].tolist()) == occurrences(index.tokens.tolist(), query)


def test_a_query_longer_than_the_text_occurs_nowhere() -> None:
    index = build_index([np.array([1, 2], np.int32)])
    low, high = find_interval(index.tokens, index.suffixes, np.array([1, 2, 3, 4, 5, 6], np.int32), 0, 6)
    assert low == high


@given(documents)
def test_documents_lie_between_their_marks_and_come_back_whole(given_documents: list[list[int]]) -> None:
    arrays = [np.array(document, np.int32) for document in given_documents]
    tokens, offsets = lay_out(arrays)
    expected = [token for document in given_documents for token in (BEGIN_MARK, *document, END_MARK)]
    assert tokens.tolist() == expected
    index = build_index(arrays)
    assert [index.document(i).tolist() for i in range(index.num_documents)] == given_documents
    assert offsets[-1] == len(tokens)
