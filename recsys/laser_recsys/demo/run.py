"""The demo: LASER's main job on real users and a real LLM, measured, on one machine.

Dataset, model, two server processes; knowledge of warm-up users fills the pools; held-out users are generated plain,
strict and relaxed in turns; a replay gives the effect of the pool's size; table, Parquet and report.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import grpc
from tqdm import tqdm

from laser_client import Generation, LaserClient, Model
from laser_protocol.errors import LaserError
from laser_recsys.datasets.catalogue import read_dataset
from laser_recsys.datasets.dataset import split
from laser_recsys.demo import table
from laser_recsys.demo.facts import run_facts
from laser_recsys.demo.replay import Known, Replay, ReplayFailed, ReplayPoint, TokenizerFacts
from laser_recsys.demo.report import DemoResult, Sample, write_report
from laser_recsys.demo.study import Study, plan_study
from laser_recsys.demo.table import BatchNoise
from laser_recsys.example_model import EXAMPLE_MODEL_NAME, prepare_example_model
from laser_recsys.knowledge import measured
from laser_recsys.knowledge.rows import PLAIN, RELAXED, STRICT, Task, write_knowledge
from laser_recsys.measurement import Run, agreement, summarise
from laser_recsys.processes import ServerProcess, retriever_process, verifier_process
from laser_recsys.tokens import PromptTokenizer

MODES = (PLAIN, STRICT, RELAXED)
MAX_MODEL_LEN = 1024
NUM_SAMPLES = 3
# Without a '/', so without ancestors: the pool holds what the replay put there and nothing else.
REPLAY_POOL = "ml-100k-replay"
_START_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """What to run.

    Attributes:
        output: directory of the results; made if missing.
        cache_dir: directory of wheels and the example model.
        model: model directory or hub id; None: the example model.
        num_warm_up: users whose texts fill the pools, at least 1.
        num_held_out: other users, measured; at least 1.
        num_alone: of these, how many also run plain one at a time; 0: none.
        max_new_tokens: output limit in tokens, at least 1.
        concurrency: prompts open at a time, at least 1.
        warm_up_limit_s, held_out_limit_s, alone_limit_s: no further batch is started after so many
            seconds, so that a slow machine measures fewer users instead of taking longer; None: no limit.
        num_groups: k of the grouping.
        seed: of the grouping and the choice of users.

    Raises:
        ValueError: names the field and the value.
    """

    output: Path
    cache_dir: Path
    model: str | None = None
    num_warm_up: int = 80
    num_held_out: int = 16
    num_alone: int = 3
    max_new_tokens: int = 192
    concurrency: int = 4
    warm_up_limit_s: float | None = None
    held_out_limit_s: float | None = None
    alone_limit_s: float | None = None
    num_groups: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("num_warm_up", 1), ("num_held_out", 1), ("num_alone", 0), ("max_new_tokens", 1), ("concurrency", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least {least}")
        if self.num_alone > self.num_held_out:
            raise ValueError(f"num_alone is {self.num_alone}, must be at most num_held_out ({self.num_held_out})")


@dataclass(frozen=True, slots=True)
class Servers:
    """The two running servers."""

    retriever: ServerProcess
    verifier: ServerProcess

    def check_alive(self) -> None:
        """Raises ServerFailed, with the log's tail, if one of them ended."""
        self.retriever.check_alive()
        self.verifier.check_alive()


@dataclass(slots=True)
class Phases:
    """Seconds of each phase, in order."""

    seconds: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures the body."""
        started = time.perf_counter()
        yield
        self.seconds.append((name, time.perf_counter() - started))


def run_demo(config: DemoConfig, say: Callable[[str], None]) -> DemoResult:
    """Runs it all and writes knowledge.parquet, held_out.parquet and report.html into the output directory.

    Args:
        config: what to run.
        say: takes each line for the user.

    Raises:
        CacheError: a wheel or the model could not be had.
        ServerFailed: a server did not start, or ended.
        LaserError: a request failed.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    phases = Phases()
    with phases.phase("dataset, groups, prompts"):
        dataset = read_dataset("ml-100k", None, config.cache_dir)
        study = plan_study(
            dataset,
            split(dataset.ratings).seen,
            config.num_warm_up,
            config.num_held_out,
            config.num_groups,
            config.seed,
        )
        sizes = ", ".join(str(size) for size in study.groups.sizes())
        say(f"{dataset.name}: {len(dataset.users)} users in {config.num_groups} groups of {sizes}")
    with phases.phase("model preparation"):
        model = config.model or str(_example_model(config, say))
    with ExitStack() as stack:
        with phases.phase("server start"):
            servers = _start_servers(stack, config, model)
        client = stack.enter_context(LaserClient(servers.verifier.address, max_in_flight=config.concurrency))
        try:
            return _measure(config, study, servers, client, model, phases, say)
        except LaserError:
            servers.check_alive()  # a dead server explains the error better than its symptom does
            raise


