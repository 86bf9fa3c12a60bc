"""What is done before the first caller waits: kernels compiled, the garbage collector told what stays."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from laser_retriever.drafter import Drafter
from laser_retriever.index import build_index
from laser_retriever.sources import FixedSources, Source, Sources
from laser_retriever.tree_drafter import DraftParams


@contextmanager
def _without_scipy_linalg() -> Iterator[None]:
    """Numba's first kernel imports scipy.linalg, where there is one, for its BLAS: 0.14 s of a start, and used by no
    kernel. (numba itself has imported scipy by then, to see its version.)"""
    if "scipy.linalg" in sys.modules:
        yield
        return
    sys.modules["scipy.linalg"] = None  # type: ignore[assignment]  # Python's way to say that it cannot be imported
    try:
        yield
    finally:
        del sys.modules["scipy.linalg"]


@_without_scipy_linalg()
def warm_up(params: DraftParams) -> None:
    """Builds an index and takes a sequence through a step, with read-only tokens as messages hold them."""
    index = build_index([np.arange(8, dtype=np.int32), np.arange(8, dtype=np.int32)])
    drafter = Drafter(FixedSources(Sources.of([Source(index)])), "warm-up", 100, params)
    text = np.frombuffer(np.arange(6, dtype=np.int32).tobytes(), np.int32)
    drafter.open(0, "warm-up", text[:4], 1)
    tree = drafter.draft(0, 4)
    index.without(np.array([False, True]))
    assert len(tree), "a drafter that finds nothing in its own documents is broken"
    drafter.advance(0, 4, text[4:], len(tree), 0)
    drafter.calibrate()


def settle_garbage_collector() -> None:
    """Keeps garbage collection from holding drafts up.

    A full collection walks over all that the compiler left: 60 ms. So what is there now is left out; and of young
    objects, of which a compaction makes one per document, few thousands are looked at together, those that stay once
    more by the 25,000, a millisecond, and the old ones seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 5, 1_000)
