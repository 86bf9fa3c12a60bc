"""The one place where numba's untyped decorators meet typed code, and how kernels are called."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic as numba_intrinsic

from laser_protocol.kernel_cache import renew_with_package

logger = logging.getLogger(__name__)

# The head of every argument array: a counter that hands out tasks, how many there are, and a counter that numbers the
# threads that work on them. The rest is the kernel's.
NEXT_TASK, NUM_TASKS, NEXT_WORKER, HEADER = 0, 1, 2, 3
_C_SIGNATURE = ((types.CPointer(types.int64),), types.void)

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """A pure function over memory that other kernels may call, compiled to code that runs without the GIL."""
    return cast(F, _cached(lambda: numba.njit(nogil=True)(function), function.__name__))


def c_function(function: Callable[[Any], None]) -> Any:
    """Compiles, at once, to `void(int64_t *)`; the result's `address` may be called by any thread while it lives."""
    compiled = _cached(lambda: CFunc(function, _C_SIGNATURE, {}, {}), function.__name__)
    compiled.compile()
    return compiled


def intrinsic(function: Callable[..., Any]) -> Any:
    """A function that kernels call, without its first argument, and that writes its LLVM code itself."""
    return numba_intrinsic(function)


def _cached(make: Callable[[], Any], name: str) -> Any:
    """Has machine code cached beside the module, in NUMBA_CACHE_DIR or the user's cache directory, else made anew."""
    compiled = make()
    try:
        compiled.enable_caching()
    except RuntimeError as error:  # numba's word for "no place to cache"
        logger.warning("kernel.no_cache function=%s reason=%r", name, str(error))
        return make()
    renew_with_package(compiled, Path(__file__).parent)
    return compiled
