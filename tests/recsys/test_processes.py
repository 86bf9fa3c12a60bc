from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from laser_recsys.processes import ServerFailed, ServerProcess, command_path, free_address, is_healthy

HEALTHY = """
import sys, time, grpc
from concurrent.futures import ThreadPoolExecutor
from grpc_health.v1 import health, health_pb2_grpc
server = grpc.server(ThreadPoolExecutor(2))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
server.add_insecure_port(sys.argv[1])
server.start()
time.sleep(60)
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)


def child(script: str, tmp_path: Path, address: str = "127.0.0.1:1") -> ServerProcess:
    return ServerProcess("verifier", [sys.executable, "-c", script, address], address, tmp_path / "verifier.log")


def test_a_server_is_waited_for_until_healthy_and_ended_on_leaving(tmp_path: Path) -> None:
    address = free_address()
    with child(HEALTHY, tmp_path, address) as server:
        server.wait_until_healthy(30.0)
        server.check_alive()
    assert not is_healthy(address)
    with pytest.raises(ServerFailed, match=f"ended with status -{signal.SIGTERM.value}"):
        server.check_alive()


def test_a_server_that_ends_at_start_is_an_error_with_the_logs_tail(tmp_path: Path) -> None:
    script = r"print('0%\r100%'); raise SystemExit('model /no/such/model does not exist')"
    with (
        child(script, tmp_path) as server,
        pytest.raises(ServerFailed, match=r"(?s)the verifier ended with status 1; .*verifier\.log ends:\n.*") as caught,
    ):
        server.wait_until_healthy(30.0)
    assert "model /no/such/model does not exist" in str(caught.value)
    assert "100%" in str(caught.value)
    assert "0%\r" not in str(caught.value)


def test_a_server_that_never_gets_healthy_is_an_error_after_the_timeout(tmp_path: Path) -> None:
    waited: list[float] = []
    with (
        child("import time; time.sleep(60)", tmp_path) as server,
        pytest.raises(ServerFailed, match=r"was not healthy within 0 s.*\n\(it logged nothing\)"),
    ):
        server.wait_until_healthy(0.4, on_wait=waited.append)
    assert waited


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    server = child(STUBBORN, tmp_path)
    while "deaf" not in server.log_path.read_text():
        time.sleep(0.02)
    server.stop(grace_s=0.3)
    with pytest.raises(ServerFailed, match=f"ended with status -{signal.SIGKILL.value}"):
        server.check_alive()


def test_a_command_that_is_not_installed_is_named() -> None:
    assert Path(command_path("laser-retriever")).exists()
    with pytest.raises(ServerFailed, match="laser-nothing is not installed"):
        command_path("laser-nothing")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_a_server_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    owner = f"""
import sys, time
from pathlib import Path
from laser_recsys.processes import ServerProcess
server = ServerProcess("verifier", [sys.executable, "-c", "import time; time.sleep(60)"], "127.0.0.1:1",
                       Path({str(tmp_path / "log")!r}))
print(server.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server_pid = int(process.stdout.readline())
        assert is_running(server_pid)
        process.kill()
    deadline = time.monotonic() + 10.0
    while is_running(server_pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether the process exists and is more than an entry that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
