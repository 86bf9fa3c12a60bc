"""Linear layers, weights read once and in line: up to MAX_ROWS rows times a panel of 32 outputs, sums in registers.

Pairs of bfloat16 go to AVX512-BF16's dot product where the processor has it. Elsewhere bfloat16 is multiplied as
float32, but only half the bytes come from memory: weights are widened in the cache, inputs by `widen` before. While a
panel is multiplied, the next one is fetched, so that reading and multiplying overlap. A row's sums run over its inputs
in one order, whatever the other rows are.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from laser_verifier.cpu.row_kernels import ROW_TILE
from laser_verifier.cpu.simd import (
    GROUP_BYTES,
    LANES,
    LINE_BYTES,
    VECTOR_BYTES,
    at_address,
    bfloat16_pointer,
    call,
    fetch,
    float_vector,
    group_len,
    has_bfloat16_products,
    has_wide_registers,
    load,
    moved,
    null_bfloat16,
    null_float32,
    pair_vector,
    pointer_like,
    rounded,
    short_vector,
    spread,
    store,
    take,
    widened,
)
from laser_verifier.cpu.typed import HEADER, NEXT_TASK, NEXT_WORKER, NUM_TASKS, intrinsic, kernel

# Outputs of a panel, in vectors and in all.
_VECTORS = 2
PANEL = _VECTORS * LANES
# Rows of a tile, and how many of them take both vectors of a panel at once; more take one after the other. With 32
# registers of 16 lanes there is room for 24 sums, 2 vectors of weights and an input, with 16 of 8 lanes for 12 sums.
MAX_ROWS = 12 if has_wide_registers() else 6
_MAX_WHOLE_ROWS = 12 if has_wide_registers() else 2

# Tiles that widen a panel's weights as they read them; more have it widened once for all of them.
_MAX_TILES_AS_READ = 8

_f32, _i32, _i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


def _is_paired(example: Any) -> bool:
    """Whether two neighbouring inputs are multiplied at once."""
    return bool(example == bfloat16_pointer and has_bfloat16_products())


def _weights_at(builder: Any, example: Any, address: Any) -> Any:
    """LLVM code: the weights of 16 outputs for one step of the sums."""
    if _is_paired(example):
        return builder.load(at_address(builder, address, pair_vector), align=VECTOR_BYTES)
    if example == bfloat16_pointer:
        return widened(builder, builder.load(at_address(builder, address, short_vector), align=VECTOR_BYTES // 2))
    return builder.load(at_address(builder, address, float_vector), align=VECTOR_BYTES)


def _add_products(builder: Any, example: Any, address: Any, factors: list[Any], sums: list[Any]) -> None:
    """LLVM code: adds to a row's sums, a cell for each vector, what one step gives; the row's input is at `address`."""
    if _is_paired(example):
        one = spread(builder, builder.load(at_address(builder, address, _i32), align=4))
        name, one = "llvm.x86.avx512bf16.dpbf16ps.512", builder.bitcast(one, pair_vector)
    else:
        name, one = "llvm.fma.v16f32", spread(builder, builder.load(at_address(builder, address, _f32), align=4))
    for factor, cell in zip(factors, sums, strict=True):
        total = builder.load(cell)
        operands = [total, one, factor] if _is_paired(example) else [one, factor, total]
        builder.store(call(builder, name, operands), cell)


def _tile(builder: Any, weight: Any, out_type: Any, num_rows: int, vectors: range, arguments: Any) -> None:
    """LLVM code of so many rows and these vectors of the panel; types and arguments as of `multiply_tile`."""
    x, x_step, weights, bias, num_steps, ahead, ahead_step, out, out_step = arguments
    is_narrow = weight == bfloat16_pointer and not _is_paired(weight)
    vector_bytes = VECTOR_BYTES // 2 if is_narrow else VECTOR_BYTES
    first = [
        builder.load(at_address(builder, moved(builder, bias, v, VECTOR_BYTES), float_vector), align=4) for v in vectors
    ]
    sums = [[cgutils.alloca_once_value(builder, value) for value in first] for _ in range(num_rows)]
    with cgutils.for_range(builder, num_steps, intp=_i64) as loop:
        for line in vectors[: len(vectors) * vector_bytes // LINE_BYTES or 1]:
            wanted = moved(builder, moved(builder, ahead, loop.index, ahead_step), line, vector_bytes)
            fetch(builder, at_address(builder, wanted, ir.IntType(8)))
        row = moved(builder, weights, loop.index, _VECTORS * vector_bytes)
        factors = [_weights_at(builder, weight, moved(builder, row, v, vector_bytes)) for v in vectors]
        at = moved(builder, x, loop.index, GROUP_BYTES)
        for r in range(num_rows):
            _add_products(builder, weight, moved(builder, at, r, x_step), factors, sums[r])
    is_short = out_type == bfloat16_pointer
    size = 2 if is_short else 4
    for r in range(num_rows):
        for v, cell in zip(vectors, sums[r], strict=True):
            value = rounded(builder, builder.load(cell)) if is_short else builder.load(cell)
            to = moved(builder, moved(builder, out, r, out_step), v, size * LANES)
            builder.store(value, at_address(builder, to, value.type), align=size)


@intrinsic
def multiply_tile(
    typing_context: Any, weight: Any, out_type: Any, num_rows: Any, x: Any, x_step: Any, weights: Any, bias: Any,
    num_steps: Any, ahead: Any, ahead_step: Any, out: Any, out_step: Any,
) -> Any:  # fmt: skip
    """out[num_rows, 32] = bias + x[num_rows, K] panel[K, 32].

    `weight` and `out_type` are pointers of the panel's and the output's type; all else is int64, addresses and steps in
    bytes. x is float32 unless pairs are multiplied. Asks memory for as many bytes as it reads of the panel from `ahead`
    on, `ahead_step` further for every step of the sums.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        done = builder.append_basic_block("multiplied")
        chosen = builder.switch(arguments[2], done)
        for num_rows in range(1, MAX_ROWS + 1):
            block = builder.append_basic_block(f"rows{num_rows}")
            chosen.add_case(ir.Constant(_i64, num_rows), block)
            builder.position_at_end(block)
            width = _VECTORS if num_rows <= _MAX_WHOLE_ROWS else 1
            for v in range(0, _VECTORS, width):
                _tile(builder, weight, out_type, num_rows, range(v, v + width), arguments[3:])
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.none(weight, out_type, *[types.int64] * 10), codegen


