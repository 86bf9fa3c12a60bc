"""All pools under one directory, kept up to date in the background, and what a sequence is drafted from.

An ancestor's sample: of all documents in pools below it, the `sample_documents` with the smallest hash of (pool, id).
Any shard computes the same, deletions carry over, and nothing is stored for it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from laser_protocol.errors import InvalidRequest, LaserError, StorageUnavailable, UnknownPool
from laser_protocol.pool_id import ancestors, check_pool_id
from laser_retriever.config import RetrieverConfig
from laser_retriever.index import Sources, TokenIndex, build_index
from laser_retriever.pool import IDENTITY_NAME, Documents, Pool, PoolSnapshot

logger = logging.getLogger(__name__)

MAX_CACHED_SOURCES = 4096


class PoolStatus(Enum):
    """What became of the pool that a sequence named."""

    OK = "ok"
    NO_POOL = "no_pool"
    TOKENIZER_MISMATCH = "tokenizer_mismatch"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The derived sample of an ancestor: per tokenizer fingerprint an index, and the snapshots it was made of."""

    indexes: dict[str, TokenIndex]
    snapshots: tuple[PoolSnapshot, ...]
    built_at: float
    build_s: float


class Pools:
    """The pools of a directory. Thread-safe.

    Args:
        config: where they lie and how they are kept.

    Raises:
        StorageUnavailable: the directory cannot be made or read.
    """

    def __init__(self, config: RetrieverConfig) -> None:
        self._config = config
        self._address = config.advertise
        self._mutex = threading.Lock()
        self._pools: dict[str, Pool] = {}
        self._samples: dict[str, Sample] = {}
        self._sources: dict[tuple[str, str], tuple[PoolStatus, Sources]] = {}
        self._wake = threading.Event()
        self._closed = False
        try:
            config.pools.mkdir(parents=True, exist_ok=True)
            next(config.pools.iterdir(), None)
        except OSError as error:
            raise StorageUnavailable(f"pools is {str(config.pools)!r}, cannot be used: {error.strerror}") from error
        self.refresh()
        self._thread = threading.Thread(target=self._maintain, name="pools", daemon=True)
        self._thread.start()

    def advertise(self, address: str) -> None:
        """Sets the HOST:PORT at which this process's writes can be made, known once its port is bound."""
        self._address = address

    def _make_pool(self, pool: str) -> Pool:
        return Pool(pool, self._config, lambda: self._address)

    def close(self) -> None:
        """Stops the background work and gives up all writer locks."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        for pool in self._known():
            pool.close()

    # Drafting

    def sources(self, pool: str, fingerprint: str) -> tuple[PoolStatus, Sources]:
        """What a sequence is drafted from: the pool, then its ancestors. Never waits; cached until something changes.

        Args:
            pool: a valid pool id, or "".
            fingerprint: the caller's tokenizer; pools of another are left out.
        """
        key = (pool, fingerprint)
        known = self._sources.get(key)
        if known is None:
            cache = self._sources  # a refresh puts a new one in its place, and this result may be older than it
            if len(cache) >= MAX_CACHED_SOURCES:
                cache.clear()
            known = cache[key] = self._make_sources(pool, fingerprint)
        return known

    def _make_sources(self, pool: str, fingerprint: str) -> tuple[PoolStatus, Sources]:
        if not pool:
            return PoolStatus.NO_POOL, Sources.of([])
        own = self._snapshot(pool)
        if own is not None and own.exists and own.fingerprint != fingerprint:
            return PoolStatus.TOKENIZER_MISMATCH, Sources.of([])
        indexes: list[tuple[TokenIndex, int]] = []
        for distance, name in enumerate((pool, *ancestors(pool))):
            snapshot = self._snapshot(name)
            if snapshot is not None and snapshot.fingerprint == fingerprint:
                indexes += [(index, distance) for index in (*snapshot.indexes, snapshot.tail)]
            sample = self._samples.get(name)
            if sample is not None and fingerprint in sample.indexes:
                indexes.append((sample.indexes[fingerprint], distance))
        status = PoolStatus.OK if own is not None and own.exists else PoolStatus.NO_POOL
        return status, Sources.of(indexes)

    def _snapshot(self, pool: str) -> PoolSnapshot | None:
        found = self._pools.get(pool)
        return None if found is None else found.snapshot

    # Managing

    def add_documents(self, pool: str, fingerprint: str, documents: Documents) -> None:
        """Adds documents to a pool, which comes into being with its first; durable when it returns.

        Raises:
            InvalidRequest, PoolMismatch, WriterElsewhere, StorageUnavailable
        """
        check_pool_id(pool)
        with self._mutex:
            target = self._pools.get(pool) or self._pools.setdefault(pool, self._make_pool(pool))
        target.add(fingerprint, documents)
        self._wake.set()

    def delete_documents(self, pool: str, ids: Sequence[str]) -> int:
        """Deletes documents by id; durable when it returns. Returns how many existed."""
        num_deleted = self._existing(pool).delete(ids)
        self._wake.set()
        return num_deleted

    def drop(self, pool: str) -> None:
        """Removes a pool, not its descendants."""
        self._existing(pool).drop()
        self.refresh()

    def compact(self, pool: str) -> PoolSnapshot:
        """Merges a pool into one segment without deleted documents."""
        self._existing(pool).compact()
        return self.describe(pool)

    def describe(self, pool: str) -> PoolSnapshot:
        """The pool as it is on disk now.

        Raises:
            InvalidRequest, UnknownPool
        """
        found = self._existing(pool)
        if found.refresh():
            self._sources = {}
            self._wake.set()
        if not found.snapshot.exists:
            raise _unknown(pool)
        return found.snapshot

    def list_pools(self, root: str = "") -> list[PoolSnapshot]:
        """All pools that hold documents of their own, at or below `root`, sorted by id."""
        if root:
            check_pool_id(root)
        self._discover()
        return [
            pool.snapshot
            for pool in sorted(self._known(), key=lambda pool: pool.pool)
            if (not root or pool.pool == root or pool.pool.startswith(root + "/"))
            and self.describe_or_none(pool) is not None
        ]

    def describe_or_none(self, pool: Pool) -> PoolSnapshot | None:
        """The refreshed snapshot of a pool that exists and is not empty."""
        if pool.refresh():
            self._sources = {}
            self._wake.set()
        return pool.snapshot if pool.snapshot.exists and pool.snapshot.num_documents else None

    def _existing(self, pool: str) -> Pool:
        check_pool_id(pool)
        with self._mutex:
            found = self._pools.get(pool)
            if found is None and (self._config.pools / pool / IDENTITY_NAME).is_file():
                found = self._pools[pool] = self._make_pool(pool)
        if found is None:
            raise _unknown(pool)
        return found

    def _known(self) -> list[Pool]:
        with self._mutex:
            return list(self._pools.values())

    # In the background

    def refresh(self) -> None:
        """Takes in everything written since, by any process, and rebuilds the samples that it changes."""
        self._discover()
        changed = False
        for pool in self._known():
            try:
                changed |= pool.refresh()
            except OSError as error:  # what one pool cannot read must not keep the others from being served
                logger.error("pool.unreadable pool=%s reason=%s", pool.pool, error.strerror)
        if changed:
            self._sources = {}
        if self._derive_samples():
            self._sources = {}

    def _discover(self) -> None:
        for directory, names, files in os.walk(self._config.pools):
            names[:] = [name for name in names if not name.startswith("seg-")]
            if IDENTITY_NAME in files:
                pool = os.path.relpath(directory, self._config.pools)
                try:
                    check_pool_id(pool)
                except InvalidRequest:
                    logger.debug("pools.foreign_directory name=%r", pool)
                    continue
                with self._mutex:
                    if pool not in self._pools:
                        self._pools[pool] = self._make_pool(pool)

    def _derive_samples(self) -> bool:
        """Brings the ancestors' samples up to date. Returns whether any changed."""
        below: dict[str, list[PoolSnapshot]] = {}
        for pool in self._known():
            if pool.snapshot.exists:
                for ancestor in ancestors(pool.pool):
                    below.setdefault(ancestor, []).append(pool.snapshot)
        changed = False
        for name in [name for name in self._samples if name not in below]:
            # Two threads may be here: a dropped pool refreshes at once, the maintainer every two seconds.
            self._samples.pop(name, None)
            changed = True
        for name, snapshots in below.items():
            old = self._samples.get(name)
            if old is not None:
                if set(old.snapshots) == set(snapshots):
                    continue
                # A busy ancestor is rebuilt a tenth of the time at most.
                wait_s = min(max(self._config.sample_interval_s, 10 * old.build_s), 30.0)
                if time.monotonic() - old.built_at < wait_s:
                    continue
            self._samples[name] = _build_sample(snapshots, self._config.sample_documents)
            changed = True
        return changed

    def _maintain(self) -> None:
        while not self._closed:
            self._wake.wait(self._config.rescan_s)
            self._wake.clear()
            if self._closed:
                return
            started = time.monotonic()
            try:
                self.refresh()
                for pool in self._known():
                    _keep_up(pool)
            except Exception:  # upkeep must outlive any single fault
                logger.exception("pools.maintenance_failed")
            # Writes in quick succession are taken in together, and upkeep takes a quarter of a core at most.
            took_s = time.monotonic() - started
            time.sleep(min(max(0.05, 3 * took_s), 1.0, self._config.rescan_s))


