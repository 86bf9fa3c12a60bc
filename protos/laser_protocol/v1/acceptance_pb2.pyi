from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Acceptance(_message.Message):
    __slots__ = ("strict", "relaxed")
    STRICT_FIELD_NUMBER: _ClassVar[int]
    RELAXED_FIELD_NUMBER: _ClassVar[int]
    strict: Strict
    relaxed: Relaxed
    def __init__(self, strict: _Optional[_Union[Strict, _Mapping]] = ..., relaxed: _Optional[_Union[Relaxed, _Mapping]] = ...) -> None: ...

class Strict(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Relaxed(_message.Message):
    __slots__ = ("top_k", "min_prob")
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_PROB_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    min_prob: float
    def __init__(self, top_k: _Optional[int] = ..., min_prob: _Optional[float] = ...) -> None: ...
