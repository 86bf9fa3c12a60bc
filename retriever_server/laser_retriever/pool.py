"""One pool: its segments, its log, and who may write it. Reads what any process wrote, writes when it holds the lock.

Order of a pool's history is the number of its log records; a segment holds the effect of a range of them. So a document
is hidden by a later one of the same id, or a later tombstone, wherever the two lie.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laser_protocol.errors import InvalidRequest, PoolMismatch, StorageUnavailable, UnknownPool
from laser_retriever.config import RetrieverConfig
from laser_retriever.durable import json_bytes, make_directories, replace_file, sync_directory
from laser_retriever.index import MARKS_PER_DOCUMENT, TokenIndex, build_index
from laser_retriever.log import LOG_NAME, LogReader, LogWriter, Record, new_log_bytes, storage_error
from laser_retriever.segment import PREFIX, UNFINISHED, CorruptSegment, Segment, open_segment, write_segment
from laser_retriever.writer_lock import LOCK_NAME, WriterLock

logger = logging.getLogger(__name__)

# The name starts with "log" because no component of a pool id may.
IDENTITY_NAME = "log.json"
FORMAT_VERSION = 1

Documents = Sequence[tuple[str, NDArray[np.int32]]]


@dataclass(frozen=True, slots=True, eq=False)
class PoolSnapshot:
    """What a pool held at one moment. Immutable, safe to read from any thread.

    Attributes:
        pool: its id.
        fingerprint: of its tokenizer; "" while the pool does not exist.
        segments: oldest first.
        indexes: of each segment, with what is deleted in it.
        tail: index of the log's documents.
        tail_ids: their ids, in order.
        num_documents, num_tokens: of live documents, marks not counted.
        size_bytes: of segments and log.
    """

    pool: str
    fingerprint: str
    segments: tuple[Segment, ...]
    indexes: tuple[TokenIndex, ...]
    tail: TokenIndex
    tail_ids: tuple[str, ...]
    num_documents: int
    num_tokens: int
    size_bytes: int

    @property
    def exists(self) -> bool:
        """Whether the pool has come into being and was not dropped."""
        return bool(self.fingerprint)

    def documents(self) -> Iterator[tuple[str, TokenIndex, int]]:
        """(id, index, document_idx) of every live document, oldest first."""
        for segment, index in zip(self.segments, self.indexes, strict=True):
            for i, document_id in enumerate(segment.meta.ids):
                start = int(index.offsets[i])
                if index.dead is None or not (index.dead[start >> 3] >> (start & 7)) & 1:
                    yield document_id, index, i
        for i, document_id in enumerate(self.tail_ids):
            yield document_id, self.tail, i


class Pool:
    """A pool's directory, as one process sees it. Thread-safe; `snapshot` never waits."""

    def __init__(self, pool: str, config: RetrieverConfig, address: Callable[[], str] = str) -> None:
        self.pool = pool
        self.directory = config.pools / pool
        self._config = config
        self._address = address  # of this process, for whoever finds the lock taken
        self._mutex = threading.RLock()
        self._build_mutex = threading.Lock()
        self._lock: WriterLock | None = None
        self._log_writer: LogWriter | None = None
        self._last_write = 0.0
        self._broken = False
        self._fingerprint = ""
        self._segments: dict[str, Segment] = {}
        self._corrupt: set[str] = set()
        # Id -> tokens, or None for a tombstone, with the record's number: the log's net effect.
        self._log: dict[str, tuple[int, NDArray[np.int32] | None]] = {}
        self._log_reader = LogReader(self.directory / LOG_NAME)
        self._hidden: dict[str, frozenset[int]] = {}
        self._indexes: dict[str, tuple[frozenset[int], TokenIndex]] = {}
        self._seen: tuple[object, ...] = ()
        self._changed = True
        self._snapshot = PoolSnapshot(pool, "", (), (), build_index([]), (), 0, 0, 0)

    # Reading

    @property
    def snapshot(self) -> PoolSnapshot:
        """The pool as of the last refresh."""
        return self._snapshot

    def refresh(self) -> bool:
        """Takes in what was written since, by whomever. Returns whether `snapshot` is another one now."""
        # Builds follow each other, so that no older snapshot comes after a newer one.
        with self._build_mutex:
            with self._mutex:
                self._read()
                if not self._changed:
                    return False
                self._changed = False
                segments = tuple(self._ordered_segments())
                dead = [self._dead_idxs(segment) for segment in segments]
                indexes = tuple(self._live_index(segment, idxs) for segment, idxs in zip(segments, dead, strict=True))
                log = [(key, tokens) for key, (_, tokens) in self._log.items() if tokens is not None]
                fingerprint = self._fingerprint
                size_bytes = sum(segment.size_bytes for segment in segments) + self._log_reader.size_bytes
            # The one part that takes time works on copies, so writers need not wait for it.
            tail = build_index([tokens for _, tokens in log])
            num_tokens = sum(len(tokens) for _, tokens in log)
            num_tokens += sum(_num_live_tokens(s.index, idxs) for s, idxs in zip(segments, dead, strict=True))
            self._snapshot = PoolSnapshot(
                pool=self.pool,
                fingerprint=fingerprint,
                segments=segments,
                indexes=indexes,
                tail=tail,
                tail_ids=tuple(key for key, _ in log),
                num_documents=len(log) + sum(len(s.meta.ids) - len(i) for s, i in zip(segments, dead, strict=True)),
                num_tokens=num_tokens,
                size_bytes=size_bytes,
            )
            return True

    def _read(self) -> None:
        """Brings segments and log up to date with the directory. The log comes first: see `_seal`."""
        seen = self._look()
        if seen == self._seen:
            return
        fingerprint = read_fingerprint(self.directory)
        if fingerprint != self._fingerprint:
            self._fingerprint = fingerprint
            self._changed = True
        restarted, records = self._log_reader.poll()
        if restarted:
            self._log.clear()
        for sequence, record in records:
            self._log.pop(record.document_id, None)  # so that the dict's order is the order of arrival
            self._log[record.document_id] = (sequence, record.token_ids)
        segments_changed = self._read_segments()
        end_sequence = max((segment.meta.end_sequence for segment in self._segments.values()), default=0)
        for document_id in [key for key, (sequence, _) in self._log.items() if sequence < end_sequence]:
            del self._log[document_id]
        if segments_changed:
            self._hidden = self._hidden_idxs()
        self._changed |= restarted or bool(records) or segments_changed
        self._seen = seen

    def _look(self) -> tuple[object, ...]:
        """What changes whenever a process writes to the pool; cheap."""
        try:
            directory = self.directory.stat()
            log = (self.directory / LOG_NAME).stat()
        except (FileNotFoundError, NotADirectoryError):
            return (None, (self.directory / IDENTITY_NAME).exists())
        # Names beside times: two renames within one tick of the file system's clock look alike.
        names = tuple(sorted(_segment_names(self.directory)))
        return (directory.st_ino, directory.st_mtime_ns, names, log.st_ino, log.st_size, log.st_mtime_ns)

    def _read_segments(self) -> bool:
        names = set(_segment_names(self.directory)) if self._fingerprint else set()
        opened: dict[str, Segment] = {name: s for name, s in self._segments.items() if name in names}
        for name in sorted(names - opened.keys() - self._corrupt):
            try:
                opened[name] = open_segment(self.directory / name)
            except CorruptSegment as error:
                self._corrupt.add(name)
                logger.error("segment.skipped pool=%s segment=%s reason=%s", self.pool, name, error)
            except FileNotFoundError:  # replaced and removed since it was listed
                logger.debug("segment.gone pool=%s segment=%s", self.pool, name)
        replaced = {name for segment in opened.values() for name in segment.meta.replaces}
        live = {name: segment for name, segment in opened.items() if name not in replaced}
        changed = live.keys() != self._segments.keys()
        self._segments = live
        return changed

    def _ordered_segments(self) -> list[Segment]:
        return sorted(self._segments.values(), key=lambda segment: segment.meta.end_sequence)

    def _hidden_idxs(self) -> dict[str, frozenset[int]]:
        """Per segment, the documents hidden by later segments."""
        hidden: dict[str, frozenset[int]] = {}
        later: set[str] = set()
        for segment in reversed(self._ordered_segments()):
            positions = segment.document_idxs
            smaller, larger = sorted((later, positions.keys()), key=len)
            hidden[segment.name] = frozenset(positions[key] for key in smaller if key in larger)
            later.update(positions)
            later.update(segment.meta.tombstones)
        return hidden

    def _dead_idxs(self, segment: Segment) -> frozenset[int]:
        positions = segment.document_idxs
        return self._hidden[segment.name].union(positions[key] for key in self._log if key in positions)

    def _live_index(self, segment: Segment, dead: frozenset[int]) -> TokenIndex:
        known = self._indexes.get(segment.name)
        if known is None or known[0] != dead:
            known = (dead, segment.index.without(dead) if dead else segment.index)
            self._indexes = {name: self._indexes[name] for name in self._indexes if name in self._segments}
            self._indexes[segment.name] = known
        return known[1]

    # Writing

    def add(self, fingerprint: str, documents: Documents) -> None:
        """Adds documents, replacing those of the same id; durable when it returns.

        Args:
            fingerprint: of the tokenizer whose ids they are made of.
            documents: (id, int32 tokens) pairs, valid.

        Raises:
            PoolMismatch, WriterElsewhere, StorageUnavailable
        """
        with self._mutex:
            self._check_fingerprint(read_fingerprint(self.directory), fingerprint)
            try:
                log = self._become_writer(create=fingerprint)
            except OSError as error:
                raise storage_error(error) from error
            self._check_fingerprint(read_fingerprint(self.directory), fingerprint)
            log.append([Record(document_id, token_ids) for document_id, token_ids in documents])
            self._last_write = time.monotonic()

    def delete(self, ids: Sequence[str]) -> int:
        """Deletes documents by id; durable when it returns. Returns how many of the ids existed.

        Raises:
            UnknownPool, WriterElsewhere, StorageUnavailable
        """
        with self._mutex:
            log = self._write_access()
            self._read()
            found = [document_id for document_id in dict.fromkeys(ids) if self._has(document_id)]
            if found:
                log.append([Record(document_id, None) for document_id in found])
            self._last_write = time.monotonic()
            return len(found)

    def seal(self) -> None:
        """Turns the log into a segment; merges segments where there are too many.

        Raises:
            UnknownPool, WriterElsewhere, StorageUnavailable
        """
        with self._mutex:
            self._write_access()
            try:
                self._seal()
                segments = self._ordered_segments()
                if len(segments) > self._config.max_segments:
                    self._merge(_merge_run(segments))
            except OSError as error:
                raise storage_error(error) from error
            self._last_write = time.monotonic()

    def compact(self) -> None:
        """Merges log and segments into one segment without deleted documents.

        Raises:
            UnknownPool, WriterElsewhere, StorageUnavailable
        """
        with self._mutex:
            self._write_access()
            try:
                self._seal()
                segments = self._ordered_segments()
                if len(segments) > 1 or any(self._dead_idxs(s) or s.meta.tombstones for s in segments):
                    self._merge(segments)
            except OSError as error:
                raise storage_error(error) from error
            self._last_write = time.monotonic()

    def drop(self) -> None:
        """Removes the pool with all its documents. Pools below it stay.

        Raises:
            UnknownPool, WriterElsewhere, StorageUnavailable
        """
        with self._mutex:
            self._write_access()
            try:
                # Without its identity a pool does not exist: whatever a crash leaves is removed before it exists again.
                (self.directory / IDENTITY_NAME).unlink()
                sync_directory(self.directory)
                _remove_remains(self.directory)
                self._release()
                (self.directory / LOCK_NAME).unlink(missing_ok=True)
                self._remove_empty_directories()
            except OSError as error:
                raise storage_error(error) from error
            self._seen = ()
            self._log_reader = LogReader(self.directory / LOG_NAME)
            self._log.clear()
            self._changed = True

    def needs_sealing(self) -> bool:
        """Whether this process writes the pool and its log has grown beyond its limit."""
        return self._lock is not None and len(self._snapshot.tail.tokens) > self._config.seal_tokens

    def maintain(self) -> None:
        """As the writer: removes long replaced segments; gives the lock up after a time without writes."""
        with self._mutex:
            if self._lock is None:
                return
            try:
                self._unlink_replaced()
            except OSError as error:
                logger.warning("pool.unlink_failed pool=%s reason=%s", self.pool, error.strerror)
            if time.monotonic() - self._last_write >= self._config.lock_idle_s:
                self._release()

    def close(self) -> None:
        """Gives up the writer lock, if held."""
        with self._mutex:
            self._release()

    def _check_fingerprint(self, stored: str, given: str) -> None:
        if stored and stored != given:
            raise PoolMismatch(
                f"tokenizer_fingerprint is {given!r}, but pool {self.pool!r} holds documents of {stored!r}",
                field="tokenizer_fingerprint",
            )

    def _write_access(self) -> LogWriter:
        if not read_fingerprint(self.directory):
            raise UnknownPool(f"pool {self.pool!r} is not known here", field="pool")
        try:
            return self._become_writer()
        except OSError as error:
            raise storage_error(error) from error

    def _become_writer(self, create: str = "") -> LogWriter:
        """The log's writer, after taking the lock and recovering the log. `create`: fingerprint of a pool to found."""
        if self._lock is not None and self._log_writer is not None:
            return self._log_writer
        if self._broken:
            raise StorageUnavailable(f"an earlier write to pool {self.pool!r} failed; this process writes it no more")
        try:
            make_directories(self.directory)
        except (NotADirectoryError, FileExistsError) as error:
            raise InvalidRequest(f"pool {self.pool!r} has the name of a file in a pool", field="pool") from error
        self._lock = WriterLock.acquire(self.directory, self.pool, self._address())
        try:
            if create and not read_fingerprint(self.directory):
                _remove_remains(self.directory)
                identity = {"format_version": FORMAT_VERSION, "tokenizer_fingerprint": create}
                replace_file(self.directory / IDENTITY_NAME, json_bytes(identity))
                logger.info("pool.created pool=%s", self.pool)
            self._seen = ()
            self._read()
            end_sequence = max((segment.meta.end_sequence for segment in self._segments.values()), default=0)
            self._log_writer = LogWriter(self.directory / LOG_NAME, end_sequence)
            _remove_unfinished(self.directory)
        except BaseException:
            self._release()
            raise
        self._last_write = time.monotonic()
        return self._log_writer

    def _release(self) -> None:
        if self._log_writer is not None:
            self._broken |= self._log_writer.failed
            self._log_writer.close()
            self._log_writer = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _has(self, document_id: str) -> bool:
        if document_id in self._log:
            return self._log[document_id][1] is not None
        for segment in reversed(self._ordered_segments()):
            if document_id in segment.document_idxs:
                return True
            if document_id in segment.meta.tombstones:
                return False
        return False

    def _seal(self) -> None:
        """The log into a segment. First the segment is published, then the log begins anew; so readers, who read the
        log before they list segments, see every document in one of the two, and drop what they see in both.
        """
        assert self._log_writer is not None
        self._seen = ()
        self._read()
        if not self._log:
            return
        held = set[str]().union(*(segment.document_idxs for segment in self._segments.values()))
        end_sequence = self._log_writer.next_sequence
        segment = write_segment(
            self.directory,
            [(key, tokens) for key, (_, tokens) in self._log.items() if tokens is not None],
            tombstones=[key for key, (_, tokens) in self._log.items() if tokens is None and key in held],
            first_sequence=min(sequence for sequence, _ in self._log.values()),
            end_sequence=end_sequence,
        )
        self._log_writer.close()
        self._log_writer = None
        try:
            replace_file(self.directory / LOG_NAME, new_log_bytes(end_sequence))
            self._log_writer = LogWriter(self.directory / LOG_NAME, end_sequence)
        except BaseException:
            # Without a log there is nothing to write to: the next write takes the lock and recovers anew.
            self._release()
            raise
        logger.info("pool.sealed pool=%s segment=%s documents=%d", self.pool, segment.name, len(segment.meta.ids))
        self._seen = ()
        self._read()

    def _merge(self, run: Sequence[Segment]) -> None:
        """Replaces a run of neighbouring segments by one without the documents hidden in them."""
        ordered = self._ordered_segments()
        older = ordered[: ordered.index(run[0])]
        held = set[str]().union(*(segment.document_idxs for segment in older))
        ids = {key for segment in run for key in segment.meta.ids}
        documents = [
            (key, segment.index.document(i))
            for segment in run
            for i, key in enumerate(segment.meta.ids)
            if i not in self._hidden[segment.name]
        ]
        tombstones = {key for segment in run for key in segment.meta.tombstones}
        # An id that the run re-added, even if hidden by now, must go on hiding what older segments hold of it.
        live = {key for key, _ in documents}
        tombstones = {key for key in tombstones | ids if key in held and key not in live}
        merged = write_segment(
            self.directory,
            documents,
            tombstones=sorted(tombstones),
            first_sequence=min(segment.meta.first_sequence for segment in run),
            end_sequence=run[-1].meta.end_sequence,
            replaces=[name for segment in run for name in (segment.name, *segment.meta.replaces)],
        )
        logger.info("pool.merged pool=%s segment=%s segments=%d", self.pool, merged.name, len(run))
        self._seen = ()
        self._read()

    def _unlink_replaced(self) -> None:
        names = set(_segment_names(self.directory))
        for segment in list(self._segments.values()):
            replaced = names.intersection(segment.meta.replaces)
            if not replaced:
                continue
            age_s = time.time() - (self.directory / segment.name).stat().st_mtime
            if age_s >= self._config.unlink_after_s:
                for name in replaced:
                    shutil.rmtree(self.directory / name)
                sync_directory(self.directory)

    def _remove_empty_directories(self) -> None:
        directory = self.directory
        while directory != self._config.pools:
            try:
                directory.rmdir()
            except OSError:
                return  # pools below it, or another writer already
            directory = directory.parent


