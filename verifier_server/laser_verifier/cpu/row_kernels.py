"""What goes row by row between the linear layers: norm, rotation, cache write, gate, and moving cached places.

Each kernel gets one int64 array of counts and addresses and is run by all threads at once; they share out its tasks by
a counter in that array. Every number a kernel writes comes from one row by one fixed order of operations in float32,
rounded once at the end, so a row's bits depend neither on the rows beside it nor on who computes them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from laser_verifier.cpu.simd import (
    LANES,
    add,
    div,
    exp,
    fma,
    group_len,
    load,
    mul,
    null_bfloat16,
    null_float32,
    null_int64,
    pointer_like,
    splat,
    store,
    store_groups_spread,
    store_spread,
    sub,
    sum_lanes,
    take,
)
from laser_verifier.cpu.typed import HEADER, NEXT_TASK, NUM_TASKS, kernel

# Rows that make a task.
ROW_TILE = 4


@kernel
def _mean_square(x: Any, start: Any, size: Any) -> Any:
    total = splat(np.float32(0.0))
    for i in range(0, size, LANES):
        value = load(x, start + i)
        total = fma(value, value, total)
    return sum_lanes(total) / np.float32(size)


@kernel
def _inverse_root(mean_square: Any, epsilon: Any) -> Any:
    return np.float32(1.0) / np.float32(math.sqrt(mean_square + epsilon))


@kernel
def add_norm(arguments: Any, example: Any) -> None:
    """hidden += delta; out = RMSNorm(hidden) * weight.

    Arguments: num_rows, row size, hidden, delta (0: none), weight, out, epsilon (address of a float32).
    """
    num_rows, size = arguments[HEADER], arguments[HEADER + 1]
    hidden = pointer_like(arguments[HEADER + 2], example)
    has_delta = arguments[HEADER + 3] != 0
    delta = pointer_like(arguments[HEADER + 3], example)
    weight = pointer_like(arguments[HEADER + 4], example)
    out = pointer_like(arguments[HEADER + 5], example)
    epsilon = pointer_like(arguments[HEADER + 6], null_float32())[0]
    task = take(arguments, NEXT_TASK)
    while task < arguments[NUM_TASKS]:
        for row in range(task * ROW_TILE, min(num_rows, (task + 1) * ROW_TILE)):
            start = row * size
            if has_delta:
                for i in range(start, start + size, LANES):
                    store(hidden, i, add(load(hidden, i), load(delta, i)))
            scale = splat(_inverse_root(_mean_square(hidden, start, size), epsilon))
            for i in range(0, size, LANES):
                store(out, start + i, mul(mul(load(hidden, start + i), scale), load(weight, i)))
        task = take(arguments, NEXT_TASK)


@kernel
def gate(arguments: Any, example: Any) -> None:
    """out = silu(first half of the row) * second half.

    Arguments: num_rows, size of a half, gate and up joined, out.
    """
    num_rows, size = arguments[HEADER], arguments[HEADER + 1]
    joined = pointer_like(arguments[HEADER + 2], example)
    out = pointer_like(arguments[HEADER + 3], example)
    one, zero = splat(np.float32(1.0)), splat(np.float32(0.0))
    task = take(arguments, NEXT_TASK)
    while task < arguments[NUM_TASKS]:
        for row in range(task * ROW_TILE, min(num_rows, (task + 1) * ROW_TILE)):
            for i in range(0, size, LANES):
                x = load(joined, 2 * row * size + i)
                silu = div(x, add(one, exp(sub(zero, x))))
                store(out, row * size + i, mul(silu, load(joined, (2 * row + 1) * size + i)))
        task = take(arguments, NEXT_TASK)


@kernel
def rotate_and_cache(arguments: Any, example: Any) -> None:
    """Rotates queries and keys, norms them before if the model does, and writes keys and values.

    Arguments: num_rows, query heads, heads, head size D, places per slot T, joined qkv [M, Hq + 2H, D],
    queries out [M, Hq, D], keys [S, H, T / 16, D / G, 16, G], values [S, H, T / G, D, G] (see
    `attention_kernel.attend`), cosines and sines (float32 [positions, D / 2]), positions, slots and places of the rows
    (int64[M]), weights of the norm of queries and of keys (0: none), epsilon (address of a float32).
    """
    num_rows, num_query_heads, num_heads = arguments[HEADER], arguments[HEADER + 1], arguments[HEADER + 2]
    size, slot_len = arguments[HEADER + 3], arguments[HEADER + 4]
    joined = pointer_like(arguments[HEADER + 5], example)
    queries = pointer_like(arguments[HEADER + 6], example)
    keys = pointer_like(arguments[HEADER + 7], example)
    values = pointer_like(arguments[HEADER + 8], example)
    cosines = pointer_like(arguments[HEADER + 9], null_float32())
    sines = pointer_like(arguments[HEADER + 10], null_float32())
    positions = pointer_like(arguments[HEADER + 11], null_int64())
    slots = pointer_like(arguments[HEADER + 12], null_int64())
    places = pointer_like(arguments[HEADER + 13], null_int64())
    has_norm = arguments[HEADER + 14] != 0
    query_norm = pointer_like(arguments[HEADER + 14], example)
    key_norm = pointer_like(arguments[HEADER + 15], example)
    epsilon = pointer_like(arguments[HEADER + 16], null_float32())[0]
    half = size // 2
    length = group_len(example)
    task = take(arguments, NEXT_TASK)
    while task < arguments[NUM_TASKS]:
        for row in range(task * ROW_TILE, min(num_rows, (task + 1) * ROW_TILE)):
            angle = positions[row] * half
            first = row * (num_query_heads + 2 * num_heads) * size
            for head in range(num_query_heads + num_heads):
                start = first + head * size
                is_query = head < num_query_heads
                scale = splat(np.float32(1.0))
                if has_norm:
                    scale = splat(_inverse_root(_mean_square(joined, start, size), epsilon))
                for i in range(0, half, LANES):
                    low, high = load(joined, start + i), load(joined, start + half + i)
                    if has_norm:
                        weight = query_norm if is_query else key_norm
                        low = mul(mul(low, scale), load(weight, i))
                        high = mul(mul(high, scale), load(weight, half + i))
                    cosine, sine = load(cosines, angle + i), load(sines, angle + i)
                    turned_low = sub(mul(low, cosine), mul(high, sine))
                    turned_high = fma(high, cosine, mul(low, sine))
                    if is_query:
                        to = (row * num_query_heads + head) * size + i
                        store(queries, to, turned_low)
                        store(queries, to + half, turned_high)
                    else:
                        place = places[row]
                        block = (slots[row] * num_heads + head - num_query_heads) * slot_len + place // LANES * LANES
                        to = block * size + i * LANES + place % LANES * length
                        store_groups_spread(keys, to, LANES * length, turned_low)
                        store_groups_spread(keys, to + half * LANES, LANES * length, turned_high)
            for head in range(num_heads):
                start = first + (num_query_heads + num_heads + head) * size
                place = places[row]
                block = (slots[row] * num_heads + head) * slot_len + place // length * length
                to = block * size + place % length
                for i in range(0, size, LANES):
                    store_spread(values, to + i * length, length, load(joined, start + i))
        task = take(arguments, NEXT_TASK)


@kernel
def move(arguments: Any, example: Any) -> None:
    """Moves cached places of all layers: place `targets[i]` of slot `slots[i]` takes what `sources[i]` held.

    A task is one head of one layer. In order: no target may be the source of a later move.

    Arguments: number of moves, slots S, heads, head size D, places per slot T, keys [L, S, H, T / 16, D / G, 16, G],
    values [L, S, H, T / G, D, G] (see `attention_kernel.attend`), slots, sources and targets (int64).
    """
    num_moves, num_slots, num_heads = arguments[HEADER], arguments[HEADER + 1], arguments[HEADER + 2]
    size, slot_len = arguments[HEADER + 3], arguments[HEADER + 4]
    keys = pointer_like(arguments[HEADER + 5], example)
    values = pointer_like(arguments[HEADER + 6], example)
    slots = pointer_like(arguments[HEADER + 7], null_int64())
    sources = pointer_like(arguments[HEADER + 8], null_int64())
    targets = pointer_like(arguments[HEADER + 9], null_int64())
    length = group_len(example)
    task = take(arguments, NEXT_TASK)
    while task < arguments[NUM_TASKS]:
        layer, head = task // num_heads, task % num_heads
        for i in range(num_moves):
            first = ((layer * num_slots + slots[i]) * num_heads + head) * slot_len * size
            source = first + sources[i] // length * length * size + sources[i] % length
            target = first + targets[i] // length * length * size + targets[i] % length
            for d in range(0, size * length, length):
                values[target + d] = values[source + d]
            source = first + sources[i] // LANES * LANES * size + sources[i] % LANES * length
            target = first + targets[i] // LANES * LANES * size + targets[i] % LANES * length
            for d in range(0, size * LANES, length * LANES):
                for part in range(length):
                    keys[target + d + part] = keys[source + d + part]
        task = take(arguments, NEXT_TASK)


# What a C caller gets.


def add_norm_bfloat16(arguments: Any) -> None:
    add_norm(arguments, null_bfloat16())


def add_norm_float32(arguments: Any) -> None:
    add_norm(arguments, null_float32())


def gate_bfloat16(arguments: Any) -> None:
    gate(arguments, null_bfloat16())


def gate_float32(arguments: Any) -> None:
    gate(arguments, null_float32())


def rotate_bfloat16(arguments: Any) -> None:
    rotate_and_cache(arguments, null_bfloat16())


def rotate_float32(arguments: Any) -> None:
    rotate_and_cache(arguments, null_float32())


def move_bfloat16(arguments: Any) -> None:
    move(arguments, null_bfloat16())


def move_float32(arguments: Any) -> None:
    move(arguments, null_float32())
