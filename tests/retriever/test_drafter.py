"""Draft trees: always valid, and with the continuations that were seen before."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retriever_oracles import FixedSources, common_suffix_len, occurrences

from laser_protocol.errors import InvalidRequest
from laser_protocol.tree import DraftTree
from laser_retriever.drafter import Drafter
from laser_retriever.fitting import Examples, fit
from laser_retriever.index import TokenIndex, build_index
from laser_retriever.matching import (
    MAX_MATCH_LENGTH,
    OWN_TEXT,
    SEARCH_LENGTHS,
    Matches,
    Searches,
    collect_own_matches,
    collect_segment_matches,
)
from laser_retriever.sources import Source, Sources
from laser_retriever.tree_drafter import DraftParams, DraftRequest, TokenBuffer, TreeDrafter

VOCAB_SIZE = 50
token_lists = st.lists(st.integers(0, 4), min_size=1, max_size=40)


def index_of(*documents: list[int]) -> TokenIndex:
    return build_index([np.array(document, np.int32) for document in documents])


def drafter_on(*indexes: TokenIndex, **settings: int) -> Drafter:
    return Drafter(FixedSources(indexes), "f", VOCAB_SIZE, **settings)


def path_tokens(tree: DraftTree, node_idx: int) -> list[int]:
    return [int(tree.token_ids[i]) for i in tree.path(node_idx)]


@given(
    st.lists(token_lists, max_size=4),
    token_lists,
    token_lists,
    st.integers(1, 40),
    st.sampled_from([(0, 1, 2, 3, 4), (3,), (49, 0, 7, 8, 9)]),
)
def test_every_tree_is_valid_and_every_path_occurred_before(
    documents: list[list[int]], prompt: list[int], output: list[int], budget: int, names: tuple[int, ...]
) -> None:
    documents = [[names[token % len(names)] for token in document] for document in documents]
    drafter = drafter_on(index_of(*documents))
    drafter.open(1, "p", prompt + output, len(prompt))
    tree = drafter.draft(1, budget)
    tree.check(budget, VOCAB_SIZE)
    assert tree.position == len(prompt) + len(output)
    seen = [*documents, prompt + output]
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        pair = [token] if parent < 0 else [int(tree.token_ids[parent]), token]
        assert any(occurrences(text, pair) for text in seen)


def followed(matches: Matches, num_matches: int, texts: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """(length, token that followed) of each match in these arrays."""
    starts = [(text.ctypes.data, text) for text in texts]
    found = []
    for length, address in zip(
        matches.lengths[:num_matches].tolist(), matches.following[:num_matches].tolist(), strict=True
    ):
        start, text = max((start, text) for start, text in starts if start <= address)
        found.append((length, int(text[(address - start) // 4])))
    return found


def earlier_occurrences(text: list[int], query: list[int]) -> list[tuple[int, int]]:
    """(length, token that followed) of every place in a text that agrees with the query's last token, by scanning."""
    found = [(common_suffix_len(text[:end], query), text[end]) for end in range(1, len(text))]
    return [(length, token) for length, token in found if length]


@given(
    st.lists(st.lists(token_lists, max_size=4), max_size=3),
    st.lists(st.integers(0, 4), min_size=1, max_size=MAX_MATCH_LENGTH),
)
def test_matches_are_all_earlier_occurrences_each_with_its_true_length(
    segments: list[list[list[int]]], query: list[int]
) -> None:
    indexes = tuple(index_of(*documents) for documents in segments)
    sources = FixedSources(indexes).sources("", "")[1]
    matches = Matches.room(sum(len(index.tokens) for index in indexes) + 1)
    found = collect_segment_matches(
        sources.table, Searches.room(len(sources.table)), np.array(query, np.int32), np.array(SEARCH_LENGTHS), 10_000,
        np.inf, 1.0, 0, VOCAB_SIZE, 0, matches, 0,
    )  # fmt: skip
    result = followed(matches, found, [index.tokens for index in indexes])
    expected = [match for documents in segments for text in documents for match in earlier_occurrences(text, query)]
    assert sorted(result) == sorted(expected)
    searched = [max(length for length in SEARCH_LENGTHS if length <= match[0]) for match in result]
    assert searched == sorted(searched, reverse=True), "longest first"


