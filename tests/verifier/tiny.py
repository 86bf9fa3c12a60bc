"""Tiny random models of real architectures, a tiny tokenizer, and an engine over them driven by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from laser_protocol.acceptance import Acceptance, Strict
from laser_protocol.errors import LaserError
from laser_verifier.config import EngineConfig
from laser_verifier.drafts import DraftSource
from laser_verifier.engine import Engine
from laser_verifier.model import TargetModel, wrap_model
from laser_verifier.runner import ModelRunner
from laser_verifier.sequence import Emitted, Event, Finished, Request

VOCAB_SIZE = 40

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _COMMON,
    "qwen2": _COMMON,
    "qwen3": {**_COMMON, "head_dim": 16},
    "mistral": {**_COMMON, "sliding_window": 7},
    "gemma2": {**_COMMON, "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_COMMON, "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16},
    "phi3": _COMMON,
    "gpt2": {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512,
             "bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
}  # fmt: skip
# bloom's attention (ALiBi) takes no function from outside; the others take it, and know earlier tokens by more: a state
# space model in every layer, a mask learned from the values, a mask of chunks; or keys of another shape (MLA).
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon_h1": {**_COMMON, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
                  "mamba_n_groups": 1, "mamba_chunk_size": 8, "head_dim": 8},
    "doge": {**_COMMON, "keep_window_size": 4},
    "llama4_text": {**_COMMON, "head_dim": 16, "intermediate_size_mlp": 48, "num_local_experts": 2,
                    "attention_chunk_size": 8},
    "deepseek_v2": {**_COMMON, "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
                    "v_head_dim": 8, "first_k_dense_replace": 3},
}  # fmt: skip


def tiny_network(architecture: str = "llama", seed: int = 0, eos_token_ids: Sequence[int] = (), **changed: Any) -> Any:
    """A random causal LM in float64, eval mode, transformers' eager attention; `changed` settings of its config."""
    torch.manual_seed(seed)
    settings = {**ARCHITECTURES, **UNSUPPORTED}[architecture]
    config = CONFIG_MAPPING[architecture](**{**settings, **changed})
    config._attn_implementation = "eager"
    network = AutoModelForCausalLM.from_config(config).to(torch.float64)
    # Random weights of transformers' small scale give almost the same logits everywhere; larger ones make texts differ.
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    network.generation_config.eos_token_id = list(eos_token_ids) or None
    return network.eval()


def tiny_model(network: Any) -> TargetModel:
    """A TargetModel over a copy: the runner replaces its attention, the oracle's stays."""
    return wrap_model(copy.deepcopy(network), "tiny")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words w0 ... w39, separated by spaces; no chat template."""
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@dataclass
class Outcome:
    """All events of one request."""

    events: list[Event] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        return [token_id for event in self.events if isinstance(event, Emitted) for token_id in event.token_ids]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Emitted | Finished))

    @property
    def finished(self) -> Finished:
        (finished,) = [event for event in self.events if isinstance(event, Finished)]
        return finished

    @property
    def num_terminal(self) -> int:
        return sum(isinstance(event, Finished | LaserError) for event in self.events)


class TinyServer:
    """An engine stepped by hand."""

    def __init__(self, model: TargetModel, drafts: DraftSource, max_sequences: int = 4, **config: Any) -> None:
        cost = config.pop("cost", None)
        observer = config.pop("observer", None)
        settings = {"max_model_len": 256, "draft_policy": "all", "max_draft_nodes": 32, **config}
        self.config = EngineConfig(max_sequences=max_sequences, **settings)
        self.learned: list[tuple[str, str, list[int]]] = []
        runner = ModelRunner(model, max_sequences, self.config.max_model_len, self.config.max_draft_nodes)
        self.engine = Engine(
            runner,
            tiny_tokenizer(),
            drafts,
            self.config,
            cost,
            learn=lambda pool, document_id, token_ids: self.learned.append((pool, document_id, list(token_ids))),
            observer=observer,
        )
        self._next_id = 0

    def submit(
        self, prompt: Sequence[int], max_new_tokens: int, acceptance: Acceptance | None = None, **fields: Any
    ) -> Outcome:
        outcome = Outcome()
        self._next_id += 1
        request_id = fields.pop("request_id", f"r{self._next_id}")
        request = Request(
            request_id, tuple(prompt), fields.pop("pool", "p"), acceptance or Strict(), max_new_tokens, **fields
        )
        self.engine.submit(request, outcome.events.append)
        return outcome

    def run(self, max_steps: int = 2000) -> None:
        """Steps until nothing runs or waits."""
        for _ in range(max_steps):
            if not self.engine.is_busy:
                return
            self.engine.step()
        raise AssertionError(f"still busy after {max_steps} steps")
