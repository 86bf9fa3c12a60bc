"""AsyncLaserClient: the client itself. `LaserClient` runs this one on a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

import grpc
import grpc.aio

from laser_client.generation import Generation, Model
from laser_client.request import (
    OnError,
    Options,
    Prompt,
    Request,
    check_on_error,
    is_many,
    make_requests,
    split_options,
)
from laser_client.stream import AsyncTextStream, Call, Patience
from laser_client.wire import model_from_message, request_to_message
from laser_protocol.channel import Endpoint, Pem
from laser_protocol.errors import InvalidRequest, LaserError, from_rpc_error
from laser_protocol.v1 import verifier_pb2, verifier_pb2_grpc

Outcome = Generation | LaserError
# Called with the index of a prompt that ended, and with what it ended in.
OnProgress = Callable[[int, Outcome], object]

_MODEL_TIMEOUT_S = 30.0
# How often an output that is wanted whole tells of itself. Measured on two cores that server and client share, eight
# sequences: with a message for every step of each, a quarter of the throughput is lost.
_DELTA_INTERVAL_S = 1.0


class AsyncLaserClient:
    """Generates through one verifier. Belongs to the event loop of its first call; close it there.

    Args:
        target: HOST:PORT of the verifier.
        token: sent as `authorization: Bearer TOKEN`.
        tls: TLS with the system's roots; any of the next three turns TLS on as well.
        tls_ca: authorities to trust instead: PEM bytes, or a file.
        tls_cert, tls_key: own certificate chain and key for mutual TLS; both or neither.
        max_in_flight: most prompts of lists that are open at a time, over all calls of this client.

    Raises:
        InvalidRequest: names the argument.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls: bool = False,
        tls_ca: Pem | None = None,
        tls_cert: Pem | None = None,
        tls_key: Pem | None = None,
        max_in_flight: int = 256,
    ) -> None:
        if not isinstance(max_in_flight, int) or max_in_flight < 1:
            raise InvalidRequest(f"max_in_flight is {max_in_flight!r}, must be at least 1", field="max_in_flight")
        self._endpoint = Endpoint.make(target, token=token, tls=tls, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)
        self._max_in_flight = max_in_flight
        self._slots = asyncio.Semaphore(max_in_flight)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None
        self._closed = False

    @overload
    async def generate(
        self,
        prompt: str | list[int],
        *,
        pool: str | None = None,
        document_id: str | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        **options: Unpack[Options],
    ) -> Generation: ...
    @overload
    async def generate(
        self,
        prompt: list[str] | list[list[int]] | list[Prompt],
        *,
        pool: str | Sequence[str | None] | None = None,
        document_id: Sequence[str | None] | None = None,
        on_error: Literal["raise"] = "raise",
        on_progress: OnProgress | None = None,
        **options: Unpack[Options],
    ) -> list[Generation]: ...
    @overload
    async def generate(
        self,
        prompt: list[str] | list[list[int]] | list[Prompt],
        *,
        pool: str | Sequence[str | None] | None = None,
        document_id: Sequence[str | None] | None = None,
        on_error: OnError,
        on_progress: OnProgress | None = None,
        **options: Unpack[Options],
    ) -> list[Outcome]: ...
    async def generate(
        self,
        prompt: Any,
        *,
        pool: Any = None,
        document_id: Any = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        **options: Unpack[Options],
    ) -> Any:
        """Generates one output, or one per prompt of a list.

        Args:
            prompt: text, or token ids (a list of integers): one prompt. A list of such: many.
            pool: pool id to draft from; with a list of prompts one for all or a list with one each. None: the output
                itself only.
            document_id: with `learn`, the document to write or replace, one per prompt; default: the request id.
            on_error: with a list: "raise" the first LaserError, with its `index`, after cancelling the rest; or
                "return" it at its prompt's place. One prompt raises always.
            on_progress: called as `on_progress(index, outcome)` whenever a prompt ends, in the order they end.
            acceptance: Strict(), Relaxed(top_k, min_prob) or None: the server's default.
            max_new_tokens: output limit in tokens (256).
            temperature: 0.0 is greedy; above it sampling, not together with Relaxed.
            seed: with a temperature, the same seed gives the same output.
            stop: strings that end the output, at most 16; they are cut from the text.
            draft: False: plain decoding.
            learn: True: the finished output joins the pool.
            system: system turn of the chat template; None: the template's own.
            raw: True: text is tokenised as it stands, without chat template.
            timeout: seconds of silence after which a call is given up (60), at least 1; waiting in the server's queue
                is none.
            deadline: seconds for the whole call, retries included; None: without limit.

        Returns:
            One prompt: its Generation. A list: a list in the same order; `[]` gives `[]`.

        Raises:
            InvalidRequest: an argument is wrong; of a list all are checked before any is sent.
            LaserError: what the server answered. Overloaded is retried as the server asks, until the deadline.
        """
        settings, limits = split_options(options)
        check_on_error(on_error)
        patience = Patience.starting_now(limits)
        if not is_many(prompt):
            generation = await self._finish(Request(prompt, pool, document_id, settings), patience)
            if on_progress is not None:
                on_progress(0, generation)
            return generation
        requests = make_requests(prompt, pool, document_id, settings)
        if on_error == "raise":
            for request in requests:
                if isinstance(request, InvalidRequest):
                    raise request
        return await self._generate_all(requests, patience, on_error, on_progress)

    def stream(
        self,
        prompt: str | list[int],
        *,
        pool: str | None = None,
        document_id: str | None = None,
        **options: Unpack[Options],
    ) -> AsyncTextStream:
        """Generates one output and gives it in chunks as it comes: `async for chunk in client.stream(prompt)`.

        Arguments and errors as of `generate`. Must be called in the client's event loop.
        """
        settings, limits = split_options(options)
        return self._start(Request(prompt, pool, document_id, settings), Patience.starting_now(limits))

    async def model(self) -> Model:
        """What the verifier serves, and its limits."""
        stub = verifier_pb2_grpc.VerifierStub(self._open_channel())
        try:
            response = await stub.GetModel(
                verifier_pb2.GetModelRequest(), timeout=_MODEL_TIMEOUT_S, metadata=self._endpoint.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return model_from_message(response)

    async def close(self) -> None:
        """Ends what is open and gives the connection back. May be called twice."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _generate_all(
        self,
        requests: Sequence[Request | InvalidRequest],
        patience: Patience,
        on_error: OnError,
        on_progress: OnProgress | None,
    ) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        waiting = iter(enumerate(requests))

        async def work() -> None:
            for index, request in waiting:
                outcome = await self._attempt(index, request, patience)
                if isinstance(outcome, LaserError) and on_error == "raise":
                    raise outcome
                outcomes[index] = outcome
                if on_progress is not None:
                    on_progress(index, outcome)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(requests), self._max_in_flight)):
                    group.create_task(work())
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            raise first from first.__cause__
        return [outcomes[index] for index in range(len(requests))]

    async def _attempt(self, index: int, request: Request | InvalidRequest, patience: Patience) -> Outcome:
        """One prompt of a list, to its Generation or its LaserError with `index` set."""
        if isinstance(request, InvalidRequest):
            return request
        try:
            await patience.bound(self._slots.acquire())
            try:
                return await self._finish(request, patience)
            finally:
                self._slots.release()
        except LaserError as error:
            error.index = index
            return error

    async def _finish(self, request: Request, patience: Patience) -> Generation:
        """The whole output. Nobody reads its chunks, so few are asked for: just signs of life."""
        silence = patience.limits.timeout
        interval_s = _DELTA_INTERVAL_S if silence is None else min(_DELTA_INTERVAL_S, silence / 4)
        return await self._start(request, patience, int(interval_s * 1e3)).finish()

    def _start(self, request: Request, patience: Patience, delta_interval_ms: int = 0) -> AsyncTextStream:
        stub = verifier_pb2_grpc.VerifierStub(self._open_channel())
        message = request_to_message(request, delta_interval_ms)

        def open_call(timeout_s: float | None) -> Call:
            return stub.Generate(message, timeout=timeout_s, metadata=self._endpoint.metadata)

        return AsyncTextStream(open_call, patience)

    def _open_channel(self) -> grpc.aio.Channel:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._channel is None:
            self._channel, self._loop = self._endpoint.open_aio(), loop
        if self._loop is not loop:
            raise RuntimeError("the client belongs to another event loop: make one per loop, or use LaserClient")
        return self._channel
