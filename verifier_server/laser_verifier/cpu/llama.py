"""Llama-shaped models with their weights packed: which ones they are, and what is kept of them.

Llama, Mistral, Qwen2 and Qwen3 as transformers defines them (models/*/modeling_*.py): RMSNorm, rotated queries and keys
(normed before in Qwen3), grouped-query attention over all earlier positions, gated SiLU. Whatever else a configuration
asks for makes `pack` decline, and the model runs through transformers itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from laser_verifier.cpu.linear import PackedLinear, release
from laser_verifier.cpu.linear_kernel import PANEL
from laser_verifier.cpu.simd import has_fused_products
from laser_verifier.cpu.team import Team
from laser_verifier.kv_cache import KVShape

_FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_FLOAT_TYPES = (torch.float32, torch.bfloat16)
# Those whose frequencies do not depend on the length of the sequence.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """One decoder layer. Norm weights are [C] or, of queries and keys, [D]; None where the model has none."""

    input_norm: Tensor
    qkv: PackedLinear
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: PackedLinear
    mlp_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear


@dataclass(frozen=True, slots=True)
class PackedLlama:
    """A model's weights.

    Attributes:
        team: runs its kernels.
        embedding: [V, C]. head: C to V.
        epsilon: float32[1], of all norms. scale: float32[1], of the attention's logits.
        num_query_heads: Hq. kv_shape: layers L, heads H, head size D.
        rotary: transformers' module that gives the angles' cosines and sines.
    """

    team: Team
    embedding: Tensor
    layers: tuple[PackedLayer, ...]
    norm: Tensor
    head: PackedLinear
    epsilon: Tensor
    scale: Tensor
    num_query_heads: int
    kv_shape: KVShape
    intermediate_size: int
    rotary: Any

    def angles(self, num_positions: int) -> tuple[Tensor, Tensor]:
        """float32 [num_positions, D / 2]: cosines and sines; transformers' own have every one twice."""
        like = torch.empty(0, dtype=torch.float32)
        cosines, sines = self.rotary(like, torch.arange(num_positions).unsqueeze(0))
        half = self.kv_shape.head_size // 2
        return cosines[0, :, :half].contiguous(), sines[0, :, :half].contiguous()


def pack(network: Any, shape: KVShape) -> PackedLlama | None:
    """Packs a transformers model and takes its linear layers away from it; None, and nothing taken, if unsupported.

    Args:
        network: a causal LM on the CPU.
    """
    if not is_supported(network, shape):
        return None
    decoder, attention = network.model, network.model.layers[0].self_attn
    team = Team(network.dtype)
    head = PackedLinear(team, network.lm_head)
    release([network.lm_head])
    layers = tuple(_packed_layer(team, layer) for layer in decoder.layers)
    return PackedLlama(
        team=team,
        embedding=decoder.embed_tokens.weight.detach(),
        layers=layers,
        norm=decoder.norm.weight.detach(),
        head=head,
        epsilon=torch.tensor([decoder.norm.variance_epsilon], dtype=torch.float32),
        scale=torch.tensor([attention.scaling], dtype=torch.float32),
        num_query_heads=network.config.num_attention_heads,
        kv_shape=shape,
        intermediate_size=network.config.intermediate_size,
        rotary=decoder.rotary_emb,
    )


def is_supported_configuration(configuration: Any) -> bool:
    """Whether a configuration is that of a family here; its sizes and whatever else it asks for are not looked at."""
    return type(configuration) in {family.config_class for family in _FAMILIES}


def is_supported(network: Any, shape: KVShape) -> bool:
    """Whether `pack` takes a transformers model; its weights need not be there."""
    config = network.config
    if type(network) not in _FAMILIES or network.dtype not in _FLOAT_TYPES:
        return False
    rope = config.rope_parameters or {}
    is_windowed = (
        any(kind != "full_attention" for kind in config.layer_types)
        if getattr(config, "layer_types", None)
        else getattr(config, "sliding_window", None) is not None
    )
    return (
        config.hidden_act == "silu"
        and not is_windowed
        and rope.get("rope_type") in _ROPE_TYPES
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        # Linear layers' outputs come in panels, the gate's and the up projection's side by side.
        and all(size % PANEL == 0 for size in (config.hidden_size, shape.head_size, 2 * config.intermediate_size))
        and has_fused_products()
        and all(type(module) is nn.Linear for layer in network.model.layers for module in _linears(layer))
    )


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
        mlp.gate_proj, mlp.up_proj, mlp.down_proj,
    ]  # fmt: skip


def _packed_layer(team: Team, layer: Any) -> PackedLayer:
    """Layer by layer, so that beside the model hardly more than one layer's weights are in memory again."""
    query, key, value, output, gate, up, down = _linears(layer)
    attention = layer.self_attn
    packed = PackedLayer(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=PackedLinear(team, query, key, value),
        query_norm=attention.q_norm.weight.detach() if hasattr(attention, "q_norm") else None,
        key_norm=attention.k_norm.weight.detach() if hasattr(attention, "k_norm") else None,
        output=PackedLinear(team, output),
        mlp_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=PackedLinear(team, gate, up),
        down=PackedLinear(team, down),
    )
    release(_linears(layer))
    return packed
