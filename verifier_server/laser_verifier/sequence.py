"""One request, its state while it runs, and what becomes of it."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from laser_protocol.acceptance import Acceptance
from laser_protocol.errors import LaserError
from laser_verifier.text import TextStream


class DraftStatus(enum.Enum):
    """What a sequence was drafted from."""

    OK = "ok"
    OFF = "off"
    NO_POOL = "no_pool"
    TOKENIZER_MISMATCH = "tokenizer_mismatch"
    NO_RETRIEVER = "no_retriever"


class FinishReason(enum.Enum):
    """Why an output ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request.

    Attributes:
        request_id: unique among those the engine holds.
        prompt_token_ids: at least one.
        pool: pool id, or empty.
        max_new_tokens: at least 1; prompt and output fit the model.
        temperature: 0 is greedy.
        stop: strings that end the text.
        draft: False for plain decoding.
        learn: the finished output joins the pool under `document_id`.
        arrived_s: when it came, monotonic.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    pool: str
    acceptance: Acceptance
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    draft: bool = True
    learn: bool = False
    document_id: str = ""
    arrived_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """Counts and times of one request; fields as in verifier.proto `GenerationStats`."""

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


@dataclass(frozen=True, slots=True)
class Emitted:
    """What one step, or several in a row, gave a sequence."""

    text: str
    token_ids: tuple[int, ...]
    accepted_length: int

    def joined(self, later: Emitted) -> Emitted:
        """This and what came right after it."""
        return Emitted(
            self.text + later.text,
            self.token_ids + later.token_ids,
            self.accepted_length + later.accepted_length,
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request that ended well."""

    reason: FinishReason
    text: str
    stats: GenerationStats


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request left the queue."""


Event = Admitted | Emitted | Finished | LaserError
Sink = Callable[[Event], object]


@dataclass(slots=True, eq=False)
class Sequence:
    """The state of a running request. Owned by the engine thread.

    Attributes:
        sequence_id: names it towards retrievers, unique among running ones.
        slot_idx: its row of the KV cache.
        token_ids: int32[capacity], prompt and output; the first `num_tokens` are set.
        num_cached: verified tokens whose keys and values are in the cache.
        node_budget: nodes asked for in the tree of the next step; 0 if none was.
    """

    request: Request
    sink: Sink
    text: TextStream
    sequence_id: int
    slot_idx: int
    arrived_s: float
    admitted_s: float
    token_ids: np.ndarray[tuple[int], np.dtype[np.int32]] = field(init=False)
    num_tokens: int = field(init=False)
    num_cached: int = 0
    node_budget: int = 0
    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_relaxed_tokens: int = 0
    first_token_s: float = 0.0
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        prompt = self.request.prompt_token_ids
        self.token_ids = np.empty(len(prompt) + self.request.max_new_tokens, np.int32)
        self.token_ids[: len(prompt)] = prompt
        self.num_tokens = len(prompt)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def prompt(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """int32[num_prompt_tokens] (view)."""
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def num_output_tokens(self) -> int:
        """Tokens emitted so far."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_pending(self) -> int:
        """Verified tokens not yet run: the rest of the prompt, or the last bonus token. At least 1."""
        return self.num_tokens - self.num_cached

    @property
    def num_remaining(self) -> int:
        """Tokens it may still emit."""
        return self.request.max_new_tokens - self.num_output_tokens

    def emit(self, token_ids: list[int], eos_token_ids: frozenset[int], now_s: float) -> list[int]:
        """Appends a step's tokens up to the first that ends the output, and returns those."""
        if not self.num_steps:
            self.first_token_s = now_s
        self.num_steps += 1
        kept: list[int] = []
        for token_id in token_ids[: self.num_remaining]:
            self.token_ids[self.num_tokens] = token_id
            self.num_tokens += 1
            kept.append(token_id)
            if token_id in eos_token_ids:
                self.finish_reason = FinishReason.STOP
                break
            if self.text.push(token_id):
                self.finish_reason = FinishReason.STOP
                break
        if self.finish_reason is None and self.num_remaining == 0:
            self.finish_reason = FinishReason.LENGTH
        return kept

    def stats(self, now_s: float, draft_status: DraftStatus) -> GenerationStats:
        """The counts so far."""
        return GenerationStats(
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            num_steps=self.num_steps,
            num_draft_tokens=self.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens,
            num_relaxed_tokens=self.num_relaxed_tokens,
            queue_ms=(self.admitted_s - self.arrived_s) * 1e3,
            prefill_ms=(self.first_token_s - self.admitted_s) * 1e3,
            decode_ms=(now_s - self.first_token_s) * 1e3,
            draft_status=draft_status,
        )
