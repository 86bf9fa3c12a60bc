"""Asks a server's standard health service, without its stubs: the client needs no grpcio-health-checking."""

from __future__ import annotations

import grpc

from laser_protocol.channel import Endpoint
from laser_protocol.errors import from_rpc_error

_METHOD = "/grpc.health.v1.Health/Check"
_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


def check_health(endpoint: Endpoint, service: str = "", timeout_s: float = 5.0) -> str:
    """The health of a server, or of one of its services.

    Args:
        endpoint: the server.
        service: full name, for instance `laser.v1.Verifier`; empty: the server as a whole.
        timeout_s: seconds to wait for the answer.

    Returns:
        "SERVING", "NOT_SERVING", "UNKNOWN" or "SERVICE_UNKNOWN".

    Raises:
        LaserError: no answer.
    """
    with endpoint.open() as channel:
        check = channel.unary_unary(_METHOD, request_serializer=_encode_request, response_deserializer=_decode_response)
        try:
            return check(service, timeout=timeout_s, metadata=endpoint.metadata)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise from_rpc_error(error) from error


def _encode_request(service: str) -> bytes:
    """HealthCheckRequest: field 1, string."""
    name = service.encode()
    return b"\x0a" + _varint(len(name)) + name if name else b""


def _decode_response(data: bytes) -> str:
    """HealthCheckResponse: field 1, enum; left out where it is 0."""
    number = data[1] if len(data) >= 2 and data[0] == 0x08 else 0
    return _STATUSES[number] if number < len(_STATUSES) else "UNKNOWN"


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
