"""The KV cache: one preallocated tensor, a row of it per slot, compacted after acceptance.

Knows nothing of models or trees beyond the five numbers that give its shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KVShape:
    """What the cache of one model looks like: L layers, H key-value heads, D head size."""

    num_layers: int
    num_heads: int
    head_size: int


class KVCache:
    """Keys and values of S slots x T places.

    A slot holds its sequence's verified tokens from place 0 on; the tokens of the step stand behind them, tree nodes in
    tree order, until `compact` moves the accepted ones into line and the rest is overwritten.

    Args:
        shape: of the model. num_slots: S. slot_len: T, longest sequence plus the largest tree.

    Memory: 2 * L * S * T * H * D elements, allocated once.
    """

    def __init__(self, shape: KVShape, num_slots: int, slot_len: int, dtype: torch.dtype, device: torch.device) -> None:
        self.num_slots = num_slots
        self.slot_len = slot_len
        # Zeros, not empty: attention reads places it then masks out, and NaN times zero is NaN.
        self._data = torch.zeros(
            (shape.num_layers, 2, num_slots * slot_len, shape.num_heads, shape.head_size), dtype=dtype, device=device
        )

    @property
    def size_bytes(self) -> int:
        """Bytes allocated."""
        return self._data.numel() * self._data.element_size()

    def write(self, layer_idx: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Writes the step's keys and values, what is not finite as 0.

        Args:
            places: int64[M], slot_idx * T + place of each token. keys, values: [M, H, D].
        """
        # Masked or not, NaN reaches all that attend to its slot: a drafted token that overflows, or whose embedding is
        # no number, would ruin the others.
        keys, values = (torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0) for x in (keys, values))
        self._data[layer_idx, 0].index_copy_(0, places, keys)
        self._data[layer_idx, 1].index_copy_(0, places, values)

    def read(self, layer_idx: int, slots: slice | Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `length` places of slots: [B, H, length, D] each, views of neighbouring slots (a
        slice), copies of others (int64[B])."""
        both = self._data[layer_idx].view(2, self.num_slots, self.slot_len, *self._data.shape[3:])
        keys, values = both[0][slots, :length], both[1][slots, :length]
        return keys.transpose(1, 2), values.transpose(1, 2)

    def copy_prefix(self, source_idx: int, target_idx: int, num_tokens: int) -> None:
        """Copies the keys and values of a slot's first tokens to another slot."""
        source, target = source_idx * self.slot_len, target_idx * self.slot_len
        self._data[:, :, target : target + num_tokens] = self._data[:, :, source : source + num_tokens]

    def compact(self, slots: list[int], sources: list[int], targets: list[int]) -> None:
        """Moves places in all layers: in slot `slots[i]`, `targets[i]` takes what `sources[i]` held before."""
        if not slots:
            return
        rows, from_places, to_places = torch.tensor((slots, sources, targets), device=self._data.device)
        moved = self._data.index_select(2, rows * self.slot_len + from_places)
        self._data.index_copy_(2, rows * self.slot_len + to_places, moved)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch found no room; on processors it has no class of its own for that."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
