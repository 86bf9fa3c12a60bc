"""A pool as drafts are made from it and as it is described: contents with the indexes over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laser_retriever.contents import PoolContents
from laser_retriever.index import MARKS_PER_DOCUMENT, TokenIndex, build_index
from laser_retriever.segment import Segment


@dataclass(frozen=True, slots=True, eq=False)
class PoolSnapshot:
    """What a pool held at one moment. Immutable, safe to read from any thread.

    Attributes:
        pool: its id.
        contents: what lies on disk.
        dead: of each segment, bool[D]: the documents that are deleted or replaced by now.
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
    dead: tuple[NDArray[np.bool_], ...]
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
        for segment, dead, index in zip(self.segments, self.dead, self.indexes, strict=True):
            for i in np.flatnonzero(~dead).tolist():
                yield segment.meta.ids[i], index, i
        for i, document_id in enumerate(self.tail_ids):
            yield document_id, self.tail, i


@dataclass(frozen=True, slots=True, eq=False)
class _LiveSegment:
    """What is left of a segment: see the attributes of PoolSnapshot."""

    dead: NDArray[np.bool_]
    index: TokenIndex
    num_documents: int
    num_tokens: int
    num_dead_tokens: int
    times_ms: tuple[int, ...]

    @staticmethod
    def of(segment: Segment, dead: NDArray[np.bool_]) -> _LiveSegment:
        """O(documents), and T / 8 bytes if something died; in operations that let other threads run."""
        sizes = np.diff(segment.index.offsets) - MARKS_PER_DOCUMENT
        num_dead, num_dead_tokens = int(np.count_nonzero(dead)), int(sizes.sum(where=dead))
        times = segment.times_ms[~dead] if num_dead else segment.times_ms
        return _LiveSegment(
            dead=dead,
            index=segment.index.without(dead),
            num_documents=len(sizes) - num_dead,
            num_tokens=int(sizes.sum()) - num_dead_tokens,
            num_dead_tokens=num_dead_tokens,
            times_ms=(int(times.min()), int(times.max())) if len(times) else (),
        )


class SnapshotBuilder:
    """Makes snapshots of one pool, keeping what did not change. Not thread-safe."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._live: dict[str, _LiveSegment] = {}

    def build(self, contents: PoolContents) -> PoolSnapshot:
        """The snapshot of contents. O(tokens in the log), and what `_LiveSegment.of` says where something died."""
        self._live = {segment.name: self._live_segment(contents, segment) for segment in contents.segments}
        live = list(self._live.values())
        log = contents.logged_documents
        tail = build_index([record.token_ids for _, record in log if record.token_ids is not None])
        times_ms = [record.time_ms for _, record in log] + [bound for part in live for bound in part.times_ms]
        return PoolSnapshot(
            pool=self._pool,
            contents=contents,
            dead=tuple(part.dead for part in live),
            indexes=tuple(part.index for part in live),
            tail=tail,
            tail_ids=tuple(key for key, _ in log),
            num_documents=len(log) + sum(part.num_documents for part in live),
            num_tokens=len(tail.tokens) - MARKS_PER_DOCUMENT * len(log) + sum(part.num_tokens for part in live),
            num_dead_tokens=sum(part.num_dead_tokens for part in live),
            oldest_ms=min(times_ms, default=0),
            newest_ms=max(times_ms, default=0),
        )

    def _live_segment(self, contents: PoolContents, segment: Segment) -> _LiveSegment:
        known, dead = self._live.get(segment.name), contents.dead(segment)
        return known if known is not None and np.array_equal(known.dead, dead) else _LiveSegment.of(segment, dead)