def _example_model(config: DemoConfig, say: Callable[[str], None]) -> Path:
    path = config.cache_dir / EXAMPLE_MODEL_NAME
    if not path.exists():
        say(f"preparing {EXAMPLE_MODEL_NAME} (once; about a minute)")
    return prepare_example_model(path, config.cache_dir)


def _start_servers(stack: ExitStack, config: DemoConfig, model: str) -> Servers:
    pools = stack.enter_context(tempfile.TemporaryDirectory(prefix="laser-pools-", ignore_cleanup_errors=True))
    retriever = stack.enter_context(retriever_process(Path(pools), config.output / "retriever.log"))
    # The modes are given the same prompts: with prefixes reused only the first of them would compute their prefill.
    limits = ("--max-sequences", str(config.concurrency), "--max-model-len", str(MAX_MODEL_LEN))
    options = (*limits, "--no-prefix-reuse")
    log_path = config.output / "verifier.log"
    verifier = stack.enter_context(verifier_process(model, log_path, *options, retriever=retriever.address))
    servers = Servers(retriever, verifier)
    with tqdm(total=2, desc="starting servers", unit="server", leave=False) as bar:
        for server in (servers.retriever, servers.verifier):
            server.wait_until_healthy(_START_TIMEOUT_S, on_wait=lambda waited_s: bar.refresh())
            bar.update()
    return servers


def _measure(
    config: DemoConfig,
    study: Study,
    servers: Servers,
    client: LaserClient,
    model_path: str,
    phases: Phases,
    say: Callable[[str], None],
) -> DemoResult:
    model = client.model()
    with phases.phase("warm-up users"):
        warm_up = _warm_up(config, study, client)
    study = replace(study, warm_up=study.warm_up[: len(warm_up.generations)])
    with phases.phase("held-out users, three modes"):
        runs = _held_out(config, study, client)
    study = replace(study, held_out=study.held_out[: len(runs[0].generations)])
    if len(study.warm_up) < config.num_warm_up or len(study.held_out) < config.num_held_out:
        say(
            f"this machine is slow just now: stopped after {len(study.warm_up)} of {config.num_warm_up} warm-up and "
            f"{len(study.held_out)} of {config.num_held_out} held-out users (--users N sets no limit)"
        )
    with phases.phase("plain, one at a time"):
        noise = _batch_noise(config, study, servers, runs[0])
    with phases.phase("replay"):
        points = _replay(study, servers, model, model_path, warm_up, runs[0])
    result = _result(config, study, model, warm_up, runs, noise, points, phases)
    done = [*study.warm_up, *study.held_out]
    write_knowledge(
        config.output / "knowledge.parquet",
        measured.rows(done, warm_up + runs[MODES.index(STRICT)], STRICT, model.name),
    )
    held_out = [
        row
        for mode, run in zip(MODES, runs, strict=True)
        for row in measured.rows(study.held_out, run, mode, model.name)
    ]
    write_knowledge(config.output / "held_out.parquet", held_out)
    write_report(config.output / "report.html", result)
    _conclude(config, result, say)
    return result


def _warm_up(config: DemoConfig, study: Study, client: LaserClient) -> Run:
    run = Run(STRICT.name, (), 0.0)
    with tqdm(total=len(study.warm_up), desc="warm-up users", unit="user") as bar:
        on_done = _progress(bar)
        for batch in _batches(study.warm_up, 4 * config.concurrency):
            if config.warm_up_limit_s is not None and run.seconds > config.warm_up_limit_s:
                break
            run += measured.generate(
                client, batch, STRICT, max_new_tokens=config.max_new_tokens, learn=True, on_done=on_done
            )
    return run


def _held_out(config: DemoConfig, study: Study, client: LaserClient) -> list[Run]:
    """One run per mode. The modes take turns over small batches, so that noise of the machine hits all alike."""
    runs = [Run(mode.name, (), 0.0) for mode in MODES]
    with tqdm(total=len(MODES) * len(study.held_out), desc="held-out users", unit="text") as bar:
        on_done = _progress(bar)
        for number, batch in enumerate(_batches(study.held_out, 2 * config.concurrency)):
            if config.held_out_limit_s is not None and sum(run.seconds for run in runs) > config.held_out_limit_s:
                break
            for turn in range(len(MODES)):
                which = (turn + number) % len(MODES)
                runs[which] += measured.generate(
                    client, batch, MODES[which], max_new_tokens=config.max_new_tokens, on_done=on_done
                )
    return runs


def _batches(tasks: Sequence[Task], size: int) -> Iterator[Sequence[Task]]:
    return (tasks[start : start + size] for start in range(0, len(tasks), size))


