"""The forward of any transformers causal LM: the model runs itself, with our attention in every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from laser_verifier.attention import TreeAttention, needs_distances
from laser_verifier.attention_groups import attention_groups
from laser_verifier.batch import StepBatch, pack
from laser_verifier.kv_cache import KVCache, is_out_of_memory
from laser_verifier.model import TargetModel
from laser_verifier.probe import check_logits, own_logits, probe_steps, probe_text


class TransformersForward:
    """Runs a model over a cache of its own. Used by one thread.

    Args:
        model: loaded; its attention is replaced by ours. num_slots: S. slot_len: places per slot, at least 4.

    Raises:
        ValueError: the architecture takes no attention function from outside, or knows earlier tokens by more than
            that: trees would be verified wrongly.
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
        self._try_out(num_slots, slot_len)

    def _try_out(self, num_slots: int, slot_len: int) -> None:
        """Gives the model our attention, once its own has said what is right; see `probe.py`."""
        model = self._model
        config = model.network.config.get_text_config()
        text = probe_text(model.vocab_size, slot_len, model.context_len)
        before, step = (pack(inputs, model.device) for inputs in probe_steps(text, num_slots))
        try:
            model.network.set_attn_implementation("eager")
            expected = own_logits(model.network, text)
            model.network.set_attn_implementation(self._name)
            self.logits(before)
            found = self.logits(step)
        except (ValueError, ImportError) as error:
            raise ValueError(f"model type {model.model_type!r} takes no attention function: {error}") from error
        except RuntimeError as error:  # keys and values of another shape than its configuration says, say
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            raise ValueError(f"model type {model.model_type!r} does not run with our attention: {reason}") from error
        self._check_layers(config)
        check_logits(found[::2], expected, model.model_type)

    def _check_layers(self, config: Any) -> None:
        """transformers only warns where a model ignores our function, and does not where it makes windows itself."""
        windows, layers = self._attention.windows, self._model.kv_shape.num_layers
        model_type = self._model.model_type
        if len(windows) != layers:
            raise ValueError(
                f"model type {model_type!r} is not supported: {len(windows)} of its {layers} layers took our "
                "attention; must be a causal LM with attention in every layer, through transformers' AttentionInterface"
            )
        kinds = getattr(config, "layer_types", None)
        is_windowed = self._needs_distances and getattr(config, "use_sliding_window", True)
        if kinds is None and is_windowed and not any(windows.values()):
            kinds = ["sliding_attention"] * layers
        for layer_idx, kind in enumerate(kinds or ()):
            is_known = kind == "full_attention" or (kind == "sliding_attention" and windows[layer_idx] is not None)
            if not is_known:
                raise ValueError(
                    f"model type {model_type!r} is not supported: its layer {layer_idx} has {kind}, and hides earlier "
                    "tokens by a mask of its own; must be full_attention, or a sliding window that it passes on"
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
