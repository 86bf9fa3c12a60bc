"""What a pool's directory holds, whoever wrote it: segments, the log's effect, and what hides what.

Order of a pool's history is the number of its log records; a segment holds the effect of a range of them. So a document
is hidden by a later one of the same id, or a later tombstone, wherever the two lie.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from laser_retriever import checked_json
from laser_retriever.checked_json import DamagedJson
from laser_retriever.log import LOG_NAME, LogReader, Record
from laser_retriever.segment import PREFIX, UNFINISHED, CorruptSegment, Segment, open_segment

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
        hidden: per segment name, the documents in it that later segments hide.
        log: per id the last record behind the segments, in order of arrival.
        log_size_bytes: of the log file.
    """

    fingerprint: str = ""
    segments: tuple[Segment, ...] = ()
    hidden: Mapping[str, frozenset[int]] = field(default_factory=dict)
    log: Mapping[str, Record] = field(default_factory=dict)
    log_size_bytes: int = 0

    @property
    def end_sequence(self) -> int:
        """All records below this number are in segments."""
        return max((segment.meta.end_sequence for segment in self.segments), default=0)

    def dead_idxs(self, segment: Segment) -> frozenset[int]:
        """The documents of a segment that are deleted or replaced by now."""
        positions = segment.document_idxs
        return self.hidden[segment.name].union(positions[key] for key in self.log if key in positions)

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
        self._log_sequences: dict[str, int] = {}
        self._corrupt: set[str] = set()

    def poll(self, *, look_closely: bool = False) -> PoolContents:
        """The pool's contents now; the very object returned before if nothing changed.

        Args:
            look_closely: read the directory even if its times and sizes say that nothing changed.
        """
        with self._mutex:
            seen = self._look()
            if seen != self._seen or look_closely:
                self._read()
                self._seen = seen
            return self._contents

    def _look(self) -> tuple[object, ...]:
        """What changes whenever a process writes to the pool; cheap."""
        try:
            directory = self._directory.stat()
            log = (self._directory / LOG_NAME).stat()
        except (FileNotFoundError, NotADirectoryError):
            return (None, (self._directory / IDENTITY_NAME).exists())
        # Names beside times: two renames within one tick of the file system's clock look alike.
        names = tuple(sorted(segment_names(self._directory)))
        return (directory.st_ino, directory.st_mtime_ns, names, log.st_ino, log.st_size, log.st_mtime_ns)

    def _read(self) -> None:
        """The log comes first: a writer publishes a segment before it shortens the log, so every document is seen in
        one of the two, and dropped here where it is seen in both.
        """
        old = self._contents
        try:
            fingerprint = read_fingerprint(self._directory)
        except DamagedJson as error:
            fingerprint = ""
            logger.error("pool.unreadable file=%s reason=%s; the pool is not served",
                         self._directory / IDENTITY_NAME, error)  # fmt: skip
        log_changed = self._read_log()
        segments = self._read_segments(old.segments) if fingerprint else ()
        same_segments = segments == old.segments
        end_sequence = max((segment.meta.end_sequence for segment in segments), default=0)
        for document_id in [key for key, sequence in self._log_sequences.items() if sequence < end_sequence]:
            del self._log[document_id], self._log_sequences[document_id]
        if log_changed or not same_segments or fingerprint != old.fingerprint:
            self._contents = PoolContents(
                fingerprint=fingerprint,
                segments=segments,
                hidden=old.hidden if same_segments else _hidden_idxs(segments),
                log=dict(self._log) if fingerprint else {},
                log_size_bytes=self._log_reader.size_bytes,
            )

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
        live = [segment for name, segment in opened.items() if name not in replaced]
        return tuple(sorted(live, key=lambda segment: segment.meta.end_sequence))

    def _open(self, name: str) -> Segment | None:
        try:
            return open_segment(self._directory / name, into_memory=self._into_memory)
        except CorruptSegment as error:
            self._corrupt.add(name)
            logger.error("segment.skipped pool=%s segment=%s reason=%s; its documents are not served",
                         self._pool, self._directory / name, error)  # fmt: skip
        except FileNotFoundError:  # replaced and removed since it was listed
            logger.debug("segment.gone pool=%s segment=%s", self._pool, name)
        return None


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


def _hidden_idxs(segments: Sequence[Segment]) -> dict[str, frozenset[int]]:
    """Per segment, the documents hidden by later segments."""
    hidden: dict[str, frozenset[int]] = {}
    later: set[str] = set()
    for segment in reversed(segments):
        positions = segment.document_idxs
        smaller, larger = sorted((later, positions.keys()), key=len)
        hidden[segment.name] = frozenset(positions[key] for key in smaller if key in larger)
        later.update(positions)
        later.update(segment.tombstones)
    return hidden


def live_documents(contents: PoolContents) -> Iterator[tuple[str, int, int]]:
    """(id, number of tokens, time in ms) of each document, oldest first."""
    for segment in contents.segments:
        dead = contents.dead_idxs(segment)
        for i, document_id in enumerate(segment.meta.ids):
            if i not in dead:
                yield document_id, len(segment.index.document(i)), int(segment.times_ms[i])
    for document_id, record in contents.logged_documents:
        assert record.token_ids is not None
        yield document_id, len(record.token_ids), record.time_ms
