"""A pool as drafts are made from it and as it is described: contents with the indexes over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from laser_retriever.contents import PoolContents
from laser_retriever.index import MARKS_PER_DOCUMENT, TokenIndex, build_index
from laser_retriever.segment import Segment


@dataclass(frozen=True, slots=True, eq=False)
class PoolSnapshot:
    """What a pool held at one moment. Immutable, safe to read from any thread.

    Attributes:
        pool: its id.
        contents: what lies on disk.
        indexes: of each segment, with what is deleted in it.
        tail: index of the log's documents.
        tail_ids: their ids, in order.
        num_documents, num_tokens: of live documents, marks not counted.
        num_dead_tokens: of documents in segments that are deleted or replaced.
        oldest_ms, newest_ms: when the first and the last of the live documents came, in milliseconds since 1970; 0:
            there is none.
    """

    pool: str
    contents: PoolContents
    indexes: tuple[TokenIndex, ...]
    tail: TokenIndex
    tail_ids: tuple[str, ...]
    num_documents: int
    num_tokens: int
    num_dead_tokens: int
    oldest_ms: int
    newest_ms: int

    @property
    def fingerprint(self) -> str:
        """Of its tokenizer; "" while the pool does not exist."""
        return self.contents.fingerprint

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Oldest first."""
        return self.contents.segments

    @property
    def exists(self) -> bool:
        """Whether the pool has come into being and was not dropped."""
        return bool(self.fingerprint)

    @property
    def log_size_bytes(self) -> int:
        """Of the log on disk."""
        return self.contents.log_size_bytes

    @property
    def size_bytes(self) -> int:
        """Of segments and log on disk."""
        return sum(segment.size_bytes for segment in self.segments) + self.log_size_bytes

    def documents(self) -> Iterator[tuple[str, TokenIndex, int]]:
        """(id, index, document_idx) of every live document, oldest first."""
        for segment, index in zip(self.segments, self.indexes, strict=True):
            for i, document_id in enumerate(segment.meta.ids):
                start = int(index.offsets[i])
                if index.dead is None or not (index.dead[start >> 3] >> (start & 7)) & 1:
                    yield document_id, index, i
        for i, document_id in enumerate(self.tail_ids):
            yield document_id, self.tail, i


class SnapshotBuilder:
    """Makes snapshots of one pool, keeping what did not change. Not thread-safe."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._indexes: dict[str, tuple[frozenset[int], TokenIndex]] = {}

    def build(self, contents: PoolContents) -> PoolSnapshot:
        """The snapshot of contents. O(tokens in the log), and T / 8 bytes per segment in which something died."""
        dead = {segment.name: contents.dead_idxs(segment) for segment in contents.segments}
        self._indexes = {segment.name: self._live_index(segment, dead[segment.name]) for segment in contents.segments}
        log = contents.logged_documents
        tail = build_index([record.token_ids for _, record in log if record.token_ids is not None])
        counts = [_count(segment, dead[segment.name]) for segment in contents.segments]
        times = [record.time_ms for _, record in log]
        times += [bound for segment in contents.segments for bound in _time_bounds(segment, dead[segment.name])]
        return PoolSnapshot(
            pool=self._pool,
            contents=contents,
            indexes=tuple(self._indexes[segment.name][1] for segment in contents.segments),
            tail=tail,
            tail_ids=tuple(key for key, _ in log),
            num_documents=len(log) + sum(live for live, _, _ in counts),
            num_tokens=len(tail.tokens) - MARKS_PER_DOCUMENT * len(log) + sum(tokens for _, tokens, _ in counts),
            num_dead_tokens=sum(dead_tokens for _, _, dead_tokens in counts),
            oldest_ms=min(times, default=0),
            newest_ms=max(times, default=0),
        )

    def _live_index(self, segment: Segment, dead: frozenset[int]) -> tuple[frozenset[int], TokenIndex]:
        known = self._indexes.get(segment.name)
        if known is not None and known[0] == dead:
            return known
        return dead, segment.index.without(dead) if dead else segment.index


def _count(segment: Segment, dead: frozenset[int]) -> tuple[int, int, int]:
    """(live documents, their tokens, dead tokens)."""
    lengths = np.diff(segment.index.offsets) - MARKS_PER_DOCUMENT
    dead_tokens = int(lengths[list(dead)].sum())
    return len(lengths) - len(dead), int(lengths.sum()) - dead_tokens, dead_tokens


def _time_bounds(segment: Segment, dead: frozenset[int]) -> list[int]:
    """The first and the last time of the live documents, if there are any."""
    times = np.delete(segment.times_ms, list(dead)) if dead else segment.times_ms
    return [int(times.min()), int(times.max())] if len(times) else []