@given(st.lists(token_lists, min_size=1, max_size=4), st.integers(1, 20), st.integers(1, 8))
def test_a_sample_of_matches_weighs_as_much_as_all(documents: list[list[int]], most: int, token: int) -> None:
    sources = FixedSources((index_of(*documents),)).sources("", "")[1]
    matches = Matches.room(1000)
    found = collect_segment_matches(
        sources.table, Searches.room(1), np.array([token % 5], np.int32), np.array(SEARCH_LENGTHS), most, np.inf, 1.0,
        0, VOCAB_SIZE, 0, matches, 0,
    )  # fmt: skip
    assert found <= most + 1
    num_ends = sum(document[-1] == token % 5 for document in documents)
    num_followed = sum(document[:-1].count(token % 5) for document in documents)
    if num_ends == 0:
        assert matches.weights[:found].sum() == pytest.approx(num_followed)


@given(token_lists, token_lists)
def test_the_sequence_itself_is_matched_too_latest_first(text: list[int], query: list[int]) -> None:
    tokens = np.array([*text, -1], np.int32)
    matches = Matches.room(100)
    query = query[-MAX_MATCH_LENGTH:]
    found = collect_own_matches(
        tokens[:-1], tokens.ctypes.data, np.array(query, np.int32), 1.0, 100, VOCAB_SIZE, 0, matches, 0
    )
    assert followed(matches, found, [tokens]) == earlier_occurrences(text, query)[::-1]
    assert set(matches.origins[:found].tolist()) <= {OWN_TEXT}


def test_the_first_tokens_are_drafted_from_the_documents_begins() -> None:
    drafter = drafter_on(index_of([1, 2, 3], [1, 2, 4], [9, 1, 5]))
    drafter.open(0, "p", [30, 31], 2)
    tree = drafter.draft(0, 12)
    assert [1, 2] in [path_tokens(tree, i) for i in range(len(tree))]
    assert tree.token_ids[0] == 1, "two of three documents begin so"
    assert sorted(tree.token_ids[tree.parents == -1].tolist()) == [1, 9]


def test_the_begin_counts_as_context_behind_a_few_output_tokens() -> None:
    documents = [[1, 7, 7], *[[5, 1, 8]] * 3]
    drafter = drafter_on(index_of(*documents))
    drafter.open(0, "p", [30, 1], 1)
    assert drafter.draft(0, 1).token_ids.tolist() == [7], "[begin, 1] has been followed by 7 only"
    drafter.open(1, "p", [30, 5, 1], 1)
    assert drafter.draft(1, 1).token_ids.tolist() == [8]


def test_a_sequence_without_a_pool_is_drafted_from_its_own_prompt_and_output() -> None:
    drafter = drafter_on()
    drafter.open(0, "", [1, 2, 3, 4, 1, 2], 5)
    assert path_tokens(drafter.draft(0, 2), 1) == [3, 4]


def test_nothing_seen_before_gives_an_empty_tree() -> None:
    drafter = drafter_on()
    drafter.open(0, "", [1, 2, 3], 3)
    assert len(drafter.draft(0, 32)) == 0


def test_no_node_continues_beyond_the_end_of_a_document() -> None:
    drafter = drafter_on(index_of([1, 2], [3, 4]))
    drafter.open(0, "p", [30, 1], 1)
    assert drafter.draft(0, 32).token_ids.tolist() == [2]


def test_tokens_outside_the_vocabulary_are_never_drafted() -> None:
    drafter = drafter_on(index_of([1, 2, VOCAB_SIZE, 3], [VOCAB_SIZE + 5, 1]))
    drafter.open(0, "p", [30, 1], 1)
    assert drafter.draft(0, 32).token_ids.tolist() == [2]


def test_deleted_documents_are_never_drafted_from() -> None:
    index = index_of([1, 2, 3], [1, 4, 5])
    drafter = drafter_on(index.without(np.array([True, False])))
    drafter.open(0, "p", [30, 1], 1)
    assert 2 not in drafter.draft(0, 32).token_ids
    assert 4 in drafter.draft(0, 32).token_ids


def test_a_node_is_looked_up_only_if_the_sequence_may_leave_what_is_known_there() -> None:
    """20 places go on with 5 behind 1 2 3, 12 of them with 6 then; behind 5 alone an 8 is more frequent."""
    documents = [[1, 2, 3, 5, 6]] * 12 + [[1, 2, 3, 7, 7]] * 8 + [[9, 5, 8]] * 30
    for min_unseen, drafted in ((0.0, True), (1.0, False)):
        drafter = TreeDrafter(DraftParams(min_unseen=min_unseen), VOCAB_SIZE)
        buffer = TokenBuffer(1)
        buffer.extend(np.array([40, 1, 2, 3], np.int32))
        [draft] = drafter.draft([DraftRequest(buffer, Sources.of([Source(index_of(*documents))]), 32)])
        tree = draft.tree
        paths = [path_tokens(tree, node) for node in range(len(tree))]
        assert [5, 6] in paths
        assert ([5, 8] in paths) == drafted


