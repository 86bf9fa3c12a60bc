"""One pool as one process sees it: the snapshot that drafts are made from, its writer, and what is due to be done."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from laser_protocol.errors import WriterElsewhere
from laser_retriever.clock import Clock, SteadyTime
from laser_retriever.config import RetrieverConfig
from laser_retriever.contents import PoolContents, PoolReader
from laser_retriever.durable import Disk
from laser_retriever.log import BYTES_PER_TOKEN, HEADER_SIZE
from laser_retriever.snapshot import PoolSnapshot, SnapshotBuilder
from laser_retriever.writer import PoolWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What was done for a pool, in numbers."""

    num_evicted: int = 0
    num_seals: int = 0
    num_compactions: int = 0


class Pool:
    """A pool's directory. Thread-safe; `snapshot` never waits.

    Args:
        pool: its id.
        config: where it lies and how it is kept.
        address: HOST:PORT of this process, for whoever finds the writer lock taken.
        disk, clock: the file system and the time.
    """

    def __init__(
        self,
        pool: str,
        config: RetrieverConfig,
        address: Callable[[], str] = str,
        disk: Disk | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.pool = pool
        self.directory = config.pools / pool
        self._config = config
        clock = clock or Clock()
        self._steady_time = SteadyTime(clock)
        self._reader = PoolReader(pool, self.directory, into_memory=config.read_into_memory)
        self.writer = PoolWriter(pool, config, self._reader, address, disk or Disk(), clock)
        self._refreshing = threading.Lock()
        self._builder = SnapshotBuilder(pool)
        self._snapshot = self._builder.build(PoolContents())

    @property
    def snapshot(self) -> PoolSnapshot:
        """The pool as of the last refresh."""
        return self._snapshot

    def refresh(self) -> bool:
        """Takes in what was written since, by whomever. Returns whether `snapshot` is another one now."""
        # Builds follow each other, so that no older snapshot comes after a newer one.
        with self._refreshing:
            contents = self._reader.poll()
            if contents is self._snapshot.contents:
                return False
            self._snapshot = self._builder.build(contents)
            return True

    def upkeep(self, *, needs_no_room: bool = False) -> Upkeep:
        """Does what is due: evicts, seals a long log, merges what is mostly dead, removes what was replaced long ago.

        Args:
            needs_no_room: only the last, for the disk is full.

        Raises:
            StorageUnavailable
        """
        num_evicted = num_seals = num_compactions = 0
        try:
            if not needs_no_room:
                now_s = self._steady_time.unix_s()
                if self._exceeds_limits(now_s):
                    num_evicted = self.writer.evict(now_s)
                snapshot = self._snapshot
                if self.writer.holds_lock and self._has_long_log(snapshot):
                    self.writer.seal()
                    num_seals = 1
                if self.writer.holds_lock and snapshot.num_dead_tokens > snapshot.num_tokens + self._config.seal_tokens:
                    self.writer.compact()
                    num_compactions = 1
            self.writer.tidy()
        except WriterElsewhere as error:  # which does what is due itself
            logger.debug("pool.upkeep_elsewhere pool=%s holder=%s", self.pool, error.holder)
        return Upkeep(num_evicted, num_seals, num_compactions)

    def _has_long_log(self, snapshot: PoolSnapshot) -> bool:
        """By its bytes too: documents replaced or evicted since are no tokens of the tail, but still lie in the log."""
        max_tokens = self._config.seal_tokens
        frames_bytes = snapshot.log_size_bytes - HEADER_SIZE
        return len(snapshot.tail.tokens) > max_tokens or frames_bytes > 2 * BYTES_PER_TOKEN * max_tokens

    def _exceeds_limits(self, now_s: float) -> bool:
        s = self._snapshot
        return s.exists and self._config.limits.exceeded(s.num_documents, s.num_tokens, s.oldest_ms, now_s)
