from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laser_client import EngineDead, Model, NotReady, Strict, Unauthenticated
from laser_protocol.errors import to_trailing_metadata
from laser_protocol.v1 import verifier_pb2
from laser_recsys.frameworks.prompts import Prompt
from laser_recsys.knowledge import job, ray_job
from laser_recsys.knowledge.job import JobConfig, JobFailed
from laser_recsys.knowledge.ledger import Ledger, LedgerError, open_ledger
from laser_recsys.knowledge.prompt_files import PromptFiles, write_prompts
from laser_recsys.knowledge.ray_job import run_ray_job
from laser_recsys.knowledge.rows import RELAXED, SCHEMA, STRICT, Task
from laser_recsys.knowledge.session import IncompleteJob, ProgressBar, run_session
from laser_recsys.lock import FolderLocked, alone_in
from laser_recsys.parquet_files import splits_of
from tests.recsys.scripted import EchoVerifier, serving

NUM_TASKS = 40


def tasks(num: int = NUM_TASKS, text: str = "about {}") -> list[Task]:
    return [
        Task(Prompt(str(number), "user", "kar", text.format(number)), f"ml-100k/kar/user/{number % 3}")
        for number in range(num)
    ]


class Verifier(EchoVerifier):
    """An echo that knows its model, and that can refuse calls: its first `num_down`, or all of prompts with a word."""

    def __init__(self, num_down: int = 0, model: str = "tiny") -> None:
        super().__init__()
        self.num_down = num_down
        self._model = model
        self.pause_s = 0.0
        self.breaks = False
        self.num_deadly = 0  # calls of such prompts that find a dead engine
        self.num_broken: Counter[str] = Counter()

    def GetModel(self, request: Any, context: Any) -> verifier_pb2.GetModelResponse:  # noqa: N802
        return verifier_pb2.GetModelResponse(name=self._model, dtype="float32", tokenizer_fingerprint="f" * 64)

    def Generate(self, request: verifier_pb2.GenerateRequest, context: Any) -> Iterator[verifier_pb2.GenerateResponse]:  # noqa: N802
        with self._lock:
            self.num_down -= 1
            down = self.num_down >= 0
        if down:
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        if self.breaks:
            with self._lock:
                self.num_broken[request.text.text] += 1
            context.abort(grpc.StatusCode.INTERNAL, "internal error, request id abc")
        if "invalid" in request.text.text:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "prompt has 9000 tokens")
        if "forbidden" in request.text.text:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        if "deadly" in request.text.text:
            with self._lock:
                self.num_deadly -= 1
            if self.num_deadly >= 0:
                dead = EngineDead("the engine ended after a fault")
                context.set_trailing_metadata(to_trailing_metadata(dead))
                context.abort(grpc.StatusCode.UNAVAILABLE, str(dead))
        time.sleep(self.pause_s)
        yield from super().Generate(request, context)


def run(folder: Path, asked: Sequence[Task], *addresses: str, num_baseline: int = 0, **settings: Any) -> list[str]:
    said: list[str] = []
    settings = {"mode": STRICT, "max_new_tokens": 9, "concurrency": 4, "patience_s": 2.0, **settings}
    config = JobConfig(verifiers=addresses, **settings)
    folder.mkdir(exist_ok=True)
    prompts = folder / "prompts.parquet"
    write_prompts(prompts, asked)
    asyncio.run(run_session(config, PromptFiles([prompts]), folder, num_baseline, said.append))
    return said


def ids(folder: Path) -> Counter[str]:
    return Counter(pq.read_table(folder / "knowledge.parquet")["id"].to_pylist())


def test_each_task_is_asked_once_in_its_pool_and_stands_once_in_the_output(tmp_path: Path) -> None:
    verifier = Verifier()
    with serving(verifier) as address:
        said = run(tmp_path, tasks(), address, learn=True, part_rows=7)
    assert ids(tmp_path) == Counter(str(number) for number in range(NUM_TASKS))
    table = pq.read_table(tmp_path / "knowledge.parquet")
    assert table.schema.equals(SCHEMA)
    assert {row["pool"] == f"ml-100k/kar/user/{int(row['id']) % 3}" for row in table.to_pylist()} == {True}
    assert all(row["text"] == row["prompt"][::-1] for row in table.to_pylist())
    assert sorted(request.document_id for request in verifier.requests) == sorted(str(n) for n in range(NUM_TASKS))
    assert len(list((tmp_path / "parts").iterdir())) >= NUM_TASKS // 7 - 3
    assert said[-1].startswith(f"{NUM_TASKS} texts, {3 * NUM_TASKS} tokens, 1.50 tokens per step")


