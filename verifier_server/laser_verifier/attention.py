"""Tree attention over the KV cache, registered with transformers' attention interface.

A transformers model calls it in place of its own attention with the packed queries, keys and values of the whole step;
it writes them to the cache and attends every sequence to its own slot under the tree's mask. The model itself gets no
mask and no cache. Contract followed: transformers/modeling_utils.py `AttentionInterface`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laser_verifier.attention_groups import AttentionGroup
from laser_verifier.kv_cache import KVCache


class TreeAttention:
    """The attention function of one model runner.

    Args:
        cache: where keys and values live.

    `places` and `groups` must be set before each forward.

    Attributes:
        windows: of the layers that have called so far, by index: the sliding window each asked for.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self.places: Tensor | None = None
        self.groups: list[AttentionGroup] = []
        self.windows: dict[int, int | None] = {}

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attention of one layer.

        Args:
            query: [1, Hq, M, D]. key, value: [1, H, M, D], rotated. attention_mask: not used.
            sliding_window: positions a query sees back, itself included, or None for all.
            softcap: logits are squashed to +-softcap before the softmax, or None.

        Returns:
            [1, M, Hq, D] and no weights.
        """
        assert self.places is not None
        cache, layer_idx = self._cache, int(module.layer_idx)  # type: ignore[arg-type]
        self.windows[layer_idx] = sliding_window
        cache.write(layer_idx, self.places, key[0].transpose(0, 1), value[0].transpose(0, 1))
        query = query[0].transpose(0, 1)
        out = torch.empty_like(query)
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        sinks = kwargs.get("s_aux")
        for group in self.groups:
            keys, values = cache.read(layer_idx, group.slots, group.length)
            mask = group.mask
            if sliding_window is not None:
                assert group.distances is not None
                mask = mask & (group.distances < sliding_window)
            attended = _attend(query[group.gather], keys, values, mask, scale, softcap, sinks)
            out[group.rows] = attended.flatten(0, 1)[group.scatter]
        return out.unsqueeze(0), None


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Grouped-query attention: query [B, q, Hq, D], keys, values [B, H, T, D], mask
    [B, 1, Hq / H * q, T] -> [B, q, Hq, D]."""
    num_slots, num_queries, num_query_heads, head_size = query.shape
    num_heads = keys.shape[1]
    shared = num_query_heads // num_heads
    # Heads that share keys become further queries of one head, so that keys are never repeated in memory.
    folded = query.view(num_slots, num_queries, num_heads, shared, head_size).permute(0, 2, 3, 1, 4)
    folded = folded.reshape(num_slots, num_heads, shared * num_queries, head_size)
    if softcap is None and sinks is None:
        attended = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
    else:
        attended = _plain_attention(folded, keys, values, mask, scale, softcap, sinks)
    attended = attended.view(num_slots, num_heads, shared, num_queries, values.shape[-1])
    return attended.permute(0, 3, 1, 2, 4).reshape(num_slots, num_queries, num_query_heads, values.shape[-1])


def _plain_attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attention with what the fused kernels lack: soft-capped logits (Gemma 2) and sink logits (gpt-oss)."""
    logits = torch.matmul(query, keys.transpose(-1, -2)) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        num_slots, num_heads, num_rows, _ = logits.shape
        per_row = sinks.view(1, num_heads, -1, 1).repeat_interleave(num_rows * num_heads // len(sinks), dim=2)
        logits = torch.cat((logits, per_row.expand(num_slots, -1, -1, -1).to(logits.dtype)), dim=-1)
    weights = torch.softmax(logits.float(), dim=-1).to(query.dtype)
    return torch.matmul(weights[..., : keys.shape[2]], values)


def needs_distances(config: Any) -> bool:
    """Whether a model's configuration has layers with a sliding window."""
    return bool(getattr(config, "sliding_window", None)) or "sliding_attention" in (
        getattr(config, "layer_types", None) or ()
    )
