"""How much a pool may hold, and which documents must go when it holds more: the oldest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Limits of every pool; 0: none.

    Attributes:
        max_documents, max_tokens: documents and their output tokens.
        max_age_s: seconds since a document was added or replaced.
    """

    max_documents: int = 0
    max_tokens: int = 0
    max_age_s: float = 0.0

    def __post_init__(self) -> None:
        for field in ("max_documents", "max_tokens", "max_age_s"):
            value = getattr(self, field)
            if not value >= 0:
                raise ValueError(f"{field} is {value}, must be at least 0 (0: no limit)")

    def exceeded(self, num_documents: int, num_tokens: int, oldest_ms: int, now_s: float) -> bool:
        """Whether a pool of so many documents, the oldest added at `oldest_ms`, holds too much."""
        return bool(
            (self.max_documents and num_documents > self.max_documents)
            or (self.max_tokens and num_tokens > self.max_tokens)
            or (self.max_age_s and num_documents and oldest_ms < self._cutoff_ms(now_s))
        )

    def evicted(self, num_tokens: NDArray[np.int64], times_ms: NDArray[np.int64], now_s: float) -> NDArray[np.int64]:
        """Which documents must go: all that are too old, then the oldest until the rest is within the limits.

        Args:
            num_tokens, times_ms: of each document, oldest first.
            now_s: seconds since 1970.

        Returns:
            int64[], their indices, rising.
        """
        goes = times_ms < self._cutoff_ms(now_s) if self.max_age_s else np.zeros(len(times_ms), bool)
        young = np.flatnonzero(~goes)
        num_kept = min(len(young), self.max_documents) if self.max_documents else len(young)
        if self.max_tokens:
            tokens_of_newest = np.cumsum(num_tokens[young][::-1])
            num_kept = min(num_kept, int(np.searchsorted(tokens_of_newest, self.max_tokens, side="right")))
        goes[young[: len(young) - num_kept]] = True
        return np.flatnonzero(goes)

    def _cutoff_ms(self, now_s: float) -> float:
        return (now_s - self.max_age_s) * 1000


NO_LIMITS = PoolLimits()
