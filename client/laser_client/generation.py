"""What a verifier answers, as frozen values. Knows nothing of gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from laser_protocol.acceptance import Acceptance

FinishReason = Literal["stop", "length"]
DraftStatus = Literal["ok", "off", "no_pool", "tokenizer_mismatch", "no_retriever"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step emitted.

    Attributes:
        text: text that became final; may be empty while a character or a possible stop string is incomplete.
        token_ids: the step's tokens; empty in a last chunk that only brings text held back until the end.
        accepted_length: accepted draft tokens among them.
    """

    text: str
    token_ids: tuple[int, ...]
    accepted_length: int


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """Counts and times of one generation.

    Attributes:
        num_prompt_tokens, num_output_tokens: tokens; what EOS, stop or max_new_tokens cut off counts nowhere.
        num_steps: target forwards that gave this sequence tokens.
        num_draft_tokens: draft nodes verified.
        num_accepted_tokens: draft tokens emitted.
        num_relaxed_tokens: emitted tokens that were not the argmax at their place.
        queue_ms, prefill_ms, decode_ms: arrival to admission, to the first token, to the end.
        draft_status: "ok", "off" (draft=False), "no_pool" (unknown or none named), "tokenizer_mismatch" or
            "no_retriever".
    """

    num_prompt_tokens: int
    num_output_tokens: int
    num_steps: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_relaxed_tokens: int
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    draft_status: DraftStatus

    @property
    def tokens_per_step(self) -> float:
        """num_output_tokens / num_steps; 0 without a step. Of many generations: sum / sum, no mean of these."""
        return self.num_output_tokens / self.num_steps if self.num_steps else 0.0


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished output.

    Attributes:
        text: the output without EOS and stop string.
        token_ids: the output, with the EOS if the model emitted it.
        finish_reason: "stop" (EOS or a stop string) or "length" (max_new_tokens).
        stats: counts and times.
        request_id: its name in the server's logs and, with `learn`, of its document unless one was given.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stats: GenerationStats
    request_id: str


@dataclass(frozen=True, slots=True)
class Model:
    """What a verifier serves, and its limits.

    Attributes:
        name: last path component of what the server was started with.
        model_type: transformers' name of the architecture, for instance "llama".
        tokenizer_fingerprint: sha256, lower-case hex, of the id-sorted vocabulary with added tokens.
        vocab_size: token ids are below it.
        max_model_len: prompt and output together, in tokens.
        max_sequences: sequences served at once.
        has_chat_template: False: text prompts are taken raw.
        eos_token_ids: the ids that end an output.
        dtype, device: "float32", "bfloat16" or "float16"; "cpu" or "cuda".
        default_acceptance: what `acceptance=None` means.
    """

    name: str
    model_type: str
    tokenizer_fingerprint: str
    vocab_size: int
    max_model_len: int
    max_sequences: int
    has_chat_template: bool
    eos_token_ids: tuple[int, ...]
    dtype: str
    device: str
    default_acceptance: Acceptance
