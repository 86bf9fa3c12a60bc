"""Every error reaches the client as what the server raised."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import status_pb2

from laser_protocol.errors import STATUS_CODES, Internal, LaserError, from_rpc_error, status_code, to_trailing_metadata
from laser_protocol.serving import LaserServer, ListenConfig
from laser_protocol.v1 import verifier_pb2, verifier_pb2_grpc


class Failing(verifier_pb2_grpc.VerifierServicer):
    """Raises what it is given, as the answer to a unary call and within a stream."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield verifier_pb2.GenerateResponse()
        raise self.error

    async def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise self.error


def provoke(error: Exception) -> list[grpc.RpcError]:
    """What a client catches of an error raised in a unary call and in a stream."""

    async def run() -> list[grpc.RpcError]:
        servicer = Failing(error)
        server = LaserServer(
            ListenConfig("127.0.0.1:0", grace_s=0.0),
            ["laser.v1.Verifier"],
            lambda registered: verifier_pb2_grpc.add_VerifierServicer_to_server(servicer, registered),
        )
        port = await server.start()
        caught: list[grpc.RpcError] = []
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = verifier_pb2_grpc.VerifierStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as unary:
                    await stub.GetModel(verifier_pb2.GetModelRequest(), timeout=10)
                with pytest.raises(grpc.aio.AioRpcError) as stream:
                    async for _ in stub.Generate(verifier_pb2.GenerateRequest(), timeout=10):
                        pass
                caught = [unary.value, stream.value]
        finally:
            await server.stop()
        return caught

    return asyncio.run(run())


@pytest.mark.parametrize("cls", STATUS_CODES, ids=lambda cls: cls.__name__)
def test_an_error_keeps_class_code_message_and_details(cls):
    error = cls("tämä field is 3, must be 4", field="pool", retry_after_s=1.25, holder="10.0.0.1:50051")
    for caught in provoke(error):
        assert caught.code() is STATUS_CODES[cls]
        back = from_rpc_error(caught)
        assert type(back) is cls
        assert str(back) == str(error)
        assert (back.field, back.retry_after_s, back.holder) == ("pool", 1.25, "10.0.0.1:50051")


def test_an_error_without_details_comes_back_without_them():
    for caught in provoke(Internal("plain")):
        back = from_rpc_error(caught)
        assert (str(back), back.field, back.retry_after_s, back.holder, back.index) == ("plain", None, None, None, None)


def test_an_unknown_exception_is_hidden_behind_a_request_id():
    for caught in provoke(KeyError("secret")):
        back = from_rpc_error(caught)
        assert type(back) is Internal and str(back).startswith("internal error, request id ")


class Bare(grpc.RpcError):
    """A status as a proxy or gRPC itself makes it."""

    def __init__(self, code: grpc.StatusCode, metadata: Any = None) -> None:
        super().__init__()
        self._code, self._metadata = code, metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return ""

    def trailing_metadata(self) -> Any:
        return self._metadata


@pytest.mark.parametrize("code", grpc.StatusCode, ids=lambda code: code.name)
def test_a_status_without_details_becomes_an_error_whose_own_code_is_the_same_or_internal(code):
    error = from_rpc_error(Bare(code))
    assert isinstance(error, LaserError) and str(error).startswith(code.name)
    assert ("right server's address" in str(error)) is (code is grpc.StatusCode.UNIMPLEMENTED)
    # A call that was cut off on the way was not refused: the server is not there, which is NotReady.
    expected = grpc.StatusCode.UNAVAILABLE if code is grpc.StatusCode.CANCELLED else code
    assert status_code(error) in (expected, grpc.StatusCode.INTERNAL)


def test_damaged_details_leave_the_status_code_standing():
    ((key, value),) = to_trailing_metadata(Internal("x"))
    status = status_pb2.Status.FromString(value)
    status.details[0].value = b"\xff\xff"  # under the right type's name
    for damaged in (b"\xff\xff\xff", value[:-3], b"", status.SerializeToString()):
        error = from_rpc_error(Bare(grpc.StatusCode.RESOURCE_EXHAUSTED, ((key, damaged),)))
        assert status_code(error) is grpc.StatusCode.RESOURCE_EXHAUSTED
