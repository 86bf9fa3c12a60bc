"""What a pool's directory holds, whoever wrote it: segments, the log's effect, and what hides what.

Order of a pool's history is the number of its log records; a segment holds the effect of a range of them. So a document
is hidden by a later one of the same id, or a later tombstone, wherever the two lie.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laser_retriever import checked_json
from laser_retriever.checked_json import DamagedJson
from laser_retriever.index import MARKS_PER_DOCUMENT
from laser_retriever.log import LOG_NAME, LogReader, Record
from laser_retriever.segment import PREFIX, UNFINISHED, CorruptSegment, Segment, UnsupportedSegment, open_segment

logger = logging.getLogger(__name__)

# The name starts with "log" because no component of a pool id may.
IDENTITY_NAME = "log.json"
FORMAT_VERSION = 2


@dataclass(frozen=True, eq=False)
class PoolContents:
    """What a pool held at one moment. Immutable.

    Attributes:
        fingerprint: of its tokenizer; "" while the pool does not exist.
        segments: oldest first.
        hidden: per segment name, bool[D]: the documents in it that later segments hide.
        log: per id the last record behind the segments, in order of arrival.
        log_size_bytes: of the log file.
        unreadable: why nothing may be written to the pool: what this program cannot read may be whole for another
            version of it, and a deletion would pass it by. "": nothing is in the way.
    """

    fingerprint: str = ""
    segments: tuple[Segment, ...] = ()
    hidden: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    log: Mapping[str, Record] = field(default_factory=dict)
    log_size_bytes: int = 0
    unreadable: str = ""

    @property
    def end_sequence(self) -> int:
        """All records below this number are in segments."""
        return max((segment.meta.end_sequence for segment in self.segments), default=0)

    def dead(self, segment: Segment) -> NDArray[np.bool_]:
        """bool[D]: the documents of a segment that are deleted or replaced by now."""
        positions, hidden = segment.document_idxs, self.hidden[segment.name]
        return _also(hidden, [positions[key] for key in self.log if key in positions])

    @cached_property
    def logged_documents(self) -> list[tuple[str, Record]]:
        """(id, record) of each document in the log, oldest first."""
        return [(key, record) for key, record in self.log.items() if record.token_ids is not None]

    def has(self, document_id: str) -> bool:
        """Whether there is a document of this id."""
        if document_id in self.log:
            return self.log[document_id].token_ids is not None
        for segment in reversed(self.segments):
            if document_id in segment.document_idxs:
                return True
            if document_id in segment.tombstones:
                return False
        return False


class PoolReader:
    """Follows a pool's directory. Thread-safe; needs no lock of the pool's.

    Args:
        pool: its id, for messages.
        directory: of the pool.
        into_memory: see `open_segment`.
    """

    def __init__(self, pool: str, directory: Path, *, into_memory: bool = False) -> None:
        self._pool = pool
        self._directory = directory
        self._into_memory = into_memory
        self._mutex = threading.Lock()
        self._contents = PoolContents()
        self._seen: tuple[object, ...] = ()
        self._log_reader = LogReader(directory / LOG_NAME)
        self._log: dict[str, Record] = {}
        self._log_changed = False  # since the contents were made
        self._log_sequences: dict[str, int] = {}
        self._corrupt: set[str] = set()
        self._failed: dict[str, str] = {}  # why a segment could not be read when it was tried last
        self._unsupported: dict[str, str] = {}  # why, by segment's name

    def poll(self, *, look_closely: bool = False) -> PoolContents:
        """The pool's contents now; the very object returned before if nothing changed.

        Args:
            look_closely: read the directory even if its times and sizes say that nothing changed.
        """
        with self._mutex:
            seen = self._look()
            if seen != self._seen or look_closely or self._failed:
                self._read()
                self._seen = seen
            return self._contents

    def _look(self) -> tuple[object, ...]:
        """What changes whenever a process writes to the pool; cheap."""
        paths = (self._directory, self._directory / LOG_NAME, self._directory / IDENTITY_NAME)
        # Names beside times: two renames within one tick of the file system's clock look alike.
        return (*(_state(path) for path in paths), *sorted(segment_names(self._directory)))

    def _read(self) -> None:
        """The log comes first: a writer publishes a segment before it shortens the log, so every document is seen in
        one of the two, and dropped here where it is seen in both.
        """
        old = self._contents
        unreadable = ""
        try:
            fingerprint = read_fingerprint(self._directory)
        except DamagedJson as error:
            fingerprint, unreadable = "", f"{IDENTITY_NAME}: {error}"
            logger.error("pool.unreadable file=%s reason=%s; the pool is not served",
                         self._directory / IDENTITY_NAME, error)  # fmt: skip
        self._log_changed |= self._read_log()
        segments = self._read_segments(old.segments) if fingerprint else ()
        same_segments = segments == old.segments
        end_sequence = max((segment.meta.end_sequence for segment in segments), default=0)
        for document_id in [key for key, sequence in self._log_sequences.items() if sequence < end_sequence]:
            del self._log[document_id], self._log_sequences[document_id]
        if fingerprint:
            unreadable = self._why_unreadable(segments)
        is_as_before = same_segments and (fingerprint, unreadable) == (old.fingerprint, old.unreadable)
        if self._log_changed or not is_as_before:
            self._contents = PoolContents(
                fingerprint=fingerprint,
                segments=segments,
                hidden=old.hidden if same_segments else _hidden(segments, old),
                log=dict(self._log) if fingerprint else {},
                log_size_bytes=self._log_reader.size_bytes,
                unreadable=unreadable,
            )
            self._log_changed = False

    def _read_log(self) -> bool:
        restarted, records = self._log_reader.poll()
        if restarted:
            self._log.clear()
            self._log_sequences.clear()
        for sequence, record in records:
            self._log.pop(record.document_id, None)  # so that the dict's order is the order of arrival
            self._log[record.document_id] = record
            self._log_sequences[record.document_id] = sequence
        return restarted or bool(records)

    def _read_segments(self, known: Sequence[Segment]) -> tuple[Segment, ...]:
        names = set(segment_names(self._directory))
        opened = {segment.name: segment for segment in known if segment.name in names}
        replaced = {name for segment in opened.values() for name in segment.meta.replaces}
        # Newest first: what they replace need not be opened, nor what replaces nothing that is whole be missed.
        for name in sorted(names - opened.keys(), reverse=True):
            if name in replaced or name in self._corrupt:
                continue
            segment = self._open(name)
            if segment is not None:
                opened[name] = segment
                replaced.update(segment.meta.replaces)
        self._failed = {name: why for name, why in self._failed.items() if name in names - replaced}
        live = [segment for name, segment in opened.items() if name not in replaced]
        return tuple(sorted(live, key=lambda segment: segment.meta.end_sequence))

    def _why_unreadable(self, segments: Sequence[Segment]) -> str:
        """See `PoolContents`, of a pool that exists."""
        if self._log_reader.unreadable:
            return f"{LOG_NAME}: {self._log_reader.unreadable}"
        replaced = {name for segment in segments for name in segment.meta.replaces}
        reasons = self._unsupported | self._failed
        left = reasons.keys() & set(segment_names(self._directory)) - replaced
        return f"{min(left)}/{reasons[min(left)]}" if left else ""

    def _open(self, name: str) -> Segment | None:
        failed_before = self._failed.pop(name, None)
        try:
            return open_segment(self._directory / name, into_memory=self._into_memory)
        except CorruptSegment as error:
            self._corrupt.add(name)
            if isinstance(error, UnsupportedSegment):
                self._unsupported[name] = str(error)
            logger.error("segment.skipped pool=%s segment=%s reason=%s; its documents are not served",
                         self._pool, self._directory / name, error)  # fmt: skip
        except FileNotFoundError:  # replaced and removed since it was listed
            logger.debug("segment.gone pool=%s segment=%s", self._pool, name)
        except OSError as error:  # not for good, perhaps
            if failed_before is None:
                logger.error("segment.failed pool=%s segment=%s reason=%s; its documents are not served until then",
                             self._pool, self._directory / name, error.strerror)  # fmt: skip
            self._failed[name] = f"cannot be read: {error.strerror}"
        return None


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_fingerprint(directory: Path) -> str:
    """The tokenizer fingerprint of the pool in a directory; "" where there is none.

    Raises:
        DamagedJson: what stands there cannot be read.
    """
    try:
        data = (directory / IDENTITY_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return str(checked_json.decode(data, FORMAT_VERSION)["tokenizer_fingerprint"])


def segment_names(directory: Path) -> list[str]:
    """Names of the published segments in a pool's directory, replaced ones included."""
    try:
        names = [entry.name for entry in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if name.startswith(PREFIX) and not name.endswith(UNFINISHED)]


