"""Linear layers in bfloat16 on the processor's pairwise dot products (AVX512-BF16), weights read once and in line.

A tile is up to MAX_ROWS rows times 32 outputs, its sums in registers. While a panel of 32 outputs is multiplied, the
next one is fetched from memory, so that reading and multiplying overlap.
A row's sums run over its inputs in one order, whatever the other rows are.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from laser_verifier.cpu.simd import (
    LANES,
    at_address,
    bfloats,
    call,
    fetch,
    float_vector,
    moved,
    pair_vector,
    pairs_of,
    spread,
    take,
)
from laser_verifier.cpu.typed import HEADER, NUM_TASKS, intrinsic

# Outputs of a panel, in vectors and in all; rows of a tile. 24 sums, 2 weights and an input fit into 32 registers.
_VECTORS = 2
PANEL = _VECTORS * LANES
MAX_ROWS = 12
_LINE_BYTES = 64


_i32, _i64 = ir.IntType(32), ir.IntType(64)


def _tile(builder: Any, num_rows: int, arguments: Any) -> None:
    """LLVM code of a tile of so many rows; arguments as of `multiply_tile`."""
    x, x_step, weights, bias, num_pairs, ahead, ahead_step, out, out_step = arguments
    first = [
        builder.load(at_address(builder, moved(builder, bias, v, 4 * LANES), float_vector), align=4)
        for v in range(_VECTORS)
    ]
    sums = [cgutils.alloca_once_value(builder, first[v]) for _ in range(num_rows) for v in range(_VECTORS)]
    with cgutils.for_range(builder, num_pairs, intp=_i64) as loop:
        for line in range(_VECTORS):
            wanted = moved(builder, moved(builder, ahead, loop.index, ahead_step), line, _LINE_BYTES)
            fetch(builder, at_address(builder, wanted, ir.IntType(8)))
        row = moved(builder, weights, loop.index, 4 * PANEL)
        factors = [
            builder.load(at_address(builder, moved(builder, row, v, 4 * LANES), pair_vector), align=_LINE_BYTES)
            for v in range(_VECTORS)
        ]
        for r in range(num_rows):
            pair = moved(builder, moved(builder, x, loop.index, 4), r, x_step)
            both = pairs_of(builder, spread(builder, builder.load(at_address(builder, pair, _i32), align=4)))
            for v in range(_VECTORS):
                cell = sums[r * _VECTORS + v]
                product = [builder.load(cell), both, factors[v]]
                builder.store(call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", product), cell)
    for r in range(num_rows):
        for v in range(_VECTORS):
            to = moved(builder, moved(builder, out, r, out_step), v, 2 * LANES)
            rounded = builder.fptrunc(builder.load(sums[r * _VECTORS + v]), bfloats)
            builder.store(rounded, at_address(builder, to, bfloats), align=2)


@intrinsic
def multiply_tile(
    typing_context: Any, num_rows: Any, x: Any, x_step: Any, weights: Any, bias: Any, num_pairs: Any,
    ahead: Any, ahead_step: Any, out: Any, out_step: Any,
) -> Any:  # fmt: skip
    """out[num_rows, 32] = bias + x[num_rows, K] panel[K, 32]; all are int64, addresses and steps in bytes.

    Asks memory for two lines from `ahead` on, `ahead_step` further for every pair of inputs.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        done = builder.append_basic_block("multiplied")
        chosen = builder.switch(arguments[0], done)
        for num_rows in range(1, MAX_ROWS + 1):
            block = builder.append_basic_block(f"rows{num_rows}")
            chosen.add_case(ir.Constant(_i64, num_rows), block)
            builder.position_at_end(block)
            _tile(builder, num_rows, arguments[1:])
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 10), codegen


def multiply_bfloat16(arguments: Any) -> None:
    """out = x weights + bias, rounded once. A task is one panel of 32 outputs.

    Arguments: rows M, pairs of inputs K / 2, outputs N, x (bfloat16 [M, K]), weights (bfloat16 [N / 32, K / 2, 32, 2],
    at a multiple of 64 bytes), bias (float32[N]), out (bfloat16 [M, N]).
    """
    num_rows, num_pairs, num_outputs = arguments[HEADER], arguments[HEADER + 1], arguments[HEADER + 2]
    x, weights, bias = arguments[HEADER + 3], arguments[HEADER + 4], arguments[HEADER + 5]
    out = arguments[HEADER + 6]
    num_tiles = (num_rows + MAX_ROWS - 1) // MAX_ROWS
    # Every pass over the panel fetches its share of the next one.
    ahead_step = 4 * PANEL // num_tiles
    task = take(arguments)
    while task < arguments[NUM_TASKS]:
        # Taken before this one is done, so that it is known what to fetch; the last one is fetched again.
        following = take(arguments)
        ahead = weights + min(following, arguments[NUM_TASKS] - 1) * num_pairs * 4 * PANEL
        for tile in range(num_tiles):
            first = tile * num_rows // num_tiles
            multiply_tile(
                (tile + 1) * num_rows // num_tiles - first, x + first * num_pairs * 4, num_pairs * 4,
                weights + task * num_pairs * 4 * PANEL, bias + task * 4 * PANEL, num_pairs,
                ahead + tile * num_pairs * ahead_step, ahead_step,
                out + 2 * (first * num_outputs + task * PANEL), num_outputs * 2,
            )  # fmt: skip
        task = following
