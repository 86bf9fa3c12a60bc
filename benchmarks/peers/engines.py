"""Runs a cell: vLLM as a child in its own environment, ours as retriever and verifier processes behind LaserClient.

Every run has processes of its own, so that nothing that one run left in a prefix or suffix cache helps the next one;
loading, warm-up and filling the pool or the suffix cache are outside the clock, prefill is inside.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks._peer_dtype import peer_dtype
from benchmarks._servers import fill_pool, servers
from benchmarks.peers import vllm_child
from benchmarks.peers.cell import Cell, Run
from benchmarks.peers.environment import environment_variables
from benchmarks.peers.workload import Workload
from laser_client import Generation, LaserClient, Relaxed, Strict
from laser_protocol.acceptance import Acceptance
from laser_recsys.processes import free_address

MAX_MODEL_LEN = 2048
_POOL = "bench/peers"
_WARM_UP_TOKENS = 16
_ACCEPTANCES: dict[str, Acceptance | None] = {
    "laser-plain": None,
    "laser-strict": Strict(),
    "laser-relaxed": Relaxed(top_k=2, min_prob=0.1),
}


class PeerFailed(Exception):
    """vLLM's process ended without an outcome. The message ends with its log's last lines."""


def run_vllm(cell: Cell, run_idx: int, workload: Workload, model: Path, environment: Path, log: Path) -> Run:
    """One run of vLLM.

    Raises:
        PeerFailed: its process gave no outcome.
    """
    mode = cell.mode.removeprefix("vllm-")
    job = {
        "model": str(model),
        "dtype": str(peer_dtype()).removeprefix("torch."),
        "mode": mode,
        "concurrency": cell.concurrency,
        "max_model_len": MAX_MODEL_LEN,
        "max_new_tokens": workload.max_new_tokens,
        "prompts": workload.prompts,
        "warm_up": workload.warm_up[: cell.concurrency],
        "documents": workload.documents if mode == "suffix" else (),
    }
    with log.open("ab") as errors:
        child = subprocess.run(
            [str(environment / "bin" / "python"), vllm_child.__file__],
            input=json.dumps(job).encode(),
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment_variables(environment),
            check=False,
        )
    if child.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf8", errors="replace").splitlines()[-20:])
        raise PeerFailed(f"vLLM ended with status {child.returncode}; its log {log} ends:\n{tail}")
    answer = json.loads(child.stdout)
    outputs = tuple(tuple(output) for output in answer["outputs"])
    return Run(
        cell, run_idx, answer["version"], len(workload.prompts), answer["num_documents"], workload.max_new_tokens,
        answer["seconds"], outputs,
    )  # fmt: skip


def run_laser(cell: Cell, run_idx: int, workload: Workload, model: Path, logs: Path) -> Run:
    """One run of ours, through the servers' commands and the client.

    Raises:
        ServerFailed: a server ended or did not start.
    """
    metrics = free_address()
    options = ("--dtype", "bfloat16", "--max-sequences", str(cell.concurrency), "--max-model-len", str(MAX_MODEL_LEN))
    with (
        tempfile.TemporaryDirectory() as directory,
        servers(model, Path(directory), logs, *options, "--metrics-port", metrics.rpartition(":")[2]) as addresses,
    ):
        return _measure(cell, run_idx, workload, *addresses, metrics)


def _measure(cell: Cell, run_idx: int, workload: Workload, retriever: str, verifier: str, metrics: str) -> Run:
    with LaserClient(verifier) as client:
        fill_pool(retriever, _POOL, workload.documents, client.model().tokenizer_fingerprint)
        _generate(client, cell, workload.warm_up[: cell.concurrency], _WARM_UP_TOKENS)
        before = read_counters(metrics)
        started = time.perf_counter()
        generations = _generate(client, cell, workload.prompts, workload.max_new_tokens)
        seconds = time.perf_counter() - started
        after = read_counters(metrics)
    spent = {name: value - before.get(name, 0.0) for name, value in after.items()}
    outputs = tuple(tuple(generation.token_ids) for generation in generations)
    return Run(
        cell, run_idx, version("laser-rec"), len(workload.prompts), len(workload.documents), workload.max_new_tokens,
        seconds, outputs, _stats(generations) | spent,
    )  # fmt: skip


def _generate(client: LaserClient, cell: Cell, prompts: tuple[list[int], ...], max_new_tokens: int) -> list[Generation]:
    acceptance = _ACCEPTANCES[cell.mode]
    return client.generate(
        list(prompts),
        pool=_POOL,
        acceptance=acceptance,
        draft=acceptance is not None,
        max_new_tokens=max_new_tokens,
        timeout=600,
    )


def _stats(generations: list[Generation]) -> dict[str, float]:
    names = ("num_steps", "num_draft_tokens", "num_accepted_tokens", "num_relaxed_tokens")
    return {name: float(sum(getattr(made.stats, name) for made in generations)) for name in names}


def read_counters(address: str) -> dict[str, float]:
    """A verifier's counters by name and labels, without the model's name: `laser_step_phase_seconds_total/forward`."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        "/".join([sample.name, *(value for name, value in sample.labels.items() if name != "model_name")]): sample.value
        for family in text_string_to_metric_families(text)
        if family.type == "counter"
        for sample in family.samples
        if sample.name.endswith("_total")
    }
