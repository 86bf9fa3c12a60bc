"""Documents laid out as one token array with its suffix array.

A document lies there as begin mark, tokens, end mark. Knows nothing of files or pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laser_retriever.kernel import kernel
from laser_retriever.suffix_array import BEGIN_MARK, END_MARK, build_context_array

# Marks that a document takes beside its tokens.
MARKS_PER_DOCUMENT = 2


@dataclass(frozen=True, slots=True, eq=False)
class TokenIndex:
    """A suffix-sorted token array. Immutable; its arrays may be memory-mapped.

    Attributes:
        tokens: int32[T], all documents with their marks.
        offsets: int64[D + 1], where each document starts (its begin mark), and T.
        suffixes: int32[T], of the reversed tokens: see `suffix_array.build_context_array`.
        dead: uint8[(T + 7) / 8], bit t set: token t belongs to a deleted document; or None: nothing is deleted.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    suffixes: NDArray[np.int32]
    dead: NDArray[np.uint8] | None = None

    @property
    def num_documents(self) -> int:
        """Documents, deleted ones included."""
        return len(self.offsets) - 1

    def document(self, document_idx: int) -> NDArray[np.int32]:
        """int32[]: a document's tokens without its marks (view)."""
        return self.tokens[self.offsets[document_idx] + 1 : self.offsets[document_idx + 1] - 1]

    def without(self, dead: NDArray[np.bool_]) -> TokenIndex:
        """The same index in which exactly these documents, bool[D], are deleted. T / 8 bytes."""
        bits = None
        if dead.any():
            bits = np.zeros((len(self.tokens) + 7) // 8, np.uint8)
            mark_dead(self.offsets, dead, bits)
        return TokenIndex(self.tokens, self.offsets, self.suffixes, bits)


@kernel
def mark_dead(offsets: NDArray[np.int64], dead: NDArray[np.bool_], bits: NDArray[np.uint8]) -> None:
    """Sets the bits, lowest first, of all tokens `offsets[i]` to `offsets[i + 1]` of dead documents i."""
    for i in range(len(dead)):
        if dead[i]:
            for token in range(offsets[i], offsets[i + 1]):
                bits[token >> 3] |= 1 << (token & 7)


def lay_out(documents: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The documents with their marks as one array, and where each starts.

    Args:
        documents: int32 arrays, every token at least 0.

    Returns:
        tokens int32[T] and offsets int64[D + 1].
    """
    offsets = np.zeros(len(documents) + 1, np.int64)
    # Not from a list, here and elsewhere: turning that into an array lets no other thread run.
    sizes = np.fromiter((len(document) + MARKS_PER_DOCUMENT for document in documents), np.int64, len(documents))
    np.cumsum(sizes, out=offsets[1:])
    # Filled, not empty: memory that is first touched by small copies is mapped while no other thread may run.
    tokens = np.full(int(offsets[-1]), END_MARK, np.int32)
    start = 0
    for document in documents:
        end = start + len(document) + MARKS_PER_DOCUMENT
        tokens[start] = BEGIN_MARK
        tokens[start + 1 : end - 1] = document
        start = end
    return tokens, offsets


def build_index(documents: Sequence[NDArray[np.int32]]) -> TokenIndex:
    """The index of documents, in memory: 8 bytes per token."""
    tokens, offsets = lay_out(documents)
    return TokenIndex(tokens, offsets, build_context_array(tokens))
