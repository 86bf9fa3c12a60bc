"""The growth of a draft tree from matches, best node first. Pure kernels.

A node's children are the tokens that follow its matches; `estimation` gives their probabilities. Of the candidates only
as many are kept as nodes may still be grown.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from laser_retriever.estimation import Children, estimate_children, split_matches
from laser_retriever.kernel import (
    array_at,
    float64_pointer,
    int32_pointer,
    int64_pointer,
    kernel,
    load_int32,
    take_turn,
)
from laser_retriever.matching import (
    MAX_MATCH_LENGTH,
    NUM_COLUMNS,
    Matches,
    Searches,
    collect_own_matches,
    collect_segment_matches,
)
from laser_retriever.suffix_array import BEGIN_MARK

# Settings of `grow_trees`: least probability of a node; weight of matches at which shorter ones are left out; most
# lookups for one tree; weight of a match in the sequence itself and most of them; most matches at one length, looked up
# at the root and at other nodes; tokens by which a match that reaches a document's begin counts as longer; weight of a
# match in an ancestor, per generation; longest path that one lookup gives; least probability, at a node, of a token not
# seen there, for a lookup.
(
    MIN_PROB, ENOUGH, MAX_LOOKUPS, OWN_WEIGHT, MAX_OWN_MATCHES, MAX_PER_SEARCH, MAX_PER_LATER_SEARCH, BEGIN_BONUS,
    ANCESTOR_WEIGHT, MAX_DEPTH, MIN_UNSEEN,
) = range(11)  # fmt: skip
NUM_SETTINGS = 11

# Columns of a request table: address and number of the sequence's tokens, how many are prompt; address and number of
# its sources' rows; address of its scalings; how many nodes.
TEXT, TEXT_LEN, NUM_PROMPT, SOURCES, NUM_SOURCES, SCALINGS, BUDGET = range(7)
NUM_REQUEST_COLUMNS = 7

# Columns of a candidate: node it is the child of, its token, its matches `order[begin:end]`, its depth, and what speaks
# for it, see `estimation.Children`.
PARENT, TOKEN, BEGIN, END, DEPTH, ORIGIN, LEVEL = range(7)


class Model(NamedTuple):
    """What does not change from tree to tree.

    Attributes:
        search_lengths: int64[], `matching.SEARCH_LENGTHS`.
        levels: int64[], back-off level of each match length; longer ones have the last.
        coefficients: float64[], of the features, see `estimation.describe_children`.
        settings: float64[NUM_SETTINGS], see the constants.
    """

    search_lengths: NDArray[np.int64]
    levels: NDArray[np.int64]
    coefficients: NDArray[np.float64]
    settings: NDArray[np.float64]


class Workspace(NamedTuple):
    """Buffers of one drafting thread for trees of at most N nodes from at most M matches in at most K sources.

    Attributes:
        searches: of one lookup.
        matches: those of the tree.
        order, scratch, child_of: int64[M], matches grouped by node; room to regroup them.
        children: of one node.
        candidate_probs: float64[N], rising.
        candidate_slots: int64[N], rows of `candidates` in that order, then the free ones.
        candidates: int64[N, 7], see the columns.
        candidate_conditionals: float64[N], probability given the parent before calibration, by row.
        own_query, pool_query: int32[], tail of the sequence, or of its output, and behind it a node's path.
    """

    searches: Searches
    matches: Matches
    order: NDArray[np.int64]
    scratch: NDArray[np.int64]
    child_of: NDArray[np.int64]
    children: Children
    candidate_probs: NDArray[np.float64]
    candidate_slots: NDArray[np.int64]
    candidates: NDArray[np.int64]
    candidate_conditionals: NDArray[np.float64]
    own_query: NDArray[np.int32]
    pool_query: NDArray[np.int32]

    def with_room_for(self, num_sources: int) -> Workspace:
        """The same buffers, those of a lookup large enough for so many sources."""
        if num_sources <= len(self.searches.states):
            return self
        return self._replace(searches=Searches.room(num_sources))

    @staticmethod
    def room(max_matches: int, max_nodes: int, max_depth: int) -> Workspace:
        """Buffers for that many matches, nodes and tokens of a path, and for no source yet."""
        return Workspace(
            Searches.room(0),
            Matches.room(max_matches),
            np.empty(max_matches, np.int64),
            np.empty(max_matches, np.int64),
            np.empty(max_matches, np.int64),
            Children.room(),
            np.empty(max_nodes),
            np.arange(max_nodes),
            np.empty((max_nodes, 7), np.int64),
            np.empty(max_nodes),
            np.empty(MAX_MATCH_LENGTH + max_depth, np.int32),
            np.empty(MAX_MATCH_LENGTH + max_depth, np.int32),
        )


class Trees(NamedTuple):
    """Room for B trees of at most N nodes.

    Attributes:
        token_ids, parents: int32[B, N]. probs: float32[B, N].
        origins, levels: uint8[B, N], what speaks for each node, see `estimation.Children`.
        conditionals: float32[B, N], each node's probability given its parent before calibration.
    """

    token_ids: NDArray[np.int32]
    parents: NDArray[np.int32]
    probs: NDArray[np.float32]
    origins: NDArray[np.uint8]
    levels: NDArray[np.uint8]
    conditionals: NDArray[np.float32]

    @staticmethod
    def room(num_trees: int, max_nodes: int) -> Trees:
        """Room for that many trees of that many nodes."""
        shape = (num_trees, max_nodes)
        return Trees(
            np.empty(shape, np.int32),
            np.empty(shape, np.int32),
            np.empty(shape, np.float32),
            np.empty(shape, np.uint8),
            np.empty(shape, np.uint8),
            np.empty(shape, np.float32),
        )


@kernel
def grow_trees(
    requests: NDArray[np.int64],
    num_scaling_rows: int,
    vocab_size: int,
    model: Model,
    work: Workspace,
    trees: Trees,
    num_nodes: NDArray[np.int64],
    next_tree: NDArray[np.int64],
    max_trees: int,
) -> None:
    """Grows trees for requests that no other thread has taken yet.

    Args:
        requests: int64[B, NUM_REQUEST_COLUMNS], see the columns. What is behind the addresses must be kept alive, and
            behind a sequence's tokens an END_MARK must lie.
        num_scaling_rows: C. A request's scalings are float64[C, L, 2], see `estimation.estimate_children`.
        vocab_size: token ids of the trees are below it.
        model, work: see there; `work` has room for every request's sources.
        trees, num_nodes: [B, N] with N at least every request's number of nodes, and int64[B]; the rows of the trees
            grown are filled.
        next_tree: int64[1], 0 at first, that all threads of a batch share.
        max_trees: after so many this thread returns.
    """
    for _ in range(max_trees):
        i = take_turn(next_tree.ctypes.data)
        if i >= len(requests):
            return
        num_nodes[i] = _grow_tree(requests[i], num_scaling_rows, vocab_size, model, work, trees, i)


@kernel
def _grow_tree(
    request: NDArray[np.int64],
    num_scaling_rows: int,
    vocab_size: int,
    model: Model,
    work: Workspace,
    trees: Trees,
    tree: int,
) -> int:
    settings = model.settings
    budget = request[BUDGET]
    scalings = array_at(
        float64_pointer(request[SCALINGS]), (num_scaling_rows, model.levels[len(model.levels) - 1] + 1, 2)
    )
    own_len, pool_len = _begin_queries(request, work)
    num_matches = num_lookups = num_nodes = num_candidates = 0
    node = -1
    prob = 1.0
    begin = end = depth = 0
    while num_nodes < budget:
        if num_candidates < budget - num_nodes or prob > work.candidate_probs[0]:
            num_children, unseen = _find_children(work, model, scalings, begin, end, depth, vocab_size)
            if num_lookups < settings[MAX_LOOKUPS] and _needs_lookup(
                work, settings, begin, end, depth, vocab_size, prob * unseen
            ):
                num_lookups += 1
                _append_path(work, trees, tree, node, own_len + depth, pool_len + depth)
                begin = num_matches
                num_matches = _look_up(
                    request, vocab_size, model, work, own_len + depth, pool_len + depth, depth, num_matches
                )
                end = num_matches
                num_children, unseen = _find_children(work, model, scalings, begin, end, depth, vocab_size)
            num_candidates = _offer_children(
                work, num_children, node, prob, depth, settings[MIN_PROB], num_candidates, budget - num_nodes
            )
        if num_candidates == 0:
            break
        num_candidates -= 1
        prob = work.candidate_probs[num_candidates]
        slot = work.candidate_slots[num_candidates]
        node = num_nodes
        _place_node(work, slot, prob, trees, tree, node)
        begin = work.candidates[slot, BEGIN]
        end = work.candidates[slot, END]
        depth = work.candidates[slot, DEPTH]
        num_nodes += 1
    return num_nodes


@kernel
def _find_children(
    work: Workspace, model: Model, scalings: NDArray[np.float64], begin: int, end: int, depth: int, vocab_size: int
) -> tuple[int, float]:
    """How many children a node with the matches `order[begin:end]` has, now in `work.children`, and the probability
    that none of them follows."""
    if begin == end:
        return 0, 1.0
    num_children = split_matches(
        work.matches, model.levels, work.order, work.scratch, work.child_of, begin, end, depth,
        model.settings[MAX_DEPTH], vocab_size, work.children,
    )  # fmt: skip
    return num_children, estimate_children(work.children, num_children, model.coefficients, scalings)


@kernel
def _needs_lookup(
    work: Workspace, settings: NDArray[np.float64], begin: int, end: int, depth: int, vocab_size: int, unseen: float
) -> bool:
    """Whether a node's shorter matches may bring what its long ones lack: few of these are left, and the sequence is
    likely enough to come here and go on otherwise (`unseen`)."""
    if unseen < settings[MIN_UNSEEN] or depth >= settings[MAX_DEPTH]:
        return False
    max_depth, enough = settings[MAX_DEPTH], settings[ENOUGH]
    weight = following_weight(work.matches, work.order, begin, end, depth, max_depth, vocab_size, enough)
    return bool(weight < enough)


@kernel
def _begin_queries(request: NDArray[np.int64], work: Workspace) -> tuple[int, int]:
    """Writes what the sequence itself and the pools are searched for: its tail, and its output behind a begin mark."""
    num_tokens = request[TEXT_LEN]
    tokens = array_at(int32_pointer(request[TEXT]), (num_tokens,))
    own_len = min(num_tokens, MAX_MATCH_LENGTH)
    for i in range(own_len):
        work.own_query[i] = tokens[num_tokens - own_len + i]
    pool_len = min(num_tokens - request[NUM_PROMPT] + 1, MAX_MATCH_LENGTH)
    start = num_tokens - pool_len
    for i in range(pool_len):
        work.pool_query[i] = tokens[start + i] if start + i >= request[NUM_PROMPT] else BEGIN_MARK
    return own_len, pool_len


@kernel
def _append_path(work: Workspace, trees: Trees, tree: int, node: int, own_end: int, pool_end: int) -> None:
    """Writes a node's path behind the tails, up to the given ends."""
    while node >= 0:
        own_end -= 1
        pool_end -= 1
        work.own_query[own_end] = trees.token_ids[tree, node]
        work.pool_query[pool_end] = trees.token_ids[tree, node]
        node = trees.parents[tree, node]