def test_a_job_resumes_where_it_was_and_asks_nothing_twice(tmp_path: Path) -> None:
    verifier = Verifier()
    with serving(verifier) as address:
        with pytest.raises(IncompleteJob, match=r"1 of 6 prompts were given up.*\n.*kar user 5: prompt has 9000"):
            run(tmp_path, [*tasks(5), Task(Prompt("5", "user", "kar", "invalid"), "p")], address)
        assert ids(tmp_path) == Counter("01234"), "one prompt does not keep the others' texts back"
        refused = json.loads((tmp_path / "refused.jsonl").read_text(encoding="utf8"))
        assert (refused["kind"], refused["id"]) == ("user", "5") and "prompt has 9000" in refused["reason"]
        verifier.requests.clear()
        with pytest.raises(IncompleteJob):
            run(tmp_path, [*tasks(5), Task(Prompt("5", "user", "kar", "invalid"), "p")], address)
    assert verifier.requests == []


def test_what_was_given_up_is_no_longer_named_once_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier()
    asked = [*tasks(2), Task(Prompt("x", "user", "kar", "fail"), "p")]
    with serving(verifier) as address:
        with pytest.raises(IncompleteJob):
            run(tmp_path, asked, address)
        verifier.fails = False
        with monkeypatch.context() as killed, pytest.raises(ZeroDivisionError):
            killed.setattr(Ledger, "merge", lambda ledger, split: 1 / 0)
            run(tmp_path, asked, address)
        assert not (tmp_path / "knowledge.parquet").exists(), "the earlier run's would look like one of all"
        run(tmp_path, asked, address)
    assert ids(tmp_path) == Counter(["0", "1", "x"])
    assert not (tmp_path / "refused.jsonl").exists()


def test_no_more_prompts_are_open_than_asked_for(tmp_path: Path) -> None:
    verifier = Verifier()
    verifier.pause_s = 0.01
    num_open = most = 0
    lock = threading.Lock()
    plain = verifier.Generate

    def counted(request: Any, context: Any) -> Iterator[verifier_pb2.GenerateResponse]:
        nonlocal num_open, most
        with lock:
            num_open += 1
            most = max(most, num_open)
        yield from plain(request, context)
        with lock:
            num_open -= 1

    verifier.Generate = counted  # type: ignore[method-assign]
    with serving(verifier) as address:
        run(tmp_path, tasks(), address, concurrency=3)
    assert 2 <= most <= 3


def test_a_verifier_that_fails_is_asked_again_and_another_takes_over_meanwhile(tmp_path: Path) -> None:
    failing, healthy = Verifier(num_down=4), Verifier()
    with serving(failing) as first, serving(healthy) as second:
        said = run(tmp_path, tasks(), first, second)
    assert ids(tmp_path) == Counter(str(number) for number in range(NUM_TASKS))
    assert len(healthy.requests) > 4
    assert any(line.startswith("tried again: 4 at ") for line in said)


def test_a_job_starts_while_one_of_its_verifiers_is_down(tmp_path: Path) -> None:
    nobody = "127.0.0.1:9"
    with serving(Verifier()) as address:
        run(tmp_path, tasks(), nobody, address)
    assert ids(tmp_path) == Counter(str(number) for number in range(NUM_TASKS))
    with pytest.raises(JobFailed, match=r"no verifier has answered for 0\.2 s"):
        run(tmp_path / "other", tasks(), nobody, patience_s=0.2)


def test_a_server_that_is_none_of_ours_ends_the_job_at_once_as_what_it_is(tmp_path: Path) -> None:
    with (
        serving() as address,
        pytest.raises(JobFailed, match=rf"{address} does not say what it serves: .* the right server's address"),
    ):
        run(tmp_path, tasks(3), address, patience_s=60.0)


