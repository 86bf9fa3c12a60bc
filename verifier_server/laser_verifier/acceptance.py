"""Which draft nodes are accepted: pure functions over logits, vectorised on their device.

All sequences of a step stand in one packed list of R rows. A sequence's rows are its root (the last verified token) and
then its tree nodes, in order. `parent_rows` points every node at the row whose logits predict it, and every root at
itself, so that trees of any shape are walked by pointer doubling in log2(depth) gathers.

Definition: docs/architecture.md, "Acceptance". Source: PAPER "Relaxed verification" (LASER, arXiv 2408.05676) for the
accepted set, Miao et al. (SpecInfer, arXiv 2305.09781) for verifying a token tree in one forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Tokens whose largest logit is taken at once: near the square root of a vocabulary.
_BLOCK = 256
# Rows that are sampled for at once: in float64 one of 128,000 tokens takes a megabyte.
_SAMPLED_ROWS = 128


@dataclass(frozen=True, slots=True)
class PackedTrees:
    """The shape of all trees of a step, R rows of S sequences. All tensors are on one device.

    Attributes:
        token_ids: int64[R], token of each node; of a root, the last verified token.
        parent_rows: int64[R], row of the parent; of a root, the root itself.
        depths: int64[R], 0 for roots, 1 for their children.
        sequence_rows: int64[R], which of the S sequences a row belongs to.
        root_rows: int64[S], row of each sequence's root.
        max_depths: int64[S], tokens the sequence may still emit: deeper nodes are never accepted.
        max_depth: the deepest node of the batch.
    """

    token_ids: Tensor
    parent_rows: Tensor
    depths: Tensor
    sequence_rows: Tensor
    root_rows: Tensor
    max_depths: Tensor
    max_depth: int


@dataclass(frozen=True, slots=True)
class RelaxedRows:
    """Relaxed settings of the rows that have any.

    Attributes:
        rows: int64[Q], rows with children whose sequence has a relaxed setting.
        top_k: int64[S], candidates per place; 1 for strict sequences.
        min_probs: float32[S].
        max_top_k: the largest of top_k.
    """

    rows: Tensor
    top_k: Tensor
    min_probs: Tensor
    max_top_k: int


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Sampling settings of the rows that have any.

    Attributes:
        rows: int64[Q], all rows of sequences with a temperature.
        temperatures: float32[Q], above 0.
        uniforms: float64[Q], u(seed, output position) in [0, 1).
    """

    rows: Tensor
    temperatures: Tensor
    uniforms: Tensor


def target_tokens(logits: Tensor, sampled: SampledRows | None) -> Tensor:
    """The token plain decoding would emit after each row.

    Args:
        logits: [R, V], any float type.
        sampled: rows that sample; all others take the argmax.

    Returns:
        int64[R].
    """
    targets = top_tokens(logits, 1).squeeze(-1)
    if sampled is not None:
        for start in range(0, len(sampled.rows), _SAMPLED_ROWS):
            part = slice(start, start + _SAMPLED_ROWS)
            rows = sampled.rows[part]
            targets[rows] = inverse_cdf(logits[rows], sampled.temperatures[part], sampled.uniforms[part])
    return targets


def top_tokens(logits: Tensor, k: int) -> Tensor:
    """The k tokens with the largest logits, largest first; among equal ones the first for k = 1, else any.

    On processors torch's argmax and topk look at a row number by number. A maximum is found sixteen at a time, and the
    k largest stand in the k blocks with the largest maxima, so only those are looked through.

    Args:
        logits: [R, V], any float type. k: at most V.

    Returns:
        int64[R, k].
    """
    # Over 16-bit floats a maximum takes longer on processors than widening and then taking it.
    wide = logits.float() if logits.element_size() == 2 else logits
    size = wide.shape[-1]
    num_blocks = size // _BLOCK
    if num_blocks <= k:
        return wide.argmax(dim=-1, keepdim=True) if k == 1 else wide.topk(k, dim=-1).indices
    whole, rest = wide[:, : num_blocks * _BLOCK], wide[:, num_blocks * _BLOCK :]
    maxima = whole.view(len(wide), num_blocks, _BLOCK).amax(dim=-1)
    if rest.shape[-1]:
        maxima = torch.cat((maxima, rest.amax(dim=-1, keepdim=True)), dim=-1)
    blocks = maxima.argmax(dim=-1, keepdim=True) if k == 1 else maxima.topk(k, dim=-1).indices
    tokens = (blocks.unsqueeze(-1) * _BLOCK + torch.arange(_BLOCK, device=wide.device)).flatten(1)
    values = wide.gather(-1, tokens.clamp(max=size - 1)).masked_fill(tokens >= size, -torch.inf)
    best = values.argmax(dim=-1, keepdim=True) if k == 1 else values.topk(k, dim=-1).indices
    # Where all logits are -inf, which no model gives, a place behind the last token may be among the best.
    found: Tensor = tokens.gather(-1, best).clamp_(max=size - 1)
    return found


