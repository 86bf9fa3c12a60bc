"""What a sequence is drafted from: indexes of its pool and the ancestors, and who says which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from laser_retriever.index import TokenIndex
from laser_retriever.matching import DEAD, DISTANCE, NUM_COLUMNS, NUM_TOKENS, SKIP_FROM, SKIP_TO, SUFFIXES, TOKENS


@dataclass(frozen=True, slots=True)
class Source:
    """An index to draft from.

    Attributes:
        index: where the tail is searched for.
        distance: 0 for the sequence's pool, n for its n-th ancestor.
        skipped: tokens of the index that count as if they were not there: nearer sources hold their documents already.
    """

    index: TokenIndex
    distance: int = 0
    skipped: range = range(0)


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """What one sequence is drafted from, as the kernels want it. Immutable.

    Attributes:
        table: int64[K, NUM_COLUMNS], addresses into `indexes`.
        address: of `table`.
        indexes: kept so that the addresses stay valid.
    """

    table: NDArray[np.int64]
    address: int
    indexes: tuple[TokenIndex, ...]

    @property
    def distances(self) -> NDArray[np.int64]:
        """int64[K], 0 for the pool itself, n for its n-th ancestor (view)."""
        return self.table[:, DISTANCE]

    @property
    def skipped(self) -> list[range]:
        """Of each, see `Source`."""
        return [range(start, stop) for start, stop in self.table[:, [SKIP_FROM, SKIP_TO]].tolist()]

    @staticmethod
    def of(sources: Sequence[Source]) -> Sources:
        """The table of some sources, empty ones left out."""
        kept = [source for source in sources if len(source.index.tokens) > len(source.skipped)]
        table = np.zeros((len(kept), NUM_COLUMNS), np.int64)
        for row, source in zip(table, kept, strict=True):
            index = source.index
            row[TOKENS] = index.tokens.ctypes.data
            row[SUFFIXES] = index.suffixes.ctypes.data
            row[DEAD] = 0 if index.dead is None else index.dead.ctypes.data
            row[NUM_TOKENS] = len(index.tokens)
            row[DISTANCE] = source.distance
            row[SKIP_FROM], row[SKIP_TO] = source.skipped.start, source.skipped.stop
        return Sources(table, table.ctypes.data, tuple(source.index for source in kept))


class PoolStatus(Enum):
    """What became of the pool that a sequence named."""

    OK = "ok"
    NO_POOL = "no_pool"
    TOKENIZER_MISMATCH = "tokenizer_mismatch"


class SourceProvider(Protocol):
    """Where a sequence's sources come from; `Pools` is one."""

    def sources(self, pool: str, fingerprint: str) -> tuple[PoolStatus, Sources]: ...


@dataclass(frozen=True, slots=True)
class FixedSources:
    """The same sources for every sequence."""

    value: Sources

    def sources(self, pool: str, fingerprint: str) -> tuple[PoolStatus, Sources]:
        """Whatever the pool."""
        return PoolStatus.OK, self.value