def _keep_up(pool: Pool) -> None:
    try:
        if pool.needs_sealing():
            pool.seal()
        pool.maintain()
    except LaserError as error:
        logger.warning("pool.maintenance_failed pool=%s reason=%s", pool.pool, error)


def _unknown(pool: str) -> UnknownPool:
    return UnknownPool(f"pool {pool!r} is not known here", field="pool")


def _build_sample(snapshots: Sequence[PoolSnapshot], max_documents: int) -> Sample:
    """The documents of these pools with the smallest hash of (pool, id), per tokenizer."""
    started = time.monotonic()
    by_fingerprint: dict[str, list[tuple[bytes, TokenIndex, int]]] = {}
    for snapshot in snapshots:
        base = hashlib.blake2b(snapshot.pool.encode() + b"\0", digest_size=8)
        hashed = by_fingerprint.setdefault(snapshot.fingerprint, [])
        for document_id, index, i in snapshot.documents():
            state = base.copy()
            state.update(document_id.encode())
            hashed.append((state.digest(), index, i))
    indexes = {}
    for fingerprint, hashed in by_fingerprint.items():
        smallest = sorted(hashed, key=lambda item: item[0])[:max_documents]
        indexes[fingerprint] = build_index([np.asarray(index.document(i)) for _, index, i in smallest])
    now = time.monotonic()
    return Sample(indexes, tuple(snapshots), now, now - started)
