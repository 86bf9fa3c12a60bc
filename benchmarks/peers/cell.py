"""One run of one engine in one mode at one concurrency: what is asked for, and what came of it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = ("laser-plain", "laser-strict", "laser-relaxed")
THEIRS = ("vllm-plain", "vllm-ngram", "vllm-suffix")
MODES = THEIRS + OURS


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """What is compared: every run of a cell is the same work.

    Attributes:
        workload: name of the prompts' selection. mode: one of MODES. concurrency: sequences at once.
    """

    workload: str
    mode: str
    concurrency: int

    @staticmethod
    def parse(text: str) -> tuple[str, int]:
        """`MODE@CONCURRENCY`.

        Raises:
            ValueError: it is not.
        """
        mode, _, concurrency = text.partition("@")
        if mode not in MODES or not concurrency.isdigit() or int(concurrency) < 1:
            raise ValueError(f"cell is {text!r}, must be MODE@CONCURRENCY with one of {', '.join(MODES)}")
        return mode, int(concurrency)


@dataclass(frozen=True, slots=True)
class Run:
    """A measured run of a cell.

    Attributes:
        run_idx: from 0. version: of the engine. num_prompts, num_documents, max_new_tokens: of the workload.
        seconds: wall-clock of the whole run, prefill included, loading excluded.
        outputs: token ids per prompt.
        stolen_share: of the processors' time, what the hypervisor gave to others while it ran, loading included.
        stats: what the engine said of itself; empty for vLLM.
    """

    cell: Cell
    run_idx: int
    version: str
    num_prompts: int
    num_documents: int
    max_new_tokens: int
    seconds: float
    outputs: tuple[tuple[int, ...], ...]
    stats: dict[str, float] = dataclasses.field(default_factory=dict)
    stolen_share: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Output tokens of all prompts."""
        return sum(len(output) for output in self.outputs)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens over the whole run's seconds."""
        return self.num_tokens / self.seconds


def read_runs(path: Path) -> list[Run]:
    """The runs of a file, in the order measured; none if there is no file."""
    if not path.exists():
        return []
    return [_run_from_json(json.loads(line)) for line in path.read_text(encoding="utf8").splitlines()]


def append_run(path: Path, run: Run) -> None:
    """Adds a run; what was measured before stays whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf8") as file:
        file.write(json.dumps(dataclasses.asdict(run)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def missing(cells: Iterable[Cell], num_runs: int, done: Iterable[Run]) -> list[tuple[Cell, int]]:
    """What is still to run, alternating: all cells of a concurrency once, then once more, the first one rotating."""
    have = {(run.cell, run.run_idx) for run in done}
    plan: list[tuple[Cell, int]] = []
    cells = list(cells)
    for workload, concurrency in dict.fromkeys((cell.workload, cell.concurrency) for cell in cells):
        row = [cell for cell in cells if (cell.workload, cell.concurrency) == (workload, concurrency)]
        for run_idx in range(num_runs):
            shift = run_idx % len(row)
            plan.extend((cell, run_idx) for cell in row[shift:] + row[:shift])
    return [entry for entry in plan if entry not in have]


def check_same_work(done: Iterable[Run], cell: Cell, num_prompts: int, max_new_tokens: int) -> None:
    """Returns if all runs of a cell had so many prompts and new tokens.

    Raises:
        ValueError: medians of other work would be mixed with it.
    """
    for run in done:
        had, wanted = (run.num_prompts, run.max_new_tokens), (num_prompts, max_new_tokens)
        if run.cell == cell and had != wanted:
            raise ValueError(
                f"{cell.mode}@{cell.concurrency} has runs of {had[0]} prompts and {had[1]} new tokens, asked for are "
                f"{wanted[0]} and {wanted[1]}: name another --output"
            )


def _run_from_json(fields: dict[str, Any]) -> Run:
    outputs = tuple(tuple(output) for output in fields["outputs"])
    return Run(**{**fields, "cell": Cell(**fields["cell"]), "outputs": outputs})
