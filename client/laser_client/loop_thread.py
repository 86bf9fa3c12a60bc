"""An event loop on a daemon thread, for blocking callers. Knows nothing of gRPC."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from laser_protocol.errors import NotReady

T = TypeVar("T")

_JOIN_TIMEOUT_S = 5.0


class LoopThread:
    """Runs coroutines for any number of threads until it is stopped. Starts with the first coroutine."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts a coroutine on the loop.

        Raises:
            RuntimeError: stopped, or in a forked child, where the thread does not exist.
        """
        with self._lock:
            if self._thread is None and not self._stopped:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run_loop, args=(self._loop,), name=self._name, daemon=True)
                self._thread.start()
            if self._stopped or self._thread is None or self._loop is None or not self._thread.is_alive():
                coroutine.close()
                raise RuntimeError("the client is closed" if self._stopped else "make the client after the fork")
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine to its end; an interrupt of the waiting thread cancels it.

        Raises:
            NotReady: the loop was stopped meanwhile.
        """
        return self.wait(self.submit(coroutine))

    def wait(self, future: concurrent.futures.Future[T]) -> T:
        """The result of what was submitted; an interrupt of the waiting thread cancels it.

        Raises:
            NotReady: the loop was stopped meanwhile.
        """
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise NotReady("the client was closed during the call") from None
        finally:
            future.cancel()

    def call_soon(self, function: Any) -> None:
        """Calls a function on the loop without waiting; nothing happens once stopped. Safe in finalizers."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                self._loop.call_soon_threadsafe(function)

    def stop(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancels what runs, runs one last coroutine, and ends the thread. Later calls do nothing.

        Args:
            last: cleans up on the loop.
        """
        with self._lock:
            stopped, self._stopped = self._stopped, True
        loop, thread = self._loop, self._thread
        if stopped or loop is None or thread is None or not thread.is_alive():
            last.close()
            return
        asyncio.run_coroutine_threadsafe(_cancel_all_then(last), loop).add_done_callback(
            lambda _: loop.call_soon_threadsafe(loop.stop)
        )
        if thread is not threading.current_thread():  # a garbage collection may run this anywhere
            thread.join(_JOIN_TIMEOUT_S)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _cancel_all_then(last: Coroutine[Any, Any, None]) -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await last
