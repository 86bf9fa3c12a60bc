"""The errors of LASER, one table between them and gRPC status codes, and the way there and back.

    LaserError
    ├── InvalidRequest        INVALID_ARGUMENT     a field's value is wrong (also a ValueError)
    ├── UnknownPool           NOT_FOUND
    ├── PoolMismatch          FAILED_PRECONDITION  documents of another tokenizer
    ├── StorageUnavailable    FAILED_PRECONDITION  disk full, read-only or unreadable
    ├── NotReady              UNAVAILABLE          starting, stopping or not reachable
    ├── WriterElsewhere       UNAVAILABLE          another shard writes this pool; `holder` is its address
    ├── EngineDead            UNAVAILABLE          the engine thread ended; the server must be restarted
    ├── Overloaded            RESOURCE_EXHAUSTED   queue full; `retry_after_s` says when to come back
    ├── DeadlineExceeded      DEADLINE_EXCEEDED
    ├── Unauthenticated       UNAUTHENTICATED      wrong or missing token
    └── Internal              INTERNAL             our bug; the message carries a request id for the log

Servers raise these, `laser_protocol.serving` aborts with `to_status`, the client raises `from_rpc_error` with the
RpcError as its cause. Details travel as google.rpc.Status (ErrorInfo, BadRequest, RetryInfo), which grpcurl shows too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

_DOMAIN = "laser"
_DETAILS_KEY = "grpc-status-details-bin"


class LaserError(Exception):
    """Base of all errors of LASER.

    Attributes:
        field: name of the request's field at fault, or None.
        retry_after_s: seconds after which trying again makes sense, or None.
        holder: HOST:PORT of the shard to go to instead, or None.
        index: with a list of prompts, which of them failed, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
        holder: str | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.retry_after_s = retry_after_s
        self.holder = holder
        self.index: int | None = None


class InvalidRequest(LaserError, ValueError):
    """A field of the request has a value that cannot be served."""


class UnknownPool(LaserError):
    """No pool of that id holds documents."""


class PoolMismatch(LaserError):
    """The documents' tokenizer is not the pool's."""


class StorageUnavailable(LaserError):
    """The pool directory cannot be written or read: full, read-only or damaged."""


class NotReady(LaserError):
    """The server is starting, stopping or cannot be reached."""


class WriterElsewhere(LaserError):
    """Another shard writes this pool at present: go to `holder`."""


class EngineDead(LaserError):
    """The engine ended after a fault and takes no more requests."""


class Overloaded(LaserError):
    """The queue is full: come back after `retry_after_s`."""


class DeadlineExceeded(LaserError):
    """The call took longer than its deadline, or the server fell silent."""


class Unauthenticated(LaserError):
    """The token is missing or wrong."""


class Internal(LaserError):
    """A fault of the server's own, logged there under the request id of the message."""


STATUS_CODES: dict[type[LaserError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownPool: grpc.StatusCode.NOT_FOUND,
    PoolMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    StorageUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    WriterElsewhere: grpc.StatusCode.UNAVAILABLE,
    EngineDead: grpc.StatusCode.UNAVAILABLE,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Internal: grpc.StatusCode.INTERNAL,
}

_BY_NAME = {cls.__name__: cls for cls in STATUS_CODES}
# For a status that carries no ErrorInfo (a proxy's, gRPC's own): the class that says the most general thing true of it.
_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: UnknownPool,
    grpc.StatusCode.UNAVAILABLE: NotReady,
    grpc.StatusCode.CANCELLED: NotReady,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}


def status_code(error: LaserError) -> grpc.StatusCode:
    """The gRPC status code of an error."""
    return STATUS_CODES[type(error)]


def to_trailing_metadata(error: LaserError) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata with the error as google.rpc.Status, for `context.abort`.

    Args:
        error: the error to send.

    Returns:
        One `grpc-status-details-bin` pair.
    """
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=type(error).__name__,
            domain=_DOMAIN,
            metadata={"holder": error.holder} if error.holder else {},
        )
    ]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=str(error))
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(retry)
    status = status_pb2.Status(code=status_code(error).value[0], message=str(error))
    for detail in details:
        status.details.add().Pack(detail)
    return ((_DETAILS_KEY, status.SerializeToString()),)


def from_rpc_error(error: grpc.RpcError) -> LaserError:
    """The LaserError a server raised, from the RpcError the client caught.

    Args:
        error: a grpc.RpcError or grpc.aio.AioRpcError. `raise from_rpc_error(e) from e` keeps it as the cause.

    Returns:
        An error of the server's class, or, where the status carries none, the class nearest to its code.
    """
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    metadata = error.trailing_metadata() or ()
    info, bad_request, retry = _unpack_details(metadata)
    cls = _BY_NAME.get(info.reason) if info is not None and info.domain == _DOMAIN else None
    cls = cls or _BY_CODE.get(code, Internal)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        message += ": no such service here; is it the right server's address? (retriever: 50051, verifier: 50052)"
    return cls(
        message,
        field=bad_request.field_violations[0].field if bad_request and bad_request.field_violations else None,
        retry_after_s=retry.retry_delay.ToMilliseconds() / 1000 if retry else None,
        holder=(info.metadata.get("holder") or None) if info else None,
    )


def _unpack_details(
    metadata: Iterable[Any],
) -> tuple[error_details_pb2.ErrorInfo | None, error_details_pb2.BadRequest | None, error_details_pb2.RetryInfo | None]:
    """The three details we send, from trailing metadata; None for what is absent or damaged."""
    raw = next((value for key, value in metadata if key == _DETAILS_KEY), None)
    if raw is None:
        return None, None, None

    def find(cls: Any) -> Any:
        for item in packed:
            any_message: AnyMessage = item
            message = cls()
            if any_message.Unpack(message):
                return message
        return None

    try:
        packed = list(status_pb2.Status.FromString(raw).details)
        return find(error_details_pb2.ErrorInfo), find(error_details_pb2.BadRequest), find(error_details_pb2.RetryInfo)
    except Exception:  # a proxy may have put anything there; the status code still stands
        return None, None, None
