"""Which sequences of a step attend together, and under which mask: for attention through torch's own operators."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laser_verifier.batch import StepBatch, StepInput


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sequences attended in one call: queries padded to the longest.

    Attributes:
        slots: the slots B that are read: all from the first to the last, idle ones between them too; or, where fewer
            than half of those would be used, int64[B], the used ones alone, to be copied.
        length: places read per slot.
        gather: int64[B, q], row of the packed step for each padded query.
        scatter: int64[m], place in the flattened [B * q] of each of the group's rows.
        rows: int64[m], the group's rows in the packed step.
        mask: bool[B, 1, shared * q, length], True where a query sees a place; once per query head of a key head.
        distances: int64[B, 1, shared * q, length], position of the query minus that of the place, for sliding windows.
    """

    slots: slice | Tensor
    length: int
    gather: Tensor
    scatter: Tensor
    rows: Tensor
    mask: Tensor
    distances: Tensor | None


# A sequence with more verified tokens than this to run is attended alone: padding the others to it would cost more.
_MAX_GROUPED_TOKENS = 8


def attention_groups(
    batch: StepBatch, device: torch.device, shared: int, needs_distances: bool
) -> list[AttentionGroup]:
    """The groups of a step.

    Args:
        shared: query heads per key head; masks come repeated for all of them.
        needs_distances: True for models with sliding windows.
    """
    starts = batch.sequences[:, 1].tolist()
    groups = []
    for members in _group(batch.inputs):
        positions = None
        if needs_distances:
            rows = [slice(starts[i], starts[i] + batch.inputs[i].num_tokens) for i in members]
            positions = [batch.position_ids[row] for row in rows]
        inputs = [batch.inputs[i] for i in members]
        groups.append(_attention_group(inputs, [starts[i] for i in members], device, shared, positions))
    return groups


def _group(inputs: Seq[StepInput]) -> list[list[int]]:
    """Indices of the sequences that attend together: all that decode in one call, each that prefills in its own."""
    decoding = [i for i, entry in enumerate(inputs) if len(entry.token_ids) <= _MAX_GROUPED_TOKENS]
    alone = [[i] for i, entry in enumerate(inputs) if len(entry.token_ids) > _MAX_GROUPED_TOKENS]
    return ([decoding] if decoding else []) + alone


def _attention_group(
    members: list[StepInput],
    starts: list[int],
    device: torch.device,
    shared: int,
    positions: list[NDArray[np.int64]] | None,
) -> AttentionGroup:
    used = [entry.slot_idx for entry in members]
    read = range(min(used), max(used) + 1)
    is_dense = 2 * len(used) >= len(read)
    num_slots = len(read) if is_dense else len(used)
    longest = max(entry.num_tokens for entry in members)
    length = max(entry.num_cached + entry.num_tokens for entry in members)
    gather = np.zeros((num_slots, longest), np.int64)
    mask = np.zeros((num_slots, longest, length), bool)
    # Padded queries and idle slots look at place 0, so that no softmax runs over nothing; nobody reads them.
    mask[:, :, 0] = True
    distances = np.zeros((num_slots, longest, length), np.int64) if positions is not None else None
    rows: list[NDArray[np.int64]] = []
    scatter: list[NDArray[np.int64]] = []
    for k, (entry, start) in enumerate(zip(members, starts, strict=True)):
        row, n, cached = entry.slot_idx - read.start if is_dense else k, entry.num_tokens, entry.num_cached
        gather[row, :n] = np.arange(start, start + n)
        rows.append(np.arange(start, start + n))
        scatter.append(row * longest + np.arange(n))
        mask[row, :n, :cached] = True
        mask[row, :n, cached : cached + n] = _visible(entry)
        mask[row, :n, 0] |= cached > 0
        if distances is not None and positions is not None:
            places = np.concatenate((np.arange(cached), positions[k]))
            distances[row, :n, : cached + n] = positions[k][:, None] - places[None, :]

    def to_device(array: NDArray[np.int64] | NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return AttentionGroup(
        slice(read.start, read.stop) if is_dense else to_device(np.array(used, np.int64)),
        length,
        to_device(gather),
        to_device(np.concatenate(scatter)),
        to_device(np.concatenate(rows)),
        to_device(mask).unsqueeze(1).repeat(1, 1, shared, 1),
        to_device(distances).unsqueeze(1).repeat(1, 1, shared, 1) if distances is not None else None,
    )


def _visible(entry: StepInput) -> NDArray[np.bool_]:
    """bool[n, n]: which of a sequence's tokens of the step each of them sees: the chain, its ancestors, itself."""
    m, n = len(entry.token_ids), entry.num_tokens
    visible = np.zeros((n, n), bool)
    visible[:m, :m] = np.tri(m, dtype=bool)
    if entry.tree is not None:
        for i, parent in enumerate(entry.tree.parents):
            visible[m + i] = visible[m + parent] if parent >= 0 else visible[m - 1]
            visible[m + i, m + i] = True
    return visible
