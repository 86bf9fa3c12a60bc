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
from pathlib import Path
from typing import Any

import torch

from laser_verifier.cpu import attention_kernel, row_kernels
from laser_verifier.cpu.typed import HEADER, NEXT_TASK, NUM_TASKS, c_function

logger = logging.getLogger(__name__)


_KERNELS = {
    torch.bfloat16: (
        row_kernels.add_norm_bfloat16,
        row_kernels.gate_bfloat16,
        row_kernels.rotate_bfloat16,
        attention_kernel.attend_bfloat16,
        row_kernels.move_bfloat16,
    ),
    torch.float32: (
        row_kernels.add_norm_float32,
        row_kernels.gate_float32,
        row_kernels.rotate_float32,
        attention_kernel.attend_float32,
        row_kernels.move_float32,
    ),
}

# Once per process: compiling, or reading the cache, is not free.
_compiled = functools.cache(c_function)


class Kernel:
    """A compiled kernel."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self.address: int = _compiled(function).address
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)


class Arguments:
    """The argument array of one kernel: how many tasks, then what the kernel's docstring lists."""

    def __init__(self, *values: int) -> None:
        self.values = (ctypes.c_int64 * (HEADER + len(values)))(0, 0, *values)
        self.address = ctypes.addressof(self.values)

    def set(self, index: int, *values: int) -> None:
        """Replaces the kernel's arguments from `index` on."""
        for i, value in enumerate(values, HEADER + index):
            self.values[i] = value


class Team:
    """The kernels for one float type, and the threads that run them.

    Args:
        dtype: torch.bfloat16 or torch.float32.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.num_threads = torch.get_num_threads()
        self._parallel = _openmp_parallel() if self.num_threads > 1 else None
        if self._parallel is None:
            self.num_threads = 1
        compiled = [Kernel(function) for function in _KERNELS[dtype]]
        self.add_norm, self.gate, self.rotate, self.attend, self.move = compiled

    def run(self, kernel: Kernel, arguments: Arguments, num_tasks: int) -> None:
        """Runs a kernel's tasks; returns when all are done."""
        arguments.values[NEXT_TASK] = 0
        arguments.values[NUM_TASKS] = num_tasks
        if self._parallel is None or num_tasks == 1:
            kernel.call(arguments.address)
        else:
            self._parallel(kernel.address, arguments.address, self.num_threads, 0)


@functools.cache
def _openmp_parallel() -> Any:
    """`void GOMP_parallel(void (*function)(void *), void *data, unsigned num_threads, unsigned flags)`, or None."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel = library.GOMP_parallel
    except (OSError, AttributeError) as error:
        logger.warning("kernel.one_thread reason=%r", str(error))
        return None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel
