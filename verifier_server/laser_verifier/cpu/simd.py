"""Vectors of 16 float32 for numba kernels: written out as LLVM vectors, so that no compiler reorders an addition.

numba's own loops leave it to LLVM's vectoriser how a sum is split and whether a product is fused, and that may differ
between the body of a loop and its rest. With these a kernel says both, and gives the same bits wherever a value stands.
LLVM lowers them to whatever the processor has (one AVX-512 register, two AVX2 ones, four of NEON).

Pointers are numba's `CPointer(float32)` or `CPointer(uint16)`; the latter is read as bfloat16 and written rounded to
nearest, ties to even. Indices count elements. A group is what products are counted in: four bytes, a float32 or two
neighbouring bfloat16.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from laser_verifier.cpu.typed import intrinsic

LANES = 16
GROUP_BYTES = 4
# Of 16 float32, or of 16 groups; of what is fetched from memory at once.
VECTOR_BYTES = GROUP_BYTES * LANES
LINE_BYTES = 64


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_f32 = ir.FloatType()
_i32 = ir.IntType(32)
_i64 = ir.IntType(64)
_i16 = ir.IntType(16)
float_vector = ir.VectorType(_f32, LANES)
int_vector = ir.VectorType(_i32, LANES)
short_vector = ir.VectorType(_i16, LANES)
bfloats = ir.VectorType(_BFloat(), LANES)
pair_vector = ir.VectorType(_BFloat(), 2 * LANES)


@functools.cache
def has_bfloat16_products() -> bool:
    """Whether this processor has AVX512-BF16: sums of products of bfloat16 pairs, and rounding to bfloat16."""
    return bool(llvmlite.binding.get_host_cpu_features().get("avx512bf16"))


@functools.cache
def has_wide_registers() -> bool:
    """Whether a register holds a whole vector, and 32 of them are there (AVX-512); else 16 that hold half of one."""
    return bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))


@functools.cache
def has_fused_products() -> bool:
    """Whether a product and a sum are one instruction; elsewhere LLVM calls a function for every lane."""
    return bool(llvmlite.binding.get_host_cpu_features().get("fma", True))  # told of x86 only


def pairs_of(builder: Any, ints: Any) -> Any:
    """LLVM code: 16 integers of 32 bits as 16 pairs of bfloat16."""
    return builder.bitcast(ints, pair_vector)


class Float32x16(types.Type):  # type: ignore[misc]
    """numba's type of a vector."""

    def __init__(self) -> None:
        super().__init__(name="Float32x16")


@register_model(Float32x16)
class _Float32x16Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, float_vector)


float32x16 = Float32x16()
float32_pointer = types.CPointer(types.float32)
bfloat16_pointer = types.CPointer(types.uint16)
int64_pointer = types.CPointer(types.int64)


def _ints_of(value: int) -> ir.Constant:
    return ir.Constant(int_vector, [value] * LANES)


def _floats_of(value: float) -> ir.Constant:
    return ir.Constant(float_vector, [value] * LANES)


def call(builder: Any, name: str, arguments: list[Any], result: Any = float_vector) -> Any:
    """LLVM code: a call of one of LLVM's intrinsics."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [argument.type for argument in arguments]), name
    )
    return builder.call(function, arguments)


def widened(builder: Any, shorts: Any) -> Any:
    """LLVM code: 16 bfloat16, as integers, as float32: their bits are the upper halves."""
    return builder.bitcast(builder.shl(builder.zext(shorts, int_vector), _ints_of(16)), float_vector)


def widened_halves(builder: Any, groups: Any) -> list[Any]:
    """LLVM code: 16 groups of two bfloat16, as integers, to the first of each and the second of each in float32."""
    halves = builder.shl(groups, _ints_of(16)), builder.and_(groups, _ints_of(0xFFFF0000))
    return [builder.bitcast(half, float_vector) for half in halves]


def rounded(builder: Any, vector: Any) -> Any:
    """LLVM code: float32 as bfloat16 bits, to nearest, ties to even; NaN stays NaN."""
    if has_bfloat16_products():
        return builder.bitcast(builder.fptrunc(vector, bfloats), short_vector)
    bits = builder.bitcast(vector, int_vector)
    odd = builder.and_(builder.lshr(bits, _ints_of(16)), _ints_of(1))
    up = builder.lshr(builder.add(bits, builder.add(odd, _ints_of(0x7FFF))), _ints_of(16))
    is_nan = builder.fcmp_unordered("uno", vector, vector)
    return builder.trunc(builder.select(is_nan, _ints_of(0x7FC0), up), short_vector)


def _address(builder: Any, pointer: Any, index: Any, vector_type: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), vector_type.as_pointer())


@intrinsic
def pointer_like(typing_context: Any, address: Any, example: Any) -> Any:
    """The pointer of `example`'s type at an int64 address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return example(types.int64, example), codegen


