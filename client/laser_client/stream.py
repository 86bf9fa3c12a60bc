"""One generation as it comes: opens the call, waits for its messages, retries when the server is full.

The only place that reads the Generate stream; `generate` of one prompt or many drains such streams.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from laser_client.generation import Chunk, Generation
from laser_client.request import Limits
from laser_client.wire import chunk_from_message, generation_from_message
from laser_protocol.errors import DeadlineExceeded, Internal, LaserError, NotReady, Overloaded, from_rpc_error
from laser_protocol.v1 import verifier_pb2

Call = Any  # grpc.aio.UnaryStreamCall[GenerateRequest, GenerateResponse]

# After Finished the status follows at once; a server that leaves it out must not keep the output from the caller.
_TRAILER_TIMEOUT_S = 1.0
_MIN_RETRY_S = 0.01


@dataclass(frozen=True, slots=True)
class Patience:
    """The limits of a call that has begun.

    Attributes:
        limits: as the caller gave them.
        expires_at: event loop time of the deadline, or None.
    """

    limits: Limits
    expires_at: float | None

    @staticmethod
    def starting_now(limits: Limits) -> Patience:
        """The patience of a call that begins now."""
        now = asyncio.get_running_loop().time()
        return Patience(limits, None if limits.deadline is None else now + limits.deadline)

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, not above 0 once it has passed; None without one."""
        return None if self.expires_at is None else self.expires_at - asyncio.get_running_loop().time()

    def check(self) -> None:
        """Raises DeadlineExceeded once the deadline has passed."""
        remaining = self.remaining_s()
        if remaining is not None and remaining <= 0:
            raise self.expired()

    async def bound(self, waiting: Awaitable[object]) -> None:
        """Waits for something of our own side.

        Raises:
            DeadlineExceeded: it did not come within the deadline.
        """
        try:
            async with asyncio.timeout_at(self.expires_at):
                await waiting
        except TimeoutError:
            raise self.expired() from None

    def expired(self) -> DeadlineExceeded:
        """The error of a call that its deadline ended."""
        return DeadlineExceeded(f"not finished within the deadline of {self.limits.deadline:g} s")

    async def sleep_before_retry(self, error: Overloaded, retry_after_s: float) -> None:
        """Waits as long as the server asked, and up to half as long again, so that not all come back at once.

        Raises:
            DeadlineExceeded: the deadline would pass meanwhile.
        """
        delay = max(retry_after_s, _MIN_RETRY_S) * random.uniform(1.0, 1.5)
        remaining = self.remaining_s()
        if remaining is not None and delay >= remaining:
            raise self.expired() from error
        await asyncio.sleep(delay)


class AsyncTextStream:
    """The chunks of one generation, in order; then `finish` gives the whole.

    Leaving the loop early leaves the call open until `aclose`, the end of `async with`, or garbage collection.
    The call is opened with the first chunk asked for.

    Raises (from the iteration and from `finish`):
        LaserError: the server's, or DeadlineExceeded when it fell silent. Chunks before it stand.
    """

    def __init__(self, open_call: Callable[[float | None], Call], patience: Patience) -> None:
        self._open_call = open_call
        self._patience = patience
        self._call: Call | None = None
        self._generation: Generation | None = None
        self._closed = False
        self._texts: list[str] = []
        self._token_ids: list[int] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._closed or self._generation is not None:
            raise StopAsyncIteration
        try:
            chunk = await self._next_chunk()
        except BaseException:
            self.cancel()
            raise
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def finish(self) -> Generation:
        """Reads what is left and returns the whole output.

        Raises:
            RuntimeError: the stream was closed, or ended in an error, before its end.
        """
        async for _ in self:
            pass
        if self._generation is None:
            raise RuntimeError("the stream was closed before its end")
        return self._generation

    def cancel(self) -> None:
        """Gives the call up: the server frees its slot at the next step."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    async def aclose(self) -> None:
        """`cancel`, as a coroutine."""
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    async def _next_chunk(self) -> Chunk | None:
        """The next chunk, or None after the last."""
        while True:
            response = await self._next_response()
            if response.HasField("delta"):
                chunk = chunk_from_message(response.delta)
                self._texts.append(chunk.text)
                self._token_ids.extend(chunk.token_ids)
                return chunk
            if response.HasField("finished"):
                finished = response.finished
                self._texts.append(finished.text)
                self._generation = generation_from_message(finished, "".join(self._texts), self._token_ids)
                await self._read_trailer()
                return Chunk(finished.text, (), 0) if finished.text else None
            # Queued, or an event of a later protocol: a sign of life.

    async def _next_response(self) -> verifier_pb2.GenerateResponse:
        while True:
            if self._call is None:
                if self._closed:  # while it waited to try again
                    raise StopAsyncIteration
                self._patience.check()
                self._call = self._open_call(self._patience.remaining_s())
            try:
                response = await self._read(self._call)
            except Overloaded as error:
                # Without RetryInfo it is no full queue (gRPC says the same of a message that is too large).
                if error.retry_after_s is None or self._texts:
                    raise
                self._call = None
                await self._patience.sleep_before_retry(error, error.retry_after_s)
                continue
            if response is None:
                raise Internal("the server ended the stream without its Finished message")
            return response

    async def _read(self, call: Call) -> verifier_pb2.GenerateResponse | None:
        """The next message, or None at the end of the stream; gRPC's failures as LaserErrors."""
        timeout = self._patience.limits.timeout
        try:
            async with asyncio.timeout(timeout):
                response = await call.read()
        except TimeoutError:
            raise DeadlineExceeded(f"the server has been silent for the timeout of {timeout:g} s") from None
        except grpc.aio.AioRpcError as error:
            laser_error = from_rpc_error(error)
            if isinstance(laser_error, DeadlineExceeded) and self._patience.expires_at is not None:
                laser_error = self._patience.expired()
            raise laser_error from error
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            # gRPC says "cancelled" also of a call that the server or a closed channel ended.
            raise NotReady("the call was cut off: the server is stopping, or the client was closed") from None
        return None if response is grpc.aio.EOF else response

    async def _read_trailer(self) -> None:
        """Lets the call end with its status; what goes wrong after Finished no longer matters."""
        try:
            async with asyncio.timeout(_TRAILER_TIMEOUT_S):
                await self._read(self._call)
        except (LaserError, TimeoutError):
            pass


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
