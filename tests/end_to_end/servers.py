"""Real server processes for tests: started, killed, always ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laser_recsys.processes import ServerProcess, command_path, free_address


@contextmanager
def retriever(pools: Path, log_path: Path, address: str | None = None, *options: str) -> Iterator[ServerProcess]:
    """A retriever, healthy."""
    address = address or free_address()
    command = [command_path("laser-retriever"), "serve", "--pools", str(pools), "--listen", address, *options]
    with ServerProcess("retriever", command, address, log_path) as process:
        process.wait_until_healthy(60)
        yield process


@contextmanager
def verifier(model: Path, log_path: Path, *options: str) -> Iterator[ServerProcess]:
    """A verifier in float32, healthy."""
    address = free_address()
    command = [command_path("laser-verifier"), "serve", "--model", str(model), "--listen", address]
    with ServerProcess("verifier", [*command, "--dtype", "float32", *options], address, log_path) as process:
        process.wait_until_healthy(120)
        yield process


def kill(process: ServerProcess) -> None:
    """SIGKILL: no handler runs, no stream is closed in order."""
    os.kill(process.pid, signal.SIGKILL)
