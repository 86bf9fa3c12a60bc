"""Which shard a pool's sequences go to: rendezvous hashing with bounded loads. Pure functions.

Sources: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998; Mirrokni, Thorup and
Zadimoghaddam, "Consistent hashing with bounded loads", 2018.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


def rendezvous_order(pool: str, names: Iterable[str]) -> list[str]:
    """Shard names, the pool's first choice first. A shard that joins or leaves moves only its own share of pools."""

    def weight(name: str) -> bytes:
        return hashlib.blake2b(f"{pool}\0{name}".encode(), digest_size=8).digest()

    return sorted(names, key=lambda name: (weight(name), name), reverse=True)


def choose_shard(pool: str, loads: Mapping[str, int]) -> str | None:
    """The first shard of the pool's order whose open sequences are at most 1.25 x the mean + 1.

    Args:
        loads: open sequences per shard that can be reached.

    Returns:
        A shard's name, or None if there is no shard.
    """
    if not loads:
        return None
    bound = 1.25 * sum(loads.values()) / len(loads) + 1
    return next(name for name in rendezvous_order(pool, loads) if loads[name] <= bound)
