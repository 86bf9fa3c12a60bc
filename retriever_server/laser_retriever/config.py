"""Configuration of a retriever. The command line's defaults are read from here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from laser_retriever.limits import NO_LIMITS, PoolLimits

# Some of a verifier's wait for trees, which ends after 5 ms, goes to the messages.
DRAFT_DEADLINE_S = 0.004


def usable_processors() -> int:
    """How many processors this process may run on; where the system cannot tell, all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class RetrieverConfig:
    """How a retriever keeps its pools and serves them.

    Attributes:
        pools: directory of the pools.
        name: this shard's name, stable over restarts; pools are routed by it.
        advertise: HOST:PORT under which other shards' callers reach this one; "": the one listened on.
        limits: how much each pool may hold.
        read_into_memory: read segments instead of mapping them: for network file systems.
        rescan_s: seconds between looks at what other processes wrote.
        lock_idle_s: seconds without writes after which a pool's writer lock is given up.
        seal_tokens: a log of more tokens than this, or of twice the bytes they take, is sealed into a segment.
        max_segments: most segments of a pool; more are merged, as far as one can hold them.
        unlink_after_s: seconds for which replaced segments stay on disk.
        sample_documents: most documents in an ancestor's derived sample.
        sample_interval_s: least seconds between two builds of an ancestor's sample.
        max_sequences: most open sequences of one stream.
        num_threads: threads that draft: the event loop's, and others beside it where a message asks for many trees.
        draft_deadline_s: seconds after a message's arrival from which on no further tree is begun for it.
    """

    pools: Path
    name: str = "retriever"
    advertise: str = ""
    limits: PoolLimits = NO_LIMITS
    read_into_memory: bool = False
    rescan_s: float = 2.0
    lock_idle_s: float = 30.0
    seal_tokens: int = 262_144
    max_segments: int = 8
    unlink_after_s: float = 60.0
    sample_documents: int = 8192
    sample_interval_s: float = 2.0
    max_sequences: int = 4096
    num_threads: int = usable_processors()
    draft_deadline_s: float = DRAFT_DEADLINE_S

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name is '', must not be empty")
        for field in ("rescan_s", "seal_tokens", "max_segments", "max_sequences", "num_threads", "draft_deadline_s"):
            value = getattr(self, field)
            if not value > 0:
                raise ValueError(f"{field} is {value}, must be above 0")
        for field in ("lock_idle_s", "unlink_after_s", "sample_documents", "sample_interval_s"):
            value = getattr(self, field)
            if not value >= 0:
                raise ValueError(f"{field} is {value}, must be at least 0")