@kernel
def _look_up(
    request: NDArray[np.int64],
    vocab_size: int,
    model: Model,
    work: Workspace,
    own_end: int,
    pool_end: int,
    depth: int,
    num_matches: int,
) -> int:
    """Appends the matches of the tails in the queries, in `order` too. Returns how many there are now."""
    settings = model.settings
    max_per_search = settings[MAX_PER_LATER_SEARCH] if depth else settings[MAX_PER_SEARCH]
    first = num_matches
    num_matches = collect_own_matches(
        array_at(int32_pointer(request[TEXT]), (request[TEXT_LEN],)), request[TEXT],
        work.own_query[max(own_end - MAX_MATCH_LENGTH, 0) : own_end],
        settings[OWN_WEIGHT], int(settings[MAX_OWN_MATCHES]), vocab_size, depth, work.matches, num_matches,
    )  # fmt: skip
    num_matches = collect_segment_matches(
        array_at(int64_pointer(request[SOURCES]), (request[NUM_SOURCES], NUM_COLUMNS)), work.searches,
        work.pool_query[max(pool_end - MAX_MATCH_LENGTH, 0) : pool_end], model.search_lengths,
        int(max_per_search), settings[ENOUGH], settings[ANCESTOR_WEIGHT], int(settings[BEGIN_BONUS]),
        vocab_size, depth, work.matches, num_matches,
    )  # fmt: skip
    for i in range(first, num_matches):
        work.order[i] = i
    return num_matches


