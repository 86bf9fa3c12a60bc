"""What either side does with a peer that is gone without a word: its host still answers for it, or nobody does."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from laser_protocol import serving
from laser_protocol.channel import CHANNEL_OPTIONS
from laser_protocol.serving import LaserServer, ListenConfig
from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc

Options = tuple[tuple[str, int], ...]

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
        self.num_connections = 0
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
        self.num_connections += 1
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        for source, target in ((reader, to_writer), (to_reader, writer)):
            self._tasks.add(asyncio.create_task(self._pass_on(source, target)))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while data := await reader.read(65536):
                await self._is_whole.wait()
                writer.write(data)
            await self._is_whole.wait()


@contextlib.asynccontextmanager
async def cut_off(watching: Watching, options: Options) -> AsyncIterator[Any]:
    """An idle draft stream whose two ends do not hear of each other any longer."""
    server = LaserServer(
        ListenConfig("127.0.0.1:0", grace_s=0.0),
        ["laser.v1.Retriever"],
        lambda registered: retriever_pb2_grpc.add_RetrieverServicer_to_server(watching, registered),
    )
    port = await server.start()
    try:
        async with Line(port) as line, grpc.aio.insecure_channel(f"127.0.0.1:{line.port}", options) as channel:
            call = retriever_pb2_grpc.RetrieverStub(channel).Draft()
            await call.write(retriever_pb2.DraftRequest())
            await call.read()
            line.cut()
            yield call
    finally:
        await server.stop()


def sooner(options: Options) -> Options:
    """The same options with all that is waited for a tenth as long."""
    times = {"grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"}
    return tuple((name, value // 10 if name in times else value) for name, value in options)


def test_a_server_ends_the_idle_stream_of_a_client_that_is_gone_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SERVER_OPTIONS", sooner(serving.SERVER_OPTIONS))

    async def run() -> None:
        watching = Watching()
        async with cut_off(watching, ()):
            assert await asyncio.wait_for(watching.ended.wait(), WAIT_S)

    asyncio.run(run())


def test_a_client_ends_the_idle_stream_of_a_server_that_is_gone_without_a_word() -> None:
    async def run() -> None:
        async with cut_off(Watching(), sooner(CHANNEL_OPTIONS)) as call:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(call.read(), WAIT_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(run())


def test_a_server_has_clients_connect_anew_now_and_then_and_cuts_no_call_for_it() -> None:
    """Else a client that was there first never finds the servers that a name has got since."""

    async def run() -> None:
        server = LaserServer(
            ListenConfig("127.0.0.1:0", grace_s=0.0),
            ["laser.v1.Retriever"],
            lambda to: retriever_pb2_grpc.add_RetrieverServicer_to_server(Watching(), to),
            max_connection_age_s=0.5,
        )
        port = await server.start()
        async with Line(port) as line, grpc.aio.insecure_channel(f"127.0.0.1:{line.port}") as channel:
            call = retriever_pb2_grpc.RetrieverStub(channel).Draft()
            health = health_pb2_grpc.HealthStub(channel)
            deadline = asyncio.get_running_loop().time() + WAIT_S
            while line.num_connections < 3:
                assert asyncio.get_running_loop().time() < deadline, "connected once and for all"
                await health.Check(health_pb2.HealthCheckRequest())
                await call.write(retriever_pb2.DraftRequest())
                await call.read()
                await asyncio.sleep(0.01)
            call.cancel()
        await server.stop()

    asyncio.run(run())


def test_a_second_signal_ends_a_server_whose_stop_takes_long() -> None:
    program = """
import asyncio
from laser_protocol.serving import catch_signals

async def serve():
    signalled = catch_signals()
    print("serving", flush=True)
    await signalled.wait()
    print("stopping", flush=True)
    await asyncio.sleep(60)

asyncio.run(serve())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "serving\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGTERM)  # as one that goes to a process and to its group
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(WAIT_S) == 128 + signal.SIGINT
        finally:
            process.kill()


@pytest.mark.parametrize("loops", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_still_loading_ends_at_once(loops: str, number: signal.Signals) -> None:
    program = f"""
import asyncio, time, {loops}
from laser_protocol.serving import end_at_signals

async def load():
    print("loading", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)

end_at_signals()
{loops}.run(load())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "loading\n"
        process.send_signal(number)
        try:
            assert process.wait(WAIT_S) == 128 + number
        finally:
            process.kill()
