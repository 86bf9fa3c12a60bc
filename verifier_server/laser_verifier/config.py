"""Configuration of a verifier: one frozen value, checked once. Command-line defaults are read from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc

from laser_protocol.acceptance import Acceptance, Strict
from laser_protocol.tree import MAX_NODES

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "bfloat16", "float16", "float32", "float64")
DRAFT_POLICIES = ("value", "all")
MAX_THREADS = 1024


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine schedules and drafts.

    Attributes:
        max_sequences: slots of the KV cache, sequences served at once.
        max_model_len: tokens of prompt and output together that a slot holds.
        max_queue: requests that may wait for a slot; one more is Overloaded.
        max_step_tokens: verified tokens one forward takes at most, draft nodes not counted; longer prompts are
            prefilled in chunks, so they do not hold up the sequences that decode.
        max_slowdown: a step that prefills beside decoding sequences takes at most so many times as long as one in which
            all that run decode.
        max_draft_nodes: draft nodes per sequence and step.
        draft_policy: "value" verifies the nodes that are worth their cost over the whole batch, "all" all of them.
        draft_wait_ms: longest wait for missing trees; never more than a quarter of a plain step.
        prefix_reuse: keys and values of a beginning that prompts share are computed once and copied from slot to slot.
        default_acceptance: for requests that name none.
    """

    max_sequences: int = 32
    max_model_len: int = 2048
    max_queue: int = 1024
    max_step_tokens: int = 512
    max_slowdown: float = 4.0
    max_draft_nodes: int = 32
    draft_policy: str = "value"
    draft_wait_ms: float = 5.0
    prefix_reuse: bool = True
    default_acceptance: Acceptance = field(default_factory=Strict)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_sequences", 1, 4096),
            ("max_model_len", 4, 2**20),
            ("max_queue", 0, 2**20),
            ("max_step_tokens", 1, 2**20),
            ("max_slowdown", 1, 1000),
            ("max_draft_nodes", 0, MAX_NODES),
            ("draft_wait_ms", 0, 1000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, must be from {low} to {high}")
        if self.draft_policy not in DRAFT_POLICIES:
            raise ValueError(f"draft_policy is {self.draft_policy!r}, must be one of {', '.join(DRAFT_POLICIES)}")
        if self.max_step_tokens < self.max_sequences:
            raise ValueError(
                f"max_step_tokens is {self.max_step_tokens}, must be at least max_sequences ({self.max_sequences})"
            )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What to load and where to put it.

    Attributes:
        model: a transformers directory or a hub id.
        device: "auto" takes CUDA where there is one.
        dtype: "auto" is bfloat16 on CUDA, on processors with bfloat16 instructions, and on others for the models that
            `cpu/` runs; float32 elsewhere.
        num_threads: of the processor; None: torch's choice, all that the process may use.
        revision: of a hub id: branch, tag or commit; None: the newest.
        served_name: what the server calls it; None: the last component of the path or hub id.
        chat_template: file of a Jinja template for text prompts; None: the model's own.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    num_threads: int | None = None
    revision: str | None = None
    served_name: str | None = None
    chat_template: Path | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is empty, must be a directory or a hub id")
        if self.device not in DEVICES:
            raise ValueError(f"device is {self.device!r}, must be one of {', '.join(DEVICES)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, must be one of {', '.join(DTYPES)}")
        if self.num_threads is not None and not 1 <= self.num_threads <= MAX_THREADS:
            raise ValueError(f"threads is {self.num_threads}, must be from 1 to {MAX_THREADS}")
        if self.served_name == "":
            raise ValueError("served_model_name is empty, must be a name, or left out")

    @property
    def name(self) -> str:
        """What the server calls the model."""
        return self.served_name or Path(self.model).name


@dataclass(frozen=True, slots=True)
class RetrieverConfig:
    """Where drafts come from.

    Attributes:
        targets: HOST:PORT each; a name with several addresses means several shards. Empty: plain decoding.
        credentials: TLS credentials for all of them, or None.
        metadata: sent with every call (the token).
    """

    targets: tuple[str, ...] = ()
    credentials: grpc.ChannelCredentials | None = None
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for target in self.targets:
            host, _, port = target.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError(f"retriever is {target!r}, must be HOST:PORT[,HOST:PORT...]")