def _null_of(pointer_type: Any) -> Any:
    @intrinsic
    def null(typing_context: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return ir.Constant(context.get_value_type(pointer_type), None)

        return pointer_type(), codegen

    return null


# Examples for pointer_like: null pointers of the two types of element, and of int64.
null_float32 = _null_of(float32_pointer)
null_bfloat16 = _null_of(bfloat16_pointer)
null_int64 = _null_of(int64_pointer)


@intrinsic
def load(typing_context: Any, pointer: Any, index: Any) -> Any:
    """16 elements from `pointer[index]` on."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        is_float = pointer == float32_pointer
        address = _address(builder, arguments[0], arguments[1], float_vector if is_float else short_vector)
        loaded = builder.load(address, align=4 if is_float else 2)
        return loaded if is_float else widened(builder, loaded)

    return float32x16(pointer, types.int64), codegen


@intrinsic
def store(typing_context: Any, pointer: Any, index: Any, vector: Any) -> Any:
    """Writes 16 elements to `pointer[index]` and on."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        is_float = pointer == float32_pointer
        address = _address(builder, arguments[0], arguments[1], float_vector if is_float else short_vector)
        value = arguments[2] if is_float else rounded(builder, arguments[2])
        builder.store(value, address, align=4 if is_float else 2)
        return context.get_dummy_value()

    return types.none(pointer, types.int64, vector), codegen


@intrinsic
def store_spread(typing_context: Any, pointer: Any, index: Any, stride: Any, vector: Any) -> Any:
    """Writes 16 elements, `stride` apart, from `pointer[index]` on."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base, index, stride, value = arguments
        if pointer == bfloat16_pointer:
            value = rounded(builder, value)
        _scatter(builder, value, LANES, base, index, stride)
        return context.get_dummy_value()

    return types.none(pointer, types.int64, types.int64, vector), codegen


@intrinsic
def store_groups_spread(typing_context: Any, pointer: Any, index: Any, stride: Any, vector: Any) -> Any:
    """Writes 16 elements in groups of four bytes, `stride` elements apart, from `pointer[index]` on."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base, index, stride, value = arguments
        if pointer == bfloat16_pointer:
            pairs = ir.VectorType(_i32, LANES // 2)
            value = builder.bitcast(rounded(builder, value), pairs)
            half = ir.Constant(ir.IntType(64), 2)
            base = builder.bitcast(base, _i32.as_pointer())
            index, stride = builder.sdiv(index, half), builder.sdiv(stride, half)
        _scatter(builder, value, value.type.count, base, index, stride)
        return context.get_dummy_value()

    return types.none(pointer, types.int64, types.int64, vector), codegen


def _scatter(builder: Any, value: Any, count: int, base: Any, index: Any, stride: Any) -> None:
    for lane in range(count):
        builder.store(builder.extract_element(value, ir.Constant(_i32, lane)), builder.gep(base, [index]))
        index = builder.add(index, stride)


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """A float32 in all lanes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return spread(builder, arguments[0])

    return float32x16(types.float32), codegen


def fetch(builder: Any, address: Any) -> None:
    """LLVM code: asks for the cache line at a pointer to 8-bit integers, for reading, to the second-level cache."""
    hints = [ir.Constant(_i32, hint) for hint in (0, 2, 1)]
    call(builder, "llvm.prefetch.p0", [address, *hints], ir.VoidType())


def moved(builder: Any, address: Any, count: Any, size: Any) -> Any:
    """LLVM code: address + count * size, of 64 bits; count and size may be Python integers."""
    count, size = (ir.Constant(_i64, x) if isinstance(x, int) else x for x in (count, size))
    return builder.add(address, builder.mul(count, size))


def at_address(builder: Any, address: Any, llvm_type: Any) -> Any:
    """LLVM code: the pointer at an integer address."""
    return builder.inttoptr(address, llvm_type.as_pointer())


def spread(builder: Any, value: Any) -> Any:
    """LLVM code: a value in all lanes."""
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(_i32, 0))
    return builder.shuffle_vector(single, single, _ints_of(0))


@intrinsic
def group_len(typing_context: Any, example: Any) -> Any:
    """How many elements of this type make a group."""
    length = 2 if example == bfloat16_pointer else 1
    return types.int64(example), lambda context, builder, signature, arguments: ir.Constant(_i64, length)


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return call(builder, "llvm.fma.v16f32", list(arguments))

    return float32x16(a, b, c), codegen


def _binary(operation: str) -> Any:
    @intrinsic
    def binary(typing_context: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, operation)(*arguments)

        return float32x16(a, b), codegen

    return binary


add = _binary("fadd")
sub = _binary("fsub")
mul = _binary("fmul")
div = _binary("fdiv")


@intrinsic
def maximum(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of each pair; b where one is NaN."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return float32x16(a, b), codegen


@intrinsic
def keep(typing_context: Any, vector: Any, count: Any, fill: Any) -> Any:
    """The first `count` lanes of a vector, those of `fill` behind them."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.Constant(int_vector, list(range(LANES)))
        kept = builder.icmp_signed("<", lanes, spread(builder, builder.trunc(arguments[1], _i32)))
        return builder.select(kept, arguments[0], arguments[2])

    return float32x16(vector, types.int64, fill), codegen


def _folded(operation: Any) -> Any:
    """Lane i takes lane i + 8, then i + 4, ...: always the same tree."""

    @intrinsic
    def fold(typing_context: Any, vector: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value, half = arguments[0], LANES // 2
            while half:
                moved = ir.Constant(int_vector, [(i + half) % LANES for i in range(LANES)])
                value = operation(builder, value, builder.shuffle_vector(value, value, moved))
                half //= 2
            return builder.extract_element(value, ir.Constant(_i32, 0))

        return types.float32(vector), codegen

    return fold


sum_lanes = _folded(lambda builder, a, b: builder.fadd(a, b))
max_lanes = _folded(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


@intrinsic
def exp(typing_context: Any, vector: Any) -> Any:
    """e to the power of each lane, within 2 ulp; 0 below -87, capped at 88. NaN stays NaN.

    Reduction and polynomial: Cephes `expf` (Moshier, netlib.org/cephes).
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def fused(a: Any, b: Any, c: Any) -> Any:
            return call(builder, "llvm.fma.v16f32", [a, b, c])

        x = builder.select(builder.fcmp_ordered(">", arguments[0], _floats_of(88.0)), _floats_of(88.0), arguments[0])
        too_small = builder.fcmp_ordered("<", x, _floats_of(-87.0))
        exponent = call(builder, "llvm.roundeven.v16f32", [builder.fmul(x, _floats_of(1.44269504088896341))])
        r = fused(exponent, _floats_of(-0.693359375), x)
        r = fused(exponent, _floats_of(2.12194440e-4), r)
        y = _floats_of(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            y = fused(y, r, _floats_of(c))
        y = builder.fadd(fused(y, builder.fmul(r, r), r), _floats_of(1.0))
        # Lanes that are not finite are replaced below; clamped first, because converting them is undefined.
        safe = builder.select(builder.fcmp_ordered(">=", x, _floats_of(-87.0)), exponent, _floats_of(0.0))
        shifted = builder.shl(builder.fptosi(safe, int_vector), _ints_of(23))
        y = builder.bitcast(builder.add(builder.bitcast(y, int_vector), shifted), float_vector)
        y = builder.select(too_small, _floats_of(0.0), y)
        return builder.select(builder.fcmp_unordered("uno", x, x), x, y)

    return float32x16(vector), codegen


@intrinsic
def take(typing_context: Any, pointer: Any, index: Any) -> Any:
    """Adds 1 to an int64 that threads share, `pointer[index]`, and gives what it was."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        counter = builder.gep(arguments[0], [arguments[1]])
        return builder.atomic_rmw("add", counter, ir.Constant(_i64, 1), "monotonic")

    return types.int64(pointer, types.int64), codegen


@intrinsic
def call_at(typing_context: Any, function: Any, argument: Any) -> Any:
    """Calls the C function `void(int64_t)` at an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_i64])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen
