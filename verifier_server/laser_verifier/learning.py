"""What becomes of finished outputs that are to join pools, counted; and what takes them without a retriever."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from laser_verifier.throttle import Throttle

logger = logging.getLogger(__name__)


class LearnCounters:
    """What became of finished outputs; read by tests and metrics. Counted by one thread.

    Attributes:
        num_learned: acknowledged by a retriever.
        num_dropped: given up.
    """

    def __init__(self) -> None:
        self.num_learned = 0
        self.num_dropped = 0
        self._warnings = Throttle()

    def drop(self, num_documents: int, reason: str) -> None:
        """Counts outputs as dropped and warns of all since the last warning, at most once a second."""
        self.num_dropped += num_documents
        if num_told := self._warnings.count(num_documents):
            logger.warning("learn.dropped num_documents=%d reason=%s", num_told, reason)


class NoPools:
    """No retriever: outputs are dropped. Used by the engine thread."""

    def __init__(self) -> None:
        self.counters = LearnCounters()

    def learn(self, pool: str, document_id: str, token_ids: Sequence[int]) -> None:
        """Drops the output and counts it."""
        self.counters.drop(1, "no --retriever")

    async def drain(self, timeout_s: float) -> None:
        """Nothing to do."""
