"""Long computations that give way to the threads that draft."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

NICENESS = 10  # a tenth of a processor that others want, all of one that nobody does


def at_low_priority(function: Callable[[Unpack[Arguments]], T], *arguments: *Arguments) -> T:
    """Calls a function on a thread of its own that the system lets run behind others, and waits for it.

    The thread cannot be lent: without privileges a priority is never raised again. The function must let go of the
    interpreter's lock for as long as it takes, as kernels do: a thread that holds it and may not run holds up all.
    """
    with ThreadPoolExecutor(1, "low-priority", initializer=_lower_priority) as executor:
        return executor.submit(function, *arguments).result()


def _lower_priority() -> None:
    # Linux keeps priorities by thread; elsewhere this would be the whole process, so nothing is done there.
    if hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):
            os.nice(NICENESS)
