"""One run of the knowledge job as a user sees it: opened or resumed, with a progress bar, and summed up."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet
from tqdm import tqdm

from laser_client import Generation, LaserError, Model
from laser_recsys.errors import RecsysError
from laser_recsys.files import building
from laser_recsys.frameworks.answers import parse_answer
from laser_recsys.knowledge.job import JobConfig, JobFailed, Refused, plain_rate, run_job, served_model
from laser_recsys.knowledge.ledger import Ledger, open_ledger
from laser_recsys.knowledge.prompt_files import PromptFiles
from laser_recsys.knowledge.rows import KEY_COLUMNS

_SHOWN_REFUSALS = 3


class IncompleteJob(RecsysError):
    """Some prompts were given up; the rest is done. The message names the first ones, refused.jsonl all."""


class ProgressBar:
    """tqdm with tokens/s, tokens per step and, where plain decoding's rate is known, the speed-up over it.

    Args:
        num_tasks, num_done: of the job, and what earlier runs did of it.
        plain_tokens_per_second: of plain decoding; 0: not known.
    """

    def __init__(self, num_tasks: int, num_done: int, plain_tokens_per_second: float) -> None:
        self._shown_every_s = 0.1 if sys.stderr.isatty() else 10.0  # a log keeps every line
        self._bar: Any = tqdm(
            total=num_tasks, initial=num_done, unit="text", desc="knowledge", dynamic_ncols=True,
            mininterval=self._shown_every_s,
        )  # fmt: skip
        self._retry_shown_s = -math.inf
        self._plain = plain_tokens_per_second
        self._num_tokens = self._num_steps = self._num_refused = 0
        self.num_retries: Counter[str] = Counter()

    def finished(self, made: Generation) -> None:
        """See `Progress`."""
        self._num_tokens += made.stats.num_output_tokens
        self._num_steps += made.stats.num_steps
        self._bar.set_postfix_str(self.rates(), refresh=False)
        self._bar.update()

    def retried(self, verifier: str, error: LaserError) -> None:
        """See `Progress`."""
        self.num_retries[verifier] += 1
        # All that wait at a dead verifier come here, again and again.
        if (now_s := time.monotonic()) >= self._retry_shown_s + self._shown_every_s:
            self._retry_shown_s = now_s
            self._bar.set_postfix_str(f"{verifier}: {error}; trying again")

    def refused(self) -> None:
        """See `Progress`."""
        self._num_refused += 1
        self._bar.set_description_str(f"knowledge, {self._num_refused} refused", refresh=False)
        self._bar.update()

    def rates(self) -> str:
        """What was reached in this run."""
        elapsed_s = self._bar.format_dict["elapsed"]
        if not self._num_steps or elapsed_s <= 0:
            return ""
        rate = self._num_tokens / elapsed_s
        shown = f"{rate:.0f} tokens/s, {self._num_tokens / self._num_steps:.2f} tokens/step"
        return f"{shown}, {rate / self._plain:.2f}x plain" if self._plain else shown

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


async def run_session(
    config: JobConfig, tasks: PromptFiles, folder: Path, num_baseline: int, say: Callable[[str], None]
) -> None:
    """Does what is left of the job in `folder` and merges it into knowledge.parquet.

    Args:
        config: how.
        tasks: all of the job's; with what the folder holds they name the job.
        folder: of the job; made if missing.
        num_baseline: prompts that are first generated plainly, to know the speed-up.
        say: takes each line for the user.

    Raises:
        FolderLocked: another process runs a job there.
        LedgerError: the folder holds another job.
        JobFailed: no verifier serves, or they serve different models.
        IncompleteJob: prompts were given up; knowledge.parquet holds the others.
    """
    if not tasks:
        raise ValueError("no prompts: the files hold no rows")
    model = await served_model(config)
    with open_ledger(folder, job_settings(config, model, tasks)) as ledger:
        num_done = len(ledger.done)
        if num_done:
            say(f"{num_done} of {len(tasks)} texts are done already")
        first = list(islice((task for task in tasks if task.key not in ledger.done), num_baseline))
        plain = await plain_rate(config, first) if first else 0.0
        bar = ProgressBar(len(tasks), num_done, plain)
        try:
            refused = await run_job(config, tasks, ledger, model, bar)
        finally:
            bar.close()
        _conclude(ledger, tasks, refused, bar, say)


def job_settings(config: JobConfig, model: Model, tasks: PromptFiles) -> dict[str, object]:
    """What makes a job this one and not another, as JSON values."""
    return {
        "model": model.name,
        "dtype": model.dtype,
        "tokenizer_fingerprint": model.tokenizer_fingerprint,
        "acceptance": config.mode.name,
        "max_new_tokens": config.max_new_tokens,
        "learn": config.learn,
        "prompts_sha256": tasks.sha256(),
    }


def _conclude(
    ledger: Ledger, tasks: PromptFiles, refused: Sequence[Refused], bar: ProgressBar, say: Callable[[str], None]
) -> None:
    if bar.num_retries:
        say("tried again: " + ", ".join(f"{count} at {address}" for address, count in bar.num_retries.items()))
    if len(ledger.done) + len(refused) != len(tasks):
        raise JobFailed(f"{len(ledger.done)} texts are done, {len(tasks)} were asked for")
    refusals = ledger.folder / "refused.jsonl"
    # At no moment may a file of all texts that are done, of this run or an earlier one, look like one of all.
    if refused or refusals.exists():
        ledger.merged.unlink(missing_ok=True)
    _write_refused(refusals, refused)
    path = ledger.merge(tasks.split)
    num_tokens, num_steps = ledger.rates()
    say(f"{len(ledger.done)} texts, {num_tokens} tokens, {num_tokens / max(num_steps, 1):.2f} tokens per step: {path}")
    for framework in tasks.json_frameworks():
        num_failed, num_answers = count_unparsed(path, framework)
        say(f"{framework}: {num_failed} of {num_answers} answers are no JSON object with summarization and reasoning")

    if refused:
        shown = "\n".join(f"  {' '.join(each.task.key)}: {each.reason}" for each in refused[:_SHOWN_REFUSALS])
        raise IncompleteJob(
            f"{len(refused)} of {len(tasks)} prompts were given up, all of them in {refusals}; {path} holds the rest. "
            f"Run the same command again to try them again. The first:\n{shown}"
        )


def _write_refused(path: Path, refused: Sequence[Refused]) -> None:
    """What was given up this time; no file where nothing was."""
    path.unlink(missing_ok=True)
    if refused:
        lines = [dict(zip(KEY_COLUMNS, each.task.key, strict=True)) | {"reason": each.reason} for each in refused]
        with building(path) as built:
            built.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf8")
            built.replace(path)


def count_unparsed(path: Path, framework: str) -> tuple[int, int]:
    """(answers that do not parse, answers) of a framework in knowledge.parquet."""
    table = pyarrow.parquet.read_table(path, columns=["text"], filters=[("framework", "==", framework)])
    texts = table["text"].to_pylist()
    return sum(parse_answer(text) is None for text in texts), len(texts)
