"""The forward of any transformers causal LM: the model runs itself, with our attention in every layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from laser_protocol.acceptance import Strict
from laser_protocol.tree import DraftTree
from laser_verifier.attention import TreeAttention, needs_distances
from laser_verifier.attention_groups import attention_groups
from laser_verifier.batch import StepBatch, StepInput, pack
from laser_verifier.kv_cache import KVCache
from laser_verifier.model import TargetModel


class TransformersForward:
    """Runs a model over a cache of its own. Used by one thread.

    Args:
        model: loaded; its attention is replaced by ours. num_slots: S. slot_len: places per slot.

    Raises:
        ValueError: the architecture takes no attention function from outside; its own would ignore the trees.
    """

    def __init__(self, model: TargetModel, num_slots: int, slot_len: int) -> None:
        self._model = model
        self.cache = KVCache(model.kv_shape, num_slots, slot_len, model.dtype, model.device)
        self._attention = TreeAttention(self.cache)
        config = model.network.config.get_text_config()
        self._needs_distances = needs_distances(config)
        self._shared = config.num_attention_heads // model.kv_shape.num_heads
        # transformers finds attention functions by name in a table of its own; one name per cache keeps them apart.
        self._name = f"laser_{id(self)}"
        AttentionInterface.register(self._name, self._attention)
        try:
            model.network.set_attn_implementation(self._name)
        except (ValueError, ImportError) as error:
            raise ValueError(f"model type {model.model_type!r} takes no attention function: {error}") from error
        self._check_attention()

    def _check_attention(self) -> None:
        """transformers only warns where a model ignores the function: one token shows whether it was asked."""
        probe = StepInput(0, 0, np.zeros(1, np.int32), DraftTree.empty(1), Strict(), 0.0, 0, 0, 1)
        self.logits(pack([probe], self._model.device))
        calls, layers = self._attention.num_calls, self._model.kv_shape.num_layers
        if calls != layers:
            raise ValueError(
                f"model type {self._model.model_type!r} is not supported: {calls} of its {layers} layers took our "
                "attention; must be a causal LM with attention in every layer, through transformers' AttentionInterface"
            )

    @torch.inference_mode()
    def logits(self, batch: StepBatch) -> Tensor:
        """Runs a step; [R, V] of its logit_rows. Keys and values of all its tokens are in the cache afterwards."""
        device = self._model.device
        places = batch.slots * self.cache.slot_len + batch.places
        token_ids, position_ids, places_on_device, logit_rows = (
            torch.from_numpy(array).to(device)
            for array in (batch.token_ids, batch.position_ids, places, batch.logit_rows)
        )
        self._attention.places = places_on_device
        self._attention.groups = attention_groups(batch, device, self._shared, self._needs_distances)
        output = self._model.network(
            input_ids=token_ids.unsqueeze(0),
            position_ids=position_ids.unsqueeze(0),
            use_cache=False,
            logits_to_keep=logit_rows,
        )
        logits: Tensor = output.logits[0]
        return logits

    def compact(self, slots: list[int], sources: list[int], targets: list[int]) -> None:
        """Moves places in all layers: in slot `slots[i]`, `targets[i]` takes what `sources[i]` held."""
        self.cache.compact(slots, sources, targets)
