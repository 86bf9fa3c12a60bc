"""Runs kernels on the threads that torch's own operators run on.

torch keeps a team of OpenMP threads that spin for a while after each operator. A second pool (numba's `prange`) would
contend with it for the same cores at every switch between the two, so the kernels are handed to torch's runtime
itself: `GOMP_parallel` of the library that libtorch was linked with. Where there is none, one thread runs.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from laser_verifier.cpu import attention_kernel, linear_kernel, row_kernels
from laser_verifier.cpu.simd import call_at, null_int64, pointer_like
from laser_verifier.cpu.typed import HEADER, c_function

logger = logging.getLogger(__name__)


_KERNELS = {
    torch.bfloat16: (
        linear_kernel.widen,
        linear_kernel.multiply_bfloat16,
        row_kernels.add_norm_bfloat16,
        row_kernels.gate_bfloat16,
        row_kernels.rotate_bfloat16,
        attention_kernel.attend_bfloat16,
        row_kernels.move_bfloat16,
    ),
    torch.float32: (
        linear_kernel.widen,
        linear_kernel.multiply_float32,
        row_kernels.add_norm_float32,
        row_kernels.gate_float32,
        row_kernels.rotate_float32,
        attention_kernel.attend_float32,
        row_kernels.move_float32,
    ),
}


def run_calls(arguments: Any) -> None:
    """Every thread runs all kernels of a program in order; each kernel shares out its tasks among those that run it.

    Arguments: number of kernels, their argument arrays (of one length), bytes of one, the kernels' addresses, address
    of the barrier (0: one thread runs).
    """
    table, row_bytes = arguments[HEADER + 1], arguments[HEADER + 2]
    addresses, barrier = pointer_like(arguments[HEADER + 3], null_int64()), arguments[HEADER + 4]
    for i in range(arguments[HEADER]):
        call_at(addresses[i], table + i * row_bytes)
        if barrier != 0:
            call_at(barrier, 0)


class Kernel:
    """A compiled kernel; see `compiled`."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._function = c_function(function)  # whose code is there as long as it is
        self.address: int = self._function.address
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)


@functools.cache
def compiled(function: Callable[[Any], None]) -> Kernel:
    """The kernel of a function: one per process, since compiling it, or reading the cache, is not free."""
    return Kernel(function)


class Team:
    """The kernels for one float type, and the threads that run them.

    Args:
        dtype: torch.bfloat16 or torch.float32.

    Attributes:
        num_threads: that run a kernel.
        barrier: address of the function at which they wait for each other, 0 if there is one thread.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        openmp = _OpenMP.find() if torch.get_num_threads() > 1 else None
        self.num_threads = torch.get_num_threads() if openmp else 1
        self.barrier = openmp.barrier if openmp else 0
        self._parallel = openmp.parallel if openmp else None
        kernels = [compiled(function) for function in _KERNELS[dtype]]
        self.widen, self.linear, self.add_norm, self.gate, self.rotate, self.attend, self.move = kernels
        self._run_calls = compiled(run_calls)

    def run(self, arguments: int) -> None:
        """Has every thread run `run_calls` on the argument array at this address; returns when all are done."""
        if self._parallel is None:
            self._run_calls.call(arguments)
        else:
            self._parallel(self._run_calls.address, arguments, self.num_threads, 0)


@dataclass(frozen=True, slots=True)
class _OpenMP:
    """What is used of the OpenMP runtime that libtorch was linked with.

    Attributes:
        parallel: `void GOMP_parallel(void (*function)(void *), void *data, unsigned num_threads, unsigned flags)`.
        barrier: address of `void GOMP_barrier(void)`.
    """

    parallel: Any
    barrier: int

    @staticmethod
    @functools.cache
    def find() -> _OpenMP | None:
        """None where there is no such runtime."""
        try:
            library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
            parallel, barrier = library.GOMP_parallel, library.GOMP_barrier
        except (OSError, AttributeError) as error:
            logger.warning("kernel.one_thread reason=%r", str(error))
            return None
        parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        parallel.restype = None
        address = ctypes.cast(barrier, ctypes.c_void_p).value
        assert address
        return _OpenMP(parallel, address)
