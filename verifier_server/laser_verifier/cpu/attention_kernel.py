"""Tree attention over the blocked cache, one kernel for prefill, decoding and trees.

Keys and values are read once per block of queries, as in Dao et al. (FlashAttention, arXiv 2205.14135), but a row keeps
its scores instead of rescaling its sums, because rescaling would make the result depend on where blocks begin. Scores
are put into the order of *logical* positions before anything is summed, a tree's node behind its ancestors; what a row
does not see weighs exactly zero, and adding zero changes nothing. So a row's bits are the same wherever the keys of its
path stand, and whatever stands beside them. Of bfloat16 two neighbouring positions are multiplied and added at once
(`attention_tile.py`); weights are rounded to bfloat16 for it, before they are divided by their sum, which is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laser_verifier.cpu.attention_tile import (
    MAX_ROWS,
    WIDE,
    add_products,
    multiply_narrow,
    multiply_wide,
)
from laser_verifier.cpu.simd import (
    GROUP_BYTES,
    LANES,
    VECTOR_BYTES,
    add,
    exp,
    group_len,
    keep,
    load,
    max_lanes,
    maximum,
    mul,
    null_bfloat16,
    null_float32,
    null_int64,
    pointer_like,
    splat,
    store,
    sub,
    sum_lanes,
    take,
)
from laser_verifier.cpu.typed import HEADER, NEXT_TASK, NEXT_WORKER, NUM_TASKS, kernel

# Queries that attend together.
QUERY_TILE = MAX_ROWS
_WIDE_LANES = WIDE * LANES


@kernel
def _trace_path(parents: Any, first_node: Any, node: Any, path: Any, to: Any) -> Any:
    """Writes the nodes from a root to `node` to `path[to]` and on. Returns how many; none if `node` is below 0."""
    count = 0
    at = node
    while at >= 0:
        count += 1
        at = parents[first_node + at]
    at = node
    for i in range(count - 1, -1, -1):
        path[to + i] = at
        at = parents[first_node + at]
    return count


@kernel
def _softmax(scores: Any, reach: Any, path: Any, path_start: Any, path_len: Any, end: Any, weights: Any,
             scale: Any) -> Any:  # fmt: skip
    """Scores by place to unnormalised weights by position, in the same memory; returns their sum.

    Args:
        scores: up to place `end`, a multiple of 16. reach: places below are positions, all seen.
        path, path_start, path_len: the nodes seen, root first; node i's key stands at place `reach + i`.
        weights: where they go, `end` of them; the same address, maybe a narrower type.
    """
    nothing, zero = splat(np.float32(-np.inf)), splat(np.float32(0.0))
    for i in range(path_len):
        scores[reach + i] = scores[reach + path[path_start + i]]
    last = reach + path_len
    seen = (last + LANES - 1) // LANES * LANES
    if last < seen:
        store(scores, seen - LANES, keep(load(scores, seen - LANES), last - seen + LANES, nothing))
    largest = nothing
    for i in range(0, seen, LANES):
        largest = maximum(load(scores, i), largest)
    shift = splat(max_lanes(largest))
    factor = splat(scale)
    total = zero
    for i in range(0, seen, LANES):
        weight = exp(mul(sub(load(scores, i), shift), factor))
        total = add(total, weight)
        store(weights, i, weight)
    for i in range(seen, end, LANES):
        store(weights, i, zero)
    return sum_lanes(total)


@kernel
def _multiply_keys(example: Any, num_queries: Any, queries: Any, size: Any, keys: Any, values: Any, end: Any,
                   scores: Any, slot_len: Any, block_bytes: Any) -> None:  # fmt: skip
    """Products of the queries with the keys of places 0 to `end`, a multiple of 16, to rows of float32 scores."""
    steps = size // group_len(example)
    wide = end // _WIDE_LANES * _WIDE_LANES
    row_bytes = slot_len * GROUP_BYTES
    for place in range(0, wide, _WIDE_LANES):
        at = place // LANES * block_bytes
        multiply_wide(example, num_queries, queries, steps, keys + at, VECTOR_BYTES, block_bytes,
                      scores + place * GROUP_BYTES, row_bytes, values + at)  # fmt: skip
    for place in range(wide, end, LANES):
        multiply_narrow(example, num_queries, queries, steps, keys + place // LANES * block_bytes, VECTOR_BYTES, 0,
                        scores + place * GROUP_BYTES, row_bytes, 0)  # fmt: skip


@kernel
def _multiply_values(example: Any, num_queries: Any, weights: Any, count: Any, values: Any, size: Any, sums: Any,
                     next_keys: Any) -> None:  # fmt: skip
    """Sums over places 0 to `count`, a multiple of a group, of values by rows of weights, to rows of float32."""
    steps = count // group_len(example)
    wide = size // _WIDE_LANES * _WIDE_LANES
    row_bytes = size * GROUP_BYTES
    for d in range(0, wide, _WIDE_LANES):
        multiply_wide(example, num_queries, weights, steps, values + d * GROUP_BYTES, row_bytes, VECTOR_BYTES,
                      sums + d * GROUP_BYTES, row_bytes, next_keys + d * GROUP_BYTES * steps)  # fmt: skip
    for d in range(wide, size, LANES):
        multiply_narrow(example, num_queries, weights, steps, values + d * GROUP_BYTES, row_bytes, 0,
                        sums + d * GROUP_BYTES, row_bytes, 0)  # fmt: skip


@kernel
def _add_last_values(example: Any, weights: Any, first: Any, last: Any, reach: Any, path: Any, path_start: Any,
                     values: Any, size: Any, sums: Any) -> None:  # fmt: skip
    """Adds positions `first` to `last` to one row of sums, from wherever their values stand."""
    length = group_len(example)
    row_bytes = size * GROUP_BYTES
    for position in range(first, last, length):
        # A group's missing second half has no weight; what is read for it must only be a number.
        following = min(position + length - 1, last - 1)
        even = position if position < reach else reach + path[path_start + position - reach]
        odd = following if following < reach else reach + path[path_start + following - reach]
        weight = weights + position // length * GROUP_BYTES
        for d in range(0, size, LANES):
            at = values + d * GROUP_BYTES
            add_products(example, weight, at + even // length * row_bytes, even % length,
                         at + odd // length * row_bytes, odd % length, sums + d * GROUP_BYTES)  # fmt: skip


@kernel
def _query_at(query: Any, first_row: Any, shared: Any, num_query_heads: Any, head: Any) -> Any:
    """Which of the [M, Hq] queries is one of a sequence and a key head."""
    return (first_row + query // shared) * num_query_heads + head * shared + query % shared


@kernel
def attend(arguments: Any, example: Any) -> None:
    """Tree attention of all sequences of a step.

    A task is one key head of one sequence and QUERY_TILE of its queries, counted token by token, head by head. A group
    is G elements: two bfloat16 or one float32.

    Arguments: query heads, heads, head size D, places per slot T, queries [M, Hq, D], keys
    [S, H, T / 16, D / G, 16, G], values [S, H, T / G, D, G], out [M, Hq, D], scale (address of a float32), tasks (int64
    [tasks, 3]: sequence, head, first query), sequences (int64 [sequences, 5]: slot, first row, rows, rows of the chain,
    places below the tree), parents (int64[M]), scratch (float32 [workers, QUERY_TILE * (T + D)]), paths (int64
    [workers, QUERY_TILE * (T + 5)]).
    """
    num_query_heads, num_heads = arguments[HEADER], arguments[HEADER + 1]
    size, slot_len = arguments[HEADER + 2], arguments[HEADER + 3]
    out = pointer_like(arguments[HEADER + 7], example)
    scale = pointer_like(arguments[HEADER + 8], null_float32())[0]
    tasks = pointer_like(arguments[HEADER + 9], null_int64())
    sequences = pointer_like(arguments[HEADER + 10], null_int64())
    parents = pointer_like(arguments[HEADER + 11], null_int64())
    worker = take(arguments, NEXT_WORKER)
    row_bytes = slot_len * GROUP_BYTES
    scores = arguments[HEADER + 12] + worker * QUERY_TILE * (slot_len + size) * GROUP_BYTES
    sums = scores + QUERY_TILE * row_bytes
    # Of each query of a tile: where it stands, where its weights stand, reach, length of its path; its path.
    table = arguments[HEADER + 13] + worker * QUERY_TILE * (slot_len + 5) * 8
    queries = pointer_like(table, null_int64())
    weights = pointer_like(table + QUERY_TILE * 8, null_int64())
    reaches = pointer_like(table + 2 * QUERY_TILE * 8, null_int64())
    path_lens = pointer_like(table + 3 * QUERY_TILE * 8, null_int64())
    totals = pointer_like(table + 4 * QUERY_TILE * 8, null_float32())
    paths = pointer_like(table + 5 * QUERY_TILE * 8, null_int64())
    shared = num_query_heads // num_heads
    length = group_len(example)
    block_bytes = LANES * size // length * GROUP_BYTES
    head_bytes = slot_len // LANES * block_bytes
    for i in range(QUERY_TILE):
        weights[i] = scores + i * row_bytes
    task = take(arguments, NEXT_TASK)
    while task < arguments[NUM_TASKS]:
        head, first_query = tasks[3 * task + 1], tasks[3 * task + 2]
        sequence = 5 * tasks[3 * task]
        slot, first_row, num_rows = sequences[sequence], sequences[sequence + 1], sequences[sequence + 2]
        num_chain, below_tree = sequences[sequence + 3], sequences[sequence + 4]
        num_queries = min(QUERY_TILE, num_rows * shared - first_query)
        last_row = (first_query + num_queries - 1) // shared
        count = below_tree - num_chain + last_row + 1
        end = (count + LANES - 1) // LANES * LANES
        cached = (slot * num_heads + head) * head_bytes
        keys, values = arguments[HEADER + 5] + cached, arguments[HEADER + 6] + cached
        for i in range(num_queries):
            at = _query_at(first_query + i, first_row, shared, num_query_heads, head) * size
            queries[i] = arguments[HEADER + 4] + at // length * GROUP_BYTES
        _multiply_keys(example, num_queries, queries, size, keys, values, end, scores, slot_len, block_bytes)
        for i in range(num_queries):
            node = (first_query + i) // shared - num_chain
            reaches[i] = below_tree + min(node + 1, 0)
            path_lens[i] = _trace_path(parents, first_row + num_chain, node, paths, i * slot_len)
            total = _softmax(pointer_like(weights[i], null_float32()), reaches[i], paths, i * slot_len, path_lens[i],
                             end, pointer_like(weights[i], example), scale)  # fmt: skip
            totals[i] = np.float32(1.0) / total
        # Taken before this task is done, so that its keys are on their way; past the last one it is any task's.
        task = take(arguments, NEXT_TASK)
        ahead = 3 * min(task, arguments[NUM_TASKS] - 1)
        next_keys = arguments[HEADER + 5] + (sequences[5 * tasks[ahead]] * num_heads + tasks[ahead + 1]) * head_bytes
        common = min(count, below_tree) // length * length
        _multiply_values(example, num_queries, weights, common, values, size, sums, next_keys)
        for i in range(num_queries):
            _add_last_values(example, weights[i], common, reaches[i] + path_lens[i], reaches[i], paths, i * slot_len,
                             values, size, sums + i * size * GROUP_BYTES)  # fmt: skip
            to = _query_at(first_query + i, first_row, shared, num_query_heads, head) * size
            factor = splat(totals[i])
            row = pointer_like(sums + i * size * GROUP_BYTES, null_float32())
            for d in range(0, size, LANES):
                store(out, to + d, mul(load(row, d), factor))


# What a C caller gets.


def attend_bfloat16(arguments: Any) -> None:
    attend(arguments, null_bfloat16())


def attend_float32(arguments: Any) -> None:
    attend(arguments, null_float32())
