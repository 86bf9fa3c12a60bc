"""Compiles every kernel before the first caller waits for it."""

from __future__ import annotations

import numpy as np

from laser_retriever.drafter import DraftParams, DraftRequest, TokenBuffer, TreeDrafter
from laser_retriever.index import Sources, build_index


def warm_up(params: DraftParams) -> None:
    """Builds an index and drafts from it, once with writable and once with read-only arrays, as segments have."""
    drafter = TreeDrafter(params, 100)
    index = build_index([np.arange(8, dtype=np.int32), np.arange(8, dtype=np.int32)])
    buffer = TokenBuffer(1)
    buffer.extend(np.arange(4, dtype=np.int32))
    tree = drafter.draft([DraftRequest(buffer, Sources.of([(index, 0)]), 4)])[0]
    assert len(tree), "a drafter that finds nothing in its own documents is broken"
