"""The one place where numba's untyped decorators meet typed code. Knows nothing of what the kernels do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba import types as _types
from numba.extending import intrinsic

logger = logging.getLogger(__name__)

types: Any = _types

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compiles a pure function over arrays, at its first call, to machine code that runs without the GIL.

    The machine code is cached beside the module, or in NUMBA_CACHE_DIR, or in the user's cache directory. Where none of
    them can be written (a container without a home) it is compiled anew by every process. A cached kernel is not
    renewed when only a kernel of another module that it calls has changed: after such a change remove `__pycache__`.
    """
    try:
        return cast(F, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError as error:  # numba's word for "no place to cache"
        logger.warning("kernel.no_cache function=%s reason=%r", function.__name__, str(error))
        return cast(F, numba.njit(nogil=True)(function))


def _pointer_codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))


def _int32_pointer(typing_context: Any, address: Any) -> Any:
    """Inside kernels: the int32 pointer of an address."""
    return types.CPointer(types.int32)(types.int64), _pointer_codegen


def _uint8_pointer(typing_context: Any, address: Any) -> Any:
    """Inside kernels: the uint8 pointer of an address."""
    return types.CPointer(types.uint8)(types.int64), _pointer_codegen


# An address as an array lets one kernel call walk over any number of segments; whoever calls keeps them alive.
int32_pointer: Any = intrinsic(_int32_pointer)
uint8_pointer: Any = intrinsic(_uint8_pointer)
