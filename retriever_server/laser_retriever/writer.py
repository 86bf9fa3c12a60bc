"""Changes one pool, as its only writer: adds, deletes, evicts, seals, compacts, drops.

Whoever holds the pool's lock writes it. Two mutexes order the threads of this process: `_building`, taken first, is
held through everything that makes or removes segments; `_writing` only for what must not come between two records, so
that adding waits for a disk, never for an index to be built.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from laser_protocol.errors import InvalidRequest, PoolMismatch, StorageUnavailable, UnknownPool
from laser_retriever import checked_json
from laser_retriever.checked_json import DamagedJson
from laser_retriever.clock import Clock
from laser_retriever.compaction import choose_run, merged, newest_fitting, sealed
from laser_retriever.config import RetrieverConfig
from laser_retriever.contents import (
    FORMAT_VERSION,
    IDENTITY_NAME,
    LiveDocuments,
    PoolContents,
    PoolReader,
    read_fingerprint,
    segment_names,
)
from laser_retriever.durable import Disk, unfinished
from laser_retriever.log import HEADER_SIZE, LOG_NAME, Record
from laser_retriever.log_writer import LogWriter, storage_error
from laser_retriever.segment import PREFIX, UNFINISHED, SegmentContent, write_segment
from laser_retriever.writer_lock import LOCK_NAME, WriterLock

logger = logging.getLogger(__name__)

Documents = Sequence[tuple[str, NDArray[np.int32]]]

# To take a lock whose directory others remove meanwhile.
_ATTEMPTS = 8


class PoolWriter:
    """Writes one pool. Thread-safe. Every method may raise WriterElsewhere and StorageUnavailable.

    Args:
        pool: its id.
        config: where it lies and how it is kept.
        reader: of the same pool.
        address: HOST:PORT of this process, for whoever finds the lock taken.
        disk, clock: the file system and the time.
    """

    def __init__(
        self,
        pool: str,
        config: RetrieverConfig,
        reader: PoolReader,
        address: Callable[[], str],
        disk: Disk,
        clock: Clock,
    ) -> None:
        self._pool = pool
        self._directory = config.pools / pool
        self._config = config
        self._reader = reader
        self._address = address
        self._disk = disk
        self._clock = clock
        self._building = threading.Lock()
        self._writing = threading.Lock()
        self._lock: WriterLock | None = None
        self._log: LogWriter | None = None
        self._fingerprint = ""
        self._last_write_s = 0.0
        self._replaced_since_s: dict[str, float] = {}

    @property
    def holds_lock(self) -> bool:
        """Whether this process is the pool's writer at present."""
        return self._lock is not None

    def add(self, fingerprint: str, documents: Documents) -> None:
        """Adds documents, replacing those of the same id; durable when it returns.

        Args:
            fingerprint: of the tokenizer whose ids they are made of; founds the pool if there is none.
            documents: (id, int32 tokens) pairs, valid.

        Raises:
            PoolMismatch
        """
        with self._as_writer(fingerprint) as log:
            now_ms = self._now_ms()
            log.append([Record(document_id, token_ids, now_ms) for document_id, token_ids in documents])

    def delete(self, ids: Sequence[str]) -> int:
        """Deletes documents by id; durable when it returns. Returns how many of the ids existed.

        Raises:
            UnknownPool
        """
        with self._as_writer() as log:
            log.heal()  # what a failed delete wrote is read, but is gone with the next write
            contents = self._contents()
            return self._bury(log, [document_id for document_id in dict.fromkeys(ids) if contents.has(document_id)])

    def evict(self, now_s: float) -> int:
        """Deletes the oldest documents until the pool is within its limits. Returns how many.

        Args:
            now_s: seconds since 1970, for limits of age.

        Raises:
            UnknownPool
        """
        with self._as_writer() as log:
            log.heal()
            # Chosen under the mutex: a document replaced in the meantime is no longer an old one.
            live = LiveDocuments.of(self._contents())
            gone = self._config.limits.evicted(live.num_tokens, live.times_ms, now_s)
            num_evicted = self._bury(log, live.ids(gone))
        if num_evicted:
            logger.info("pool.evicted pool=%s documents=%d", self._pool, num_evicted)
        return num_evicted

    def seal(self) -> None:
        """Turns the log into a segment; merges segments where there are too many.

        Raises:
            UnknownPool
        """
        with self._building:
            self._seal()
            segments = self._contents().segments
            if len(segments) > self._config.max_segments and len(run := choose_run(segments)) > 1:
                self._merge(len(run))

    def compact(self) -> None:
        """Merges log and segments into one segment without deleted documents; of more than MAX_TOKENS the newest.

        Raises:
            UnknownPool
        """
        with self._building:
            self._seal()
            contents = self._contents()
            if not contents.segments:
                return
            run = newest_fitting(contents.segments)
            dead = any(contents.hidden[segment.name].any() or segment.meta.tombstones for segment in run)
            # What no longer fits into one is merged, not made anew again and again for what is dead in it.
            if len(run) > 1 or (dead and len(run) == len(contents.segments)):
                self._merge(len(run))

    def drop(self) -> None:
        """Removes the pool with all its documents, also such as cannot be read. Pools below it stay.

        Raises:
            UnknownPool
        """
        with self._building, self._holding_lock(dropping=True):
            try:
                # Without its identity a pool does not exist: whatever a crash leaves is removed before it exists again.
                self._disk.unlink(self._directory / IDENTITY_NAME)
                self._disk.sync_directory(self._directory)
                self._remove_remains()
                # Before the lock is given up: who waits for it finds that the file is gone, and makes a new one.
                self._disk.unlink(self._directory / LOCK_NAME)
            finally:
                self._release()  # also after a failure: what is added next is added to a pool founded anew
            self._remove_empty_directories()

    def tidy(self) -> None:
        """Removes segments replaced long ago; gives the lock up after a time without writes. Waits for no build."""
        if not self._building.acquire(blocking=False):
            return
        try:
            if self._unlink_replaced():
                return
            with self._writing:
                if self._clock.monotonic_s() - self._last_write_s >= self._config.lock_idle_s:
                    self._release()
        except OSError as error:
            raise storage_error(error) from error
        finally:
            self._building.release()

    def give_up(self) -> None:
        """Gives up the writer lock unless segments are being made or removed."""
        if self._building.acquire(blocking=False):
            try:
                with self._writing:
                    self._release()
            finally:
                self._building.release()

    def close(self) -> None:
        """Gives up the writer lock, if held."""
        with self._building, self._writing:
            self._release()

    # Becoming the writer

    @contextmanager
    def _as_writer(self, founding: str = "") -> Iterator[LogWriter]:
        """The log, recovered, with the lock held and no other thread writing. `founding`: see `_holding_lock`."""
        with self._holding_lock(founding) as is_taken:
            if self._log is None:
                try:
                    self._log = LogWriter(self._disk, self._directory / LOG_NAME, self._reader.poll().end_sequence)
                except BaseException:
                    if is_taken:  # else whoever took it still needs it
                        self._release()
                    raise
            yield self._log

    @contextmanager
    def _holding_lock(self, founding: str = "", *, dropping: bool = False) -> Iterator[bool]:
        """No other thread or process writes. Needs no room on the disk, unlike a log: it can be made there.

        Args:
            founding: fingerprint of a pool to found where there is none.
            dropping: the pool need not be readable, and the lock is not kept.

        Gives whether the lock was taken just now.
        """
        with self._writing:
            try:
                is_taken = self._lock is None
                if is_taken:
                    self._take_over(founding, dropping)
                self._check_fingerprint(self._fingerprint, founding)
                yield is_taken
            except OSError as error:
                raise storage_error(error) from error
            except DamagedJson as error:
                raise StorageUnavailable(f"{IDENTITY_NAME} of pool {self._pool!r} cannot be read: {error}") from error
            self._last_write_s = self._clock.monotonic_s()

    def _take_over(self, founding: str, dropping: bool) -> None:
        """Takes the lock, and removes what an earlier writer did not finish."""
        stored = self._stored_fingerprint(dropping)
        self._check_fingerprint(stored, founding)
        self._lock = self._acquire(stored)
        try:
            self._fingerprint = self._stored_fingerprint(dropping)
            self._check_fingerprint(self._fingerprint, founding)
            if dropping:
                return
            if not self._fingerprint:
                self._found(founding)
            self._contents(look_closely=True)
            for path in self._directory.glob(f"{PREFIX}*{UNFINISHED}"):
                self._disk.remove_tree(path)
        except BaseException:
            self._release()
            raise

    def _acquire(self, stored: str) -> WriterLock:
        """The lock, in a directory that is made where no pool is stored."""
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                # Of a pool that exists its founder has made them durable.
                self._disk.make_directories(self._directory, self._directory if stored else self._config.pools)
                return WriterLock.acquire(self._disk, self._directory, self._pool, self._address())
            except (NotADirectoryError, FileExistsError) as error:
                raise InvalidRequest(f"pool {self._pool!r} has the name of a file in a pool", field="pool") from error
            except FileNotFoundError:  # its directory went with a pool beside it that was dropped
                if not attempts_left:
                    raise
        raise AssertionError("the last attempt raises")

    def _stored_fingerprint(self, dropping: bool) -> str:
        try:
            return read_fingerprint(self._directory)
        except DamagedJson:
            if dropping:
                return "damaged"
            raise

    def _check_fingerprint(self, stored: str, given: str) -> None:
        if not stored and not given:
            raise UnknownPool(f"pool {self._pool!r} is not known here", field="pool")
        if stored and given and stored != given:
            raise PoolMismatch(
                f"tokenizer_fingerprint is {given!r}, but pool {self._pool!r} holds documents of {stored!r}",
                field="tokenizer_fingerprint",
            )

    def _found(self, fingerprint: str) -> None:
        self._remove_remains()
        identity = {"format_version": FORMAT_VERSION, "tokenizer_fingerprint": fingerprint}
        path = self._directory / IDENTITY_NAME
        temporary = path.with_name(unfinished(IDENTITY_NAME))
        self._disk.write_file(temporary, checked_json.encode(identity))
        self._disk.rename(temporary, path)  # durable together with the log, which is made next
        self._fingerprint = fingerprint
        logger.info("pool.created pool=%s", self._pool)

    def _release(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # Parts of the above

    def _contents(self, *, look_closely: bool = False) -> PoolContents:
        """What the pool holds. Raises StorageUnavailable where that cannot all be read: a change would pass it by."""
        contents = self._reader.poll(look_closely=look_closely)
        if contents.unreadable:
            raise StorageUnavailable(
                f"pool {self._pool!r} can be read only in part, so it is not written to: {contents.unreadable}; "
                "serve it with the version that wrote that, or drop it"
            )
        return contents

    def _now_ms(self) -> int:
        return int(self._clock.unix_s() * 1000)

    def _bury(self, log: LogWriter, ids: Sequence[str]) -> int:
        if ids:
            now_ms = self._now_ms()
            log.append([Record(document_id, None, now_ms) for document_id in ids])
        return len(ids)

    def _seal(self) -> None:
        """The log into a segment. First the segment is published, then the log begins anew: see `PoolReader._read`."""
        with self._as_writer() as log:
            log.heal()
            contents = self._contents(look_closely=True)
            mark = log.mark()
        # A seal cut short leaves a log of which a segment holds everything; what nobody could read is left alone.
        if mark.offset == HEADER_SIZE or not (contents.log or mark.sequence <= contents.end_sequence):
            return
        content = sealed(contents, mark.sequence)
        # Where all that came was deleted again, and no segment holds any of it, the log only begins anew.
        name = self._publish(content) if content.documents or content.tombstones else "none"
        with self._as_writer() as log:
            log.drop_before(mark)
        logger.info("pool.sealed pool=%s segment=%s", self._pool, name)

    def _merge(self, num_segments: int) -> None:
        """Replaces the newest segments by one without the documents hidden in them."""
        contents = self._contents()
        run = contents.segments[-num_segments:]
        name = self._publish(merged(contents, run, segment_names(self._directory)))
        logger.info("pool.merged pool=%s segment=%s segments=%d", self._pool, name, num_segments)

    def _publish(self, content: SegmentContent) -> str:
        try:
            return write_segment(self._disk, self._directory, content)
        except OSError as error:
            raise storage_error(error) from error

    def _unlink_replaced(self) -> bool:
        """Removes segments replaced long enough ago for no reader to open them. Returns whether some are left."""
        now_s = self._clock.monotonic_s()
        replaced = {name for segment in self._reader.poll().segments for name in segment.meta.replaces}
        waiting = sorted(replaced.intersection(segment_names(self._directory)))
        self._replaced_since_s = {name: self._replaced_since_s.get(name, now_s) for name in waiting}
        due = [name for name in waiting if now_s - self._replaced_since_s[name] >= self._config.unlink_after_s]
        if not due:
            return bool(waiting)
        with self._holding_lock():
            pass
        for name in due:
            self._disk.remove_tree(self._directory / name)
        self._disk.sync_directory(self._directory)
        return len(due) < len(waiting)

    def _remove_remains(self) -> None:
        """Removes segments and log of a pool that does not exist (any more)."""
        for path in self._directory.glob(f"{PREFIX}*"):
            self._disk.remove_tree(path)
        # Beside them, what a failed replacement left: it holds documents too.
        for name in (LOG_NAME, unfinished(LOG_NAME), unfinished(IDENTITY_NAME)):
            if (self._directory / name).exists():
                self._disk.unlink(self._directory / name)
        self._disk.sync_directory(self._directory)

    def _remove_empty_directories(self) -> None:
        directory = self._directory
        while directory != self._config.pools:
            try:
                self._disk.remove_directory(directory)
            except OSError:
                return  # pools below it, or another writer already
            directory = directory.parent
