from laser_protocol.v1 import acceptance_pb2 as _acceptance_pb2
from laser_protocol.v1 import draft_tree_pb2 as _draft_tree_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PoolState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOL_STATE_UNSPECIFIED: _ClassVar[PoolState]
    POOL_STATE_OK: _ClassVar[PoolState]
    POOL_STATE_NO_POOL: _ClassVar[PoolState]
    POOL_STATE_TOKENIZER_MISMATCH: _ClassVar[PoolState]
POOL_STATE_UNSPECIFIED: PoolState
POOL_STATE_OK: PoolState
POOL_STATE_NO_POOL: PoolState
POOL_STATE_TOKENIZER_MISMATCH: PoolState

class DraftRequest(_message.Message):
    __slots__ = ("handshake", "opens", "advances", "closes")
    HANDSHAKE_FIELD_NUMBER: _ClassVar[int]
    OPENS_FIELD_NUMBER: _ClassVar[int]
    ADVANCES_FIELD_NUMBER: _ClassVar[int]
    CLOSES_FIELD_NUMBER: _ClassVar[int]
    handshake: Handshake
    opens: _containers.RepeatedCompositeFieldContainer[OpenSequence]
    advances: _containers.RepeatedCompositeFieldContainer[AdvanceSequence]
    closes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, handshake: _Optional[_Union[Handshake, _Mapping]] = ..., opens: _Optional[_Iterable[_Union[OpenSequence, _Mapping]]] = ..., advances: _Optional[_Iterable[_Union[AdvanceSequence, _Mapping]]] = ..., closes: _Optional[_Iterable[int]] = ...) -> None: ...

class Handshake(_message.Message):
    __slots__ = ("tokenizer_fingerprint", "vocab_size", "verifier_name")
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_NAME_FIELD_NUMBER: _ClassVar[int]
    tokenizer_fingerprint: str
    vocab_size: int
    verifier_name: str
    def __init__(self, tokenizer_fingerprint: _Optional[str] = ..., vocab_size: _Optional[int] = ..., verifier_name: _Optional[str] = ...) -> None: ...

class OpenSequence(_message.Message):
    __slots__ = ("sequence_id", "pool", "token_ids", "num_prompt_tokens", "model", "acceptance", "node_budget", "temperature")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_FIELD_NUMBER: _ClassVar[int]
    NODE_BUDGET_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    pool: str
    token_ids: bytes
    num_prompt_tokens: int
    model: str
    acceptance: _acceptance_pb2.Acceptance
    node_budget: int
    temperature: float
    def __init__(self, sequence_id: _Optional[int] = ..., pool: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., num_prompt_tokens: _Optional[int] = ..., model: _Optional[str] = ..., acceptance: _Optional[_Union[_acceptance_pb2.Acceptance, _Mapping]] = ..., node_budget: _Optional[int] = ..., temperature: _Optional[float] = ...) -> None: ...

class AdvanceSequence(_message.Message):
    __slots__ = ("sequence_id", "position", "token_ids", "num_verified_nodes", "accepted_node_idx", "node_budget")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_VERIFIED_NODES_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_NODE_IDX_FIELD_NUMBER: _ClassVar[int]
    NODE_BUDGET_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    position: int
    token_ids: bytes
    num_verified_nodes: int
    accepted_node_idx: int
    node_budget: int
    def __init__(self, sequence_id: _Optional[int] = ..., position: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., num_verified_nodes: _Optional[int] = ..., accepted_node_idx: _Optional[int] = ..., node_budget: _Optional[int] = ...) -> None: ...

class DraftResponse(_message.Message):
    __slots__ = ("handshake", "opened", "trees", "faults")
    HANDSHAKE_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    TREES_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    handshake: HandshakeReply
    opened: _containers.RepeatedCompositeFieldContainer[SequenceOpened]
    trees: _containers.RepeatedCompositeFieldContainer[_draft_tree_pb2.DraftTree]
    faults: _containers.RepeatedCompositeFieldContainer[SequenceFault]
    def __init__(self, handshake: _Optional[_Union[HandshakeReply, _Mapping]] = ..., opened: _Optional[_Iterable[_Union[SequenceOpened, _Mapping]]] = ..., trees: _Optional[_Iterable[_Union[_draft_tree_pb2.DraftTree, _Mapping]]] = ..., faults: _Optional[_Iterable[_Union[SequenceFault, _Mapping]]] = ...) -> None: ...