def test_a_log_does_not_tell_every_time_that_a_server_is_not_there_yet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(JobFailed):
        run(tmp_path, tasks(3), "127.0.0.1:9", patience_s=0.6)
    assert caplog.text.count("knowledge.no_answer verifier=127.0.0.1:9") == 1


def test_a_sick_verifier_makes_no_prompt_be_given_up_while_another_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(job, "_LONGEST_PAUSE_S", 0.001)
    sick, healthy = Verifier(), Verifier()
    sick.breaks = True
    healthy.pause_s = 0.3  # long enough for the sick one to fail at what comes back again and again
    with serving(sick) as first, serving(healthy) as second:
        run(tmp_path, tasks(8), first, second)
    assert ids(tmp_path) == Counter(str(number) for number in range(8))
    assert max(sick.num_broken.values()) > 5


def test_a_prompt_that_breaks_the_only_verifier_there_is_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_FIRST_PAUSE_S", 0.001)
    asked = [*tasks(2), Task(Prompt("x", "user", "kar", "fail"), "p")]
    with serving(Verifier()) as address, pytest.raises(IncompleteJob, match="1 of 3 prompts were given up"):
        run(tmp_path, asked, "127.0.0.1:9", address)
    assert ids(tmp_path) == Counter("01")


def test_two_verifiers_share_the_work(tmp_path: Path) -> None:
    verifiers = Verifier(), Verifier()
    for verifier in verifiers:
        verifier.pause_s = 0.01
    with serving(verifiers[0]) as first, serving(verifiers[1]) as second:
        run(tmp_path, tasks(), first, second)
    asked = [request.text.text for verifier in verifiers for request in verifier.requests]
    assert len(asked) == len(set(asked)) == NUM_TASKS
    assert min(len(verifier.requests) for verifier in verifiers) > NUM_TASKS // 4


def test_a_job_without_any_verifier_left_ends_after_its_patience_and_keeps_what_is_done(tmp_path: Path) -> None:
    verifier = Verifier()
    with serving(verifier) as address:
        with pytest.raises(IncompleteJob):
            run(tmp_path, [*tasks(3), Task(Prompt("x", "user", "kar", "invalid"), "p")], address)
        verifier.num_down = 10**6
        with pytest.raises(JobFailed, match=r"no verifier has finished a text for .* restarting.*run the same command"):
            run(tmp_path, [*tasks(3), Task(Prompt("x", "user", "kar", "invalid"), "p")], address, patience_s=0.2)
        verifier.num_down = 0
        with pytest.raises(IncompleteJob, match="1 of 4"):
            run(tmp_path, [*tasks(3), Task(Prompt("x", "user", "kar", "invalid"), "p")], address)
    assert len(verifier.requests) == 3


def test_a_setting_that_refuses_every_prompt_ends_the_job_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "_ALL_REFUSED", 6)
    monkeypatch.setattr(job, "_ALL_REFUSED_S", 0.0)
    refused = tasks(text="invalid {}")
    with serving(Verifier()) as address:
        with pytest.raises(JobFailed, match=r"all of the first 6 prompts were refused; the last: .*9000 tokens"):
            run(tmp_path / "new", refused, address)
        assert "refused" in capsys.readouterr().err.splitlines()[-1], "and the bar says what goes by"
        good = [Task(Prompt("good", "user", "kar", "about good"), "p")]
        for _ in range(2):  # a job that has done something goes on
            with pytest.raises(IncompleteJob, match="40 of 41 prompts were given up"):
                run(tmp_path / "mixed", [*good, *refused], address, concurrency=1)


def test_plain_decodings_rate_ends_with_its_last_text() -> None:
    class Silent(Verifier):
        def GetModel(self, request: Any, context: Any) -> verifier_pb2.GetModelResponse:  # noqa: N802
            time.sleep(6)
            return super().GetModel(request, context)

    with serving(Verifier()) as quick, serving(Silent()) as silent:
        config = JobConfig(verifiers=(quick, silent), mode=STRICT, max_new_tokens=9, concurrency=4)
        rate = asyncio.run(job.plain_rate(config, tasks()))
        assert rate > 3 * NUM_TASKS / 5, "a verifier that says nothing decodes nothing meanwhile"
        config = JobConfig(verifiers=(quick,), mode=STRICT, max_new_tokens=9)
        assert asyncio.run(job.plain_rate(config, tasks(3, "invalid {}"))) == 0.0


