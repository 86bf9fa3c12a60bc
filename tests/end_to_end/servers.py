"""Real server processes for tests: started, killed, always ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laser_recsys.processes import ServerProcess, retriever_process, verifier_process


@contextmanager
def retriever(pools: Path, log_path: Path, address: str | None = None, *options: str) -> Iterator[ServerProcess]:
    """A retriever, healthy."""
    with retriever_process(pools, log_path, *options, address=address) as process:
        process.wait_until_healthy(60)
        yield process


@contextmanager
def verifier(model: Path, log_path: Path, *options: str) -> Iterator[ServerProcess]:
    """A verifier in float32, healthy."""
    with verifier_process(model, log_path, "--dtype", "float32", *options) as process:
        process.wait_until_healthy(120)
        yield process


def kill(process: ServerProcess) -> None:
    """SIGKILL: no handler runs, no stream is closed in order."""
    os.kill(process.pid, signal.SIGKILL)
