"""Loading a target model and its tokenizer with transformers, and what the rest needs to know of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from laser_verifier.config import ModelConfig
from laser_verifier.cpu.llama import PackedLlama, is_supported, is_supported_configuration, pack
from laser_verifier.kv_cache import KVShape


@dataclass(frozen=True, slots=True)
class TargetModel:
    """A loaded model.

    Attributes:
        name: what the server calls it.
        network: the transformers model, in eval mode on `device`, float type `dtype`.
        kv_shape: of its cache.
        vocab_size: tokens that have an embedding and a logit: the ids below it.
        context_len: tokens it can take, or None where its configuration does not say.
        eos_token_ids: of its generation_config; nothing else of that is used.
        packed: its weights for the processor's own forward; `network` has lost its linear layers then. Else None.
    """

    name: str
    network: Any
    kv_shape: KVShape
    vocab_size: int
    context_len: int | None
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    packed: PackedLlama | None

    @property
    def model_type(self) -> str:
        """transformers' name of the architecture."""
        return str(self.network.config.model_type)


def load_model(config: ModelConfig) -> TargetModel:
    """Loads the weights.

    Raises:
        ValueError: there is no such model, it is no causal LM, or the device is not there; names field and value.
    """
    device = _device(config.device)
    dtype = _dtype(config, device)
    try:
        network = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype, revision=config.revision)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(_not_loaded(config.model, error)) from error
    return wrap_model(network.to(device), config.name)


def wrap_model(network: Any, name: str) -> TargetModel:
    """A TargetModel of a transformers causal LM that is already in memory, on its device and in its float type.

    Takes the network over: where its weights can be packed they are, and its own are given back.
    """
    network.eval()
    text_config = network.config.get_text_config()
    eos = network.generation_config.eos_token_id
    shape = _kv_shape(text_config)
    return TargetModel(
        name=name,
        network=network,
        kv_shape=shape,
        vocab_size=min(network.get_input_embeddings().weight.shape[0], network.get_output_embeddings().weight.shape[0]),
        context_len=_context_len(text_config),
        eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (int(eos),),
        dtype=network.dtype,
        device=network.device,
        packed=pack(network, shape) if network.device.type == "cpu" else None,
    )


def _kv_shape(text_config: Any) -> KVShape:
    num_heads = text_config.num_attention_heads
    return KVShape(
        num_layers=text_config.num_hidden_layers,
        num_heads=getattr(text_config, "num_key_value_heads", None) or num_heads,
        head_size=getattr(text_config, "head_dim", None) or text_config.hidden_size // num_heads,
    )


def _context_len(config: Any) -> int | None:
    """Tokens that a model was made for. With `longrope` all tokens of a step are rotated otherwise once one of them is
    behind the original length, and those in the cache are not: so it ends there."""
    rope = getattr(config, "rope_parameters", None) or {}
    original = None
    if rope.get("rope_type") == "longrope":
        name = "original_max_position_embeddings"
        original = rope.get(name) or getattr(config, name, None)
    return original or getattr(config, "max_position_embeddings", None)


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's fast tokenizer, with the configured chat template.

    Raises:
        ValueError: there is none, or the template cannot be read or is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model, revision=config.revision)
    except (OSError, ValueError) as error:
        raise ValueError(_not_loaded(config.model, error)) from error
    if not tokenizer.is_fast:
        raise ValueError(f"model {config.model!r} has no fast tokenizer (tokenizer.json)")
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(config.chat_template)
        with contextlib.suppress(jinja2.TemplateError):  # a refusal of this text says nothing about the template
            try:
                tokenizer.apply_chat_template([{"role": "user", "content": "text"}], tokenize=False)
            except jinja2.TemplateSyntaxError as error:
                raise ValueError(
                    f"chat_template {config.chat_template} line {error.lineno}: {error.message}"
                ) from error
    return tokenizer


def _read_template(path: Path) -> str:
    try:
        template = path.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"chat_template {path} cannot be read: {error}") from error
    if not template.strip():
        raise ValueError(f"chat_template {path} is empty")
    return template


def tokenizer_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """sha256 of the id-sorted vocabulary, added tokens included: two tokenizers with the same one share pools.

    Args:
        vocabulary: token text to id, as `tokenizer.get_vocab()` gives it.

    Returns:
        64 lower-case hex digits.
    """
    digest = hashlib.sha256()
    for token, token_id in sorted(vocabulary.items(), key=lambda item: (item[1], item[0])):
        encoded = token.encode()
        # Lengths keep neighbouring tokens apart, whatever bytes they are made of.
        digest.update(token_id.to_bytes(4, "little") + len(encoded).to_bytes(4, "little") + encoded)
    return digest.hexdigest()


def _not_loaded(model: str, error: Exception) -> str:
    if not Path(model).is_dir():
        looks_like_path = model.startswith(("/", ".", "~")) or model.count("/") > 1
        what = "no such directory" if looks_like_path else "neither a directory nor a hub id that could be fetched"
        return f"model {model!r}: {what}; give a directory with config.json, weights and tokenizer.json"
    return f"model {model!r} cannot be loaded: {str(error).splitlines()[0]}"


def check_model_path(config: ModelConfig) -> None:
    """Fails fast, before torch loads anything, when a model or its template plainly is not there.

    Raises:
        ValueError: names the field, the value and what would be right.
    """
    try:
        AutoConfig.from_pretrained(config.model, revision=config.revision)
    except (OSError, ValueError) as error:
        raise ValueError(_not_loaded(config.model, error)) from error
    if config.chat_template is not None:
        _read_template(config.chat_template)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch finds no CUDA device; must be auto or cpu here")
    return torch.device(name)


def _dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype != "auto":
        return {
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
            "float32": torch.float32,
            "float64": torch.float64,
        }[config.dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # Without instructions for it, torch emulates bfloat16 and is slower than in float32; our own forward is quicker.
    if torch.ops.mkldnn._is_mkldnn_bf16_supported() or _will_be_packed(config):
        return torch.bfloat16
    return torch.float32


def _will_be_packed(config: ModelConfig) -> bool:
    """Whether the processor's own forward takes a model in bfloat16, told by its configuration alone."""
    try:
        configuration = AutoConfig.from_pretrained(config.model, revision=config.revision)
        is_quantized = getattr(configuration, "quantization_config", None) is not None
        if is_quantized or not is_supported_configuration(configuration):
            return False
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(configuration, dtype=torch.bfloat16)
    except (OSError, ValueError, RuntimeError):  # loading it tells what is wrong
        return False
    return is_supported(network, _kv_shape(configuration))
