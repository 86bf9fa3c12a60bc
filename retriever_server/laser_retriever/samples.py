"""Ancestors' samples: of all documents in pools below one, those with the smallest hash of (pool, id).

Any shard computes the same, deletions carry over, and nothing is stored for them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laser_protocol.pool_id import ancestors
from laser_retriever.clock import Clock
from laser_retriever.index import TokenIndex, build_index
from laser_retriever.segment import Segment
from laser_retriever.snapshot import PoolSnapshot

# However busy a root is and however long its sample takes, what was deleted below it is gone from it after this.
MAX_WAIT_S = 30.0
# Of one sample and tokenizer: what takes some seconds to sort, and 8 bytes each.
MAX_TOKENS = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The derived sample of an ancestor.

    Attributes:
        indexes: per tokenizer fingerprint, the documents sorted by their pools' ids, component by component.
        documents_of: the components of each document's pool.
        snapshots: what it was made of.
        built_at_s, build_s: when that was, and how long it took.
    """

    indexes: dict[str, TokenIndex]
    documents_of: dict[str, list[tuple[str, ...]]]
    snapshots: tuple[PoolSnapshot, ...]
    built_at_s: float
    build_s: float

    def tokens_below(self, pool: str, fingerprint: str) -> range:
        """Which tokens of an index are of the pool's documents and those below it."""
        path = tuple(pool.split("/"))
        pools = self.documents_of[fingerprint]
        offsets = self.indexes[fingerprint].offsets
        first = bisect_left(pools, path, key=lambda other: other[: len(path)])
        last = bisect_right(pools, path, key=lambda other: other[: len(path)])
        return range(int(offsets[first]), int(offsets[last]))


class Samples:
    """The samples of all ancestors. One thread updates, any may read.

    Args:
        max_documents: of one sample and tokenizer.
        interval_s: least seconds between two builds of a sample.
        clock: the time.
    """

    def __init__(self, max_documents: int, interval_s: float, clock: Clock) -> None:
        self._max_documents = max_documents
        self._interval_s = interval_s
        self._clock = clock
        self._samples: dict[str, Sample] = {}
        self._hashes = _Hashes()

    def get(self, pool: str) -> Sample | None:
        """The sample of a pool that has descendants."""
        return self._samples.get(pool)

    def update(self, snapshots: Sequence[PoolSnapshot]) -> Iterator[None]:
        """Brings the samples up to date with all pools that exist. Yields whenever one has changed."""
        below: dict[str, list[PoolSnapshot]] = {}
        for snapshot in snapshots:
            for ancestor in ancestors(snapshot.pool):
                below.setdefault(ancestor, []).append(snapshot)
        due = [name for name, parts in below.items() if self._is_due(name, parts)]
        kept = {name: sample for name, sample in self._samples.items() if name in below}
        if len(kept) < len(self._samples):
            self._samples = kept
            yield
        # Ancestors of the same pools have one sample: most ids share their first components.
        built: dict[frozenset[PoolSnapshot], Sample] = {}
        for name in due:
            made_of = frozenset(below[name])
            if made_of not in built:
                built[made_of] = self._build(below[name])
            self._samples = {**self._samples, name: built[made_of]}
            yield
        self._hashes.forget_but(snapshots)

    def _is_due(self, name: str, snapshots: Sequence[PoolSnapshot]) -> bool:
        known = self._samples.get(name)
        if known is None:
            return True
        # A busy ancestor is rebuilt a tenth of the time at most.
        wait_s = min(max(self._interval_s, 10 * known.build_s), MAX_WAIT_S)
        return set(known.snapshots) != set(snapshots) and self._clock.monotonic_s() - known.built_at_s >= wait_s

    def _build(self, snapshots: Sequence[PoolSnapshot]) -> Sample:
        started_s = self._clock.monotonic_s()
        indexes = {}
        documents_of = {}
        for fingerprint in sorted({snapshot.fingerprint for snapshot in snapshots}):
            parts = [snapshot for snapshot in snapshots if snapshot.fingerprint == fingerprint]
            smallest = _smallest(parts, self._max_documents, self._hashes)
            indexes[fingerprint] = build_index([index.document(i) for _, index, i in smallest])
            documents_of[fingerprint] = [path for path, _, _ in smallest]
        now_s = self._clock.monotonic_s()
        return Sample(indexes, documents_of, tuple(snapshots), now_s, now_s - started_s)


