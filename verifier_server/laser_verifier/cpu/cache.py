"""The KV cache of the processor's kernels, laid out as `attention_kernel.py` reads it.

Keys are transposed in blocks of 16 places. A group, which the kernel multiplies at once, is G elements: two bfloat16,
of keys neighbouring in the head, of values neighbouring places; or one float32.
"""

from __future__ import annotations

import torch

from laser_verifier.cpu.simd import LANES
from laser_verifier.kv_cache import KVShape


class BlockedKVCache:
    """Keys [L, S, H, T / 16, D / G, 16, G] and values [L, S, H, T / G, D, G].

    Args:
        shape: of the model. num_slots: S. slot_len: longest sequence plus the largest tree; T is that,
            up to the next multiple of 16.

    Memory: 2 * L * S * T * H * D elements, allocated once.
    """

    def __init__(self, shape: KVShape, num_slots: int, slot_len: int, dtype: torch.dtype) -> None:
        self.num_slots = num_slots
        self.slot_len = -(-slot_len // LANES) * LANES
        layers, heads, size = shape.num_layers, shape.num_heads, shape.head_size
        self._group = group = 4 // dtype.itemsize
        # Zeros, not empty: a vector of keys may reach behind the last one written.
        key_shape = (self.slot_len // LANES, size // group, LANES, group)
        self.keys = torch.zeros((layers, num_slots, heads, *key_shape), dtype=dtype)
        self.values = torch.zeros((layers, num_slots, heads, self.slot_len // group, size, group), dtype=dtype)

    @property
    def size_bytes(self) -> int:
        """Bytes allocated."""
        return self.keys.nbytes + self.values.nbytes

    def copy_prefix(self, source_idx: int, target_idx: int, num_tokens: int) -> None:
        """Copies the keys and values of a slot's first tokens to another slot, in whole blocks and groups."""
        num_blocks = -(-num_tokens // LANES)
        num_groups = -(-num_tokens // self._group)
        self.keys[:, target_idx, :, :num_blocks] = self.keys[:, source_idx, :, :num_blocks]
        self.values[:, target_idx, :, :num_groups] = self.values[:, source_idx, :, :num_groups]
