"""Slow and obvious versions of what the retriever's kernels do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from laser_retriever.index import TokenIndex
from laser_retriever.sources import PoolStatus, Source, Sources


def sorted_suffixes(tokens: Sequence[int], depth: int) -> list[int]:
    """Start positions of all suffixes, by their first `depth` tokens and then by position."""
    return sorted(range(len(tokens)), key=lambda i: (list(tokens[i : i + depth]), i))


def occurrences(tokens: Sequence[int], query: Sequence[int]) -> list[int]:
    """Start positions of a query, by linear scan."""
    return [i for i in range(len(tokens) - len(query) + 1) if list(tokens[i : i + len(query)]) == list(query)]


def common_suffix_len(a: Sequence[int], b: Sequence[int]) -> int:
    """How many last tokens agree."""
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    return n


@dataclass(frozen=True, slots=True)
class FixedSources:
    """The same indexes for every sequence, as their pool itself."""

    indexes: tuple[TokenIndex, ...] = ()
    distance: int = 0

    def sources(self, pool: str, fingerprint: str) -> tuple[PoolStatus, Sources]:
        return PoolStatus.OK, Sources.of([Source(index, self.distance) for index in self.indexes])


def says(message: str, *parts: str) -> bool:
    """Whether a message holds all the parts, in order."""
    return re.search(".*".join(map(re.escape, parts)), message) is not None
