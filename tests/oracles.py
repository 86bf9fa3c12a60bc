"""What must come out, written the slow and obvious way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from laser_protocol.acceptance import Acceptance, Relaxed
from laser_protocol.tree import DraftTree
from laser_verifier.sampling import uniform


def plain_decoding(
    network: Any,
    prompt: Sequence[int],
    max_new_tokens: int,
    eos_token_ids: Sequence[int] = (),
    temperature: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """One token per forward over the whole sequence, no cache, transformers' own attention."""
    token_ids = list(prompt)
    output: list[int] = []
    with torch.inference_mode():
        while len(output) < max_new_tokens:
            logits = network(torch.tensor([token_ids])).logits[0, -1]
            if temperature == 0.0:
                token_id = int(logits.argmax())
            else:
                token_id = inverse_cdf(logits.double().numpy() / temperature, uniform(seed, len(output)))
            output.append(token_id)
            token_ids.append(token_id)
            if token_id in eos_token_ids:
                break
    return output


def inverse_cdf(scaled_logits: np.ndarray, u: float) -> int:
    """The first token id whose cumulative probability exceeds u."""
    weights = np.exp(scaled_logits - scaled_logits.max())
    cumulative, total = 0.0, weights.sum()
    for token_id, weight in enumerate(weights):
        cumulative += weight / total
        if cumulative > u:
            return token_id
    return len(weights) - 1


def verify_tree(
    logits: np.ndarray, tree: DraftTree, acceptance: Acceptance, eos_token_ids: Sequence[int], max_depth: int
) -> tuple[int, int]:
    """The deepest accepted node (-1: none) and the bonus token, straight from the definition.

    Args:
        logits: float64[1 + N, V], row 0 after the last verified token, row 1 + i after node i.
    """

    def log_softmax(row: np.ndarray) -> np.ndarray:
        return row - row.max() - math.log(np.exp(row - row.max()).sum())

    def accepted_set(row: np.ndarray) -> set[int]:
        argmax = int(row.argmax())
        if argmax in eos_token_ids or not isinstance(acceptance, Relaxed):
            return {argmax}
        order = np.argsort(-row, kind="stable")[: acceptance.top_k]
        probs = np.exp(log_softmax(row))
        return {argmax} | {int(t) for t in order if probs[t] > acceptance.min_prob and int(t) not in eos_token_ids}

    best = (0, 0.0, -1)
    accepted: dict[int, tuple[int, float]] = {-1: (0, 0.0)}
    for i, (token_id, parent) in enumerate(zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True)):
        if parent not in accepted or (parent >= 0 and int(tree.token_ids[parent]) in eos_token_ids):
            continue
        depth, score = accepted[parent]
        row = logits[parent + 1]
        if depth + 1 > max_depth or token_id not in accepted_set(row):
            continue
        accepted[i] = (depth + 1, score + float(log_softmax(row)[token_id]))
        if accepted[i] > best[:2] if depth + 1 == best[0] else depth + 1 > best[0]:
            best = (*accepted[i], i)
    return best[2], int(logits[best[2] + 1].argmax())
