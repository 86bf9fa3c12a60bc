"""Threads that draft beside the event loop, on the processors where it is not."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


def _find_current_processor() -> Callable[[], int] | None:
    """The C library's function, called without giving Python's lock away; None: this system has none."""
    return getattr(ctypes.PyDLL(None), "sched_getcpu", None) if hasattr(os, "sched_setaffinity") else None


class DraftHelpers(ThreadPoolExecutor):
    """Whoever submits work goes on with it too, so a helper that is woken on the same processor helps nobody.

    Linux often wakes it there while others idle: a message of 32 trees then takes a quarter longer. So helpers keep off
    the processor from which they were last given work. Where there is only one, or the system cannot tell, they do not.
    """

    def __init__(self, num_threads: int) -> None:
        super().__init__(num_threads, "draft", initializer=self._begin)
        self._current_processor = _find_current_processor()
        self._thread_ids: list[int] = []
        self._kept_off = -1
        self._processors = set[int]()  # where they may run; none: anywhere

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """As of any executor."""
        processor = -1 if self._current_processor is None else self._current_processor()
        if processor != self._kept_off:
            # Of those that this thread may use now, which may have changed.
            self._kept_off, self._processors = processor, os.sched_getaffinity(0) - {processor}
            for thread_id in self._thread_ids:
                self._move(thread_id)
        return super().submit(function, *arguments, **options)

    def _begin(self) -> None:
        self._thread_ids.append(threading.get_native_id())
        self._move(threading.get_native_id())

    def _move(self, thread_id: int) -> None:
        # A processor may have been taken away since; a helper that stays where it is drafts as well.
        with contextlib.suppress(OSError):
            if self._processors:
                os.sched_setaffinity(thread_id, self._processors)