def test_a_drafter_takes_any_number_of_sources_one_batch_after_another() -> None:
    indexes = [index_of([1, 2, 3, token % 50]) for token in range(100)]
    buffer = TokenBuffer(1)
    buffer.extend(np.array([9, 1, 2, 3], np.int32))
    requests = {n: DraftRequest(buffer, Sources.of([Source(index) for index in indexes[:n]]), 64) for n in (1, 100, 2)}
    drafter = TreeDrafter(DraftParams(), VOCAB_SIZE)
    for n in (1, 100, 2):
        tree = drafter.draft([requests[n]])[0].tree
        alone = TreeDrafter(DraftParams(), VOCAB_SIZE).draft([requests[n]])[0].tree
        assert tree.token_ids.tolist() == alone.token_ids.tolist()
        assert tree.probs.tolist() == alone.probs.tolist()
        assert set(tree.token_ids[tree.parents == -1].tolist()) >= set(range(min(n, 40)))


def test_what_a_nearer_source_holds_already_is_passed_over() -> None:
    index = index_of([1, 2, 3], [1, 2, 4])
    for passed_over, drafted in ((range(0), [[2, 3], [2, 4]]), (range(5), [[2, 4]]), (range(5, 10), [[2, 3]])):
        drafter = TreeDrafter(DraftParams(), VOCAB_SIZE)
        buffer = TokenBuffer(1)
        buffer.extend(np.array([9, 1], np.int32))
        request = DraftRequest(buffer, Sources.of([Source(index, 1, passed_over)]), 8)
        tree = drafter.draft([request])[0].tree
        leaves = set(range(len(tree))) - set(tree.parents.tolist())
        assert sorted(path_tokens(tree, leaf) for leaf in leaves) == drafted
    assert not len(Sources.of([Source(index, 1, range(10))]).table)


def test_advancing_moves_the_position_and_takes_in_what_was_accepted() -> None:
    drafter = drafter_on(index_of([1, 2, 3, 4, 5]))
    drafter.open(0, "p", [30], 1)
    tree = drafter.draft(0, 3)
    assert path_tokens(tree, 2) == [1, 2, 3]
    drafter.advance(0, 1, [1, 2, 9], 3, 1)
    assert drafter.feedback.num_verified == 0  # no tree waits for that
    drafter.calibrate()
    assert (drafter.feedback.num_verified, drafter.feedback.num_accepted) == (3, 2)
    assert drafter.feedback.verified_per_decile[[0, 2]].sum(axis=1).tolist() == [3, 2]
    assert drafter.draft(0, 3).position == 4


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("position", (0, 3, [1], 0, -1)),
        ("token_ids", (0, 1, [], 0, -1)),
        ("token_ids", (0, 1, [VOCAB_SIZE], 0, -1)),
        ("token_ids", (0, 1, [-2], 0, -1)),
        ("num_verified_nodes", (0, 1, [1], 4, -1)),
        ("num_verified_nodes", (0, 1, [1], -1, -1)),
        ("accepted_node_idx", (0, 1, [1], 2, 2)),
        ("accepted_node_idx", (0, 1, [1], 2, -2)),
        ("accepted_node_idx", (0, 1, [7], 3, 0)),
        ("sequence_id", (5, 1, [1], 0, -1)),
    ],
)
def test_an_advance_that_makes_no_sense_names_the_field_and_closes_that_sequence_only(
    field: str, arguments: tuple[int, int, list[int], int, int]
) -> None:
    drafter = drafter_on(index_of([1, 2, 3, 4, 5]))
    drafter.open(0, "p", [30], 1)
    drafter.open(1, "p", [30], 1)
    drafter.draft(0, 3)
    with pytest.raises(InvalidRequest) as caught:
        drafter.advance(*arguments)
    assert caught.value.field == field
    assert len(drafter) == (2 if field == "sequence_id" else 1)
    drafter.advance(1, 1, [1])


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("pool", (1, "..", [1], 1)),
        ("token_ids", (1, "p", [], 1)),
        ("token_ids", (1, "p", [1, -1], 1)),
        ("num_prompt_tokens", (1, "p", [1], 0)),
        ("num_prompt_tokens", (1, "p", [1], 2)),
        ("sequence_id", (0, "p", [1], 1)),
    ],
)
def test_an_open_that_makes_no_sense_names_the_field(field: str, arguments: tuple[int, str, list[int], int]) -> None:
    drafter = drafter_on()
    drafter.open(0, "p", [30], 1)
    with pytest.raises(InvalidRequest) as caught:
        drafter.open(*arguments)
    assert caught.value.field == field
    assert len(drafter) == 1