def test_sigterm_ends_a_job_that_a_shell_runs_in_the_background(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.parquet", tasks(3))
    command = [
        sys.executable, "-m", "laser_recsys.cli", "generate", "--prompts", str(tmp_path / "prompts.parquet"),
        "--verifier", "localhost:1", "--output", str(tmp_path / "out"),
    ]  # fmt: skip

    def ignore_interrupts() -> None:  # as shells without job control do for `command &`
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=ignore_interrupts) as process:
        assert process.stderr is not None
        try:
            while "knowledge.no_answer" not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 130
        finally:
            process.kill()


def test_a_log_does_not_tell_every_retry(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(NUM_TASKS, 0, 0.0)
    for _ in range(100):
        bar.retried("localhost:1", NotReady("nobody listens"))
    bar.close()
    assert bar.num_retries == {"localhost:1": 100}
    assert 1 <= capsys.readouterr().err.count("nobody listens") <= 2


def test_a_dead_verifier_does_not_end_a_job_whose_other_one_is_slow(tmp_path: Path) -> None:
    """Slower than the patience that dead ones are given."""
    slow = Verifier()
    slow.pause_s = 0.8
    with serving(slow) as address:
        run(tmp_path, tasks(6), address, "127.0.0.1:9", patience_s=0.3, concurrency=2)
    assert len(ids(tmp_path)) == 6


def test_a_prompt_at_which_the_server_breaks_every_time_is_given_up_and_the_rest_is_done(tmp_path: Path) -> None:
    with serving(Verifier()) as address, pytest.raises(IncompleteJob, match="1 of 3 prompts were given up"):
        run(tmp_path, [*tasks(2), Task(Prompt("2", "user", "kar", "fail"), "p")], address)
    assert sum(len(pq.read_table(part)) for part in (tmp_path / "parts").iterdir()) == 2


def test_a_prompt_that_ends_the_engine_again_and_again_is_given_up_and_one_death_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(job, "_LONGEST_PAUSE_S", 0.001)
    verifier = Verifier()
    asked = [*tasks(2), Task(Prompt("x", "user", "kar", "deadly"), "p")]
    with serving(verifier) as address:
        verifier.num_deadly = 20  # answers until its process ends
        run(tmp_path / "once", asked, address)
        assert ids(tmp_path / "once") == Counter("01x")
        verifier.num_deadly = 10**6
        monkeypatch.setattr(job, "_START_S", 0.0)
        with pytest.raises(IncompleteJob, match="1 of 3 prompts were given up"):
            run(tmp_path / "again", asked, address)
    assert ids(tmp_path / "again") == Counter("01")


def test_a_wrong_token_ends_the_job_at_once_as_what_it_is(tmp_path: Path) -> None:
    with serving(Verifier()) as address, pytest.raises(Unauthenticated):
        run(tmp_path, tasks(3, "forbidden {}"), address, patience_s=60.0)


def test_the_speed_up_is_known_from_prompts_first_generated_plainly(tmp_path: Path) -> None:
    verifier = Verifier()
    with serving(verifier) as address:
        run(tmp_path, tasks(6), "127.0.0.1:9", address, num_baseline=2)
    plain = [request for request in verifier.requests if request.drafting == verifier_pb2.DRAFTING_OFF]
    assert len(plain) == 2 and not any(request.learn for request in plain)
    assert len(ids(tmp_path)) == 6


def test_a_prompt_that_fails_is_left_out_of_the_speed_up_and_the_bar_ends_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Verifier()) as address, pytest.raises(IncompleteJob, match="1 of 3"):
        run(tmp_path, [Task(Prompt("x", "user", "kar", "invalid"), "p"), *tasks(2)], address, num_baseline=2)
    assert ids(tmp_path) == Counter("01")
    shown = capsys.readouterr().err.rpartition("\r")[2]
    assert re.search(r"3/3 \[\d+:\d+<\d+:\d+, .+text/s, \d+ tokens/s, \d+\.\d+ tokens/step, \d+\.\d+x plain\]", shown)


