"""The one place where numba's untyped decorators meet typed code. Knows nothing of what the kernels do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import types as _types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import get_cfarray_intrinsic

from laser_protocol.kernel_cache import renew_with_package

logger = logging.getLogger(__name__)

types: Any = _types

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compiles a pure function over arrays, at its first call, to machine code that runs without the GIL.

    It cannot make arrays, nor return one: whoever calls gives the room. So nothing counts who uses an array, which
    numba does otherwise at every look into a tuple of them, by a locked instruction on what two drafting threads share:
    a fifth of a tree's time, more than half where there are few matches.

    Kernels that a kernel calls become part of it: an array is passed as seven values, a tuple of arrays as all of
    theirs, and a tree takes a seventh longer when small kernels are called.

    The machine code is cached beside the module, or in NUMBA_CACHE_DIR, or in the user's cache directory. Where none of
    them can be written (a container without a home) it is compiled anew by every process.
    """
    return _compiled(function, _nrt=False)


def allocating_kernel(function: F) -> F:
    """The same for a function that makes arrays."""
    return _compiled(function)


def short_kernel(function: F) -> F:
    """The same for what takes a microsecond: it keeps the GIL, for which it might wait much longer."""
    return _compiled(function, nogil=False, _nrt=False)


def _compiled(function: F, **options: Any) -> F:
    options = {"nogil": True, "forceinline": True, **options}
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError as error:  # numba's word for "no place to cache"
        logger.warning("kernel.no_cache function=%s reason=%r", function.__name__, str(error))
        return cast(F, numba.njit(**options)(function))
    renew_with_package(made, Path(__file__).parent)
    return cast(F, made)


def _as_pointer(item: Any) -> Any:
    """An intrinsic that turns an address into a pointer to such items."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    def pointer(typing_context: Any, address: Any) -> Any:
        return types.CPointer(item)(types.int64), codegen

    return intrinsic(pointer)


def _load_int32(typing_context: Any, address: Any) -> Any:
    """Inside kernels: the int32 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(types.int32)))
        return builder.load(pointer)

    return types.int32(types.int64), codegen


def _take_turn(typing_context: Any, address: Any) -> Any:
    """Inside kernels: the int64 at an address, which is one more for whoever comes next, on any thread."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "monotonic")

    return types.int64(types.int64), codegen


def _prefetch(typing_context: Any, address: Any) -> Any:
    """Inside kernels: tells the processor that an address will be read soon."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        int32 = ir.IntType(32)
        declared = ir.FunctionType(ir.VoidType(), [byte, int32, int32, int32])
        function = cgutils.get_or_insert_function(builder.module, declared, "llvm.prefetch.p0")
        # Read, keep in all levels of cache, data.
        flags = [int32(0), int32(3), int32(1)]
        builder.call(function, [builder.inttoptr(arguments[0], byte), *flags])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# Inside kernels: whoever else wants this processor comes first. Linux takes it away from a kernel only every 3 to 4 ms.
give_way: Any = types.ExternalFunction("sched_yield", types.int32())
# The array of a shape behind a pointer: `numba.carray`, which only kernels that make arrays can call.
array_at: Any = get_cfarray_intrinsic("C", None)
# Addresses as arrays let one kernel call walk over any number of segments; whoever calls keeps them alive.
int32_pointer: Any = _as_pointer(types.int32)
int64_pointer: Any = _as_pointer(types.int64)
uint8_pointer: Any = _as_pointer(types.uint8)
float64_pointer: Any = _as_pointer(types.float64)
load_int32: Any = intrinsic(_load_int32)
prefetch: Any = intrinsic(_prefetch)
take_turn: Any = intrinsic(_take_turn)
