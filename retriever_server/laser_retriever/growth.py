"""The growth of a draft tree from matches: probabilities from match lengths and counts, best node first. Pure kernels.

At a node the matches that agree with its path vote on the next token. A conditional logit (McFadden, "Conditional logit
analysis of qualitative choice behavior", 1974; as a language model: Rosenfeld, "A maximum entropy approach to adaptive
statistical language modelling", 1996) turns the votes into probabilities, exclusive among siblings and with one outcome
for a token never seen here. Its features say, for the sequence's own matches and for the pools' apart: how long the
longest match is that continues with the token, what share of the longest matches and of all matches does, and how many.
So it backs off from long matches to short ones as far as recorded outputs have shown to be right (`fitting.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from laser_retriever.kernel import kernel
from laser_retriever.matching import MAX_MATCH_LENGTH, collect_own_matches, collect_segment_matches

# Features of one child that are not 0: per side a match length, a share by match length, and three scalars.
NUM_ENTRIES = 10

# Settings of `grow_tree`: least probability of a node; weight of matches at which shorter ones are left out; most
# lookups for one tree; weight of a match in the sequence itself and most of them; most matches of one source at one
# length; tokens by which a match that reaches a document's begin counts as longer.
MIN_PROB, ENOUGH, MAX_LOOKUPS, OWN_WEIGHT, MAX_OWN_MATCHES, MAX_PER_SEARCH, BEGIN_BONUS = range(7)
NUM_SETTINGS = 7

# Tokens told apart at one node; matches come longest first, so further ones have the least evidence: they only count
# in the sum.
MAX_CHILDREN = 48


def num_features(num_levels: int) -> int:
    """How many features a child has with that many levels."""
    return 6 * (num_levels + 1) + 8


@kernel
def grow_tree(
    tokens: NDArray[np.int32],
    context: NDArray[np.int32],
    sources: NDArray[np.int64],
    source_weights: NDArray[np.float64],
    search_lengths: NDArray[np.int64],
    levels: NDArray[np.int64],
    coefficients: NDArray[np.float64],
    settings: NDArray[np.float64],
    vocab_size: int,
    continuations: NDArray[np.int32],
    lengths: NDArray[np.int32],
    weights: NDArray[np.float64],
    origins: NDArray[np.int32],
    bases: NDArray[np.int32],
    token_ids: NDArray[np.int32],
    parents: NDArray[np.int32],
    probs: NDArray[np.float32],
) -> int:
    """Collects matches and grows a tree from them, best node first.

    A node at which fewer matches than `enough` are left is looked up anew with its path as the end of the sequence,
    which brings in the occurrences of shorter contexts.

    Args:
        tokens: int32[T], T >= 1, prompt and output so far: searched, and the context of that search.
        context: int32[Q], Q <= MAX_MATCH_LENGTH, what the sources are searched for: the output behind its begin mark.
        sources, source_weights, search_lengths, vocab_size: see `matching.collect_segment_matches`.
        levels: int64[], back-off level of each match length; longer ones have the last.
        coefficients: float64[], of the features, see `describe_children`.
        settings: float64[NUM_SETTINGS], see the constants.
        continuations, lengths, weights, origins: scratch for M matches, see `matching`.
        bases: int32[M], scratch.
        token_ids, parents, probs: [N], filled: the tree. N is the node budget.

    Returns:
        The number of nodes.
    """
    budget = len(token_ids)
    max_depth = continuations.shape[1]
    capacity = len(lengths)
    order = np.empty(capacity, np.int64)
    scratch = np.empty(capacity, np.int64)
    child_of = np.empty(capacity, np.int64)
    own_query = np.empty(MAX_MATCH_LENGTH + max_depth, np.int32)
    own_len = min(len(tokens), MAX_MATCH_LENGTH)
    own_query[:own_len] = tokens[len(tokens) - own_len :]
    pool_query = np.empty(MAX_MATCH_LENGTH + max_depth, np.int32)
    pool_query[: len(context)] = context
    # Candidates are the children of grown nodes. At most `budget` are grown, and each adds at most MAX_CHILDREN.
    heap_probs = np.empty((budget + 1) * MAX_CHILDREN, np.float64)
    heap_items = np.empty((budget + 1) * MAX_CHILDREN, np.int64)
    heap_len = 0
    items = np.empty(((budget + 1) * MAX_CHILDREN, 5), np.int64)  # parent, token, begin, end, depth
    num_items = 0
    child_tokens = np.empty(MAX_CHILDREN, np.int64)
    child_probs = np.empty(MAX_CHILDREN, np.float64)
    child_starts = np.empty(MAX_CHILDREN + 2, np.int64)
    num_levels = levels[len(levels) - 1] + 1
    counts = np.empty((2, MAX_CHILDREN + 1, num_levels), np.float64)
    feature_ids = np.empty((MAX_CHILDREN + 1, NUM_ENTRIES), np.int64)
    values = np.empty((MAX_CHILDREN + 1, NUM_ENTRIES), np.float64)

    num_matches = 0
    num_lookups = 0
    num_nodes = 0
    node = -1
    node_prob = 1.0
    begin = 0
    end = 0
    depth = 0
    while num_nodes < budget:
        thin = True
        total = 0.0
        for i in range(begin, end):
            if depth - bases[order[i]] < max_depth and continuations[order[i], depth - bases[order[i]]] >= 0:
                total += weights[order[i]]
                if total >= settings[ENOUGH]:
                    thin = False
                    break
        if thin and num_lookups < settings[MAX_LOOKUPS] and depth < max_depth:
            num_lookups += 1
            place = depth
            ancestor = node
            while ancestor >= 0:
                place -= 1
                own_query[own_len + place] = token_ids[ancestor]
                pool_query[len(context) + place] = token_ids[ancestor]
                ancestor = parents[ancestor]
            begin = num_matches
            num_matches = collect_own_matches(
                tokens, _tail(own_query, own_len + depth), settings[OWN_WEIGHT], -1, vocab_size,
                int(settings[MAX_OWN_MATCHES]), continuations, lengths, weights, origins, num_matches,
            )  # fmt: skip
            num_matches = collect_segment_matches(
                sources, source_weights, _tail(pool_query, len(context) + depth), search_lengths, vocab_size,
                int(settings[MAX_PER_SEARCH]), settings[ENOUGH], int(settings[BEGIN_BONUS]),
                continuations, lengths, weights, origins, num_matches,
            )  # fmt: skip
            end = num_matches
            for i in range(begin, end):
                bases[i] = depth
                order[i] = i
        if begin < end:
            num_children = split_matches(
                continuations, lengths, weights, origins, bases, levels, order, scratch, child_of, begin, end, depth,
                child_tokens, child_starts, counts,
            )  # fmt: skip
            _estimate(counts, num_children, coefficients, feature_ids, values, child_probs)
            for child in range(num_children):
                prob = node_prob * child_probs[child]
                if prob < settings[MIN_PROB]:
                    continue
                items[num_items, 0] = node
                items[num_items, 1] = child_tokens[child]
                items[num_items, 2] = child_starts[child]
                items[num_items, 3] = child_starts[child + 1]
                items[num_items, 4] = depth + 1
                heap_len = _push(heap_probs, heap_items, heap_len, prob, num_items)
                num_items += 1
        if heap_len == 0:
            break
        node_prob = heap_probs[0]
        item = heap_items[0]
        heap_len = _pop(heap_probs, heap_items, heap_len)
        node = num_nodes
        token_ids[node] = items[item, 1]
        parents[node] = items[item, 0]
        # A sum of rounded quotients may exceed 1 by an ulp.
        probs[node] = min(node_prob, 1.0)
        begin = items[item, 2]
        end = items[item, 3]
        depth = items[item, 4]
        num_nodes += 1
    return num_nodes


@kernel
def _tail(query: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    return query[max(size - MAX_MATCH_LENGTH, 0) : size]


@kernel
def split_matches(
    continuations: NDArray[np.int32],
    lengths: NDArray[np.int32],
    weights: NDArray[np.float64],
    origins: NDArray[np.int32],
    bases: NDArray[np.int32],
    levels: NDArray[np.int64],
    order: NDArray[np.int64],
    scratch: NDArray[np.int64],
    child_of: NDArray[np.int64],
    begin: int,
    end: int,
    depth: int,
    child_tokens: NDArray[np.int64],
    child_starts: NDArray[np.int64],
    counts: NDArray[np.float64],
) -> int:
    """Groups `order[begin:end]` by the token at `depth` and sums the weights per (child, level).

    The row of `counts` after the last child's holds the tokens beyond MAX_CHILDREN. Returns the number of children.
    """
    num_children = 0
    counts[:, :, :] = 0.0
    sizes = np.zeros(MAX_CHILDREN + 2, np.int64)
    for i in range(begin, end):
        match = order[i]
        past = depth - bases[match]
        token = continuations[match, past] if past < continuations.shape[1] else -1
        if token < 0:
            child_of[i] = MAX_CHILDREN + 1
            sizes[MAX_CHILDREN + 1] += 1
            continue
        child = 0
        while child < num_children and child_tokens[child] != token:
            child += 1
        if child == num_children and child < MAX_CHILDREN:
            child_tokens[child] = token
            num_children += 1
        child_of[i] = child
        sizes[child] += 1
        level = levels[min(lengths[match] + past, len(levels) - 1)]
        counts[0 if origins[match] < 0 else 1, child, level] += weights[match]
    place = begin
    for child in range(MAX_CHILDREN + 2):
        size = sizes[child]
        sizes[child] = place
        place += size
    child_starts[: num_children + 1] = sizes[: num_children + 1]
    for i in range(begin, end):
        child = child_of[i]
        scratch[sizes[child]] = order[i]
        sizes[child] += 1
    for i in range(begin, end):
        order[i] = scratch[i]
    return num_children


@kernel
def describe_children(
    counts: NDArray[np.float64], num_children: int, feature_ids: NDArray[np.int64], values: NDArray[np.float64]
) -> None:
    """Fills the features of a node's children and, in the row after them, of a token not seen here.

    Args:
        counts: float64[2, MAX_CHILDREN + 1, L], weights per (own or pool, child, level); becomes cumulative: each level
            counts all matches at least as long.
        feature_ids, values: [>= num_children + 1, NUM_ENTRIES], filled: which features are not 0, and what they are.
    """
    num_levels = counts.shape[2]
    feature_ids[num_children, :] = 0
    values[num_children, :] = 0.0
    tables = 3 * (num_levels + 1)
    for side in range(2):
        for level in range(num_levels - 2, -1, -1):
            for child in range(num_children):
                counts[side, child, level] += counts[side, child, level + 1]
            counts[side, MAX_CHILDREN, level] += counts[side, MAX_CHILDREN, level + 1]
        longest = -1
        for level in range(num_levels):
            present = counts[side, MAX_CHILDREN, level] > 0.0
            for child in range(num_children):
                present = present or counts[side, child, level] > 0.0
            if present:
                longest = level
        total = 0.0
        total_all = 0.0
        if longest >= 0:
            total = counts[side, MAX_CHILDREN, longest]
            total_all = counts[side, MAX_CHILDREN, 0]
            for child in range(num_children):
                total += counts[side, child, longest]
                total_all += counts[side, child, 0]
        base = side * tables
        scalars = 2 * tables + 4 * side
        for child in range(num_children):
            own_longest = -1
            for level in range(num_levels):
                if counts[side, child, level] > 0.0:
                    own_longest = level
            share = counts[side, child, longest] / total if total > 0.0 else 0.0
            share_all = counts[side, child, 0] / total_all if total_all > 0.0 else 0.0
            entry = 5 * side
            feature_ids[child, entry] = base + own_longest + 1
            values[child, entry] = 1.0
            feature_ids[child, entry + 1] = base + num_levels + 1 + longest + 1
            values[child, entry + 1] = share
            for i in range(3):
                feature_ids[child, entry + 2 + i] = scalars + i
            values[child, entry + 2] = np.log(share + 0.01)
            values[child, entry + 3] = np.log(share_all + 0.001)
            values[child, entry + 4] = np.log1p(counts[side, child, max(own_longest, 0)])
        feature_ids[num_children, 2 * side] = base + 2 * (num_levels + 1) + longest + 1
        values[num_children, 2 * side] = 1.0
        feature_ids[num_children, 2 * side + 1] = scalars + 3
        values[num_children, 2 * side + 1] = np.log1p(total)


@kernel
def _estimate(
    counts: NDArray[np.float64],
    num_children: int,
    coefficients: NDArray[np.float64],
    feature_ids: NDArray[np.int64],
    values: NDArray[np.float64],
    child_probs: NDArray[np.float64],
) -> None:
    """Fills `child_probs`: conditional logit over the children and a token not seen here."""
    describe_children(counts, num_children, feature_ids, values)
    highest = -np.inf
    scores = np.zeros(num_children + 1)
    for child in range(num_children + 1):
        score = 0.0
        for i in range(NUM_ENTRIES):
            score += values[child, i] * coefficients[feature_ids[child, i]]
        scores[child] = score
        highest = max(highest, score)
    total = 0.0
    for child in range(num_children + 1):
        scores[child] = np.exp(scores[child] - highest)
        total += scores[child]
    for child in range(num_children):
        child_probs[child] = scores[child] / total


@kernel
def _push(heap_probs: NDArray[np.float64], heap_items: NDArray[np.int64], size: int, prob: float, item: int) -> int:
    place = size
    while place > 0:
        above = (place - 1) >> 1
        if heap_probs[above] >= prob:
            break
        heap_probs[place] = heap_probs[above]
        heap_items[place] = heap_items[above]
        place = above
    heap_probs[place] = prob
    heap_items[place] = item
    return size + 1


@kernel
def _pop(heap_probs: NDArray[np.float64], heap_items: NDArray[np.int64], size: int) -> int:
    size -= 1
    prob = heap_probs[size]
    item = heap_items[size]
    place = 0
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        if below + 1 < size and heap_probs[below + 1] > heap_probs[below]:
            below += 1
        if heap_probs[below] <= prob:
            break
        heap_probs[place] = heap_probs[below]
        heap_items[place] = heap_items[below]
        place = below
    heap_probs[place] = prob
    heap_items[place] = item
    return size
