"""The growth of a draft tree from matches: probabilities by back-off over match lengths, best node first. Pure kernels.

At a node the matches that agree with its path vote on the next token. With c_l(t) the weight of the matches of length
at least l that continue with t, and n_l their sum,

    p_l(t) = (c_l(t) + kappa_l * p_(l-1)(t)) / (n_l + kappa_l),    p_0(t) = 0,

the hierarchical Dirichlet language model of MacKay and Peto ("A hierarchical Dirichlet language model", 1995), with one
kappa per length. What is left of 1 is the probability of a token never seen here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from laser_retriever.kernel import kernel

# Tokens told apart at one node; matches come longest first, so further ones have the least evidence: they only count
# in the sum.
MAX_CHILDREN = 48


@kernel
def grow_tree(
    continuations: NDArray[np.int32],
    lengths: NDArray[np.int32],
    weights: NDArray[np.float64],
    num_matches: int,
    levels: NDArray[np.int64],
    kappas: NDArray[np.float64],
    min_prob: float,
    token_ids: NDArray[np.int32],
    parents: NDArray[np.int32],
    probs: NDArray[np.float32],
) -> int:
    """Grows a tree best-first.

    Args:
        continuations, lengths, weights, num_matches: as `matching` collects them.
        levels: int64[], back-off level of each match length; longer ones have the last.
        kappas: float64[L], weight of the shorter lengths against the counts of each level.
        min_prob: a node less probable than this is not grown.
        token_ids, parents, probs: [N], filled: the tree. N is the node budget.

    Returns:
        The number of nodes.
    """
    budget = len(token_ids)
    max_depth = continuations.shape[1]
    order = np.arange(num_matches)
    scratch = np.empty(num_matches, np.int64)
    child_of = np.empty(num_matches, np.int64)
    # Candidates: children of grown nodes, in a binary heap by probability. Only `budget` of them can ever be grown,
    # and one node adds at most MAX_CHILDREN.
    capacity = (budget + 1) * MAX_CHILDREN
    heap_probs = np.empty(capacity, np.float64)
    heap_items = np.empty(capacity, np.int64)
    heap_len = 0
    items = np.empty((capacity, 5), np.int64)  # parent, token, begin, end, depth
    num_items = 0
    child_tokens = np.empty(MAX_CHILDREN, np.int64)
    child_probs = np.empty(MAX_CHILDREN, np.float64)
    child_starts = np.empty(MAX_CHILDREN + 2, np.int64)
    counts = np.empty((MAX_CHILDREN + 1, len(kappas)), np.float64)

    num_nodes = 0
    node = -1
    node_prob = 1.0
    begin = 0
    end = num_matches
    depth = 0
    while num_nodes < budget:
        if depth < max_depth and begin < end:
            num_children = _split(
                continuations, lengths, weights, levels, order, scratch, child_of, begin, end, depth,
                child_tokens, child_starts, counts,
            )  # fmt: skip
            _estimate(counts, num_children, kappas, child_probs)
            for child in range(num_children):
                prob = node_prob * child_probs[child]
                if prob < min_prob:
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
def _split(
    continuations: NDArray[np.int32],
    lengths: NDArray[np.int32],
    weights: NDArray[np.float64],
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
    counts[:, :] = 0.0
    sizes = np.zeros(MAX_CHILDREN + 2, np.int64)
    for i in range(begin, end):
        match = order[i]
        token = continuations[match, depth]
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
        level = levels[min(lengths[match] + depth, len(levels) - 1)]
        counts[child, level] += weights[match]
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
def _estimate(
    counts: NDArray[np.float64], num_children: int, kappas: NDArray[np.float64], child_probs: NDArray[np.float64]
) -> None:
    """Fills `child_probs` by back-off from the weights per (child, level). `counts` becomes cumulative."""
    num_levels = len(kappas)
    for level in range(num_levels - 2, -1, -1):
        for child in range(num_children):
            counts[child, level] += counts[child, level + 1]
        counts[MAX_CHILDREN, level] += counts[MAX_CHILDREN, level + 1]
    child_probs[:num_children] = 0.0
    for level in range(num_levels):
        total = counts[MAX_CHILDREN, level]
        for child in range(num_children):
            total += counts[child, level]
        if total == 0.0:
            break
        for child in range(num_children):
            child_probs[child] = (counts[child, level] + kappas[level] * child_probs[child]) / (total + kappas[level])


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