def _hidden(segments: Sequence[Segment], old: PoolContents) -> dict[str, NDArray[np.bool_]]:
    """Per segment, bool[D]: the documents that later segments hide.

    What was hidden in `old` is so still, for a merged segment hides what its parts did. A pool may hold a million
    documents: only segments that are new are compared, and nothing goes over all ids in one operation, which would hold
    up every other thread.
    """
    hidden = {}
    for i, segment in enumerate(segments):
        known = old.hidden.get(segment.name)
        later = [other for other in segments[i + 1 :] if known is None or other.name not in old.hidden]
        idxs = [idx for other in later for idx in _named_by(other, segment)]
        hidden[segment.name] = _also(np.zeros(len(segment.meta.ids), bool) if known is None else known, idxs)
    return hidden


def _named_by(other: Segment, segment: Segment) -> list[int]:
    """The documents of a segment whose ids another one holds, or tells to be deleted."""
    positions = segment.document_idxs
    fewer, more = sorted((positions, other.document_idxs), key=len)
    held = [positions[key] for key in fewer if key in more]
    return held + [positions[key] for key in other.tombstones if key in positions]


def _also(mask: NDArray[np.bool_], idxs: Sequence[int]) -> NDArray[np.bool_]:
    """The mask with these set too: a copy, or the very mask if there are none."""
    if idxs:
        mask = mask.copy()
        mask[np.fromiter(idxs, np.int64, len(idxs))] = True
    return mask


