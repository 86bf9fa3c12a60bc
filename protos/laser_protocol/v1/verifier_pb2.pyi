from laser_protocol.v1 import acceptance_pb2 as _acceptance_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Drafting(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DRAFTING_UNSPECIFIED: _ClassVar[Drafting]
    DRAFTING_ON: _ClassVar[Drafting]
    DRAFTING_OFF: _ClassVar[Drafting]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]

class DraftStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DRAFT_STATUS_UNSPECIFIED: _ClassVar[DraftStatus]
    DRAFT_STATUS_OK: _ClassVar[DraftStatus]
    DRAFT_STATUS_OFF: _ClassVar[DraftStatus]
    DRAFT_STATUS_NO_POOL: _ClassVar[DraftStatus]
    DRAFT_STATUS_TOKENIZER_MISMATCH: _ClassVar[DraftStatus]
    DRAFT_STATUS_NO_RETRIEVER: _ClassVar[DraftStatus]
DRAFTING_UNSPECIFIED: Drafting
DRAFTING_ON: Drafting
DRAFTING_OFF: Drafting
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
DRAFT_STATUS_UNSPECIFIED: DraftStatus
DRAFT_STATUS_OK: DraftStatus
DRAFT_STATUS_OFF: DraftStatus
DRAFT_STATUS_NO_POOL: DraftStatus
DRAFT_STATUS_TOKENIZER_MISMATCH: DraftStatus
DRAFT_STATUS_NO_RETRIEVER: DraftStatus

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "text", "tokens", "pool", "acceptance", "max_new_tokens", "temperature", "seed", "stop", "drafting", "learn", "document_id", "delta_interval_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    DRAFTING_FIELD_NUMBER: _ClassVar[int]
    LEARN_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    DELTA_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: TextPrompt
    tokens: TokenPrompt
    pool: str
    acceptance: _acceptance_pb2.Acceptance
    max_new_tokens: int
    temperature: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    drafting: Drafting
    learn: bool
    document_id: str
    delta_interval_ms: int
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[_Union[TextPrompt, _Mapping]] = ..., tokens: _Optional[_Union[TokenPrompt, _Mapping]] = ..., pool: _Optional[str] = ..., acceptance: _Optional[_Union[_acceptance_pb2.Acceptance, _Mapping]] = ..., max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., drafting: _Optional[_Union[Drafting, str]] = ..., learn: _Optional[bool] = ..., document_id: _Optional[str] = ..., delta_interval_ms: _Optional[int] = ...) -> None: ...

class TextPrompt(_message.Message):
    __slots__ = ("text", "raw", "system")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    text: str
    raw: bool
    system: str
    def __init__(self, text: _Optional[str] = ..., raw: _Optional[bool] = ..., system: _Optional[str] = ...) -> None: ...

class TokenPrompt(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: bytes
    def __init__(self, token_ids: _Optional[bytes] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("queued", "delta", "finished")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    queued: Queued
    delta: Delta
    finished: Finished
    def __init__(self, queued: _Optional[_Union[Queued, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("num_ahead",)
    NUM_AHEAD_FIELD_NUMBER: _ClassVar[int]
    num_ahead: int
    def __init__(self, num_ahead: _Optional[int] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("text", "token_ids", "accepted_length")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_LENGTH_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: bytes
    accepted_length: int
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., accepted_length: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("finish_reason", "stats", "text", "request_id")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    finish_reason: FinishReason
    stats: GenerationStats
    text: str
    request_id: str
    def __init__(self, finish_reason: _Optional[_Union[FinishReason, str]] = ..., stats: _Optional[_Union[GenerationStats, _Mapping]] = ..., text: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class GenerationStats(_message.Message):
    __slots__ = ("num_prompt_tokens", "num_output_tokens", "num_steps", "num_draft_tokens", "num_accepted_tokens", "num_relaxed_tokens", "queue_ms", "prefill_ms", "decode_ms", "draft_status")
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_RELAXED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_STATUS_FIELD_NUMBER: _ClassVar[int]
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
    def __init__(self, num_prompt_tokens: _Optional[int] = ..., num_output_tokens: _Optional[int] = ..., num_steps: _Optional[int] = ..., num_draft_tokens: _Optional[int] = ..., num_accepted_tokens: _Optional[int] = ..., num_relaxed_tokens: _Optional[int] = ..., queue_ms: _Optional[float] = ..., prefill_ms: _Optional[float] = ..., decode_ms: _Optional[float] = ..., draft_status: _Optional[_Union[DraftStatus, str]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("name", "model_type", "tokenizer_fingerprint", "vocab_size", "max_model_len", "max_sequences", "has_chat_template", "eos_token_ids", "dtype", "device", "default_acceptance")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_ACCEPTANCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    model_type: str
    tokenizer_fingerprint: str
    vocab_size: int
    max_model_len: int
    max_sequences: int
    has_chat_template: bool
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    device: str
    default_acceptance: _acceptance_pb2.Acceptance
    def __init__(self, name: _Optional[str] = ..., model_type: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., max_sequences: _Optional[int] = ..., has_chat_template: _Optional[bool] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., default_acceptance: _Optional[_Union[_acceptance_pb2.Acceptance, _Mapping]] = ...) -> None: ...