def inverse_cdf(logits: Tensor, temperatures: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the cumulative distribution, in token id order, exceeds a uniform.

    Args:
        logits: [Q, V]. temperatures: float32[Q], above 0. uniforms: float64[Q] in [0, 1).

    Returns:
        int64[Q]. Depends on nothing but the row's logits, its temperature and its uniform.
    """
    # float64: a float32 running sum over a large vocabulary is off by more than a rare token's probability.
    cdf = torch.softmax(logits.double() / temperatures.double().unsqueeze(-1), dim=-1).cumsum(dim=-1)
    found = torch.searchsorted(cdf, (uniforms * cdf[:, -1]).unsqueeze(-1), right=True).squeeze(-1)
    return found.clamp_(max=logits.shape[-1] - 1)


def accepted_children(
    logits: Tensor, targets: Tensor, trees: PackedTrees, eos_token_ids: Tensor, relaxed: RelaxedRows | None
) -> tuple[Tensor, Tensor]:
    """Which nodes are in their parent's accepted set, whatever became of the parent.

    Args:
        logits: [R, V]. targets: int64[R] of `target_tokens`. eos_token_ids: int64[E].

    Returns:
        bool[R], True for roots; and float32[R], log probability of a node under its parent, only told apart among the
        nodes of relaxed sequences (0 elsewhere: strict trees never have two accepted siblings).
    """
    is_root = trees.depths == 0
    accepted = targets[trees.parent_rows] == trees.token_ids
    log_probs = torch.zeros(len(accepted), dtype=torch.float32, device=logits.device)
    if relaxed is not None and len(relaxed.rows):
        candidate, log_probs = _relaxed_children(logits, trees, relaxed)
        target_is_eos = torch.isin(targets, eos_token_ids)[trees.parent_rows]
        token_is_eos = torch.isin(trees.token_ids, eos_token_ids)
        accepted |= candidate & ~target_is_eos & ~token_is_eos
    # Nothing is emitted after an EOS, and no more than the sequence may still emit.
    after_eos = torch.isin(trees.token_ids, eos_token_ids)[trees.parent_rows] & (trees.depths > 1)
    accepted &= ~after_eos & (trees.depths <= trees.max_depths[trees.sequence_rows])
    return accepted | is_root, log_probs


def _relaxed_children(logits: Tensor, trees: PackedTrees, relaxed: RelaxedRows) -> tuple[Tensor, Tensor]:
    """bool[R]: in the parent's `top_k` with p above `min_prob`; float32[R]: log p under the parent."""
    rows = relaxed.rows
    log_softmax = torch.log_softmax(logits[rows], dim=-1, dtype=torch.float32)
    top = top_tokens(log_softmax, relaxed.max_top_k)
    row_of = torch.full((len(logits),), -1, dtype=torch.int64, device=logits.device)
    row_of[rows] = torch.arange(len(rows), device=logits.device)
    parent = row_of[trees.parent_rows]
    known = (parent >= 0) & (trees.depths > 0)
    parent = parent.clamp(min=0)
    log_probs = torch.where(known, log_softmax[parent, trees.token_ids], 0.0)
    in_rank = torch.arange(relaxed.max_top_k, device=logits.device) < relaxed.top_k[trees.sequence_rows].unsqueeze(-1)
    in_top_k = ((top[parent] == trees.token_ids.unsqueeze(-1)) & in_rank).any(dim=-1)
    return known & in_top_k & (log_probs.exp() > relaxed.min_probs[trees.sequence_rows]), log_probs


def deepest_accepted(accepted: Tensor, log_probs: Tensor, trees: PackedTrees) -> Tensor:
    """The row each sequence ends its accepted path at: the deepest, among equals the most probable path.

    Args:
        accepted: bool[R], log_probs: float32[R] of `accepted_children`.

    Returns:
        int64[S]: a row; the root's where nothing was accepted.
    """
    on_path, path_log_probs, pointers = accepted, log_probs, trees.parent_rows
    covered = 1
    while covered <= trees.max_depth:
        on_path = on_path & on_path[pointers]
        # A root points at itself with log probability 0, so adding it again changes nothing.
        path_log_probs = path_log_probs + path_log_probs[pointers]
        pointers = pointers[pointers]
        covered *= 2
    num_sequences, num_rows = len(trees.root_rows), len(accepted)
    depths = torch.where(on_path, trees.depths, -1)
    deepest = _reduce(depths, trees.sequence_rows, num_sequences, -1, "amax")
    among = on_path & (depths == deepest[trees.sequence_rows])
    scores = torch.where(among, path_log_probs, -torch.inf)
    best = _reduce(scores, trees.sequence_rows, num_sequences, -torch.inf, "amax")
    rows = torch.arange(num_rows, device=accepted.device)
    rows = torch.where(among & (scores == best[trees.sequence_rows]), rows, num_rows)
    best_rows = _reduce(rows, trees.sequence_rows, num_sequences, num_rows, "amin")
    # No row is best where logits are NaN (float16 overflows): then nothing is accepted.
    return torch.where(best_rows < num_rows, best_rows, trees.root_rows)


def _reduce(values: Tensor, index: Tensor, size: int, initial: float, how: str) -> Tensor:
    out = torch.full((size,), initial, dtype=values.dtype, device=values.device)
    return out.scatter_reduce_(0, index, values, how)


def verify(
    logits: Tensor,
    trees: PackedTrees,
    eos_token_ids: Tensor,
    relaxed: RelaxedRows | None = None,
    sampled: SampledRows | None = None,
) -> Tensor:
    """Verifies all trees of a step.

    Args:
        logits: [R, V], the target's logits after each row. eos_token_ids: int64[E].

    Returns:
        int64[2 * S + R] on the device, the step's one transfer to the host: per sequence the node index of the deepest
        accepted node in its tree (-1: none); per sequence the bonus token after it; per row 1 where the node is not
        what the target itself would have emitted (relaxed acceptance may emit it all the same).
    """
    targets = target_tokens(logits, sampled)
    if trees.max_depth == 0:  # no nodes: thirty operations less where a step is plain
        return torch.cat((torch.full_like(targets, -1), targets, torch.zeros_like(targets)))
    accepted, log_probs = accepted_children(logits, targets, trees, eos_token_ids, relaxed)
    rows = deepest_accepted(accepted, log_probs, trees)
    differs = targets[trees.parent_rows] != trees.token_ids
    return torch.cat((rows - trees.root_rows - 1, targets[rows], differs.to(torch.int64)))
