"""The one place where numba's untyped decorators meet typed code, and how kernels are called."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba import types
from numba.extending import intrinsic as numba_intrinsic

logger = logging.getLogger(__name__)

# The head of every argument array: a counter that hands out tasks, and how many there are. The rest is the kernel's.
NEXT_TASK, NUM_TASKS, HEADER = 0, 1, 2

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """A pure function over memory that other kernels may call, compiled to code that runs without the GIL."""
    return cast(F, _cached(lambda cache: numba.njit(nogil=True, cache=cache)(function), function.__name__))


def c_function(function: Callable[[Any], None]) -> Any:
    """Compiles, at once, to `void(int64_t *)`; the result's `address` may be called by any thread while it lives."""
    signature = types.void(types.CPointer(types.int64))
    return _cached(lambda cache: numba.cfunc(signature, cache=cache)(function), function.__name__)


def intrinsic(function: Callable[..., Any]) -> Any:
    """A function that kernels call, without its first argument, and that writes its LLVM code itself."""
    return numba_intrinsic(function)


def _cached(compiled: Callable[[bool], Any], name: str) -> Any:
    """Machine code is cached beside the module, in NUMBA_CACHE_DIR or the user's cache directory; else made anew.

    A cached kernel is not renewed when only a kernel of another module that it calls has changed: after such a change
    remove `__pycache__`.
    """
    try:
        return compiled(True)
    except RuntimeError as error:  # numba's word for "no place to cache"
        logger.warning("kernel.no_cache function=%s reason=%r", name, str(error))
        return compiled(False)
