"""What the knowledge job asks and keeps: tasks, how to decode them, and the rows of knowledge.parquet."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from laser_client import Generation, Relaxed, Strict
from laser_recsys.frameworks.prompts import Prompt
from laser_recsys.parquet_files import write_parquet


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt and the pool it is drafted from and learned into."""

    prompt: Prompt
    pool: str

    @property
    def key(self) -> TaskKey:
        """What names the task in a job."""
        return self.prompt.framework, self.prompt.kind, self.prompt.id


KEY_COLUMNS = ("framework", "kind", "id")
TaskKey = tuple[str, str, str]  # of KEY_COLUMNS


def key_of_row(row: Mapping[str, Any]) -> TaskKey:
    """The key of a row that holds KEY_COLUMNS. Jobs keep millions: what many share is kept once."""
    return sys.intern(row["framework"]), sys.intern(row["kind"]), row["id"]


@dataclass(frozen=True, slots=True)
class Mode:
    """How to decode. `draft=False` is plain decoding."""

    name: str
    acceptance: Strict | Relaxed
    draft: bool


PLAIN = Mode("plain", Strict(), draft=False)
STRICT = Mode("strict", Strict(), draft=True)


def relaxed_mode(top_k: int = 2, min_prob: float = 0.1) -> Mode:
    """Relaxed with these values.

    Raises:
        InvalidRequest: one is out of range.
    """
    return Mode(f"relaxed ({top_k}, {min_prob:g})", Relaxed(top_k=top_k, min_prob=min_prob), draft=True)


RELAXED = relaxed_mode()


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

    @property
    def key(self) -> TaskKey:
        """The task it answers."""
        return self.framework, self.kind, self.id


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


def pool_root(dataset: str, split: str = "") -> str:
    """Under which the pools of a dataset lie: `ml-100k`; of an evaluation's split (`split_mark`) `ml-100k-user-012345`,
    for its texts must not be drafted from ones that know ratings which it holds back."""
    way, _, digest = split.partition(" ")
    return dataset if way in ("", "none") else f"{dataset}-{way}-{digest[:6]}"


def pool_id(root: str, framework: str, kind: str, group: int) -> str:
    """The pool of one group: `ml-100k/kar/user/2`."""
    return f"{root}/{framework}/{kind}/{group}"


def make_row(task: Task, made: Generation, mode: Mode, model: str) -> Knowledge:
    """The row of one finished task, as of now."""
    return Knowledge(
        id=task.prompt.id,
        kind=task.prompt.kind,
        framework=task.prompt.framework,
        pool=task.pool,
        prompt=task.prompt.text,
        text=made.text,
        token_ids=made.token_ids,
        finish_reason=made.finish_reason,
        model=model,
        acceptance=mode.name,
        num_steps=made.stats.num_steps,
        num_relaxed_tokens=made.stats.num_relaxed_tokens,
        created_at=datetime.datetime.now(datetime.UTC),
    )


def write_knowledge(path: Path, knowledge: Sequence[Knowledge]) -> None:
    """Writes the rows; the file appears complete and on the disk, or not at all."""
    write_parquet(path, pyarrow.Table.from_pylist([asdict(row) for row in knowledge], schema=SCHEMA))
