"""Suffix arrays against sorting."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from retriever_oracles import sorted_suffixes

from laser_retriever.index import build_index, lay_out
from laser_retriever.suffix_array import BEGIN_MARK, END_MARK, SORT_DEPTH, build_context_array, build_suffix_array

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


@given(small_tokens)
def test_the_context_array_is_the_places_sorted_by_what_precedes_them(tokens: list[int]) -> None:
    contexts = {i: tokens[i::-1][:SORT_DEPTH] for i in range(len(tokens))}
    expected = sorted(contexts, key=lambda i: (contexts[i], -i))
    assert build_context_array(np.array(tokens, np.int32)).tolist() == expected


@given(documents)
def test_documents_lie_between_their_marks_and_come_back_whole(given_documents: list[list[int]]) -> None:
    arrays = [np.array(document, np.int32) for document in given_documents]
    tokens, offsets = lay_out(arrays)
    expected = [token for document in given_documents for token in (BEGIN_MARK, *document, END_MARK)]
    assert tokens.tolist() == expected
    index = build_index(arrays)
    assert [index.document(i).tolist() for i in range(index.num_documents)] == given_documents
    assert offsets[-1] == len(tokens)