def test_open_sequences_are_limited_and_closed_ones_forgotten() -> None:
    drafter = drafter_on(max_sequences=2)
    for sequence_id in (0, 1):
        drafter.open(sequence_id, "", [1], 1)
    with pytest.raises(InvalidRequest, match="at most 2"):
        drafter.open(2, "", [1], 1)
    drafter.close(0)
    drafter.close(77)
    drafter.open(2, "", [1], 1)
    assert len(drafter) == 2


def test_budgets_are_kept_up_to_the_largest_and_others_refused() -> None:
    drafter = drafter_on(index_of(*([i, j, k] for i in range(7) for j in range(7) for k in range(7))))
    drafter.open(0, "p", [30], 1)
    for budget in (0, 1, 16, 64, 256):
        tree = drafter.draft(0, budget)
        tree.check(budget, VOCAB_SIZE)
        assert (len(tree) == 0) == (budget == 0)
    with pytest.raises(InvalidRequest) as caught:
        drafter.draft(0, 257)
    assert caught.value.field == "node_budget"


def test_threads_and_deadlines_change_nothing_but_how_many_trees_there_are() -> None:
    index = index_of(*([i, j, k] for i in range(7) for j in range(7) for k in range(7)))
    alone, helped = drafter_on(index), drafter_on(index, num_threads=3)
    wanted = [(i, 1 + i % 9) for i in range(150)]
    for drafter in (alone, helped):
        for i in range(150):
            drafter.open(i, "p", [30, i % 7, i % 5], 1 + i % 3)
    with ThreadPoolExecutor(2) as threads:
        trees = [draft.tree for draft in helped.draft_all(wanted, threads)]
        late = [draft.tree for draft in helped.draft_all(wanted, threads, deadline_s=0.0)]
    expected = [alone.draft(i, budget) for i, budget in wanted]
    for tree, other in zip(trees, expected, strict=True):
        assert tree.token_ids.tolist() == other.token_ids.tolist()
        assert tree.parents.tolist() == other.parents.tolist()
        assert tree.probs.tolist() == other.probs.tolist()
    assert helped.num_late == 150
    assert helped.draft_all([]) == [], "nothing is asked for"
    assert [(len(tree), tree.position) for tree in late] == [(0, 3)] * 150


def test_many_more_children_than_told_apart_still_give_a_valid_tree() -> None:
    index = build_index([np.array([token], np.int32) for token in range(500)])
    drafter = Drafter(FixedSources((index,)), "f", 1000)
    drafter.open(0, "p", [999], 1)
    tree = drafter.draft(0, 256)
    tree.check(256, 1000)
    assert len(tree) > 1


def test_a_sequence_longer_than_its_first_buffer_keeps_its_tokens() -> None:
    drafter = drafter_on()
    drafter.open(0, "", [*range(40)], 1)
    for step in range(30):
        drafter.advance(0, 40 * (step + 1), [*range(40)])
    assert path_tokens(drafter.draft(0, 3), 2) == [0, 1, 2]


def test_parameters_that_do_not_fit_together_are_named() -> None:
    with pytest.raises(ValueError, match="coefficients has 1 values, must have 74"):
        DraftParams(coefficients=(1.0,))
    with pytest.raises(ValueError, match="level_lengths"):
        DraftParams(level_lengths=(2, 1, 3, 4, 5, 6, 7, 8, 9, 10))


def test_fitting_learns_that_long_matches_are_right_where_they_are() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    others = [[20 + i, 5, 30 + i, 31] for i in range(9)]
    sources = FixedSources((index_of(text, *others),)).sources("", "")[1]
    examples = Examples(DraftParams())
    for _ in range(3):
        examples.walk(sources, [40], text, 8)
    fitted = fit(examples, num_steps=60)
    drafter = Drafter(
        FixedSources((index_of(text, *others),)), "f", VOCAB_SIZE, DraftParams(coefficients=tuple(fitted.tolist()))
    )
    drafter.open(0, "p", [40, 1, 2, 3, 4, 5], 1)
    tree = drafter.draft(0, 2)
    assert path_tokens(tree, 1) == [6, 7]
    assert tree.probs[1] > 0.5
