"""The containers as a user brings them up, talked to from outside. Needs a Docker engine, and `make images`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from laser_client import Generation, LaserClient
from laser_verifier.shards import rendezvous_order

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
MODEL = "SmolLM2-135M-Instruct"
FILMS = ["Alien", "Casablanca", "Fargo", "Heat", "Jaws", "Rocky", "Seven", "Vertigo"]
PROMPTS = [f"Someone loved the film {film}. Which kinds of films will they like, and why?" for film in FILMS]


@dataclass(frozen=True)
class Deployment:
    """One compose project of its own name, so that a user's own project and its volume are left alone."""

    port: int
    variables: dict[str, str]

    def compose(self, *arguments: str, **variables: str) -> str:
        return run("docker", "compose", *arguments, **(self.variables | variables))

    def up(self, *arguments: str, **variables: str) -> None:
        try:
            self.compose("up", "--no-build", "--wait", "--wait-timeout", "300", *arguments, **variables)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('logs')}") from None

    def client(self) -> LaserClient:
        return LaserClient(f"localhost:{self.port}")

    def shards(self) -> dict[str, str]:
        """Shard name (host name, the container's short id) to container id, of the retrievers that run."""
        ids = self.compose("ps", "--quiet", "--status", "running", "retriever").split()
        return {container[:12]: container for container in ids}


