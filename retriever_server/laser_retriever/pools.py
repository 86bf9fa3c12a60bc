"""All pools under one directory, kept up to date in the background, and what a sequence is drafted from."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager

from laser_protocol.errors import InvalidRequest, LaserError, StorageUnavailable, UnknownPool, WriterElsewhere
from laser_protocol.pool_id import ancestors, check_pool_id
from laser_retriever.clock import Clock
from laser_retriever.config import RetrieverConfig
from laser_retriever.contents import IDENTITY_NAME
from laser_retriever.counters import Event, EventCounters
from laser_retriever.durable import Disk
from laser_retriever.log_writer import storage_error
from laser_retriever.pool import Pool, Upkeep
from laser_retriever.samples import Samples
from laser_retriever.snapshot import PoolSnapshot
from laser_retriever.sources import PoolStatus, Source, Sources
from laser_retriever.storage_health import StorageHealth
from laser_retriever.writer import Documents

logger = logging.getLogger(__name__)

MAX_CACHED_SOURCES = 4096


class Pools:
    """The pools of a directory. Thread-safe.

    One thread takes in what is written, by any process; others do what takes long: one samples for ancestors, another
    evicts, seals and compacts. What pools hold is known from the start; samples come with the first refresh.

    Args:
        config: where they lie and how they are kept.
        disk, clock: the file system and the time.
        started: False: the threads wait for `start`, so that no lock is taken before others can be sent here.

    Raises:
        StorageUnavailable: the directory cannot be made or read.
    """

    def __init__(
        self,
        config: RetrieverConfig,
        disk: Disk | None = None,
        clock: Clock | None = None,
        *,
        started: bool = True,
    ) -> None:
        self._config = config
        self._disk = disk or Disk()
        self._clock = clock or Clock()
        self._address = config.advertise
        self._mutex = threading.Lock()
        self._pools: dict[str, Pool] = {}
        self._num_writing: Counter[str] = Counter()
        self._samples = Samples(config.sample_documents, config.sample_interval_s, self._clock)
        self._updating_samples = threading.Lock()
        self._sources = _SourceCache()
        self._changed = threading.Event()
        self._samples_due = threading.Event()
        self._upkeep_due = threading.Event()
        self._closing = threading.Event()
        self._unlistable: Set[str] = set()
        self.counters = EventCounters()
        try:
            self._disk.make_directories(config.pools.absolute(), config.pools.absolute())
            next(config.pools.iterdir(), None)
        except OSError as error:
            raise StorageUnavailable(f"pools is {str(config.pools)!r}, cannot be used: {error.strerror}") from error
        self.storage = StorageHealth(self._disk, config.pools)
        self._take_in()
        self._samples_due.clear()
        self._threads: list[threading.Thread] = []
        if started:
            self.start()

    def advertise(self, address: str) -> None:
        """Sets the HOST:PORT at which this process's writes can be made, known once its port is bound."""
        self._address = address

    def start(self) -> None:
        """Begins the background work. Called once."""
        self._threads = [
            threading.Thread(target=self._repeat, args=args, name=f"pools-{name}", daemon=True)
            for name, *args in (
                ("refresh", self._take_in, self._changed),
                ("samples", self._update_samples, self._samples_due),
                ("upkeep", self.upkeep, self._upkeep_due),
            )
        ]
        for thread in self._threads:
            thread.start()

    def give_up_locks(self) -> None:
        """Begins to stop: others may write the pools at once, but for those that are being compacted."""
        self._closing.set()
        for pool in self._known():
            pool.writer.give_up()

    def close(self) -> None:
        """Stops the background work and gives up all writer locks."""
        self._closing.set()
        for due in (self._changed, self._samples_due, self._upkeep_due):
            due.set()
        for thread in self._threads:
            thread.join()
        for pool in self._known():
            pool.writer.close()

    # Drafting

    def sources(self, pool: str, fingerprint: str) -> tuple[PoolStatus, Sources]:
        """What a sequence is drafted from: the pool, then its ancestors. Never waits; cached until something changes.

        Args:
            pool: a valid pool id, or "".
            fingerprint: the caller's tokenizer; pools of another are left out.
        """
        key = (pool, fingerprint)
        cache = self._sources  # a refresh puts a new one in its place, and this result may be older than it
        known = cache.made.get(key)
        if known is None:
            if len(cache.made) >= MAX_CACHED_SOURCES:
                cache.made.clear()
            known = cache.made[key] = self._make_sources(pool, fingerprint, cache)
        return known

    def _make_sources(self, pool: str, fingerprint: str, cache: _SourceCache) -> tuple[PoolStatus, Sources]:
        if not pool:
            return PoolStatus.NO_POOL, Sources.of([])
        own = self._snapshot(pool)
        if own is not None and own.exists and own.fingerprint != fingerprint:
            return PoolStatus.TOKENIZER_MISMATCH, Sources.of([])
        sources: list[Source] = []
        nearer = ""
        for distance, name in enumerate((pool, *ancestors(pool))):
            snapshot = self._snapshot(name)
            if snapshot is not None and snapshot.fingerprint == fingerprint:
                sources += [Source(index, distance) for index in (*snapshot.indexes, snapshot.tail)]
            sample = self._samples.get(name)
            if sample is not None and fingerprint in sample.indexes:
                # Among fewer documents the same hashes draw at least as many: the nearer sample has these already.
                skipped = sample.tokens_below(nearer, fingerprint) if nearer else range(0)
                sources.append(Source(sample.indexes[fingerprint], distance, skipped))
            nearer = name
        # A pool without documents of its own is drafted from those below it, where there are any.
        sample = self._samples.get(pool)
        known = (
            (own is not None and own.exists)
            or (sample is not None and fingerprint in sample.indexes)
            or (pool, fingerprint) in cache.ancestors(self.snapshots)
        )
        return PoolStatus.OK if known else PoolStatus.NO_POOL, Sources.of(sources)

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
        with self._writing(pool) as target:
            target.writer.add(fingerprint, documents)
        self.counters.count(Event.DOCUMENTS_ACKNOWLEDGED, len(documents))
        self._changed.set()

    def delete_documents(self, pool: str, ids: Sequence[str]) -> int:
        """Deletes documents by id; durable when it returns. Returns how many existed."""
        self._existing(pool)
        with self._writing(pool) as target:
            num_deleted = target.writer.delete(ids)
        self.counters.count(Event.DOCUMENTS_DELETED, num_deleted)
        self._changed.set()
        return num_deleted

    def drop(self, pool: str) -> None:
        """Removes a pool, not its descendants."""
        self._existing(pool)
        with self._writing(pool) as target:
            target.writer.drop()
        self._take_in()
        self._changed.set()

    def compact(self, pool: str) -> PoolSnapshot:
        """Merges the segments of a pool without deleted documents: see `PoolWriter.compact`."""
        self._existing(pool)
        with self._writing(pool) as target:
            target.writer.compact()
        self.counters.count(Event.COMPACTIONS)
        return self.describe(pool)

    def describe(self, pool: str) -> PoolSnapshot:
        """The pool as it is on disk now.

        Raises:
            InvalidRequest, UnknownPool
        """
        found = self._existing(pool)
        if self._refresh_one(found):
            self._changed.set()
        if not found.snapshot.exists:
            if reason := self.storage.why_unreadable(found.directory):
                raise StorageUnavailable(f"pool {pool!r} cannot be read: {reason}")
            raise _unknown(pool)
        return found.snapshot

    def list_pools(self, root: str = "") -> list[PoolSnapshot]:
        """All pools that hold documents of their own, at or below `root`, sorted by id."""
        if root:
            check_pool_id(root)
        found = self._discover()
        pools = sorted({pool.pool: pool for pool in (*self._known(), *found)}.items())
        listed = [pool for name, pool in pools if not root or name == root or name.startswith(root + "/")]
        changed = [self._refresh_one(pool) for pool in listed]
        if any(changed):
            self._changed.set()
        return [pool.snapshot for pool in listed if pool.snapshot.exists and pool.snapshot.num_documents]

    def snapshots(self) -> list[PoolSnapshot]:
        """All pools that exist, as of the last refresh."""
        return [pool.snapshot for pool in self._known() if pool.snapshot.exists]

    @contextmanager
    def _writing(self, pool: str) -> Iterator[Pool]:
        """The pool, which is not forgotten meanwhile. Counts and remembers what goes wrong with a write."""
        with self._mutex:
            target = self._opened(pool)
            self._num_writing[pool] += 1
        try:
            yield target
        except WriterElsewhere:
            self.counters.count(Event.WRITER_CONFLICTS)
            raise
        except StorageUnavailable as error:
            self.counters.count(Event.STORAGE_ERRORS)
            self._refresh_one(target)
            if not target.snapshot.contents.unreadable:  # else no probing of the disk tells when it is over
                self.storage.failed(target.directory, str(error))
            raise
        finally:
            with self._mutex:
                self._num_writing[pool] -= 1

    def _opened(self, pool: str) -> Pool:
        """The one object of a pool; the caller holds the mutex."""
        if pool not in self._pools:
            self._pools[pool] = Pool(pool, self._config, lambda: self._address, self._disk, self._clock)
        return self._pools[pool]

    def _existing(self, pool: str) -> Pool:
        check_pool_id(pool)
        # Not under the mutex: drafts may wait for that, and never for a file system.
        try:
            is_there = pool in self._pools or (self._config.pools / pool / IDENTITY_NAME).is_file()
        except OSError as error:
            raise storage_error(error) from error
        if not is_there:
            raise _unknown(pool)
        with self._mutex:
            return self._opened(pool)

    def _known(self) -> list[Pool]:
        with self._mutex:
            return list(self._pools.values())

    # In the background

    def refresh_soon(self) -> None:
        """Has the background refresh now and not in `rescan_s`."""
        self._changed.set()
        self._samples_due.set()

    def refresh(self) -> None:
        """Takes in everything written since, by any process, and rebuilds the samples that it changes."""
        self._take_in()
        self._update_samples()

    def _take_in(self) -> None:
        found = self._discover()
        changed = [self._refresh_one(pool) for pool in self._known()]
        if any(changed):
            self._upkeep_due.set()
        self._forget(found)

    def _update_samples(self) -> None:
        with self._updating_samples:
            for _ in self._samples.update(self.snapshots()):
                self._renew_sources(same_pools=True)
                if self._closing.is_set():
                    return

    def upkeep(self) -> None:
        """Does for every pool what is due: evicting, sealing, compacting, tidying."""
        self.storage.probe()
        for pool in self._known():
            if self._closing.is_set() or self.storage.why_unreadable(pool.directory):
                continue
            try:
                with self._writing(pool.pool) as target:
                    # On a full disk what frees room is still done.
                    done = target.upkeep(needs_no_room=self.storage.is_failing(pool.directory))
            except LaserError as error:
                logger.warning("pool.upkeep_failed pool=%s reason=%s", pool.pool, error)
                continue
            self.counters.count(Event.DOCUMENTS_EVICTED, done.num_evicted)
            self.counters.count(Event.SEALS, done.num_seals)
            self.counters.count(Event.COMPACTIONS, done.num_compactions)
            if done != Upkeep():
                self._changed.set()

    def _refresh_one(self, pool: Pool) -> bool:
        before = pool.snapshot.fingerprint
        try:
            changed = pool.refresh()
        except OSError as error:  # what one pool cannot read must not keep the others from being served
            self.storage.set_unreadable(pool.directory, f"its files cannot be read: {error.strerror}")
            return False
        if changed:
            self._renew_sources(same_pools=pool.snapshot.fingerprint == before)
            self._samples_due.set()
        self.storage.set_unreadable(pool.directory, pool.snapshot.contents.unreadable)
        return changed

    def _renew_sources(self, *, same_pools: bool) -> None:
        with self._mutex:
            self._sources = _SourceCache(self._sources if same_pools else None)

    def _forget(self, found: Sequence[Pool]) -> None:
        """Forgets pools that are not there: dropped ones, and ones that never came into being.

        One that is being written to stays: it may hold the writer lock at any moment, and two objects of one pool would
        keep it from each other. One founded since `found` was looked for comes back with the next look, no later than
        it would have been seen anyway.
        """
        there = {pool.pool for pool in found}
        absent = [pool.pool for pool in self._known() if pool.pool not in there and not pool.snapshot.exists]
        with self._mutex:
            for name in absent:
                pool = self._pools.get(name)
                if pool and not (pool.snapshot.exists or pool.writer.holds_lock or self._num_writing[name]):
                    del self._pools[name], self._num_writing[name]
                    self.storage.set_unreadable(pool.directory, "")

    def _discover(self) -> list[Pool]:
        """The pools whose directories are there."""
        found = []
        failures: list[OSError] = []
        for directory, names, files in os.walk(self._config.pools, onerror=failures.append):
            names[:] = [name for name in names if not name.startswith("seg-")]
            if IDENTITY_NAME in files:
                pool = os.path.relpath(directory, self._config.pools)
                try:
                    check_pool_id(pool)
                except InvalidRequest:
                    logger.debug("pools.foreign_directory name=%r", pool)
                    continue
                with self._mutex:
                    found.append(self._opened(pool))
        # What is not found was dropped since its parent was listed.
        unlistable = {str(each.filename): each.strerror for each in failures if not isinstance(each, FileNotFoundError)}
        for directory in unlistable.keys() - self._unlistable:
            logger.error("pools.unlistable directory=%s reason=%s; pools in it are not served",
                         directory, unlistable[directory])  # fmt: skip
        self._unlistable = unlistable.keys()
        return found

    def _repeat(self, work: Callable[[], None], due: threading.Event) -> None:
        """Does the work whenever it is due, at least every `rescan_s`."""
        while True:
            due.wait(self._config.rescan_s)
            due.clear()
            if self._closing.is_set():
                return
            started_s = self._clock.monotonic_s()
            try:
                work()
            except Exception:  # the background must outlive any single fault
                logger.exception("pools.background_failed")
            # Writes in quick succession are taken in together, and this takes a quarter of a core at most.
            took_s = self._clock.monotonic_s() - started_s
            self._closing.wait(min(max(0.05, 3 * took_s), 1.0, self._config.rescan_s))


class _SourceCache:
    """What was made since the last change.

    Args:
        before: of the same pools, which may hold other documents now.

    Attributes:
        made: by pool and tokenizer.
    """

    def __init__(self, before: _SourceCache | None = None) -> None:
        self.made: dict[tuple[str, str], tuple[PoolStatus, Sources]] = {}
        self._ancestors: set[tuple[str, str]] | None = before._ancestors if before else None

    def ancestors(self, snapshots: Callable[[], Sequence[PoolSnapshot]]) -> set[tuple[str, str]]:
        """All ids above pools that exist, each with the tokenizer: of thousands of pools gone over once."""
        if self._ancestors is None:
            self._ancestors = {(above, each.fingerprint) for each in snapshots() for above in ancestors(each.pool)}
        return self._ancestors


def _unknown(pool: str) -> UnknownPool:
    return UnknownPool(f"pool {pool!r} is not known here", field="pool")