@kernel
def following_weight(
    matches: Matches,
    order: NDArray[np.int64],
    begin: int,
    end: int,
    depth: int,
    max_depth: int,
    vocab_size: int,
    enough: float,
) -> float:
    """Weight of the matches `order[begin:end]` that have a token at `depth`, summed until it is `enough`."""
    following, bases, weights = matches.following, matches.bases, matches.weights
    total = 0.0
    for i in range(begin, end):
        match = order[i]
        past = depth - bases[match]
        if past < max_depth and 0 <= load_int32(following[match] + 4 * past) < vocab_size:
            total += weights[match]
            if total >= enough:
                break
    return total


@kernel
def _offer_children(
    work: Workspace,
    num_children: int,
    node: int,
    prob: float,
    depth: int,
    min_prob: float,
    num_candidates: int,
    most: int,
) -> int:
    """Makes a node's children candidates; only the best `most` of all remain. Returns how many there are now."""
    children = work.children
    probs, slots, rows = work.candidate_probs, work.candidate_slots, work.candidates
    tokens, starts, origins, levels = children.tokens, children.starts, children.origins, children.levels
    for child in range(num_children):
        child_prob = prob * children.probs[child]
        if child_prob < min_prob:
            continue
        if num_candidates == most:
            if child_prob <= probs[0]:
                continue
            place = 0
            slot = slots[0]
            while place + 1 < num_candidates and probs[place + 1] < child_prob:
                probs[place] = probs[place + 1]
                slots[place] = slots[place + 1]
                place += 1
        else:
            place = num_candidates
            slot = slots[num_candidates]
            while place > 0 and probs[place - 1] >= child_prob:
                probs[place] = probs[place - 1]
                slots[place] = slots[place - 1]
                place -= 1
            num_candidates += 1
        probs[place] = child_prob
        slots[place] = slot
        work.candidate_conditionals[slot] = children.conditionals[child]
        rows[slot, PARENT] = node
        rows[slot, TOKEN] = tokens[child]
        rows[slot, BEGIN] = starts[child]
        rows[slot, END] = starts[child + 1]
        rows[slot, DEPTH] = depth + 1
        rows[slot, ORIGIN] = origins[child]
        rows[slot, LEVEL] = levels[child]
    return num_candidates


@kernel
def _place_node(work: Workspace, slot: int, prob: float, trees: Trees, tree: int, node: int) -> None:
    """Writes a candidate as a node of the tree."""
    trees.token_ids[tree, node] = work.candidates[slot, TOKEN]
    trees.parents[tree, node] = work.candidates[slot, PARENT]
    # A sum of rounded quotients may exceed 1 by an ulp.
    trees.probs[tree, node] = min(prob, 1.0)
    trees.origins[tree, node] = work.candidates[slot, ORIGIN]
    trees.levels[tree, node] = work.candidates[slot, LEVEL]
    trees.conditionals[tree, node] = work.candidate_conditionals[slot]
