"""Tries a model out: its logits through our attention beside its own, on a text, a tree and a neighbour.

A layer that keeps a state of its own, or a mask that a model makes for itself, shows in nothing but its logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laser_protocol.acceptance import Strict
from laser_protocol.tree import DraftTree
from laser_verifier.batch import StepInput

# Most tokens of a third of the text.
_THIRD = 8
# How far the logits may be off, relative, in the median of the places. Rounding, and experts chosen by what was rounded
# stay far below; a layer that does not know its history is far above.
_MAX_ERROR, _MAX_ERROR_16_BITS = 1e-3, 0.25


def probe_text(vocab_size: int, slot_len: int, context_len: int | None) -> NDArray[np.int32]:
    """int32[3 * n]: random tokens for a slot of at least four places and a model of at least three, always the same."""
    third = min(_THIRD, slot_len // 4, _THIRD if context_len is None else context_len // 3)
    return np.random.default_rng(0).integers(0, vocab_size, 3 * third, np.int32)


@torch.inference_mode()
def own_logits(network: Any, text: NDArray[np.int32]) -> Tensor:
    """[n + 1, V]: what a model says, as it is, after the text's second third and after each token of its last one."""
    token_ids = torch.from_numpy(text.astype(np.int64)).to(network.device)
    logits: Tensor = network(input_ids=token_ids.unsqueeze(0), use_cache=False).logits[0]
    return logits[2 * len(text) // 3 - 1 :]


def probe_steps(text: NDArray[np.int32], num_slots: int) -> tuple[list[StepInput], list[StepInput]]:
    """Two steps: the second wants 1 + 2 * n logits, every other one, from the first on, where `own_logits` has one.

    The last third is the path of a tree that has another node before it on each level. Beside the text runs, where
    there is a second slot, the same text backwards.
    """
    first, second, path = np.split(text, 3)
    third = len(path)
    parents = np.repeat(np.arange(-1, 2 * third - 1, 2, dtype=np.int32), 2)
    nodes = np.stack((first, path), axis=1).flatten()
    tree = DraftTree(2 * third, nodes, parents, np.ones(2 * third, np.float32))
    backwards = text[::-1].copy()
    steps = []
    for cached, tokens, at_its_end in ((0, first, None), (third, second, tree)):
        beside = backwards[cached : cached + third]
        inputs = [StepInput(0, cached, tokens, at_its_end, Strict(), 0.0, 0, 0, third)]
        if num_slots > 1:
            inputs.append(StepInput(1, cached, beside, None, Strict(), 0.0, 0, 0, third))
        steps.append(inputs)
    return steps[0], steps[1]


def check_logits(found: Tensor, expected: Tensor, model_type: str) -> None:
    """Compares [n + 1, V] with what the model said itself.

    Raises:
        ValueError: they are further apart than rounding brings them.
    """
    if not expected.isfinite().all():  # float16 overflows: nothing can be told
        return
    is_wide = expected.element_size() > 2
    found, expected = (logits.float() - logits.float().mean(dim=-1, keepdim=True) for logits in (found, expected))
    error = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median().item()
    if not error <= (_MAX_ERROR if is_wide else _MAX_ERROR_16_BITS):
        raise ValueError(
            f"model type {model_type!r} is not supported: with our attention its logits are off by {error:.1%}; must "
            "be a causal LM whose layers know earlier tokens by attention alone, without masks of their own"
        )
