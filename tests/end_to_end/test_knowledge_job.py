"""The knowledge job over real server processes while it, a verifier and a retriever are killed, three times each."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from laser_recsys.frameworks.prompts import Prompt
from laser_recsys.knowledge.prompt_files import write_prompts
from laser_recsys.knowledge.rows import Task
from laser_recsys.processes import ServerProcess, command_path, free_address
from tests.end_to_end.servers import kill
from tests.verifier.tiny import tiny_network, tiny_tokenizer

NUM_USERS = 60
NUM_TOKENS = 160


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two verifiers share the machine: with a thread per processor each, they would wait for each other by spinning."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_network("llama", seed=4, num_hidden_layers=12).to(torch.float32).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.parquet"
    texts = [f"w{n % 40} w{(7 * n) % 40} w{(3 * n + 1) % 40}" for n in range(NUM_USERS)]
    write_prompts(
        path, [Task(Prompt(str(n), "user", "kar", text), f"t/kar/user/{n % 3}") for n, text in enumerate(texts)]
    )
    return path


def serving(model: Path, log: Path, address: str, *retrievers: str) -> ServerProcess:
    """A verifier, started but not waited for."""
    command = [command_path("laser-verifier"), "serve", "--model", str(model), "--listen", address]
    command += ["--dtype", "float32", "--draft-policy", "all", "--max-sequences", "4"]
    if retrievers:
        command += ["--retriever", ",".join(retrievers)]
    return ServerProcess("verifier", command, address, log)


def retrieving(pools: Path, log: Path, address: str) -> ServerProcess:
    """A retriever, started but not waited for."""
    command = [command_path("laser-retriever"), "serve", "--pools", str(pools), "--listen", address]
    return ServerProcess("retriever", command, address, log)


def generate(prompts: Path, output: Path, *verifiers: str, acceptance: str = "strict") -> list[str]:
    return [
        command_path("laser-recsys"), "generate", "--prompts", str(prompts), "--output", str(output),
        "--verifier", *verifiers, "--acceptance", acceptance, "--max-new-tokens", str(NUM_TOKENS),
        "--concurrency", "4", "--part-s", "0.5", "--patience", "90",
    ]  # fmt: skip


def texts(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "knowledge.parquet", columns=["id", "text"]).to_pylist()
    assert Counter(row["id"] for row in rows) == Counter(str(n) for n in range(NUM_USERS)), "each id exactly once"
    return {row["id"]: row["text"] for row in rows}


def num_done(folder: Path) -> int:
    return sum(len(pq.read_table(part, columns=["id"])) for part in (folder / "parts").glob("[0-9]*.parquet"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kills_of_job_verifier_and_retriever_lose_no_id_repeat_none_and_change_no_strict_text(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    addresses = [free_address(), free_address()]
    retriever_address = free_address()
    output = tmp_path / "disturbed"
    command = generate(prompts, output, *addresses)
    with ExitStack() as stack:

        def start(which: str) -> ServerProcess:
            log = tmp_path / f"{which}-{time.monotonic_ns()}.log"
            if which == "retriever":
                return stack.enter_context(retrieving(tmp_path / "pools", log, retriever_address))
            return stack.enter_context(serving(model, log, addresses[int(which)], retriever_address))

        servers = {which: start(which) for which in ("retriever", "0", "1")}
        for server in servers.values():
            server.wait_until_healthy(120)
        undisturbed = generate(prompts, tmp_path / "undisturbed", addresses[0], acceptance="plain")
        subprocess.run(undisturbed, check=True, timeout=120, capture_output=True)
        for _ in range(3):
            before = num_done(output)
            job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                wait_for_a_part(output, before, job)
                for which in ("1", "retriever"):
                    kill(servers[which])
                wait_for_a_part(output, num_done(output), job)  # the other verifier goes on, without drafts
            finally:
                job.kill()
                job.wait()
            for which in ("1", "retriever"):
                servers[which] = start(which)
            for which in ("1", "retriever"):
                servers[which].wait_until_healthy(120)
        finished = subprocess.run(command, check=False, timeout=200, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        assert "texts are done already" in finished.stdout
    assert texts(output) == texts(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_on_a_local_ray_cluster_the_job_gives_the_same_ids_and_texts(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    addresses = [free_address(), free_address()]
    with ExitStack() as stack:
        for number, address in enumerate(addresses):
            stack.enter_context(serving(model, tmp_path / f"v{number}.log", address)).wait_until_healthy(120)
        alone = generate(prompts, tmp_path / "alone", addresses[0])
        subprocess.run(alone, check=True, timeout=120, capture_output=True)
        on_ray = [*generate(prompts, tmp_path / "knowledge.parquet", *addresses), "--ray", "local"]
        finished = subprocess.run(on_ray, check=False, timeout=200, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
    assert texts(tmp_path) == texts(tmp_path / "alone")


def wait_for_a_part(output: Path, before: int, job: subprocess.Popen[bytes], timeout_s: float = 60.0) -> None:
    """Until more is done than `before`, while the job runs."""
    deadline = time.monotonic() + timeout_s
    while num_done(output) <= before:
        assert job.poll() is None, "the job ended before it was killed"
        assert time.monotonic() < deadline, "no part in time"
        time.sleep(0.02)
