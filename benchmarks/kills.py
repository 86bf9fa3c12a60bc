"""kill -9 of the knowledge job, of a verifier and of a retriever, three times each, while texts of real users are made.

    python -m benchmarks.kills                       # float32: every text must be an undisturbed run's
    python -m benchmarks.kills --dtype bfloat16      # how many are, is reported

A retriever and two verifiers, each with a thread of its own, and `laser-recsys generate` over them; the second verifier
and the retriever are killed once texts have been written, the job once the other verifier has written some more, and
all are started again. In the first round all servers are killed and come back while the job lives, before that. The
undisturbed run is made by one verifier, plainly, before. Prints a JSON line; ends with status
1 if an id is missing or stands twice, or, in float32, if a text differs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from laser_recsys.cache import default_cache_dir
from laser_recsys.datasets.catalogue import read_dataset
from laser_recsys.datasets.dataset import split
from laser_recsys.example_model import EXAMPLE_MODEL_NAME, prepare_example_model
from laser_recsys.frameworks.prompts import PromptWriter
from laser_recsys.frameworks.template import load_framework
from laser_recsys.groups.methods import user_groups
from laser_recsys.knowledge.prompt_files import write_prompts
from laser_recsys.knowledge.tasks import KindTasks
from laser_recsys.processes import ServerProcess, command_path, free_address, retriever_process, verifier_process

CONCURRENCY = 4
_KILLED = ("second verifier", "retriever")


class Fleet:
    """A retriever and two verifiers, that come back at their addresses after a kill; use as a context manager.

    Args:
        model: directory.
        directory: takes pools and logs.
        verifier_options: of `laser-verifier serve`.
    """

    def __init__(self, model: Path, directory: Path, *verifier_options: str) -> None:
        self._model = model
        self._directory = directory
        self._options = ("--max-sequences", str(CONCURRENCY), *verifier_options)
        self._addresses = {name: free_address() for name in ("retriever", "first verifier", "second verifier")}
        self._servers: dict[str, ServerProcess] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.start(*self._addresses)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all servers."""
        return tuple(self._addresses)

    @property
    def verifiers(self) -> tuple[str, str]:
        """Their addresses."""
        return self._addresses["first verifier"], self._addresses["second verifier"]

    def start(self, *names: str) -> None:
        """Starts some, and waits until they are healthy."""
        for name in names:
            self._servers[name] = self._stack.enter_context(self._start(name))
        for name in names:
            self._servers[name].wait_until_healthy(300)

    def _start(self, name: str) -> ServerProcess:
        log_path = self._directory / f"{name.replace(' ', '-')}-{time.monotonic_ns()}.log"
        address, retriever = self._addresses[name], self._addresses["retriever"]
        if name == "retriever":
            return retriever_process(self._directory / "pools", log_path, address=address)
        return verifier_process(self._model, log_path, *self._options, retriever=retriever, address=address)

    def kill(self, *names: str) -> None:
        """SIGKILL: no handler runs, no stream is closed in order."""
        for name in names:
            os.kill(self._servers[name].pid, signal.SIGKILL)


def generate_command(
    prompts: Path, output: Path, verifiers: Sequence[str], max_new_tokens: int, acceptance: str = "strict"
) -> list[str]:
    """`laser-recsys generate`, with a part every half second, so that there is much to lose."""
    return [
        command_path("laser-recsys"), "generate", "--prompts", str(prompts), "--output", str(output),
        "--verifier", *verifiers, "--acceptance", acceptance, "--max-new-tokens", str(max_new_tokens),
        "--concurrency", str(CONCURRENCY), "--part-s", "0.5", "--patience", "90",
    ]  # fmt: skip