def test_a_folder_with_another_job_is_refused_with_what_differs(tmp_path: Path) -> None:
    with serving(Verifier()) as address:
        run(tmp_path, tasks(3), address)
        with pytest.raises(LedgerError, match=r"acceptance 'strict', asked for is 'relaxed \(2, 0.1\)'"):
            run(tmp_path, tasks(3), address, mode=RELAXED)
        with pytest.raises(LedgerError, match="holds a job with prompts_sha256"):
            run(tmp_path, tasks(4), address)


def test_damaged_settings_of_a_job_are_named(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("")
    with pytest.raises(LedgerError, match=r"job\.json is no JSON .*: remove it if"), open_ledger(tmp_path, {"a": 1}):
        pass


def test_verifiers_of_different_models_are_refused(tmp_path: Path) -> None:
    with (
        serving(Verifier()) as first,
        serving(Verifier(model="other")) as second,
        pytest.raises(JobFailed, match=r"has name 'other', the job has 'tiny': must be the same"),
    ):
        run(tmp_path, tasks(3), first, second)


def test_two_ray_jobs_do_not_write_one_output(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    output = tmp_path / "made" / "knowledge.parquet"
    output.parent.mkdir()
    unfinished = tmp_path / "made" / ".knowledge.parquet.partial"
    unfinished.mkdir()
    config = JobConfig(("127.0.0.1:9",), STRICT)
    model = Model("tiny", "llama", "f" * 64, 40, 64, 1, False, (), "float32", "cpu", Strict())
    with (
        alone_in(output, tmp_path / "made" / ".knowledge.parquet.lock"),
        pytest.raises(FolderLocked, match=r"another process works in .*knowledge\.parquet"),
    ):
        run_ray_job(config, [], output, model)
    assert unfinished.exists()


def test_a_ray_job_does_not_go_on_with_texts_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise JobFailed("Ray: no cluster")

    monkeypatch.setattr(ray_job, "_generate", fail)
    prompts, output = tmp_path / "prompts.parquet", tmp_path / "knowledge"
    write_prompts(prompts, tasks(3), "user 1")
    model = Model("tiny", "llama", "f" * 64, 40, 64, 1, False, (), "float32", "cpu", Strict())

    def run_with(config: JobConfig) -> None:
        run_ray_job(config, [prompts], output, model)

    with pytest.raises(JobFailed, match="Ray"):
        run_with(JobConfig(("127.0.0.1:9",), STRICT, max_new_tokens=8))
    (tmp_path / ".knowledge.partial").mkdir(exist_ok=True)  # as a job leaves it that has some texts
    with pytest.raises(LedgerError, match="holds a job with max_new_tokens 8, asked for is 9"):
        run_with(JobConfig(("127.0.0.1:9",), STRICT, max_new_tokens=9))
    (tmp_path / ".knowledge.partial").rmdir()
    with pytest.raises(JobFailed, match="Ray"):
        run_with(JobConfig(("127.0.0.1:9",), STRICT, max_new_tokens=9))
    output.mkdir()
    (tmp_path / ".knowledge.json").unlink()
    with pytest.raises(ValueError, match="is there already, of no Ray job"):
        run_with(JobConfig(("127.0.0.1:9",), STRICT, max_new_tokens=9))


def test_a_ray_cluster_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")

    def refuse(**options: Any) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr(ray, "init", refuse)
    write_prompts(prompts := tmp_path / "prompts.parquet", tasks(3), "user 1")
    model = Model("tiny", "llama", "f" * 64, 40, 64, 1, False, (), "float32", "cpu", Strict())
    config = JobConfig(("127.0.0.1:9",), STRICT)
    with pytest.raises(JobFailed, match="Ray: no cluster at 'somewhere:1': ray client connection timeout"):
        run_ray_job(config, [prompts], tmp_path / "knowledge", model, address="somewhere:1")


def test_two_processes_do_not_run_one_job(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with open_ledger(tmp_path, {"a": 1}), context.Pool(1) as pool:
        assert "another process works in" in pool.apply(_open, (tmp_path,))


def _open(folder: Path) -> str:
    try:
        with open_ledger(folder, {"a": 1}):
            return "opened"
    except FolderLocked as error:
        return str(error)


def test_what_a_killed_process_left_unfinished_is_removed_and_never_read(tmp_path: Path) -> None:
    left = [
        tmp_path / f"{folder}.{name}-x7" / name
        for folder, name in (("parts/", "000001.parquet"), ("", "knowledge.parquet"), ("", "job.json"))
    ]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half a file")
    (tmp_path / "parts" / ".nfs0001").write_bytes(b"a file system's")
    with serving(Verifier()) as address:
        run(tmp_path, tasks(3), address)
    assert len(ids(tmp_path)) == 3
    assert not any(path.parent.exists() for path in left)


def test_a_part_that_holds_a_task_again_is_refused(tmp_path: Path) -> None:
    with serving(Verifier()) as address:
        run(tmp_path, tasks(3), address)
        part = next((tmp_path / "parts").iterdir())
        part.with_name("000099.parquet").write_bytes(part.read_bytes())
        with pytest.raises(LedgerError, match=r"000099.parquet holds kar user \d, which an earlier part holds"):
            run(tmp_path, tasks(3), address)


def test_json_answers_that_do_not_parse_are_counted(tmp_path: Path) -> None:
    asked = [Task(Prompt(str(n), "user", "rlmrec", f"about {n}", answer="json"), "p") for n in range(3)]
    with serving(Verifier()) as address:
        said = run(tmp_path, asked, address)
    assert said[-1] == "rlmrec: 3 of 3 answers are no JSON object with summarization and reasoning"


def test_prompts_are_read_back_as_written_and_a_doubled_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    asked = [*tasks(2), Task(Prompt("0", "item", "rlmrec", "text", "system", 3, "json"), "pool")]
    write_prompts(path, asked)
    assert list(PromptFiles([path])) == asked
    write_prompts(path, [*asked, asked[0]])
    with pytest.raises(ValueError, match="kar user 0 stands twice"):
        PromptFiles([path])
    path.write_text("no parquet")
    with pytest.raises(ValueError, match="is no Parquet file"):
        PromptFiles([path])


def test_prompt_files_say_their_split_and_must_be_of_one(tmp_path: Path) -> None:
    paths = [tmp_path / f"{place}.parquet" for place in range(3)]
    for path, task, split in zip(paths, tasks(3), ("", "user 1", "time 1"), strict=True):
        write_prompts(path, [task], split)
    assert PromptFiles(paths[:1]).split == ""
    assert PromptFiles(paths[:2]).split == "user 1"
    with pytest.raises(
        ValueError, match=r"of different splits, must be of one: .*1\.parquet of 'user 1', .*2\.parquet of 'time 1'"
    ):
        PromptFiles(paths)


@pytest.mark.slow
def test_on_ray_the_output_says_the_split_of_its_prompts(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    prompts, output = tmp_path / "prompts.parquet", tmp_path / "knowledge"
    write_prompts(prompts, tasks(9), "user 1")
    with serving(Verifier()) as address:
        command = [sys.executable, "-m", "laser_recsys.cli", "generate", "--prompts", str(prompts)]
        command += ["--verifier", address, "--ray", "local", "--output", str(output)]
        subprocess.run(command, check=True, timeout=100, capture_output=True)
    assert splits_of(output) == {"user 1"}


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("id", [1, 2], "column id is of type int64, must be string"),
        ("num_dropped", ["0", "1"], "column num_dropped is of type string, must be int32"),
        ("prompt", ["about 0", None], "column prompt holds a null, must hold none"),
        ("pool", pa.array(["p", "q"], pa.large_string()), None),
    ],
)
def test_a_prompt_file_of_wrong_columns_is_named(tmp_path: Path, column: str, values: Any, message: str | None) -> None:
    path = tmp_path / "prompts.parquet"
    write_prompts(path, tasks(2))
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, pa.array(values)), path)
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        assert [task.pool for task in PromptFiles([path])] == ["p", "q"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("verifiers", ()), ("max_new_tokens", 0), ("concurrency", 0), ("part_rows", 0), ("part_s", 0.0)],
)
def test_wrong_settings_are_named(field: str, value: object) -> None:
    settings: dict[str, Any] = {"verifiers": ("localhost:1",), "mode": STRICT, field: value}
    with pytest.raises(ValueError, match=f"{field} is"):
        JobConfig(**settings)