@intrinsic
def _is_widened(typing_context: Any, example: Any) -> Any:
    """Whether weights and inputs of this type are multiplied as float32 without being that."""
    answer = int(example == bfloat16_pointer and not _is_paired(example))
    return types.boolean(example), lambda context, builder, signature, arguments: ir.Constant(ir.IntType(1), answer)


@kernel
def _widen(source: Any, count: Any, target: Any) -> Any:
    """Writes `count` bfloat16, a multiple of 16, as float32; returns their address."""
    narrow, wide = pointer_like(source, null_bfloat16()), pointer_like(target, null_float32())
    for i in range(0, count, LANES):
        store(wide, i, load(narrow, i))
    return target


def widen(arguments: Any) -> None:
    """out = x. A task is ROW_TILE rows.

    Arguments: rows M, row size K (a multiple of 16), x (bfloat16 [M, K]), out (float32 [M, K]).
    """
    num_rows, size = arguments[HEADER], arguments[HEADER + 1]
    task = take(arguments, NEXT_TASK)
    while task < arguments[NUM_TASKS]:
        first = task * ROW_TILE
        count = (min(num_rows, first + ROW_TILE) - first) * size
        _widen(arguments[HEADER + 2] + 2 * first * size, count, arguments[HEADER + 3] + 4 * first * size)
        task = take(arguments, NEXT_TASK)


@kernel
def multiply(arguments: Any, example: Any) -> None:
    """out = x weights + bias, rounded once. A task is one panel of 32 outputs.

    Arguments: rows M, at least 1, inputs K (a multiple of 16), outputs N (a multiple of 32), x [M, K], weights
    [N / 32, K / G, 32, G], bias (float32[N]), out [M, N], panels. G is how many inputs are multiplied at once, 2 of a
    pair or 1. Where bfloat16 is widened, x is float32, and panels is room for one of each worker (float32
    [workers, K, 32]). Weights and panels stand at multiples of 64 bytes.
    """
    num_rows, num_inputs, num_outputs = arguments[HEADER], arguments[HEADER + 1], arguments[HEADER + 2]
    x, weights, bias = arguments[HEADER + 3], arguments[HEADER + 4], arguments[HEADER + 5]
    out = arguments[HEADER + 6]
    size = GROUP_BYTES // group_len(example)
    num_tiles = (num_rows + MAX_ROWS - 1) // MAX_ROWS
    panel_bytes = size * PANEL * num_inputs
    own_panel = arguments[HEADER + 7] + take(arguments, NEXT_WORKER) * 4 * PANEL * num_inputs
    is_widened = _is_widened(example)
    num_steps = num_inputs if is_widened else num_inputs // group_len(example)
    x_step = num_steps * GROUP_BYTES
    # Each of the first tiles fetches its share of the next panel.
    num_fetching = min(num_tiles, _MAX_TILES_AS_READ)
    share_step = panel_bytes // num_steps // num_fetching
    task = take(arguments, NEXT_TASK)
    while task < arguments[NUM_TASKS]:
        # Taken before this one is done, so that it is known what to fetch; the last one is fetched again.
        following = take(arguments, NEXT_TASK)
        ahead = weights + min(following, arguments[NUM_TASKS] - 1) * panel_bytes
        panel, panel_bias, to = weights + task * panel_bytes, bias + task * 4 * PANEL, out + task * size * PANEL
        is_copied = is_widened and num_tiles > _MAX_TILES_AS_READ
        if is_copied:
            panel = _widen(panel, PANEL * num_inputs, own_panel)
        for tile in range(num_tiles):
            first = tile * num_rows // num_tiles
            count = (tile + 1) * num_rows // num_tiles - first
            ahead_step = share_step if tile < num_fetching else 0
            tile_x, tile_ahead = x + first * x_step, ahead + tile * num_steps * ahead_step
            tile_out = to + first * num_outputs * size
            if is_copied:
                multiply_tile(null_float32(), example, count, tile_x, x_step, panel, panel_bias, num_steps,
                              tile_ahead, ahead_step, tile_out, num_outputs * size)  # fmt: skip
            else:
                multiply_tile(example, example, count, tile_x, x_step, panel, panel_bias, num_steps,
                              tile_ahead, ahead_step, tile_out, num_outputs * size)  # fmt: skip
        task = following


# What a C caller gets.


def multiply_bfloat16(arguments: Any) -> None:
    multiply(arguments, null_bfloat16())


def multiply_float32(arguments: Any) -> None:
    multiply(arguments, null_float32())