class _Hashes:
    """Hashes of documents' ids, those of each segment kept: a pool may hold a million, and its segments stay."""

    def __init__(self) -> None:
        self._of: dict[Segment, NDArray[np.uint64]] = {}

    def of_segment(self, pool: str, segment: Segment) -> NDArray[np.uint64]:
        """uint64[D]."""
        if segment not in self._of:
            self._of[segment] = self.of_ids(pool, segment.meta.ids)
        return self._of[segment]

    def of_ids(self, pool: str, ids: Sequence[str]) -> NDArray[np.uint64]:
        """uint64[], not kept."""
        base = hashlib.blake2b(pool.encode() + b"\0", digest_size=8)
        digests = bytearray()
        for document_id in ids:
            state = base.copy()
            state.update(document_id.encode())
            digests += state.digest()
        return np.frombuffer(digests, ">u8").astype(np.uint64)

    def forget_but(self, snapshots: Sequence[PoolSnapshot]) -> None:
        """Forgets segments that are none of these pools' any longer."""
        there = {segment for snapshot in snapshots for segment in snapshot.segments}
        self._of = {segment: hashes for segment, hashes in self._of.items() if segment in there}


def _smallest(
    snapshots: Sequence[PoolSnapshot], max_documents: int, known: _Hashes
) -> list[tuple[tuple[str, ...], TokenIndex, int]]:
    """The documents with the smallest hashes, by pool path, then hash: (path, index, place in it) each.

    Of an ancestor of fewer documents as many or more of each pool, also where MAX_TOKENS ends the choice.

    Chosen by numpy, which lets other threads run; going over as many in Python would hold them up for milliseconds.
    """
    chosen: list[tuple[tuple[str, ...], TokenIndex, int]] = []
    found = [np.empty(0, np.uint64)]
    for snapshot in snapshots:
        path = tuple(snapshot.pool.split("/"))
        parts = [
            (index, np.flatnonzero(~dead), known.of_segment(snapshot.pool, segment))
            for segment, dead, index in zip(snapshot.segments, snapshot.dead, snapshot.indexes, strict=True)
        ]
        tail_ids = snapshot.tail_ids
        parts.append((snapshot.tail, np.arange(len(tail_ids)), known.of_ids(snapshot.pool, tail_ids)))
        for index, live, hashes in parts:
            kept = _smallest_idxs(hashes[live], max_documents)
            chosen += [(path, index, i) for i in live[kept].tolist()]
            found.append(hashes[live[kept]])
        # Not after every pool: there may be thousands of a few documents each.
        if len(chosen) > 2 * max_documents:
            together = np.concatenate(found)
            kept = _smallest_idxs(together, max_documents)
            chosen, found = [chosen[i] for i in kept.tolist()], [together[kept]]
    in_order = [chosen[i] for i in np.argsort(np.concatenate(found), kind="stable")[:max_documents].tolist()]
    num_tokens = np.cumsum([len(index.document(i)) for _, index, i in in_order])
    in_order = in_order[: int(np.searchsorted(num_tokens, MAX_TOKENS, side="right"))]
    in_order.sort(key=lambda item: item[0])
    return in_order


def _smallest_idxs(hashes: NDArray[np.uint64], most: int) -> NDArray[np.int64]:
    """Where the smallest hashes are, at most so many, in no order."""
    if len(hashes) <= most:
        return np.arange(len(hashes))
    return np.argpartition(hashes, most - 1)[:most].astype(np.int64)
