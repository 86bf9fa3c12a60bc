"""Runs one packed step on the device: forward, verification, one transfer to the host.

Source of the single forward over all nodes: Miao et al. (SpecInfer, arXiv 2305.09781), PAPER "Tree verification".
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from laser_verifier.acceptance import verify
from laser_verifier.batch import StepInput, pack
from laser_verifier.forward import make_forward
from laser_verifier.model import TargetModel


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a step decided for one sequence.

    Attributes:
        accepted_node_idx: deepest accepted node of its tree, -1 for none.
        bonus_token_id: the target's own token behind it.
        path: node indices of the accepted path, from the top.
        relaxed: for each of them, whether the target itself would have emitted another token.
    """

    accepted_node_idx: int
    bonus_token_id: int
    path: tuple[int, ...]
    relaxed: tuple[bool, ...]


class ModelRunner:
    """A target model with its KV cache. Used by one thread.

    Args:
        model: loaded; it belongs to the runner from now on.
        num_slots: S, sequences at once.
        max_model_len: tokens of a sequence. max_draft_nodes: nodes of a tree.

    Raises:
        ValueError: the architecture takes no attention function from outside; its own would ignore the trees.
    """

    def __init__(self, model: TargetModel, num_slots: int, max_model_len: int, max_draft_nodes: int) -> None:
        self.model = model
        self.num_slots = num_slots
        self.slot_len = max_model_len + max_draft_nodes
        self._forward = make_forward(model, num_slots, self.slot_len)
        self._eos_token_ids = torch.tensor(model.eos_token_ids, dtype=torch.int64, device=model.device)

    @property
    def cache_size_bytes(self) -> int:
        """Bytes of the KV cache."""
        return self._forward.cache.size_bytes

    @torch.inference_mode()
    def run(self, inputs: Seq[StepInput]) -> list[Verdict | None]:
        """One forward over all inputs, and the verdict on those whose prompt is at its end.

        Args:
            inputs: at least one; each with a slot of its own and room for its tokens in it.

        Returns:
            In the order of inputs; None where no tree was given. The accepted nodes' keys and values are in line in the
            cache afterwards: a sequence has cached its `token_ids` and its accepted path.
        """
        batch = pack(inputs, self.model.device)
        logits = self._forward.logits(batch)
        verdicts: list[Verdict | None] = [None] * len(inputs)
        if batch.trees is None:
            return verdicts
        decided = verify(logits, batch.trees, self._eos_token_ids, batch.relaxed, batch.sampled).tolist()
        wanting = [(i, entry.tree) for i, entry in enumerate(inputs) if entry.tree is not None]
        num, first_row = len(wanting), 2 * len(wanting)
        for k, (i, tree) in enumerate(wanting):
            path = tuple(tree.path(decided[k]))
            relaxed = tuple(bool(decided[first_row + 1 + node_idx]) for node_idx in path)
            verdicts[i] = Verdict(decided[k], decided[num + k], path, relaxed)
            first_row += len(tree) + 1
        self._compact(inputs, verdicts)
        return verdicts

    @torch.inference_mode()
    def logits(self, inputs: Seq[StepInput]) -> Tensor:
        """The logits of a step's roots and nodes, [R, V], without verification: for tests and for measuring gaps."""
        return self._forward.logits(pack(inputs, self.model.device))

    def copy_prefix(self, source_idx: int, target_idx: int, num_tokens: int) -> None:
        """Copies the keys and values of a slot's first tokens to another slot (or leaves them where they are)."""
        if source_idx != target_idx:
            self._forward.cache.copy_prefix(source_idx, target_idx, num_tokens)

    def _compact(self, inputs: Seq[StepInput], verdicts: Seq[Verdict | None]) -> None:
        slots: list[int] = []
        sources: list[int] = []
        targets: list[int] = []
        for entry, verdict in zip(inputs, verdicts, strict=True):
            if verdict is None:
                continue
            base = entry.num_cached + len(entry.token_ids)
            for depth, node_idx in enumerate(verdict.path):
                if node_idx != depth:
                    slots.append(entry.slot_idx)
                    sources.append(base + node_idx)
                    targets.append(base + depth)
        self._forward.compact(slots, sources, targets)
