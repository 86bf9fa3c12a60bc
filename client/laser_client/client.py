"""LaserClient: AsyncLaserClient for callers without an event loop. No logic of its own."""

from __future__ import annotations

import queue
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

from laser_client.aio import AsyncLaserClient, OnProgress, Outcome
from laser_client.generation import Chunk, Generation, Model
from laser_client.loop_thread import LoopThread
from laser_client.request import OnError, Options, Prompt
from laser_client.stream import AsyncTextStream
from laser_protocol.channel import Pem


class LaserClient:
    """Generates through one verifier. May be used from several threads at once.

    Arguments and errors as of `AsyncLaserClient`. `with LaserClient(...)` or `close` ends it; an interrupt
    (Ctrl-C) ends the call that waits, also on the server.
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
        self._client = AsyncLaserClient(
            target,
            token=token,
            tls=tls,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            max_in_flight=max_in_flight,
        )
        self._thread = LoopThread(f"laser-client-{target}")
        # Also at exit and for a client that was never closed; holds no reference to self.
        self._finalizer = weakref.finalize(self, _stop, self._thread, self._client)

    @overload
    def generate(
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
    def generate(
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
    def generate(
        self,
        prompt: list[str] | list[list[int]] | list[Prompt],
        *,
        pool: str | Sequence[str | None] | None = None,
        document_id: Sequence[str | None] | None = None,
        on_error: OnError,
        on_progress: OnProgress | None = None,
        **options: Unpack[Options],
    ) -> list[Outcome]: ...
    def generate(self, prompt: Any, *, on_progress: OnProgress | None = None, **arguments: Any) -> Any:
        """Generates one output, or one per prompt of a list. `AsyncLaserClient.generate` tells the arguments.

        `on_progress(index, outcome)` is called in the calling thread; what it raises ends the call.
        """
        if on_progress is None:
            return self._thread.run(self._client.generate(prompt, **arguments))
        # Outcomes come over as they end; None says that the call is over.
        ended: queue.SimpleQueue[tuple[int, Outcome] | None] = queue.SimpleQueue()
        arguments["on_progress"] = lambda index, outcome: ended.put((index, outcome))
        future = self._thread.submit(self._client.generate(prompt, **arguments))
        future.add_done_callback(lambda _: ended.put(None))
        try:
            while (item := ended.get()) is not None:
                on_progress(*item)
        except BaseException:
            future.cancel()
            raise
        return self._thread.wait(future)

    def stream(
        self,
        prompt: str | list[int],
        *,
        pool: str | None = None,
        document_id: str | None = None,
        **options: Unpack[Options],
    ) -> TextStream:
        """Generates one output and gives it in chunks as it comes: `for chunk in client.stream(prompt)`.

        Arguments and errors as of `AsyncLaserClient.generate`.
        """

        async def start() -> AsyncTextStream:
            return self._client.stream(prompt, pool=pool, document_id=document_id, **options)

        return TextStream(self, self._thread, self._thread.run(start()))

    def model(self) -> Model:
        """What the verifier serves, and its limits."""
        return self._thread.run(self._client.model())

    def close(self) -> None:
        """Ends what is open, in all threads, and gives the connection back. May be called twice."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class TextStream:
    """The chunks of one generation, in order; then `finish` gives the whole.

    Leaving the loop early ends the generation on the server with `close`, the end of `with`, or garbage collection.
    """

    def __init__(self, client: LaserClient, thread: LoopThread, stream: AsyncTextStream) -> None:
        # Kept alive: a client that nobody refers to is closed, with all that it has open.
        self._client = client
        self._thread = thread
        self._stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        chunk = self._thread.run(_next_or_none(self._stream))
        if chunk is None:
            raise StopIteration
        return chunk

    def finish(self) -> Generation:
        """Reads what is left and returns the whole output.

        Raises:
            RuntimeError: the stream was closed, or ended in an error, before its end.
        """
        return self._thread.run(self._stream.finish())

    def close(self) -> None:
        """Gives the call up: the server frees its slot at the next step."""
        self._thread.call_soon(self._stream.cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


async def _next_or_none(stream: AsyncTextStream) -> Chunk | None:
    return await anext(stream, None)


def _stop(thread: LoopThread, client: AsyncLaserClient) -> None:
    thread.stop(client.close())
