"""Packed tokens, pool ids, acceptance settings and draft trees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laser_protocol.acceptance import Relaxed, Strict, acceptance_from_message, acceptance_to_message
from laser_protocol.errors import InvalidRequest
from laser_protocol.fingerprint import check_fingerprint
from laser_protocol.packing import pack_token_ids, unpack_token_ids
from laser_protocol.pool_id import ancestors, check_pool_id
from laser_protocol.tree import DraftTree, MalformedTree, tree_from_message, tree_to_message
from laser_protocol.v1 import acceptance_pb2

COMPONENT = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True).filter(
    lambda text: not text.startswith(("seg-", "log")) and text != "writer.lock"
)
POOL_IDS = st.lists(COMPONENT, min_size=1, max_size=8).map("/".join)


@given(st.lists(st.integers(0, 2**31 - 1)))
def test_packed_tokens_come_back_and_are_little_endian_int32(token_ids):
    packed = pack_token_ids(token_ids)
    assert packed == np.array(token_ids, "<i4").tobytes()
    assert unpack_token_ids(packed) == token_ids


@pytest.mark.parametrize("token_ids", [[2**31], ["a"], [1.5], [None]])
def test_what_is_no_int32_is_not_packed(token_ids):
    with pytest.raises(InvalidRequest) as caught:
        pack_token_ids(token_ids)
    assert caught.value.field == "token_ids"


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_bytes_that_are_no_multiple_of_4_are_not_unpacked(size):
    with pytest.raises(InvalidRequest, match=f"{size} bytes"):
        unpack_token_ids(bytes(size))


@given(POOL_IDS)
def test_a_pool_id_is_taken_with_all_its_ancestors_and_each_is_the_parent_of_the_one_before(pool):
    assert check_pool_id(pool) == pool
    for child, parent in zip((pool, *ancestors(pool)), ancestors(pool), strict=False):
        assert check_pool_id(parent) == parent
        assert child.startswith(f"{parent}/") and "/" not in child.removeprefix(f"{parent}/")
    assert len(ancestors(pool)) == pool.count("/")


WRONG_IDS = [
    "",
    "/",
    "a/",
    "/a",
    "a//b",
    "a/../b",
    ".",
    "..",
    "A",
    "a b",
    "ä",
    "a\n",
    "a\x00",
    "-a",
    "_a",
    ".a",
    "a\\b",
]
WRONG_IDS += ["seg-1", "a/seg-01h", "log", "a/log.wal", "logs", "x" * 65, "/".join("abcdefghi"), "a/" * 100 + "a"]
WRONG_IDS += ["writer.lock", "a/writer.lock"]


@pytest.mark.parametrize("pool", WRONG_IDS)
def test_another_pool_id_is_refused(pool):
    with pytest.raises(InvalidRequest) as caught:
        check_pool_id(pool)
    assert caught.value.field == "pool"


@given(st.text())
def test_no_text_gets_through_that_could_leave_the_pool_directory(pool):
    try:
        check_pool_id(pool)
    except InvalidRequest:
        return
    assert not pool.startswith("/") and not {"", ".", ".."} & set(pool.split("/"))
    assert not any(component.startswith(("seg-", "log")) for component in pool.split("/"))


@given(st.integers(1, 16), st.integers(0, 1000))
def test_acceptance_settings_come_back_as_the_caller_wrote_them(top_k, thousandths):
    relaxed = Relaxed(top_k=top_k, min_prob=thousandths / 1000)
    assert acceptance_from_message(acceptance_to_message(relaxed)) == relaxed
    small = Relaxed(top_k=top_k, min_prob=thousandths / 1e9)
    assert acceptance_from_message(acceptance_to_message(small)) == small
    assert acceptance_from_message(acceptance_to_message(Strict())) == Strict()


@pytest.mark.parametrize("fingerprint", ["", "x" * 129, "x\n", "\u00fc"])
def test_a_fingerprint_that_no_error_could_carry_is_refused(fingerprint):
    check_fingerprint("f" * 64)
    with pytest.raises(InvalidRequest, match="tokenizer_fingerprint is") as caught:
        check_fingerprint(fingerprint)
    assert caught.value.field == "tokenizer_fingerprint"


def test_an_acceptance_without_kind_or_out_of_range_is_refused():
    wrong = [
        ("acceptance", acceptance_pb2.Acceptance()),
        ("top_k", acceptance_pb2.Acceptance(relaxed=acceptance_pb2.Relaxed(top_k=0, min_prob=0.1))),
        ("top_k", acceptance_pb2.Acceptance(relaxed=acceptance_pb2.Relaxed(top_k=17, min_prob=0.1))),
        ("min_prob", acceptance_pb2.Acceptance(relaxed=acceptance_pb2.Relaxed(top_k=2, min_prob=1.5))),
        ("min_prob", acceptance_pb2.Acceptance(relaxed=acceptance_pb2.Relaxed(top_k=2, min_prob=float("nan")))),
    ]
    for field, message in wrong:
        with pytest.raises(InvalidRequest) as caught:
            acceptance_from_message(message)
        assert caught.value.field == field


def tree(token_ids, parents, probs):
    return DraftTree(9, np.array(token_ids, np.int32), np.array(parents, np.int32), np.array(probs, np.float32))


GOOD = tree([5, 6, 7, 5], [-1, 0, 0, 2], [0.9, 0.5, 0.25, 0.25])


@st.composite
def trees(draw):
    """Any well-formed tree of up to 32 nodes over a vocabulary of 50."""
    nodes: list[tuple[int, int]] = []
    for i in range(draw(st.integers(0, 32))):
        node = (draw(st.integers(-1, i - 1)), draw(st.integers(0, 49)))
        if node not in nodes:
            nodes.append(node)
        else:  # keeps the parents of later nodes below them
            nodes.append((i - 1, next(token for token in range(50) if (i - 1, token) not in nodes)))
    probs = sorted(draw(st.lists(st.floats(0, 1, width=32), min_size=len(nodes), max_size=len(nodes))), reverse=True)
    return tree([token for _, token in nodes], [parent for parent, _ in nodes], probs)


@given(trees(), st.integers(0, 32))
def test_a_well_formed_tree_passes_with_all_its_prefixes_and_comes_back_from_its_message(made, num_nodes):
    made.check(32, 50)
    made.prefix(num_nodes).check(num_nodes, 50)
    message = tree_to_message(7, made)
    assert message.sequence_id == 7
    back = tree_from_message(message)
    assert back.position == made.position
    for name in ("token_ids", "parents", "probs"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
    for node_idx, depth in enumerate(made.depths()):
        assert len(made.path(node_idx)) == depth


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (tree([1, 2], [-1], [0.5, 0.5]), "lengths differ: 2 token_ids, 1 parents, 2 probs"),
        (tree([1, 2], [-1, 0], [0.5]), "lengths differ: 2 token_ids, 2 parents, 1 probs"),
        (tree([1] * 5, [-1, 0, 1, 2, 3], [0.5] * 5), "5 nodes, at most 4 were asked for"),
        (tree([-1], [-1], [0.5]), "token_ids must be from 0 to 49"),
        (tree([50], [-1], [0.5]), "token_ids must be from 0 to 49"),
        (tree([1, 2], [-1, 1], [0.5, 0.5]), r"parents\[1\] is 1, must be from -1 to 0"),
        (tree([1, 2], [-1, -2], [0.5, 0.5]), r"parents\[1\] is -2, must be from -1 to 0"),
        (tree([1], [0], [0.5]), r"parents\[0\] is 0, must be from -1 to -1"),
        (tree([1], [-1], [1.5]), "probs must be from 0 to 1 and non-increasing"),
        (tree([1], [-1], [-0.5]), "probs must be from 0 to 1 and non-increasing"),
        (tree([1], [-1], [float("nan")]), "probs must be from 0 to 1 and non-increasing"),
        (tree([1, 2], [-1, 0], [0.5, 0.6]), "probs must be from 0 to 1 and non-increasing"),
        (tree([1, 1], [-1, -1], [0.5, 0.5]), "siblings must have distinct token_ids"),
        (tree([1, 2, 2], [-1, 0, 0], [0.5, 0.5, 0.5]), "siblings must have distinct token_ids"),
    ],
)
def test_a_malformed_tree_is_refused_with_what_would_be_right(made, message):
    with pytest.raises(MalformedTree, match=message):
        made.check(4, 50)


@pytest.mark.parametrize("field", ["token_ids", "parents", "probs"])
def test_an_array_cut_in_the_middle_of_a_number_is_malformed(field):
    message = tree_to_message(1, GOOD)
    setattr(message, field, getattr(message, field)[:-1])
    with pytest.raises(MalformedTree, match=f"{field} has 15 bytes, must be a multiple of 4"):
        tree_from_message(message)


def test_the_sources_of_a_trees_nodes_come_back_and_older_peers_say_none():
    said = replace(GOOD, sources=np.array([1, 0, 2, 8], np.uint8))
    said.check(4, 50)
    assert tree_from_message(tree_to_message(1, said)).sources.tolist() == [1, 0, 2, 8]
    assert said.prefix(2).sources.tolist() == [1, 0]
    message = tree_to_message(1, said)
    message.ClearField("sources")
    assert tree_from_message(message).sources is None


@pytest.mark.parametrize("sources", [[1, 0, 2], [1, 0, 2, 9], [1] * 5])
def test_sources_that_do_not_fit_the_nodes_are_refused(sources):
    with pytest.raises(MalformedTree, match="sources must be none or 4 values from 0 to 8"):
        replace(GOOD, sources=np.array(sources, np.uint8)).check(4, 50)


def test_the_tree_of_no_nodes_is_well_formed():
    DraftTree.empty(3).check(0, 50)
    assert tree_from_message(tree_to_message(1, DraftTree.empty(3))).position == 3
    assert GOOD.path(3) == [0, 2, 3] and GOOD.path(-1) == []
