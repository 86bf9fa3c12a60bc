"""The small matrix products of attention: up to MAX_ROWS rows times vectors of 16, sums in registers.

All is counted in groups. Of a pair of bfloat16 both products are added to a float32 sum, by AVX512-BF16's dot product
where the processor has it, else by two fused additions of halves widened in registers. So one code serves both types. A
row's sums run over its groups in one order, whatever the other rows are.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

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
    has_bfloat16_products,
    has_wide_registers,
    int_vector,
    moved,
    pairs_of,
    spread,
    widened_halves,
)
from laser_verifier.cpu.typed import intrinsic

# Rows and vectors of a tile: 24 sums, beside 4 vectors of groups and a row's, fit into 32 wide registers, and 6 into 16
# of half the width.
MAX_ROWS = 6
WIDE = 4 if has_wide_registers() else 1
# Of pairs that are widened, halves and wholes want registers too.
_MAX_WIDENED_ROWS = 6 if has_wide_registers() else 4

_i8, _i32, _i64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_HIGH = ir.Constant(int_vector, [0xFFFF0000] * LANES)
_LOW = ir.Constant(int_vector, [0x0000FFFF] * LANES)
_HALF = ir.Constant(int_vector, [16] * LANES)


def _load(builder: Any, address: Any) -> Any:
    """16 groups."""
    return builder.load(at_address(builder, address, int_vector), align=2)


def _dot(builder: Any, is_pair: bool, one: Any, many: Any, total: Any) -> Any:
    """total + one * many, each group of `one` with that of `many` in its lane."""

    def fused(a: Any, b: Any, c: Any) -> Any:
        a, b = builder.bitcast(a, float_vector), builder.bitcast(b, float_vector)
        return call(builder, "llvm.fma.v16f32", [a, b, c])

    if not is_pair:
        return fused(one, many, total)
    if has_bfloat16_products():
        operands = [total, pairs_of(builder, one), pairs_of(builder, many)]
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", operands)
    for part, parts in zip(widened_halves(builder, one), widened_halves(builder, many), strict=True):
        total = fused(part, parts, total)
    return total


def _tile(builder: Any, is_pair: bool, tile_rows: range, num_vectors: int, asks_ahead: bool, arguments: Any) -> None:
    """LLVM code of these rows of a tile of so many vectors; arguments as of `multiply_wide`."""
    rows, count, many, step, vector_step, out, row_step, ahead = arguments
    starts = [builder.load(builder.gep(rows, [ir.Constant(_i64, r)])) for r in tile_rows]
    zero = ir.Constant(float_vector, [0.0] * LANES)
    sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(num_vectors)] for _ in tile_rows]
    with cgutils.for_range(builder, count, intp=_i64) as loop:
        # As many lines as it reads itself.
        for line in range(num_vectors if asks_ahead else 0):
            wanted = moved(builder, moved(builder, ahead, loop.index, num_vectors * LINE_BYTES), line, LINE_BYTES)
            fetch(builder, at_address(builder, wanted, _i8))
        first = moved(builder, many, loop.index, step)
        vectors = [_load(builder, moved(builder, first, v, vector_step)) for v in range(num_vectors)]
        for start, row in zip(starts, sums, strict=True):
            group = moved(builder, start, loop.index, GROUP_BYTES)
            one = spread(builder, builder.load(at_address(builder, group, _i32), align=2))
            for vector, cell in zip(vectors, row, strict=True):
                builder.store(_dot(builder, is_pair, one, vector, builder.load(cell)), cell)
    for r, row in zip(tile_rows, sums, strict=True):
        for v, cell in enumerate(row):
            to = moved(builder, moved(builder, out, r, row_step), v, VECTOR_BYTES)
            builder.store(builder.load(cell), at_address(builder, to, float_vector), align=4)


def _multiply(num_vectors: int, asks_ahead: bool) -> Any:
    @intrinsic
    def multiply(
        typing_context: Any, example: Any, num_rows: Any, rows: Any, count: Any, many: Any, step: Any,
        vector_step: Any, out: Any, row_step: Any, ahead: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            done = builder.append_basic_block("multiplied")
            chosen = builder.switch(arguments[1], done)
            for num_rows in range(1, MAX_ROWS + 1):
                block = builder.append_basic_block(f"rows{num_rows}")
                chosen.add_case(ir.Constant(_i64, num_rows), block)
                builder.position_at_end(block)
                is_pair = example == bfloat16_pointer
                most = _MAX_WIDENED_ROWS if is_pair and not has_bfloat16_products() else MAX_ROWS
                num_parts = -(-num_rows // most)
                for part in range(num_parts):
                    rows_of_part = range(part * num_rows // num_parts, (part + 1) * num_rows // num_parts)
                    _tile(builder, is_pair, rows_of_part, num_vectors, asks_ahead, arguments[2:])
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.none(example, types.int64, rows, *[types.int64] * 7), codegen

    return multiply


# out[num_rows, vectors * 16] = rows[num_rows, count] many[count, vectors * 16], counted in groups, out in float32.
# (example, num_rows, rows: pointer to the address of each, count, many, bytes from one of its rows to the next, bytes
# from vector to vector, out, bytes from one of its rows to the next, ahead). Addresses are int64. The wide one asks
# memory for a line per vector from `ahead` on at every one of the `count` steps.
multiply_wide = _multiply(WIDE, asks_ahead=True)
multiply_narrow = _multiply(1, asks_ahead=False)


@intrinsic
def add_products(
    typing_context: Any, example: Any, weight: Any, even: Any, even_half: Any, odd: Any, odd_half: Any, out: Any
) -> Any:
    """out[16] += the group of weights at `weight` times a group put together from two places.

    Of bfloat16 the group's first half is half `even_half` (0 or 1) of the 16 groups at `even`, its second half
    `odd_half` of those at `odd`; of float32 it is what stands at `even`. All are int64, addresses but for the halves.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, weight, even, even_half, odd, odd_half, out = arguments
        many = _load(builder, even)
        is_pair = example == bfloat16_pointer
        if is_pair:
            first = builder.select(_is_set(builder, even_half), builder.lshr(many, _HALF), builder.and_(many, _LOW))
            many = _load(builder, odd)
            second = builder.select(_is_set(builder, odd_half), builder.and_(many, _HIGH), builder.shl(many, _HALF))
            many = builder.or_(first, second)
        one = spread(builder, builder.load(at_address(builder, weight, _i32), align=2))
        cell = at_address(builder, out, float_vector)
        builder.store(_dot(builder, is_pair, one, many, builder.load(cell, align=4)), cell, align=4)
        return context.get_dummy_value()

    return types.none(example, *[types.int64] * 6), codegen


def _is_set(builder: Any, value: Any) -> Any:
    return builder.icmp_signed("!=", value, ir.Constant(_i64, 0))
