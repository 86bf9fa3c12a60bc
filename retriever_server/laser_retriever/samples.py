"""Ancestors' samples: of all documents in pools below one, those with the smallest hash of (pool, id).

Any shard computes the same, deletions carry over, and nothing is stored for them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from laser_protocol.pool_id import ancestors
from laser_retriever.clock import Clock
from laser_retriever.index import TokenIndex, build_index
from laser_retriever.snapshot import PoolSnapshot

# However busy a root is and however long its sample takes, what was deleted below it is gone from it after this.
MAX_WAIT_S = 30.0


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
            smallest = _smallest(parts, self._max_documents)
            indexes[fingerprint] = build_index([index.document(i) for _, index, i in smallest])
            documents_of[fingerprint] = [path for path, _, _ in smallest]
        now_s = self._clock.monotonic_s()
        return Sample(indexes, documents_of, tuple(snapshots), now_s, now_s - started_s)


def _smallest(snapshots: Sequence[PoolSnapshot], max_documents: int) -> list[tuple[tuple[str, ...], TokenIndex, int]]:
    """The documents with the smallest hashes, by pool path, then hash: (path, index, place in it) each.

    Chosen by numpy, which lets other threads run; sorting as many in Python would hold them up for milliseconds.
    """
    chosen: list[tuple[tuple[str, ...], TokenIndex, int]] = []
    found = [np.empty(0, np.uint64)]
    for snapshot in snapshots:
        path = tuple(snapshot.pool.split("/"))
        base = hashlib.blake2b(snapshot.pool.encode() + b"\0", digest_size=8)
        digests = bytearray()
        for document_id, index, i in snapshot.documents():
            state = base.copy()
            state.update(document_id.encode())
            digests += state.digest()
            chosen.append((path, index, i))
        found.append(np.frombuffer(digests, ">u8").astype(np.uint64))
        # Not after every pool: there may be thousands of a few documents each.
        if len(chosen) > 2 * max_documents:
            hashes = np.concatenate(found)
            kept = np.argpartition(hashes, max_documents - 1)[:max_documents]
            chosen, found = [chosen[i] for i in kept.tolist()], [hashes[kept]]
    in_order = [chosen[i] for i in np.argsort(np.concatenate(found), kind="stable")[:max_documents].tolist()]
    in_order.sort(key=lambda item: item[0])
    return in_order