class HandshakeReply(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class SequenceOpened(_message.Message):
    __slots__ = ("sequence_id", "pool_state")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    POOL_STATE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    pool_state: PoolState
    def __init__(self, sequence_id: _Optional[int] = ..., pool_state: _Optional[_Union[PoolState, str]] = ...) -> None: ...

class SequenceFault(_message.Message):
    __slots__ = ("sequence_id", "message")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    message: str
    def __init__(self, sequence_id: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class Document(_message.Message):
    __slots__ = ("id", "token_ids")
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    token_ids: bytes
    def __init__(self, id: _Optional[str] = ..., token_ids: _Optional[bytes] = ...) -> None: ...

class AddDocumentsRequest(_message.Message):
    __slots__ = ("pool", "tokenizer_fingerprint", "documents")
    POOL_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    pool: str
    tokenizer_fingerprint: str
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    def __init__(self, pool: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ..., documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ...) -> None: ...

class AddDocumentsResponse(_message.Message):
    __slots__ = ("num_documents", "num_tokens")
    NUM_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_documents: int
    num_tokens: int
    def __init__(self, num_documents: _Optional[int] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class DeleteDocumentsRequest(_message.Message):
    __slots__ = ("pool", "ids")
    POOL_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    pool: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, pool: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteDocumentsResponse(_message.Message):
    __slots__ = ("num_deleted",)
    NUM_DELETED_FIELD_NUMBER: _ClassVar[int]
    num_deleted: int
    def __init__(self, num_deleted: _Optional[int] = ...) -> None: ...

class ListPoolsRequest(_message.Message):
    __slots__ = ("root",)
    ROOT_FIELD_NUMBER: _ClassVar[int]
    root: str
    def __init__(self, root: _Optional[str] = ...) -> None: ...

class ListPoolsResponse(_message.Message):
    __slots__ = ("pools",)
    POOLS_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[PoolDescription]
    def __init__(self, pools: _Optional[_Iterable[_Union[PoolDescription, _Mapping]]] = ...) -> None: ...

class DescribePoolRequest(_message.Message):
    __slots__ = ("pool",)
    POOL_FIELD_NUMBER: _ClassVar[int]
    pool: str
    def __init__(self, pool: _Optional[str] = ...) -> None: ...

class DescribePoolResponse(_message.Message):
    __slots__ = ("description",)
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    description: PoolDescription
    def __init__(self, description: _Optional[_Union[PoolDescription, _Mapping]] = ...) -> None: ...

class PoolDescription(_message.Message):
    __slots__ = ("pool", "tokenizer_fingerprint", "num_documents", "num_tokens", "num_segments", "size_bytes", "num_log_documents", "num_dead_tokens", "log_size_bytes", "oldest_unix_ms", "newest_unix_ms", "writer", "limits")
    POOL_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_LOG_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_DEAD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOG_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    NEWEST_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    pool: str
    tokenizer_fingerprint: str
    num_documents: int
    num_tokens: int
    num_segments: int
    size_bytes: int
    num_log_documents: int
    num_dead_tokens: int
    log_size_bytes: int
    oldest_unix_ms: int
    newest_unix_ms: int
    writer: str
    limits: PoolLimits
    def __init__(self, pool: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ..., num_documents: _Optional[int] = ..., num_tokens: _Optional[int] = ..., num_segments: _Optional[int] = ..., size_bytes: _Optional[int] = ..., num_log_documents: _Optional[int] = ..., num_dead_tokens: _Optional[int] = ..., log_size_bytes: _Optional[int] = ..., oldest_unix_ms: _Optional[int] = ..., newest_unix_ms: _Optional[int] = ..., writer: _Optional[str] = ..., limits: _Optional[_Union[PoolLimits, _Mapping]] = ...) -> None: ...

class PoolLimits(_message.Message):
    __slots__ = ("max_documents", "max_tokens", "max_age_s")
    MAX_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_S_FIELD_NUMBER: _ClassVar[int]
    max_documents: int
    max_tokens: int
    max_age_s: float
    def __init__(self, max_documents: _Optional[int] = ..., max_tokens: _Optional[int] = ..., max_age_s: _Optional[float] = ...) -> None: ...

class DropPoolRequest(_message.Message):
    __slots__ = ("pool",)
    POOL_FIELD_NUMBER: _ClassVar[int]
    pool: str
    def __init__(self, pool: _Optional[str] = ...) -> None: ...

class DropPoolResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CompactPoolRequest(_message.Message):
    __slots__ = ("pool",)
    POOL_FIELD_NUMBER: _ClassVar[int]
    pool: str
    def __init__(self, pool: _Optional[str] = ...) -> None: ...

class CompactPoolResponse(_message.Message):
    __slots__ = ("description",)
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    description: PoolDescription
    def __init__(self, description: _Optional[_Union[PoolDescription, _Mapping]] = ...) -> None: ...

class ExportDocumentsRequest(_message.Message):
    __slots__ = ("pool",)
    POOL_FIELD_NUMBER: _ClassVar[int]
    pool: str
    def __init__(self, pool: _Optional[str] = ...) -> None: ...

class ExportDocumentsResponse(_message.Message):
    __slots__ = ("description", "documents")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    description: PoolDescription
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    def __init__(self, description: _Optional[_Union[PoolDescription, _Mapping]] = ..., documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ...) -> None: ...
