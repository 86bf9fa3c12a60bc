"""What both servers do with a peer that is gone without a word."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc.aio
import pytest

from laser_protocol import serving
from laser_protocol.serving import LaserServer, ListenConfig
from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc

WAIT_S = 10.0


class Watching(retriever_pb2_grpc.RetrieverServicer):
    """Notices the end of a draft stream."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def Draft(self, requests: Any, context: Any) -> Any:  # noqa: N802
        try:
            async for _ in requests:
                yield retriever_pb2.DraftResponse()
        finally:
            self.ended.set()


class Line:
    """Passes bytes on between a client and a server until it is cut: then neither hears of the other any more."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._to_port = port
        self._is_whole = asyncio.Event()
        self._is_whole.set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def cut(self) -> None:
        self._is_whole.clear()

    async def __aenter__(self) -> Line:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        try:
            await asyncio.gather(self._pass_on(reader, to_writer), self._pass_on(to_reader, writer))
        finally:
            writer.close()
            to_writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._is_whole.wait()
                writer.write(data)


def test_an_idle_stream_of_a_peer_that_is_gone_without_a_word_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms"}
    sooner = tuple((name, value // 10 if name in times else value) for name, value in serving.SERVER_OPTIONS)
    monkeypatch.setattr(serving, "SERVER_OPTIONS", sooner)

    async def run() -> None:
        watching = Watching()
        server = LaserServer(
            ListenConfig("127.0.0.1:0", grace_s=0.0),
            ["laser.v1.Retriever"],
            lambda registered: retriever_pb2_grpc.add_RetrieverServicer_to_server(watching, registered),
        )
        port = await server.start()
        try:
            async with Line(port) as line, grpc.aio.insecure_channel(f"127.0.0.1:{line.port}") as channel:
                call = retriever_pb2_grpc.RetrieverStub(channel).Draft()
                await call.write(retriever_pb2.DraftRequest())
                await call.read()
                line.cut()
                await asyncio.wait_for(watching.ended.wait(), WAIT_S)
        finally:
            await server.stop()

    asyncio.run(run())
