"""Tree attention over the blocked cache, one kernel for prefill, decoding and trees.

Keys and values are read once per block of queries, as in Dao et al. (FlashAttention, arXiv 2205.14135), but a row keeps
its scores instead of rescaling its sums, because rescaling would make the result depend on where blocks begin. Keys lie
transposed, so that 16 positions are one vector; a query's sum over D, its softmax and its sum over positions run in the
order of *logical* positions: nodes that are no ancestors weigh exactly zero, and adding zero changes nothing. So a
row's bits are the same wherever the keys of its path stand, and whatever stands beside them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laser_verifier.cpu.simd import (
    LANES,
    add,
    exp,
    fma,
    in_lane,
    keep,
    load,
    max_lanes,
    maximum,
    mul,
    null_bfloat16,
    null_float32,
    null_int64,
    pointer_like,
    prefetch,
    splat,
    store,
    sub,
    sum_lanes,
    take,
)
from laser_verifier.cpu.typed import HEADER, NUM_TASKS, kernel

# Queries that attend together; the code below is written for four.
QUERY_TILE = 4


@kernel
def _multiply_wide(a: Any, a0: Any, a1: Any, a2: Any, a3: Any, count: Any,
                   b: Any, b0: Any, step: Any, block: Any,
                   c: Any, c0: Any, c1: Any, c2: Any, c3: Any, ahead: Any, ahead0: Any) -> None:  # fmt: skip
    """C[4, 64] = A[4, count] B[count, 64]: rows of A at a0..a3, of C at c0..c3; four vectors of B `block` apart.

    As it goes it asks memory for the 64 * count elements from `ahead[ahead0]` on, which are needed next.
    """
    zero = splat(np.float32(0.0))
    s00, s01, s02, s03 = zero, zero, zero, zero
    s10, s11, s12, s13 = zero, zero, zero, zero
    s20, s21, s22, s23 = zero, zero, zero, zero
    s30, s31, s32, s33 = zero, zero, zero, zero
    for k in range(count):
        at = b0 + k * step
        prefetch(ahead, ahead0 + k * 64)
        prefetch(ahead, ahead0 + k * 64 + 32)
        w0, w1, w2, w3 = load(b, at), load(b, at + block), load(b, at + 2 * block), load(b, at + 3 * block)
        x = splat(a[a0 + k])
        s00, s01, s02, s03 = fma(x, w0, s00), fma(x, w1, s01), fma(x, w2, s02), fma(x, w3, s03)
        x = splat(a[a1 + k])
        s10, s11, s12, s13 = fma(x, w0, s10), fma(x, w1, s11), fma(x, w2, s12), fma(x, w3, s13)
        x = splat(a[a2 + k])
        s20, s21, s22, s23 = fma(x, w0, s20), fma(x, w1, s21), fma(x, w2, s22), fma(x, w3, s23)
        x = splat(a[a3 + k])
        s30, s31, s32, s33 = fma(x, w0, s30), fma(x, w1, s31), fma(x, w2, s32), fma(x, w3, s33)
    store(c, c0, s00), store(c, c0 + 16, s01), store(c, c0 + 32, s02), store(c, c0 + 48, s03)
    store(c, c1, s10), store(c, c1 + 16, s11), store(c, c1 + 32, s12), store(c, c1 + 48, s13)
    store(c, c2, s20), store(c, c2 + 16, s21), store(c, c2 + 32, s22), store(c, c2 + 48, s23)
    store(c, c3, s30), store(c, c3 + 16, s31), store(c, c3 + 32, s32), store(c, c3 + 48, s33)


@kernel
def _multiply_narrow(a: Any, a0: Any, a1: Any, a2: Any, a3: Any, count: Any,
                     b: Any, b0: Any, step: Any,
                     c: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> None:  # fmt: skip
    """The same with one vector of B: C[4, 16]."""
    zero = splat(np.float32(0.0))
    s0, s1, s2, s3 = zero, zero, zero, zero
    for k in range(count):
        w = load(b, b0 + k * step)
        s0, s1 = fma(splat(a[a0 + k]), w, s0), fma(splat(a[a1 + k]), w, s1)
        s2, s3 = fma(splat(a[a2 + k]), w, s2), fma(splat(a[a3 + k]), w, s3)
    store(c, c0, s0), store(c, c1, s1), store(c, c2, s2), store(c, c3, s3)


@kernel
def _softmax(scores: Any, start: Any, end: Any, reach: Any, node: Any,
             parents: Any, positions: Any, first_node: Any, scale: Any) -> Any:  # fmt: skip
    """Scores to unnormalised weights in place, 0 for what the query does not see; returns their sum.

    Args:
        start: of the query's scores, one per place up to `end`; up to the next multiple of 16 they may be anything.
        reach: places below are all seen. node: the query's index in its tree, -1 outside: it sees its ancestors too.
        parents, positions: of the step's rows, the tree's from `first_node` on; its keys stand at `reach` and behind.
    """
    lowest = np.float32(-np.inf)
    nothing = splat(lowest)
    seen = node
    for i in range(node, -1, -1):
        if i == seen:
            seen = parents[first_node + i]
        else:
            scores[start + reach + i] = lowest
    last = reach + node + 1
    for i in range(last // LANES * LANES, end, LANES):
        store(scores, start + i, keep(load(scores, start + i), last - i, nothing))
    largest = nothing
    for i in range(0, last, LANES):
        largest = maximum(load(scores, start + i), largest)
    shift = splat(max_lanes(largest))
    factor, zero = splat(scale), splat(np.float32(0.0))
    total = zero
    whole = reach // LANES * LANES
    for i in range(0, end, LANES):
        weights = exp(mul(sub(load(scores, start + i), shift), factor))
        store(scores, start + i, weights)
        if i < whole:
            total = add(total, weights)
        elif i == whole:
            total = add(total, keep(weights, reach - whole, zero))
    # A position's weight is summed in lane (position mod 16), whether it is in the cache or a node of this step.
    for i in range(node + 1):
        total = add(total, in_lane(scores[start + reach + i], positions[first_node + i] % LANES))
    return sum_lanes(total)


@kernel
def _scores(queries: Any, q0: Any, q1: Any, q2: Any, q3: Any, size: Any, keys: Any, values: Any, cached: Any,
            scores: Any, start: Any, row_len: Any, end: Any) -> None:  # fmt: skip
    """Products of four queries with the keys of places 0 to `end`, a multiple of 16, to four rows of scores."""
    wide = end // (4 * LANES) * (4 * LANES)
    s1, s2, s3 = start + row_len, start + 2 * row_len, start + 3 * row_len
    for t in range(0, wide, 4 * LANES):
        at = cached + t * size
        _multiply_wide(queries, q0, q1, q2, q3, size, keys, at, LANES, size * LANES,
                       scores, start + t, s1 + t, s2 + t, s3 + t, values, at)  # fmt: skip
    for t in range(wide, end, LANES):
        at = cached + t * size
        _multiply_narrow(queries, q0, q1, q2, q3, size, keys, at, LANES, scores, start + t, s1 + t, s2 + t, s3 + t)


@kernel
def _weighted_values(weights: Any, start: Any, row_len: Any, count: Any, values: Any, first_value: Any, size: Any,
                     out: Any, to: Any, keys: Any, next_cached: Any) -> None:  # fmt: skip
    """Sums over places 0 to `count` of values by four rows of weights, to four rows of `size`."""
    w1, w2, w3 = start + row_len, start + 2 * row_len, start + 3 * row_len
    wide = size // (4 * LANES) * (4 * LANES)
    for d in range(0, wide, 4 * LANES):
        _multiply_wide(weights, start, w1, w2, w3, count, values, first_value + d, size, LANES,
                       out, to + d, to + size + d, to + 2 * size + d, to + 3 * size + d,
                       keys, next_cached + d * count)  # fmt: skip
    for d in range(wide, size, LANES):
        _multiply_narrow(weights, start, w1, w2, w3, count, values, first_value + d, size,
                         out, to + d, to + size + d, to + 2 * size + d, to + 3 * size + d)  # fmt: skip


@kernel
def _query_at(query: Any, first_row: Any, shared: Any, num_query_heads: Any, head: Any) -> Any:
    """Which of the [M, Hq] queries is one of a sequence and a key head."""
    return (first_row + query // shared) * num_query_heads + head * shared + query % shared


@kernel
def attend(arguments: Any, example: Any) -> None:
    """Tree attention of all sequences of a step.

    A task is one key head of one sequence and QUERY_TILE of its queries, counted token by token, head by head.

    Arguments: query heads, heads, head size D, places per slot T, queries (float32 [M, Hq, D]), keys
    [S, H, T / 16, D, 16], values [S, H, T, D], out [M, Hq, D], scale (address of a float32), tasks (int64 [tasks, 3]:
    sequence, head, first query), sequences (int64 [sequences, 5]: slot, first row, rows, rows of the chain, places
    below the tree), parents and positions (int64[M]), scratch (float32 [workers, 4 * (T + D + 1)]), the
    counter that numbers the workers.
    """
    num_query_heads, num_heads = arguments[HEADER], arguments[HEADER + 1]
    size, slot_len = arguments[HEADER + 2], arguments[HEADER + 3]
    queries = pointer_like(arguments[HEADER + 4], null_float32())
    keys = pointer_like(arguments[HEADER + 5], example)
    values = pointer_like(arguments[HEADER + 6], example)
    out = pointer_like(arguments[HEADER + 7], example)
    scale = pointer_like(arguments[HEADER + 8], null_float32())[0]
    tasks = pointer_like(arguments[HEADER + 9], null_int64())
    sequences = pointer_like(arguments[HEADER + 10], null_int64())
    parents = pointer_like(arguments[HEADER + 11], null_int64())
    positions = pointer_like(arguments[HEADER + 12], null_int64())
    scratch = pointer_like(arguments[HEADER + 13], null_float32())
    shared = num_query_heads // num_heads
    scores = take(pointer_like(arguments[HEADER + 14], null_int64())) * QUERY_TILE * (slot_len + size + 1)
    sums = scores + QUERY_TILE * slot_len
    totals = sums + QUERY_TILE * size
    task = take(arguments)
    while task < arguments[NUM_TASKS]:
        head, first_query = tasks[3 * task + 1], tasks[3 * task + 2]
        sequence = 5 * tasks[3 * task]
        slot, first_row, num_rows = sequences[sequence], sequences[sequence + 1], sequences[sequence + 2]
        num_chain, below_tree = sequences[sequence + 3], sequences[sequence + 4]
        num_queries = min(QUERY_TILE, num_rows * shared - first_query)
        last_row = (first_query + num_queries - 1) // shared
        count = below_tree - num_chain + last_row + 1
        end = (count + LANES - 1) // LANES * LANES
        # Missing queries of the last tile are the last one again; nobody looks at them.
        q0 = _query_at(first_query, first_row, shared, num_query_heads, head) * size
        q1 = _query_at(first_query + min(1, num_queries - 1), first_row, shared, num_query_heads, head) * size
        q2 = _query_at(first_query + min(2, num_queries - 1), first_row, shared, num_query_heads, head) * size
        q3 = _query_at(first_query + min(3, num_queries - 1), first_row, shared, num_query_heads, head) * size
        cached = (slot * num_heads + head) * slot_len * size
        _scores(queries, q0, q1, q2, q3, size, keys, values, cached, scratch, scores, slot_len, end)
        for i in range(num_queries):
            row = (first_query + i) // shared
            node = row - num_chain
            reach = below_tree if node >= 0 else below_tree + node + 1
            total = _softmax(scratch, scores + i * slot_len, end, reach, max(node, -1),
                             parents, positions, first_row + num_chain, scale)  # fmt: skip
            scratch[totals + i] = np.float32(1.0) / total
        # Taken before this task is done, so that its keys are on their way; past the last one it is any task's.
        task = take(arguments)
        ahead = 3 * min(task, arguments[NUM_TASKS] - 1)
        next_cached = (sequences[5 * tasks[ahead]] * num_heads + tasks[ahead + 1]) * slot_len * size
        _weighted_values(scratch, scores, slot_len, count, values, cached, size, scratch, sums, keys, next_cached)
        for i in range(num_queries):
            to = _query_at(first_query + i, first_row, shared, num_query_heads, head) * size
            factor = splat(scratch[totals + i])
            for d in range(0, size, LANES):
                store(out, to + d, mul(load(scratch, sums + i * size + d), factor))


# What a C caller gets. They stand beside the kernels because numba renews a cached function only
# when its own file changes.


def attend_bfloat16(arguments: Any) -> None:
    attend(arguments, null_bfloat16())


def attend_float32(arguments: Any) -> None:
    attend(arguments, null_float32())
