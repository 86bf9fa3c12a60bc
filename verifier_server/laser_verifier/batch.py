"""One step's tokens, packed: what the forward gets, without padding between sequences.

A sequence brings the verified tokens whose keys and values are not yet cached (its prompt at first, then the one bonus
token) and the nodes of its tree. Pure host-side layout; the tensors are made once per step.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laser_protocol.acceptance import Acceptance, Relaxed
from laser_protocol.tree import DraftTree
from laser_verifier.acceptance import PackedTrees, RelaxedRows, SampledRows
from laser_verifier.sampling import uniform


@dataclass(frozen=True, slots=True)
class StepInput:
    """One sequence's share of a step.

    Attributes:
        slot_idx: its row of the KV cache.
        num_cached: tokens whose keys and values the cache holds.
        token_ids: int32[m], m >= 1, verified tokens to run now, following the cached ones.
        tree: draft behind the last of token_ids; None while the prompt is not at its end (no logits are needed then).
        acceptance, temperature, seed: of the request.
        num_output: tokens emitted so far.
        max_depth: tokens it may still emit.
    """

    slot_idx: int
    num_cached: int
    token_ids: NDArray[np.int32]
    tree: DraftTree | None
    acceptance: Acceptance
    temperature: float
    seed: int
    num_output: int
    max_depth: int

    @property
    def num_tokens(self) -> int:
        """Rows of this sequence in the forward."""
        return len(self.token_ids) + (len(self.tree) if self.tree is not None else 0)


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sequences attended in one call: neighbouring slots, queries padded to the longest.

    Attributes:
        first_slot, num_slots: the slots B that are read.
        length: places read per slot.
        gather: int64[B, q], row of the packed step for each padded query.
        scatter: int64[m], place in the flattened [B * q] of each of the group's rows.
        rows: int64[m], the group's rows in the packed step.
        mask: bool[B, 1, q, length], True where a query sees a place.
        distances: int64[B, 1, q, length], position of the query minus that of the place, for sliding windows.
    """

    first_slot: int
    num_slots: int
    length: int
    gather: Tensor
    scatter: Tensor
    rows: Tensor
    mask: Tensor
    distances: Tensor | None


@dataclass(frozen=True, slots=True)
class StepBatch:
    """M packed tokens of a step.

    Attributes:
        token_ids, position_ids: int64[1, M].
        places: int64[M], where in the cache each goes.
        groups: how they attend.
        logit_rows: int64[R], rows whose logits are wanted; R may be 0.
        trees: the trees of the sequences that want logits, in order; None if there are none.
        relaxed, sampled: settings of those rows.
    """

    token_ids: Tensor
    position_ids: Tensor
    places: Tensor
    groups: tuple[AttentionGroup, ...]
    logit_rows: Tensor
    trees: PackedTrees | None
    relaxed: RelaxedRows | None
    sampled: SampledRows | None


# A sequence with more verified tokens than this to run is attended alone: padding the others to it would cost more.
_MAX_GROUPED_TOKENS = 8


def pack(inputs: Seq[StepInput], slot_len: int, device: torch.device, needs_distances: bool = False) -> StepBatch:
    """Packs a step.

    Args:
        inputs: at least one sequence, each with its own slot.
        slot_len: places per slot.
        needs_distances: True for models with sliding windows.
    """
    starts = np.cumsum([0, *(entry.num_tokens for entry in inputs)])
    token_ids = np.empty(starts[-1], np.int64)
    position_ids = np.empty(starts[-1], np.int64)
    places = np.empty(starts[-1], np.int64)
    for entry, start in zip(inputs, starts, strict=False):
        n, m = entry.num_tokens, len(entry.token_ids)
        token_ids[start : start + m] = entry.token_ids
        position_ids[start : start + m] = np.arange(entry.num_cached, entry.num_cached + m)
        if entry.tree is not None:
            token_ids[start + m : start + n] = entry.tree.token_ids
            position_ids[start + m : start + n] = entry.num_cached + m - 1 + entry.tree.depths()
        places[start : start + n] = entry.slot_idx * slot_len + np.arange(entry.num_cached, entry.num_cached + n)
    positions_of = [
        position_ids[start : start + entry.num_tokens] for entry, start in zip(inputs, starts, strict=False)
    ]
    groups = [
        _attention_group([inputs[i] for i in members], [int(starts[i]) for i in members], device,
                         [positions_of[i] for i in members] if needs_distances else None)
        for members in _group(inputs)
    ]  # fmt: skip
    logit_rows, trees, relaxed, sampled = _pack_trees(inputs, starts, device)
    return StepBatch(
        token_ids=torch.from_numpy(token_ids).to(device).unsqueeze(0),
        position_ids=torch.from_numpy(position_ids).to(device).unsqueeze(0),
        places=torch.from_numpy(places).to(device),
        groups=tuple(groups),
        logit_rows=logit_rows,
        trees=trees,
        relaxed=relaxed,
        sampled=sampled,
    )


