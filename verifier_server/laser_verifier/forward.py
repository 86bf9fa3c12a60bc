"""One forward over a packed step: what a model runner asks of a device, and which implementation a model gets."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from laser_verifier.batch import StepBatch
from laser_verifier.cpu.forward import PackedForward
from laser_verifier.model import TargetModel
from laser_verifier.transformers_forward import TransformersForward


class Cache(Protocol):
    """Keys and values of all slots."""

    @property
    def size_bytes(self) -> int:
        """Bytes allocated."""
        ...

    def copy_prefix(self, source_idx: int, target_idx: int, num_tokens: int) -> None:
        """Copies the keys and values of a slot's first tokens to another slot."""
        ...


class Forward(Protocol):
    """A model with its KV cache."""

    @property
    def cache(self) -> Cache:
        """Its cache."""
        ...

    def logits(self, batch: StepBatch) -> Tensor:
        """Runs a step; [R, V] of its logit_rows. Keys and values of all its tokens are in the cache afterwards."""
        ...

    def compact(self, slots: list[int], sources: list[int], targets: list[int]) -> None:
        """Moves places in all layers: in slot `slots[i]`, `targets[i]` takes what `sources[i]` held.

        Within a slot both rise, and no target lies behind its source.
        """
        ...


def make_forward(model: TargetModel, num_slots: int, slot_len: int) -> Forward:
    """The packed forward for a model whose weights could be packed, else transformers' own.

    Raises:
        ValueError: the model cannot verify trees.
    """
    if model.packed is not None:
        return PackedForward(model.packed, num_slots, slot_len)
    return TransformersForward(model, num_slots, slot_len)