def run_disturbed(fleet: Fleet, command: Sequence[str], output: Path, num_rounds: int = 3) -> str:
    """Runs a job to its end through `num_rounds` of kills of the second verifier, the retriever and the job itself, in
    the first round after all servers were killed and came back while it ran.

    Args:
        fleet: that the job asks.
        command: of `generate_command`.
        output: its folder.
        num_rounds: kills of each.

    Returns:
        What the last run of the job said.

    Raises:
        RuntimeError: the job ended before it could be killed, wrote nothing for minutes, or failed.
    """
    for number in tqdm(range(num_rounds), desc="kills", leave=False):
        before = num_done(output)
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_for_a_part(output, before, job)
            if number == 0:
                fleet.kill(*fleet.names)
                fleet.start(*fleet.names)
                _wait_for_a_part(output, num_done(output), job)  # the job lives on and finds them again
            fleet.kill(*_KILLED)
            _wait_for_a_part(output, num_done(output), job)  # the other verifier goes on, without drafts
        finally:
            job.kill()
            job.wait()
        fleet.start(*_KILLED)
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"the job ended with status {finished.returncode}: {finished.stderr}")
    return finished.stdout


def num_done(output: Path) -> int:
    """Texts that an unfinished job has written."""
    return sum(pq.read_metadata(part).num_rows for part in (output / "parts").glob("[0-9]*.parquet"))


def _wait_for_a_part(output: Path, before: int, job: subprocess.Popen[bytes], timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while num_done(output) <= before:
        if job.poll() is not None:
            raise RuntimeError("the job ended before it was killed")
        if time.monotonic() > deadline:
            raise RuntimeError(f"no part in {timeout_s:g} s")
        time.sleep(0.02)


def read_texts(output: Path) -> list[tuple[str, str]]:
    """(id, text) of every row of a finished job."""
    rows = pq.read_table(output / "knowledge.parquet", columns=["id", "text"]).to_pylist()
    return [(row["id"], row["text"]) for row in rows]


def write_user_prompts(path: Path, num_users: int, seed: int) -> None:
    """KAR prompts of users of MovieLens-100k, each with the pool of its group."""
    dataset = read_dataset("ml-100k", None, default_cache_dir())
    past = split(dataset.ratings).past
    groups, _ = user_groups("collaborative", dataset, past, 3, 0)
    tasks = list(KindTasks(PromptWriter(load_framework("kar"), dataset, past), "user", groups, None, 0))
    chosen = np.random.default_rng(seed).choice(len(tasks), num_users, replace=False)
    write_prompts(path, [tasks[place] for place in chosen])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=60, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of users (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="kills of each (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, default=96, metavar="N", help="default: %(default)s")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # for the servers: else two verifiers' threads wait for each other by spinning
    cache = default_cache_dir()
    model = prepare_example_model(cache / EXAMPLE_MODEL_NAME, cache)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prompts, alone, disturbed = directory / "prompts.parquet", directory / "alone", directory / "disturbed"
        write_user_prompts(prompts, arguments.users, arguments.seed)
        with Fleet(model, directory, "--dtype", arguments.dtype, "--max-model-len", "1024") as fleet:
            # Plainly: the pools must not hold the texts that the disturbed run is to give.
            undisturbed = generate_command(prompts, alone, fleet.verifiers[:1], arguments.max_new_tokens, "plain")
            subprocess.run(undisturbed, check=True)
            command = generate_command(prompts, disturbed, fleet.verifiers, arguments.max_new_tokens)
            run_disturbed(fleet, command, disturbed, arguments.rounds)
        expected, rows = dict(read_texts(alone)), read_texts(disturbed)
    counts = Counter(task_id for task_id, _ in rows)
    row = {
        "dtype": arguments.dtype,
        "kills": 3 * arguments.rounds + len(fleet.names),
        "users": len(expected),
        "missing": len(expected.keys() - counts.keys()),
        "twice": sum(count > 1 for count in counts.values()),
        "equal_texts": sum(expected.get(task_id) == text for task_id, text in rows),
        "seconds": round(time.perf_counter() - started),
    }
    print(json.dumps(row), flush=True)
    is_exact = arguments.dtype != "float32" or row["equal_texts"] == row["users"]
    raise SystemExit(0 if is_exact and not row["missing"] and not row["twice"] else 1)


if __name__ == "__main__":
    main()