def read_fingerprint(directory: Path) -> str:
    """The tokenizer fingerprint of the pool in a directory; "" where there is none."""
    try:
        identity = json.loads((directory / IDENTITY_NAME).read_bytes())
        if identity["format_version"] == FORMAT_VERSION:
            return str(identity["tokenizer_fingerprint"])
        reason = f"format version {identity['format_version']}, this program reads {FORMAT_VERSION}"
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (ValueError, KeyError, TypeError) as error:
        reason = repr(error)
    logger.error("pool.unreadable file=%s reason=%s", directory / IDENTITY_NAME, reason)
    return ""


def _num_live_tokens(index: TokenIndex, dead: frozenset[int]) -> int:
    lengths = np.diff(index.offsets) - MARKS_PER_DOCUMENT
    return int(lengths.sum()) - int(lengths[list(dead)].sum())


def _segment_names(directory: Path) -> list[str]:
    try:
        names = [entry.name for entry in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if name.startswith(PREFIX) and not name.endswith(UNFINISHED)]


def _remove_unfinished(directory: Path) -> None:
    for path in directory.glob(f"{PREFIX}*{UNFINISHED}"):
        shutil.rmtree(path)


def _remove_remains(directory: Path) -> None:
    """Removes segments and log of a pool that does not exist (any more)."""
    for path in directory.glob(f"{PREFIX}*"):
        shutil.rmtree(path)
    (directory / LOG_NAME).unlink(missing_ok=True)
    sync_directory(directory)


def _merge_run(segments: Sequence[Segment]) -> Sequence[Segment]:
    """The newest segments whose merging leaves sizes that at least halve from old to new; at least two."""
    start = len(segments) - 2
    total = sum(len(segment.index.tokens) for segment in segments[start:])
    while start > 0 and len(segments[start - 1].index.tokens) < 2 * total:
        start -= 1
        total += len(segments[start].index.tokens)
    return segments[start:]
