"""The knowledge job over real server processes while it, a verifier and a retriever are killed, three times each."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.kills import Fleet, generate_command, read_texts, run_disturbed
from laser_recsys.frameworks.prompts import Prompt
from laser_recsys.knowledge.job import JobConfig, JobFailed, served_model
from laser_recsys.knowledge.prompt_files import write_prompts
from laser_recsys.knowledge.ray_job import run_ray_job
from laser_recsys.knowledge.rows import STRICT, Task
from laser_recsys.knowledge.session import IncompleteJob
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


def texts(folder: Path) -> dict[str, str]:
    rows = read_texts(folder)
    assert Counter(task_id for task_id, _ in rows) == Counter(str(n) for n in range(NUM_USERS)), "each id exactly once"
    return dict(rows)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kills_of_job_verifier_and_retriever_lose_no_id_repeat_none_and_change_no_strict_text(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    with Fleet(model, tmp_path, "--dtype", "float32", "--draft-policy", "all") as fleet:
        alone = generate_command(prompts, undisturbed, fleet.verifiers[:1], NUM_TOKENS, acceptance="plain")
        subprocess.run(alone, check=True, timeout=120, capture_output=True)
        said = run_disturbed(fleet, generate_command(prompts, disturbed, fleet.verifiers, NUM_TOKENS), disturbed)
    assert "texts are done already" in said
    assert texts(disturbed) == texts(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_on_a_local_ray_cluster_the_job_gives_the_same_ids_and_texts(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    with Fleet(model, tmp_path, "--dtype", "float32", "--draft-policy", "all") as fleet:
        alone = generate_command(prompts, tmp_path / "alone", fleet.verifiers[:1], NUM_TOKENS)
        subprocess.run(alone, check=True, timeout=120, capture_output=True)
        on_ray = generate_command(prompts, tmp_path / "knowledge.parquet", fleet.verifiers, NUM_TOKENS)
        on_ray += ["--ray", "local", "--concurrency", "4"]  # several batches
        finished = subprocess.run(on_ray, check=False, timeout=200, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        assert texts(tmp_path) == texts(tmp_path / "alone")
        # As a driver that was killed leaves it: some batches written, one being written.
        output = tmp_path / "knowledge.parquet"
        first, *others = sorted(output.glob("*.parquet"))
        for path in others:
            path.unlink()
        (output / "unfinished.parquet").write_bytes(first.read_bytes()[:100])
        output.rename(tmp_path / ".knowledge.parquet.partial")
        kept = pq.read_table(first := tmp_path / ".knowledge.parquet.partial" / first.name)
        again = subprocess.run(on_ray, check=False, timeout=200, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
    assert texts(tmp_path) == texts(tmp_path / "alone")
    assert pq.read_table(output / first.name).equals(kept) and len(kept) < len(texts(tmp_path)), "what was done stays"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default")  # Ray warns of its own settings
def test_on_ray_prompts_given_up_cost_no_other_and_dead_verifiers_are_told(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    prompts = tmp_path / "prompts.parquet"
    texts = ["w1 w2 w3", "w1 " * 5000, "w3 w2 w1"]  # the second is longer than the model takes
    write_prompts(prompts, [Task(Prompt(str(n), "user", "kar", text), "t/kar/user/0") for n, text in enumerate(texts)])
    with Fleet(model, tmp_path, "--dtype", "float32") as fleet:
        config = JobConfig(fleet.verifiers, STRICT, max_new_tokens=8, patience_s=3)
        served = asyncio.run(served_model(config))
        with pytest.raises(IncompleteJob, match="1 of 3 prompts were given up, kar user 1 among them"):
            run_ray_job(config, [prompts], tmp_path / "knowledge.parquet", served)
        assert sorted(task_id for task_id, _ in read_texts(tmp_path)) == ["0", "2"]
        fleet.kill("first verifier", "second verifier")
        with pytest.raises(JobFailed, match="Ray: no verifier has finished a text for"):
            run_ray_job(config, [prompts], tmp_path / "never", served)
    assert not (tmp_path / "never").exists()
