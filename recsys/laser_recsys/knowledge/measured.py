"""Generating a few tasks at once and measuring the time: what the demo does. The job for many is `knowledge.job`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from laser_client import Generation, LaserClient
from laser_recsys.knowledge.rows import Knowledge, Mode, Task, make_row
from laser_recsys.measurement import Run


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
        tasks: what to ask, and which pools to use; none with a system message.
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


def rows(tasks: Sequence[Task], run: Run, mode: Mode, model: str) -> list[Knowledge]:
    """The rows of a run over `tasks`."""
    return [make_row(task, made, mode, model) for task, made in zip(tasks, run.generations, strict=True)]
