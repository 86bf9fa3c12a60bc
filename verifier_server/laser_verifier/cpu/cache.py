"""The KV cache of the processor's kernels: keys transposed in blocks of 16 places, values in rows."""

from __future__ import annotations

import torch

from laser_verifier.cpu.simd import LANES
from laser_verifier.kv_cache import KVShape


class BlockedKVCache:
    """Keys [L, S, H, T / 16, D, 16] and values [L, S, H, T, D].

    Args:
        shape: of the model. num_slots: S. slot_len: longest sequence plus the largest tree; T is that,
            up to the next multiple of 16.

    Memory: 2 * L * S * T * H * D elements, allocated once.
    """

    def __init__(self, shape: KVShape, num_slots: int, slot_len: int, dtype: torch.dtype) -> None:
        self.num_slots = num_slots
        self.slot_len = -(-slot_len // LANES) * LANES
        layers, heads, size = shape.num_layers, shape.num_heads, shape.head_size
        # Zeros, not empty: a vector of keys may reach behind the last one written.
        self.keys = torch.zeros((layers, num_slots, heads, self.slot_len // LANES, size, LANES), dtype=dtype)
        self.values = torch.zeros((layers, num_slots, heads, self.slot_len, size), dtype=dtype)

    @property
    def size_bytes(self) -> int:
        """Bytes allocated."""
        return self.keys.nbytes + self.values.nbytes

    def copy_prefix(self, source_idx: int, target_idx: int, num_tokens: int) -> None:
        """Copies the keys and values of a slot's first tokens to another slot, keys in whole blocks."""
        num_blocks = -(-num_tokens // LANES)
        self.keys[:, target_idx, :, :num_blocks] = self.keys[:, source_idx, :, :num_blocks]
        self.values[:, target_idx, :, :num_tokens] = self.values[:, source_idx, :, :num_tokens]