def _group(inputs: Seq[StepInput]) -> list[list[int]]:
    """Indices of the sequences that attend together: all that decode in one call, each that prefills in its own."""
    decoding = [i for i, entry in enumerate(inputs) if len(entry.token_ids) <= _MAX_GROUPED_TOKENS]
    alone = [[i] for i, entry in enumerate(inputs) if len(entry.token_ids) > _MAX_GROUPED_TOKENS]
    return ([decoding] if decoding else []) + alone


def _attention_group(
    members: list[StepInput], starts: list[int], device: torch.device, positions: list[NDArray[np.int64]] | None
) -> AttentionGroup:
    first_slot = min(entry.slot_idx for entry in members)
    num_slots = max(entry.slot_idx for entry in members) - first_slot + 1
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
        row, n, cached = entry.slot_idx - first_slot, entry.num_tokens, entry.num_cached
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
        first_slot,
        num_slots,
        length,
        to_device(gather),
        to_device(np.concatenate(scatter)),
        to_device(np.concatenate(rows)),
        to_device(mask).unsqueeze(1),
        to_device(distances).unsqueeze(1) if distances is not None else None,
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


def _pack_trees(
    inputs: Seq[StepInput], starts: NDArray[np.int64], device: torch.device
) -> tuple[Tensor, PackedTrees | None, RelaxedRows | None, SampledRows | None]:
    logit_rows: list[int] = []
    token_ids: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    sequence_rows: list[int] = []
    root_rows: list[int] = []
    wanting = [(entry, int(start)) for entry, start in zip(inputs, starts, strict=False) if entry.tree is not None]
    for s, (entry, start) in enumerate(wanting):
        tree = entry.tree
        assert tree is not None
        m, root = len(entry.token_ids), len(logit_rows)
        root_rows.append(root)
        logit_rows.extend(range(start + m - 1, start + entry.num_tokens))
        token_ids.append(int(entry.token_ids[-1]))
        token_ids.extend(tree.token_ids.tolist())
        parents.append(root)
        parents.extend((tree.parents + root + 1).tolist())
        depths.append(0)
        depths.extend(tree.depths().tolist())
        sequence_rows.extend([s] * (len(tree) + 1))

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    if not wanting:
        return tensor([]), None, None, None
    entries = [entry for entry, _ in wanting]
    trees = PackedTrees(
        token_ids=tensor(token_ids),
        parent_rows=tensor(parents),
        depths=tensor(depths),
        sequence_rows=tensor(sequence_rows),
        root_rows=tensor(root_rows),
        max_depths=tensor([entry.max_depth for entry in entries]),
        max_depth=max(depths),
    )
    relaxed = _relaxed_rows(entries, parents, sequence_rows, root_rows, device)
    return tensor(logit_rows), trees, relaxed, _sampled_rows(entries, depths, sequence_rows, device)


def _relaxed_rows(
    entries: list[StepInput], parents: list[int], sequence_rows: list[int], root_rows: list[int], device: torch.device
) -> RelaxedRows | None:
    settings = [entry.acceptance if isinstance(entry.acceptance, Relaxed) else None for entry in entries]
    if not any(setting is not None and setting.top_k > 1 for setting in settings):
        return None
    # Only rows with children: a softmax over the vocabulary is too dear to take for leaves.
    roots = set(root_rows)
    with_children = sorted(
        {p for i, p in enumerate(parents) if i not in roots and settings[sequence_rows[i]] is not None}
    )
    top_k = [setting.top_k if setting is not None else 1 for setting in settings]
    return RelaxedRows(
        rows=torch.tensor(with_children, dtype=torch.int64, device=device),
        top_k=torch.tensor(top_k, dtype=torch.int64, device=device),
        min_probs=torch.tensor([s.min_prob if s is not None else 1.0 for s in settings], device=device),
        max_top_k=max(top_k),
    )


def _sampled_rows(
    entries: list[StepInput], depths: list[int], sequence_rows: list[int], device: torch.device
) -> SampledRows | None:
    rows = [i for i, s in enumerate(sequence_rows) if entries[s].temperature > 0.0]
    if not rows:
        return None
    owners = [entries[sequence_rows[i]] for i in rows]
    uniforms = [uniform(owner.seed, owner.num_output + depths[i]) for i, owner in zip(rows, owners, strict=True)]
    return SampledRows(
        rows=torch.tensor(rows, dtype=torch.int64, device=device),
        temperatures=torch.tensor([owner.temperature for owner in owners], dtype=torch.float32, device=device),
        uniforms=torch.tensor(uniforms, dtype=torch.float64, device=device),
    )
