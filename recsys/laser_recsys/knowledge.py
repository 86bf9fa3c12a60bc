"""The knowledge job: prompts through a verifier, each drafted from its group's pool, and its Parquet file."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet

from laser_client import Generation, LaserClient, Relaxed, Strict
from laser_recsys.cache import building
from laser_recsys.measurement import Run
from laser_recsys.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt and the pool it is drafted from and learned into."""

    prompt: Prompt
    pool: str


@dataclass(frozen=True, slots=True)
class Mode:
    """How to decode. `draft=False` is plain decoding."""

    name: str
    acceptance: Strict | Relaxed
    draft: bool


PLAIN = Mode("plain", Strict(), draft=False)
STRICT = Mode("strict", Strict(), draft=True)
RELAXED = Mode("relaxed (2, 0.1)", Relaxed(top_k=2, min_prob=0.1), draft=True)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """One row of knowledge.parquet.

    Attributes:
        id, kind, framework, prompt: see `Prompt`.
        pool: where it was drafted from.
        text, token_ids, finish_reason: see `laser_client.Generation`.
        model: name of the target model.
        acceptance: "plain", "strict" or "relaxed (top_k, min_prob)".
        num_steps, num_relaxed_tokens: see `laser_client.GenerationStats`.
        created_at: UTC.
    """

    id: str
    kind: str
    framework: str
    pool: str
    prompt: str
    text: str
    token_ids: list[int]
    finish_reason: str
    model: str
    acceptance: str
    num_steps: int
    num_relaxed_tokens: int
    created_at: datetime.datetime


SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("kind", pyarrow.string()),
        ("framework", pyarrow.string()),
        ("pool", pyarrow.string()),
        ("prompt", pyarrow.string()),
        ("text", pyarrow.string()),
        ("token_ids", pyarrow.list_(pyarrow.int32())),
        ("finish_reason", pyarrow.string()),
        ("model", pyarrow.string()),
        ("acceptance", pyarrow.string()),
        ("num_steps", pyarrow.int32()),
        ("num_relaxed_tokens", pyarrow.int32()),
        ("created_at", pyarrow.timestamp("us", tz="UTC")),
    ]
)


def pool_id(dataset: str, framework: str, kind: str, group: int) -> str:
    """The pool of one group: `ml-100k/kar/user/2`."""
    return f"{dataset}/{framework}/{kind}/{group}"


def generate(
    client: LaserClient,
    tasks: Sequence[Task],
    mode: Mode,
    *,
    max_new_tokens: int,
    learn: bool = False,
    on_done: Callable[[Generation], object] = lambda generation: None,
) -> Run:
    """Generates the knowledge of all tasks; how many at a time is the client's `max_in_flight`.

    Args:
        client: of the verifier.
        tasks: what to ask, and which pools to use.
        mode: how to decode.
        max_new_tokens: output limit in tokens.
        learn: finished texts join their pools, each under its prompt's id.
        on_done: called with each generation as it ends, on a thread of the client's.

    Raises:
        LaserError: of the first prompt that failed; the others are cancelled.
    """
    started = time.perf_counter()
    generations = client.generate(
        [task.prompt.text for task in tasks],
        pool=[task.pool for task in tasks],
        document_id=[task.prompt.id for task in tasks] if learn else None,
        on_progress=lambda index, outcome: on_done(outcome) if isinstance(outcome, Generation) else None,
        acceptance=mode.acceptance,
        draft=mode.draft,
        learn=learn,
        max_new_tokens=max_new_tokens,
    )
    return Run(mode.name, tuple(generations), time.perf_counter() - started)


def rows(tasks: Sequence[Task], run: Run, model: str) -> list[Knowledge]:
    """The rows of a run over `tasks`."""
    now = datetime.datetime.now(datetime.UTC)
    return [
        Knowledge(
            id=task.prompt.id,
            kind=task.prompt.kind,
            framework=task.prompt.framework,
            pool=task.pool,
            prompt=task.prompt.text,
            text=made.text,
            token_ids=made.token_ids,
            finish_reason=made.finish_reason,
            model=model,
            acceptance=run.name,
            num_steps=made.stats.num_steps,
            num_relaxed_tokens=made.stats.num_relaxed_tokens,
            created_at=now,
        )
        for task, made in zip(tasks, run.generations, strict=True)
    ]


def write_parquet(path: Path, knowledge: Sequence[Knowledge]) -> None:
    """Writes the rows; the file appears complete or not at all."""
    table = pyarrow.Table.from_pylist([asdict(row) for row in knowledge], schema=SCHEMA)
    with building(path) as built:
        pyarrow.parquet.write_table(table, built, compression="zstd")
        built.replace(path)
