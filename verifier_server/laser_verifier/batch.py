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
class StepBatch:
    """M packed tokens of a step, on the host.

    Attributes:
        inputs: the sequences, in the order their rows are packed.
        token_ids: int64[M]. position_ids: int64[M], of each token in its sequence.
        slots, places: int64[M], where in the cache each goes: a node of a tree stands in tree order behind the chain.
        parents: int64[M], of a node its parent in the tree (-1: the last verified token), of other rows -1.
        sequences: int64[inputs, 5]: slot, first row, rows, rows before the tree, places below the tree.
        logit_rows: int64[R], rows whose logits are wanted; R may be 0.
        trees: the trees of the sequences that want logits, in order, on the device; None if there are none.
        relaxed, sampled: settings of those rows.
    """

    inputs: tuple[StepInput, ...]
    token_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    slots: NDArray[np.int64]
    places: NDArray[np.int64]
    parents: NDArray[np.int64]
    sequences: NDArray[np.int64]
    logit_rows: NDArray[np.int64]
    trees: PackedTrees | None
    relaxed: RelaxedRows | None
    sampled: SampledRows | None

    @property
    def num_tokens(self) -> int:
        """M."""
        return len(self.token_ids)


def pack(inputs: Seq[StepInput], device: torch.device) -> StepBatch:
    """Packs a step.

    Args:
        inputs: at least one sequence, each with its own slot.
        device: of the tensors that verification needs.
    """
    starts = np.cumsum([0, *(entry.num_tokens for entry in inputs)])
    token_ids, position_ids, slots, places = (np.empty(starts[-1], np.int64) for _ in range(4))
    parents = np.full(starts[-1], -1, np.int64)
    sequences = np.empty((len(inputs), 5), np.int64)
    for k, (entry, start) in enumerate(zip(inputs, starts.tolist(), strict=False)):
        n, m, cached = entry.num_tokens, len(entry.token_ids), entry.num_cached
        sequences[k] = entry.slot_idx, start, n, m, cached + m
        token_ids[start : start + m] = entry.token_ids
        slots[start : start + n] = entry.slot_idx
        places[start : start + n] = range(cached, cached + n)
        position_ids[start : start + m] = range(cached, cached + m)
        if n > m:
            assert entry.tree is not None
            token_ids[start + m : start + n] = entry.tree.token_ids
            parents[start + m : start + n] = entry.tree.parents
            position_ids[start + m : start + n] = cached + m - 1 + entry.tree.depths()
    logit_rows, trees, relaxed, sampled = _pack_trees(inputs, starts, device)
    return StepBatch(
        tuple(inputs), token_ids, position_ids, slots, places, parents, sequences, logit_rows, trees, relaxed, sampled
    )


def _pack_trees(
    inputs: Seq[StepInput], starts: NDArray[np.int64], device: torch.device
) -> tuple[NDArray[np.int64], PackedTrees | None, RelaxedRows | None, SampledRows | None]:
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
        return np.empty(0, np.int64), None, None, None
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
    return np.array(logit_rows, np.int64), trees, relaxed, _sampled_rows(entries, depths, sequence_rows, device)


def _relaxed_rows(
    entries: list[StepInput], parents: list[int], sequence_rows: list[int], root_rows: list[int], device: torch.device
) -> RelaxedRows | None:
    # One with top_k 1 is strict: of equal logits topk may find another first than argmax does.
    settings = [
        entry.acceptance if isinstance(entry.acceptance, Relaxed) and entry.acceptance.top_k > 1 else None
        for entry in entries
    ]
    if not any(settings):
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