def _batch_noise(config: DemoConfig, study: Study, servers: Servers, plain: Run) -> BatchNoise | None:
    """Plain decoding of the first held-out users one at a time, beside that at the run's concurrency."""
    if config.num_alone == 0 or config.concurrency == 1:
        return None
    tasks = study.held_out[: config.num_alone]
    alone = Run(PLAIN.name, (), 0.0)
    with (
        LaserClient(servers.verifier.address, max_in_flight=1) as client,
        tqdm(total=len(tasks), desc="plain, one at a time", unit="user") as bar,
    ):
        on_done = _progress(bar)
        for batch in _batches(tasks, 1):
            if config.alone_limit_s is not None and alone.seconds > config.alone_limit_s:
                break
            alone += measured.generate(client, batch, PLAIN, max_new_tokens=config.max_new_tokens, on_done=on_done)
    compared = agreement(alone.generations, plain.generations[: len(alone.generations)])
    return BatchNoise(config.concurrency, compared, alone.tokens_per_second)


def _replay(
    study: Study, servers: Servers, model: Model, model_path: str, warm_up: Run, plain: Run
) -> tuple[ReplayPoint, ...]:
    prompts = PromptTokenizer(model_path).token_ids([task.prompt.text for task in study.held_out])
    for prompt, made in zip(prompts, plain.generations, strict=True):
        if len(prompt) != made.stats.num_prompt_tokens:
            raise ReplayFailed(
                f"a prompt has {len(prompt)} tokens here, {made.stats.num_prompt_tokens} at the verifier"
            )
    known = [Known(prompt, made.token_ids) for prompt, made in zip(prompts, plain.generations, strict=True)]
    documents = [made.token_ids for made in warm_up.generations]
    sizes = replay_sizes(len(documents))
    facts = TokenizerFacts(model.tokenizer_fingerprint, model.vocab_size, model.name)
    with (
        grpc.insecure_channel(servers.retriever.address) as channel,
        tqdm(total=len(sizes) * len(known), desc="replay", unit="text") as bar,
    ):
        return Replay(channel, facts, REPLAY_POOL).series(known, documents, sizes, on_done=lambda: bar.update())


def replay_sizes(num_documents: int) -> list[int]:
    """Numbers of documents to measure at: 0, 10, 40, 160, ... and all."""
    sizes = [0]
    size = 10
    while size < 0.7 * num_documents:
        sizes.append(size)
        size *= 4
    return [*sizes, num_documents]


def _progress(bar: tqdm[NoReturn]) -> Callable[[Generation], None]:
    """Moves the bar by one text and shows tokens/s."""
    num_tokens = 0

    def done(generation: Generation) -> None:
        nonlocal num_tokens
        num_tokens += generation.stats.num_output_tokens
        elapsed_s = bar.format_dict["elapsed"]
        if elapsed_s > 0:
            bar.set_postfix_str(f"{num_tokens / elapsed_s:.0f} tokens/s", refresh=False)
        bar.update()

    return done


def _result(
    config: DemoConfig,
    study: Study,
    model: Model,
    warm_up: Run,
    runs: Sequence[Run],
    noise: BatchNoise | None,
    points: tuple[ReplayPoint, ...],
    phases: Phases,
) -> DemoResult:
    texts = [[(run.name, made.text) for made in run.generations] for run in runs]
    samples = [
        Sample(task.prompt.id, int(task.pool.rsplit("/", 1)[1]), task.prompt.text, tuple(per_mode))
        for task, *per_mode in list(zip(study.held_out, *texts, strict=True))[:NUM_SAMPLES]
    ]
    return DemoResult(
        model=model.name,
        dtype=model.dtype,
        num_warm_up=len(study.warm_up),
        max_new_tokens=config.max_new_tokens,
        concurrency=config.concurrency,
        summaries=tuple(summarise(run, runs[0]) for run in runs),
        noise=noise,
        replay=points,
        samples=tuple(samples),
        facts=run_facts(study, model, warm_up, runs),
        phases=tuple(phases.seconds),
    )


def _conclude(config: DemoConfig, result: DemoResult, say: Callable[[str], None]) -> None:
    say("")
    say(table.text_table(table.cells(result.summaries, result.noise)))
    say("")
    if result.dtype != "float32":
        say(f"Strict is exact in float32. In {result.dtype} rounding may depend on the batch; on processors it does")
        say("not with Llama, Mistral, Qwen2 and Qwen3.")
        if result.noise is not None:
            say("The last row shows how far plain decoding agrees with itself at another batch size.")
    if result.replay:
        series = ", ".join(f"{point.num_documents}: {point.tokens_per_step:.2f}" for point in result.replay)
        say(f"tokens_per_step by documents in the pool (replay of this run's plain outputs): {series}")
    say(f"knowledge: {config.output / 'knowledge.parquet'}   report: {config.output / 'report.html'}")