@dataclass(frozen=True, slots=True)
class LiveDocuments:
    """The documents of a pool that are neither deleted nor replaced, oldest first.

    Attributes:
        num_tokens, times_ms: int64[N], of each.
        parts: ids, and which of them are meant, of each segment and of the log.
    """

    num_tokens: NDArray[np.int64]
    times_ms: NDArray[np.int64]
    parts: tuple[tuple[Sequence[str], NDArray[np.int64]], ...]

    @staticmethod
    def of(contents: PoolContents) -> LiveDocuments:
        """In operations that let other threads run."""
        sizes: list[NDArray[np.int64]] = []
        times: list[NDArray[np.int64]] = []
        parts: list[tuple[Sequence[str], NDArray[np.int64]]] = []
        for segment in contents.segments:
            live = np.flatnonzero(~contents.dead(segment))
            sizes.append(np.diff(segment.index.offsets)[live] - MARKS_PER_DOCUMENT)
            times.append(segment.times_ms[live])
            parts.append((segment.meta.ids, live))
        log = contents.logged_documents
        sizes.append(np.array([len(record.token_ids) for _, record in log if record.token_ids is not None], np.int64))
        times.append(np.array([record.time_ms for _, record in log], np.int64))
        parts.append(([key for key, _ in log], np.arange(len(log))))
        return LiveDocuments(np.concatenate(sizes), np.concatenate(times), tuple(parts))

    def ids(self, idxs: NDArray[np.int64]) -> list[str]:
        """Ids of some of them, by their indices, which rise."""
        found: list[str] = []
        first = 0
        for ids, live in self.parts:
            of_part = idxs[(idxs >= first) & (idxs < first + len(live))] - first
            found += [ids[i] for i in live[of_part].tolist()]
            first += len(live)
        return found