def run(*command: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    port = free_port()
    # float32: there strict is exact, whatever the batch (in bfloat16 near ties may fall either way).
    variables = {"COMPOSE_PROJECT_NAME": "laser-test", "LASER_PORT": str(port), "LASER_DTYPE": "float32"}
    started = Deployment(port, {**variables, "LASER_MODEL": "", "LASER_BIND": ""})
    try:
        started.up()
        yield started
    finally:
        started.compose("down", "--volumes", "--timeout", "5")


def test_serves_the_example_model_without_any_setting(deployment):
    with deployment.client() as client:
        model = client.model()
        generation = client.generate(PROMPTS[0], max_new_tokens=16)
    assert (model.name, model.device, model.dtype) == (MODEL, "cpu", "float32")
    assert generation.stats.num_output_tokens == 16
    assert generation.text


def test_drafts_from_what_it_learned_and_keeps_it_over_a_restart(deployment):
    pool = "compose/learned/1"
    with deployment.client() as client:
        first = client.generate(PROMPTS[0], pool=pool, max_new_tokens=48, learn=True, document_id="a")
        assert first.stats.draft_status == "no_pool"
        wait_for_documents(deployment, pool)
        second = client.generate(PROMPTS[0], pool=pool, max_new_tokens=48)
        assert second.token_ids == first.token_ids
        assert second.stats.draft_status == "ok"
        # The text is the pool's: a dozen steps at most, where the first took one for almost every token.
        assert second.stats.num_accepted_tokens > 24
        deployment.compose("restart", "--timeout", "20", "retriever")
        deployment.up()
        again = eventually_drafted(client, pool)
    assert again.token_ids == first.token_ids
    assert again.stats.num_accepted_tokens > 24


def test_images_run_unprivileged_and_the_retriever_has_no_torch(deployment):
    for service in ("retriever", "verifier"):
        assert deployment.compose("exec", "-T", service, "id", "-u").strip() == "10001"
        inspected = json.loads(run("docker", "inspect", deployment.compose("ps", "--quiet", service).strip()))[0]
        assert inspected["HostConfig"]["ReadonlyRootfs"]
    find = "import importlib.util as u; print([n for n in ('torch', 'transformers', 'numba') if u.find_spec(n)])"
    assert deployment.compose("exec", "-T", "retriever", "python", "-c", find).strip() == "['numba']"


def test_scales_to_four_retrievers_and_survives_one_killed_while_it_drafts(deployment):
    verifier = deployment.compose("ps", "--quiet", "verifier")
    deployment.up("--no-recreate", "--scale", "retriever=4")
    assert len(deployment.shards()) == 4
    assert deployment.compose("ps", "--quiet", "verifier") == verifier, "scaling must not restart the verifier"
    pool = "compose/killed/1"
    with deployment.client() as client:
        wait_for_shards(deployment, 4)
        before = client.generate(PROMPTS, pool=pool, max_new_tokens=48, learn=True, document_id=list("abcdefgh"))
        wait_for_documents(deployment, pool, len(PROMPTS))
        after = generate_while_killing(deployment, client, pool)
        assert [generation.token_ids for generation in after] == [generation.token_ids for generation in before]
        assert len(deployment.shards()) == 3
        survivors = client.generate(PROMPTS, pool=pool, max_new_tokens=48)
    assert [generation.token_ids for generation in survivors] == [generation.token_ids for generation in before]
    assert {generation.stats.draft_status for generation in survivors} == {"ok"}
    assert sum(generation.stats.num_accepted_tokens for generation in survivors) > 24 * len(PROMPTS)
    deployment.up("--no-recreate", "--scale", "retriever=4")
    assert len(deployment.shards()) == 4


def test_one_variable_serves_another_model(deployment, tmp_path):
    verifier = deployment.compose("ps", "--quiet", "verifier").strip()
    run("docker", "cp", f"{verifier}:/models/{MODEL}", str(tmp_path / "another-model"))
    deployment.up("--no-deps", "verifier", LASER_MODEL=str(tmp_path / "another-model"))
    with deployment.client() as client:
        assert client.model().name == "another-model"
        assert client.generate(PROMPTS[0], max_new_tokens=4).stats.num_output_tokens == 4


def generate_while_killing(deployment: Deployment, client: LaserClient, pool: str) -> list[Generation]:
    """All prompts at once; the shard that the pool goes to first is killed once it has brought accepted drafts."""
    shards = deployment.shards()
    victim = shards[rendezvous_order(pool, shards)[0]]
    accepted: list[int] = []

    def follow(prompt: str) -> Generation:
        stream = client.stream(prompt, pool=pool, max_new_tokens=48)
        for chunk in stream:
            accepted.append(chunk.accepted_length)
        return stream.finish()

    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        futures = [threads.submit(follow, prompt) for prompt in PROMPTS]
        wait_until(lambda: sum(accepted) > 0, "no draft was accepted")
        run("docker", "kill", victim)
        assert not all(future.done() for future in futures), "the kill came after the end"
        return [future.result() for future in futures]


def wait_for_documents(deployment: Deployment, pool: str, count: int = 1) -> None:
    """Until every retriever drafts from `count` documents of the pool."""

    def known(container: str) -> bool:
        command = [
            "docker",
            "exec",
            container,
            "laser",
            "pools",
            "describe",
            "--retriever",
            "127.0.0.1:50051",
            "--json",
        ]
        done = subprocess.run([*command, "--pool", pool], capture_output=True, text=True, check=False)
        return done.returncode == 0 and json.loads(done.stdout)["num_documents"] == count

    wait_until(lambda: all(known(container) for container in deployment.shards().values()), f"{pool} was not learned")


def wait_for_shards(deployment: Deployment, count: int) -> None:
    """Until the verifier has a stream to that many retrievers."""

    def connected() -> int:
        lines = deployment.compose("logs", "--no-log-prefix", "verifier").splitlines()
        names = {line.rpartition("name=")[2].strip() for line in lines if "shard.connected" in line}
        return len(names & deployment.shards().keys())

    wait_until(lambda: connected() == count, f"the verifier did not find {count} retrievers")


def eventually_drafted(client: LaserClient, pool: str) -> Generation:
    """A generation that was drafted for; a retriever that is back is found again within seconds."""
    deadline = time.monotonic() + 60
    while True:
        generation = client.generate(PROMPTS[0], pool=pool, max_new_tokens=48)
        if generation.stats.num_accepted_tokens > 24 or time.monotonic() > deadline:
            return generation


def wait_until(condition, message: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.05)
