"""The knowledge job on Ray Data, for those whose pipelines run there: Parquet in, Parquet out, batches on any worker.

Each batch goes through `knowledge.job`, so verifiers are shared, failed over and asked again as there. Ray repeats
batches of workers that die; a text is then generated again, and learned under the same document id. The same job goes
on where an earlier run ended or gave prompts up: what is kept is each batch that Ray had written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from laser_client import Generation, LaserError, Model
from laser_recsys.knowledge.job import JobConfig, JobFailed, run_job, served_model
from laser_recsys.knowledge.ledger import keep_settings
from laser_recsys.knowledge.prompt_files import SCHEMA as PROMPT_SCHEMA
from laser_recsys.knowledge.prompt_files import PromptFiles, task_of_row, write_prompts
from laser_recsys.knowledge.rows import KEY_COLUMNS, SCHEMA, Knowledge, TaskKey, key_of_row
from laser_recsys.knowledge.session import IncompleteJob, job_settings
from laser_recsys.lock import alone_in
from laser_recsys.parquet_files import marked, read_rows

logger = logging.getLogger(__name__)

_BATCHES_PER_WORKER = 4  # of a verifier's concurrency: long enough that the last texts of a batch cost little


class _Rows:
    """A sink in memory, in place of a ledger."""

    def __init__(self) -> None:
        self.done: set[TaskKey] = set()
        self.rows: list[Knowledge] = []

    def record(self, knowledge: Sequence[Knowledge]) -> None:
        self.rows += knowledge
        self.done.update(row.key for row in knowledge)


class _Silent:
    """No progress bar: Ray has one."""

    def finished(self, made: Generation) -> None:
        """See `Progress`."""

    def retried(self, verifier: str, error: LaserError) -> None:
        """See `Progress`."""

    def refused(self) -> None:
        """Not shown."""


def generate_batch(batch: pyarrow.Table, config: JobConfig, model: Model) -> pyarrow.Table:
    """Rows of prompts.parquet to rows of knowledge.parquet; none of a prompt that was given up, which is logged.

    Raises:
        JobFailed: no verifier serves.
    """
    sink = _Rows()
    tasks = [task_of_row(row) for row in batch.select(PROMPT_SCHEMA.names).to_pylist()]
    refused = asyncio.run(run_job(config, tasks, sink, model, _Silent()))
    for each in refused:
        logger.warning("knowledge.refused task=%r reason=%s", " ".join(each.task.key), each.reason)
    return pyarrow.Table.from_pylist([asdict(row) for row in sink.rows], schema=SCHEMA)


def run_ray_session(
    config: JobConfig,
    prompts: Sequence[Path],
    output: Path,
    num_workers: int,
    address: str,
    say: Callable[[str], None],
) -> None:
    """`run_ray_job` as a user sees it.

    Raises:
        JobFailed, IncompleteJob, FolderLocked, ValueError: see there.
    """
    _check(config, num_workers)
    PromptFiles(prompts)  # what is wrong with them is told before a verifier is waited for
    model = asyncio.run(served_model(config))
    num_rows = run_ray_job(config, prompts, output, model, num_workers, address)
    say(f"{num_rows} texts: {output}")


def run_ray_job(
    config: JobConfig,
    prompts: Sequence[Path],
    output: Path,
    model: Model,
    num_workers: int = 2,
    address: str = "local",
) -> int:
    """Generates all prompts on a Ray cluster.

    Args:
        config: how; its concurrency holds at each verifier for all workers together.
        prompts: files of `laser-recsys prompts`, to be seen by all workers.
        output: directory of Parquet files; appears when nothing more can be done. To be seen by all workers.
        model: that every verifier must serve.
        num_workers: batches at a time.
        address: of the cluster; "local": one is started on this machine and ended.

    Returns:
        How many rows `output` holds.

    Raises:
        ValueError: num_workers is below 1 or above the concurrency, `output` is no Ray job's, or a prompt stands twice.
        LedgerError: `output` is of a job with other settings, which it names.
        FolderLocked: another process of this host writes `output`.
        JobFailed: no verifier served, or the cluster failed.
        IncompleteJob: some prompts were given up; `output` holds the rest.
    """
    _check(config, num_workers)
    with alone_in(output, output.with_name(f".{output.name}.lock")):
        tasks = PromptFiles(prompts)  # each stands once
        partial, settings = (output.with_name(f".{output.name}.{name}") for name in ("partial", "json"))
        if not (output.exists() or partial.exists()):
            settings.unlink(missing_ok=True)  # of a job whose texts were removed
        elif not settings.exists():
            raise ValueError(f"output {output} is there already, of no Ray job: name another, or remove it")
        output.parent.mkdir(parents=True, exist_ok=True)
        keep_settings(settings, output, job_settings(config, model, tasks))
        if output.exists():
            output.rename(partial)  # of a run that gave some prompts up
        done = _done(partial)
        todo = list(prompts)
        if done:
            todo = [output.with_name(f".{output.name}.todo.parquet")]
            write_prompts(todo[0], (task for task in tasks if task.key not in done), tasks.split)
        if len(done) < len(tasks):
            _generate(config, todo, tasks.split, partial, model, num_workers, address)
        if done:
            todo[0].unlink(missing_ok=True)
        return _publish(partial, output, tasks)


def _check(config: JobConfig, num_workers: int) -> None:
    if not 1 <= num_workers <= config.concurrency:
        raise ValueError(
            f"num_workers is {num_workers}, must be from 1 to the concurrency ({config.concurrency}), which they share"
        )


def _done(folder: Path) -> set[TaskKey]:
    """The keys of the texts in a folder. Removes files that a killed worker was writing, or wrote again."""
    done: set[TaskKey] = set()
    for path in sorted(folder.glob("*.parquet")):
        try:
            keys = [key_of_row(row) for row in read_rows(path, SCHEMA, KEY_COLUMNS)]
        except ValueError:
            keys = []
        if done.issuperset(keys):
            path.unlink()
        done.update(keys)
    return done


def _generate(
    config: JobConfig,
    prompts: Sequence[Path],
    split: str,
    partial: Path,
    model: Model,
    num_workers: int,
    address: str,
) -> None:
    """Has the cluster write the texts of all prompts to a directory.

    Raises:
        JobFailed: no verifier served, or the cluster failed.
    """
    import ray
    from ray.exceptions import RayError

    share = replace(config, concurrency=max(config.concurrency // num_workers, 1))
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, RayError) as error:  # none there; one of another version
        raise JobFailed(f"Ray: no cluster at {address!r}: {error}") from error
    # Else what a worker raised is lost on the way here.
    ray.data.DataContext.get_current().raise_original_map_exception = True
    try:
        rows: Any = ray.data.read_parquet([str(path) for path in prompts])
        made = rows.repartition(target_num_rows_per_block=_BATCHES_PER_WORKER * share.concurrency).map_batches(
            generate_batch,
            batch_format="pyarrow",
            batch_size=_BATCHES_PER_WORKER * share.concurrency,
            fn_kwargs={"config": share, "model": model},
            compute=ray.data.TaskPoolStrategy(size=num_workers),
            num_cpus=0.5,  # it waits for verifiers
        )
        made.write_parquet(str(partial), schema=marked(SCHEMA, split))
    except (RayError, LaserError, JobFailed) as error:
        raise JobFailed(f"Ray: {getattr(error, 'cause', None) or error}") from error
    finally:
        ray.shutdown()


def _publish(partial: Path, output: Path, tasks: PromptFiles) -> int:
    """Gives the finished output its name. Returns how many rows it holds.

    Raises:
        JobFailed: a text stands twice.
        IncompleteJob: prompts were given up.
    """
    # Where every prompt was given up Ray leaves nothing.
    partial.mkdir(exist_ok=True)
    done = _done(partial)
    num_rows: int = sum(pyarrow.parquet.ParquetFile(path).metadata.num_rows for path in partial.glob("*.parquet"))
    if len(done) != num_rows:
        raise JobFailed(f"{partial} holds {num_rows - len(done)} texts twice: remove one of the files that do")
    partial.rename(output)
    missing = [task.key for task in tasks if task.key not in done]
    if missing:
        raise IncompleteJob(
            f"{len(missing)} of {len(tasks)} prompts were given up, {' '.join(missing[0])} among them; {output} holds "
            "the rest. Ray's logs of the workers say why (knowledge.refused); the same command tries them again"
        )
    return num_rows
