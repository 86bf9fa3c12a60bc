"""The knowledge job: many prompts to one or many verifiers, bounded, into parts, until every task is done.

A task counts as done when its part is on disk, and only then: a kill at any moment loses no task and repeats none in
the output. What was generated but not yet written is generated again, and learned under the same document id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from laser_client import (
    AsyncLaserClient,
    DeadlineExceeded,
    EngineDead,
    Generation,
    Internal,
    InvalidRequest,
    LaserError,
    Model,
    NotReady,
    Overloaded,
)
from laser_recsys.errors import RecsysError
from laser_recsys.knowledge.rows import PLAIN, Knowledge, Mode, Task, TaskKey, make_row

logger = logging.getLogger(__name__)

# The verifier may be back, or another one may do it.
_AWAY = (NotReady, EngineDead, DeadlineExceeded, Overloaded)
_TRANSIENT = (*_AWAY, Internal)
# Unlike the others these may be the prompt's own doing, so they are not tried for ever.
_PERHAPS_THE_PROMPT = (Internal, DeadlineExceeded, EngineDead)
_MAX_FAILURES = 5
# An engine dies once, but its server says so to all until its process ends, and a prompt that comes back is at once
# taken by an idle slot: what fails again in less time than any server takes to start tells of the same death.
_START_S = 5.0
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0
_TOLD_EVERY_S = 10.0  # that a verifier does not answer
# Prompts that a new job has refused by then, without a single text finished: a setting is wrong, not a prompt.
_ALL_REFUSED = 256
_ALL_REFUSED_S = 120.0


class JobFailed(RecsysError):
    """No verifier answers, or they do not serve the same model. What was done is kept. The message says what to do."""


@dataclass(frozen=True, slots=True)
class JobConfig:
    """How to run a job.

    Attributes:
        verifiers: HOST:PORT each.
        mode: how to decode.
        max_new_tokens: output limit in tokens, at least 1.
        learn: finished texts join their pools.
        concurrency: prompts open at a time at each verifier, at least 1.
        part_rows: a part is written when so many rows are waiting, at least 1.
        part_s: and at the latest so many seconds after the first of them, above 0: what a kill costs at most.
        patience_s: give up when every verifier has failed for so long without finishing a text, above 0.
        connection: keyword arguments of AsyncLaserClient: token and TLS.

    Raises:
        ValueError: names the field and the value.
    """

    verifiers: tuple[str, ...]
    mode: Mode
    max_new_tokens: int = 256
    learn: bool = False
    concurrency: int = 32
    part_rows: int = 4096
    part_s: float = 15.0
    patience_s: float = 300.0
    connection: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.verifiers:
            raise ValueError("verifiers is empty, must name at least one HOST:PORT")
        for name in ("max_new_tokens", "concurrency", "part_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        for name in ("part_s", "patience_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be above 0")


@dataclass(frozen=True, slots=True)
class Refused:
    """A prompt that verifiers refused or failed at again and again, and why. The job goes on; the task is not done."""

    task: Task
    reason: str


class Sink(Protocol):
    """Takes finished rows: the ledger, or what stands for it."""

    done: set[TaskKey]

    def record(self, knowledge: Sequence[Knowledge]) -> object:
        """Takes rows for good; called on a thread, never twice at a time."""


class Progress(Protocol):
    """Is told what happens, on the event loop."""

    def finished(self, made: Generation) -> None:
        """A text was finished."""

    def retried(self, verifier: str, error: LaserError) -> None:
        """A verifier failed; its prompt is tried again."""

    def refused(self) -> None:
        """A prompt was given up."""


async def served_model(config: JobConfig) -> Model:
    """What the verifiers serve: the word of the first that answers. The others may come later, and are asked then.

    Raises:
        JobFailed: none answered for `patience_s`, or one is no verifier.
        LaserError: a failure that trying again does not mend, such as Unauthenticated.
    """
    ends_s = time.monotonic() + config.patience_s
    told_s = dict.fromkeys(config.verifiers, -math.inf)
    async with _clients(config) as clients:
        while True:
            for address, client in zip(config.verifiers, clients, strict=True):
                try:
                    return await client.model()
                except _AWAY as error:
                    now_s = time.monotonic()
                    if now_s >= told_s[address] + _TOLD_EVERY_S:
                        told_s[address] = now_s
                        logger.warning("knowledge.no_answer verifier=%s error=%s", address, error)
                    if now_s > ends_s:
                        raise JobFailed(f"no verifier has answered for {config.patience_s:g} s; {error}") from error
                except Internal as error:
                    raise JobFailed(f"{address} does not say what it serves: {error}") from error
            await asyncio.sleep(_FIRST_PAUSE_S)


async def run_job(
    config: JobConfig, tasks: Iterable[Task], ledger: Sink, model: Model, progress: Progress
) -> list[Refused]:
    """Does all tasks that the ledger does not hold.

    Args:
        config: how.
        tasks: all of the job's; each at most once. Read as slots become free.
        ledger: takes the rows.
        model: that every verifier must serve; one that does not answer yet is asked once it does.
        progress: is told of every text.

    Returns:
        The prompts that were given up.

    Raises:
        JobFailed: no verifier answered for `patience_s`, or one serves another model.
        LaserError: a failure that trying again does not mend, such as Unauthenticated.
    """
    job = _Job(config, (task for task in tasks if task.key not in ledger.done), ledger, model, progress)
    await job.run()
    return job.refused


async def plain_rate(config: JobConfig, tasks: Sequence[Task]) -> float:
    """Tokens/s of plain decoding of `tasks` at the job's concurrency; nothing is kept or learned.

    A prompt that is refused is left out, a verifier that fails is not asked again; 0 if nothing is left. The time ends
    with the last text: what is waited for at a verifier that answers nothing is no time of decoding.
    """
    started = ended = time.perf_counter()
    waiting, num_tokens = deque(tasks), 0

    async def work(client: AsyncLaserClient) -> None:
        nonlocal num_tokens, ended
        with contextlib.suppress(*_TRANSIENT):
            await client.model()  # before any prompt is taken
            while waiting:
                task = waiting.popleft()
                try:
                    made = await _ask(client, task, PLAIN, config, learn=False)
                except InvalidRequest:
                    continue
                except _TRANSIENT:
                    waiting.append(task)  # for another one
                    raise
                num_tokens += made.stats.num_output_tokens
                ended = time.perf_counter()

    async with _clients(config) as clients:
        await asyncio.gather(*(work(client) for client in clients for _ in range(config.concurrency)))
    return num_tokens / (ended - started) if num_tokens else 0.0


@contextlib.asynccontextmanager
async def _clients(config: JobConfig) -> AsyncIterator[list[AsyncLaserClient]]:
    clients = [AsyncLaserClient(address, **config.connection) for address in config.verifiers]
    try:
        yield clients
    finally:
        for client in clients:
            await client.close()


async def _ask(client: AsyncLaserClient, task: Task, mode: Mode, config: JobConfig, learn: bool) -> Generation:
    return await client.generate(
        task.prompt.text,
        pool=task.pool,
        document_id=task.prompt.id if learn else None,
        system=task.prompt.system or None,
        acceptance=mode.acceptance,
        draft=mode.draft,
        learn=learn,
        max_new_tokens=config.max_new_tokens,
    )


class _Job:
    """One run. All state belongs to the event loop; parts are written on a thread."""

    def __init__(
        self, config: JobConfig, tasks: Iterator[Task], ledger: Sink, model: Model, progress: Progress
    ) -> None:
        self._config = config
        self._tasks = tasks
        self._returned: deque[Task] = deque()
        self._num_open = 0
        self._ledger = ledger
        self._model = model
        self._progress = progress
        self._rows: list[Knowledge] = []
        self._writing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._all_done = asyncio.Event()
        self._failures: dict[TaskKey, Counter[str]] = {}
        self._died_s: dict[tuple[TaskKey, str], float] = {}  # when a task counted an engine's death, by address
        self._checked: set[str] = set()  # serve the job's model, as far as we know
        self._seen: set[str] = set()  # did so once
        self._failing: dict[str, tuple[float, float]] = {}  # first and last failure since the last success, by address
        self._num_finished = 0
        self._started_s = time.monotonic()
        self.refused: list[Refused] = []

    async def run(self) -> None:
        try:
            async with _clients(self._config) as clients, asyncio.TaskGroup() as group:
                group.create_task(self._write_parts())
                workers = [
                    group.create_task(self._work(address, client))
                    for _ in range(self._config.concurrency)
                    for address, client in zip(self._config.verifiers, clients, strict=True)
                ]
                await asyncio.wait(workers)
                self._all_done.set()
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            raise first from first.__cause__
        finally:
            # Also after Ctrl-C or a failure: what is finished is kept.
            await asyncio.shield(self._write_part())

    async def _work(self, address: str, client: AsyncLaserClient) -> None:
        """One slot at one verifier: takes a task after the other. A failed task comes next, at any slot."""
        pause_s = _FIRST_PAUSE_S
        while (task := await self._take()) is not None:
            try:
                if not await self._serves_model(address, client):
                    raise NotReady(f"{address} does not say what it serves")
                made = await _ask(client, task, self._config.mode, self._config, self._config.learn)
            except InvalidRequest as error:
                self._refuse(task, error)
            except _TRANSIENT as error:
                self._checked.discard(address)  # what comes back may be another
                if self._retry(task, address, error):
                    self._progress.retried(address, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                pause_s = _FIRST_PAUSE_S
                self._failing.pop(address, None)
                self._num_finished += 1
                self._rows.append(make_row(task, made, self._config.mode, self._model.name))
                self._progress.finished(made)
                self._ended()
                if len(self._rows) >= self._config.part_rows:
                    await asyncio.shield(self._write_part())

    async def _serves_model(self, address: str, client: AsyncLaserClient) -> bool:
        """False: it does not answer, which says nothing about the prompt that it was to be asked."""
        if address in self._checked:
            return True
        try:
            model = await client.model()
        except _TRANSIENT as error:
            logger.debug("knowledge.no_answer verifier=%s error=%s", address, error)
            return False
        for name in ("name", "tokenizer_fingerprint", "dtype"):
            theirs, ours = getattr(model, name), getattr(self._model, name)
            if theirs != ours:
                raise JobFailed(f"{address} has {name} {theirs!r}, the job has {ours!r}: must be the same")
        self._checked.add(address)
        self._seen.add(address)
        return True

    async def _take(self) -> Task | None:
        """The next task; None once all are done. While others are open one of them may come back."""
        while True:
            task = self._returned.popleft() if self._returned else next(self._tasks, None)
            if task is not None:
                self._num_open += 1
                return task
            if self._num_open == 0:
                return None
            self._changed.clear()
            await self._changed.wait()

    def _ended(self) -> None:
        self._num_open -= 1
        self._changed.set()

    def _refuse(self, task: Task, error: LaserError) -> None:
        self.refused.append(Refused(task, str(error)))
        self._progress.refused()
        self._ended()
        is_new = self._num_finished == 0 and not self._ledger.done
        if is_new and len(self.refused) >= _ALL_REFUSED and time.monotonic() - self._started_s > _ALL_REFUSED_S:
            raise JobFailed(f"all of the first {len(self.refused)} prompts were refused; the last: {error}") from error

    def _retry(self, task: Task, address: str, error: LaserError) -> bool:
        """To be done next, unless this prompt alone is what fails, or no verifier answers any more. Whether it will be.

        One sick verifier says nothing about a prompt: it must have failed twice at another one too, where there is one
        that has ever served.
        """
        if isinstance(error, _PERHAPS_THE_PROMPT) and self._is_another(task, address, error):
            failures = self._failures.setdefault(task.key, Counter())
            failures[address] += 1
            num_witnesses = sum(count > 1 for count in failures.values())
            if failures.total() >= _MAX_FAILURES and num_witnesses >= min(2, len(self._seen)):
                self._refuse(task, error)
                return False
        self._returned.append(task)
        self._ended()
        now_s = time.monotonic()
        self._failing[address] = self._failing.get(address, (now_s, 0.0))[0], now_s
        # One that is back, or has never failed, may take longer than our patience for a text.
        spans_s = [last_s - first_s for first_s, last_s in self._failing.values()]
        failing_s = min(spans_s) if len(spans_s) == len(set(self._config.verifiers)) else 0.0
        if failing_s > self._config.patience_s:
            raise JobFailed(
                f"no verifier has finished a text for {failing_s:.0f} s; the last said: {error}. What was done is "
                "kept: run the same command again once they serve"
            ) from error
        return True

    def _is_another(self, task: Task, address: str, error: LaserError) -> bool:
        """Whether this is a failure of its own, not an engine's death that the task has been told of already."""
        if not isinstance(error, EngineDead):
            return True
        now_s, place = time.monotonic(), (task.key, address)
        if now_s < self._died_s.get(place, -math.inf) + _START_S:
            return False
        self._died_s[place] = now_s
        return True

    async def _write_parts(self) -> None:
        while not self._all_done.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_done.wait(), self._config.part_s)
            await asyncio.shield(self._write_part())

    async def _write_part(self) -> None:
        async with self._writing:
            rows, self._rows = self._rows, []
            if rows:
                path = await asyncio.to_thread(self._ledger.record, rows)
                logger.info("knowledge.part path=%s num_rows=%d", path, len(rows))
