"""How much a pool may hold, and which documents must go when it holds more: the oldest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


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

    def evicted(self, documents: Iterable[tuple[str, int, int]], now_s: float) -> list[str]:
        """Ids of the documents that must go.

        Args:
            documents: (id, number of tokens, time in ms), oldest first.
            now_s: seconds since 1970.

        Returns:
            All that are too old, and of the others the oldest until the rest is within the limits.
        """
        cutoff_ms = self._cutoff_ms(now_s) if self.max_age_s else None
        gone: list[str] = []
        young: list[tuple[str, int]] = []
        for document_id, num_tokens, time_ms in documents:
            if cutoff_ms is not None and time_ms < cutoff_ms:
                gone.append(document_id)
            else:
                young.append((document_id, num_tokens))
        num_documents, total = len(young), sum(num_tokens for _, num_tokens in young)
        for document_id, num_tokens in young:
            too_many = self.max_documents and num_documents > self.max_documents
            if not too_many and not (self.max_tokens and total > self.max_tokens):
                break
            gone.append(document_id)
            num_documents -= 1
            total -= num_tokens
        return gone

    def _cutoff_ms(self, now_s: float) -> float:
        return (now_s - self.max_age_s) * 1000


NO_LIMITS = PoolLimits()
