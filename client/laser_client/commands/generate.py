"""`laser generate`: one prompt as it comes, or a file of prompts into a file of results."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from laser_client.client import LaserClient
from laser_client.commands.common import print_fields
from laser_client.generation import Generation
from laser_client.jsonl import read_prompts
from laser_client.output import RowWriter, finishing, make_row, open_writer
from laser_client.request import Limits, Options, split_options
from laser_protocol.acceptance import Acceptance, Relaxed, Strict
from laser_protocol.channel import stands_for_many
from laser_protocol.commands import add_connection_options, add_relaxed_options, connection_arguments, relaxed_arguments
from laser_protocol.errors import EngineDead, InvalidRequest, LaserError, NotReady, Unauthenticated

EXAMPLE = """examples:
  laser generate --verifier localhost:50052 --prompt "Which films does a fan of Alien like?"
  laser generate --verifier localhost:50052 --input prompts.jsonl --output results.jsonl \\
      --pool ml-100k/kar/user --acceptance relaxed --top-k 2 --min-prob 0.1

  A line of prompts.jsonl is {"prompt": "...", "id": "user-17", "pool": "ml-100k/kar/user/2"}; id and pool may be
  left out, other fields are ignored. Results stand in the same order:
  {"id", "text", "token_ids", "finish_reason", "stats"}, or {"id", "error"} for a prompt the server refused.
"""

# After these the other prompts of the same server would fail alike.
_FATAL = (NotReady, EngineDead, Unauthenticated)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `laser generate`; defaults are the library's."""
    limits = Limits()
    parser.add_argument("--verifier", required=True, metavar="HOST:PORT", help="default port of a verifier: 50052")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompt", metavar="TEXT", help="one prompt, - reads it from standard input; its text is streamed out"
    )
    source.add_argument(
        "--input", type=Path, metavar="F.jsonl", help="a file of prompts, one JSON object per line; - is standard input"
    )
    parser.add_argument("--pool", metavar="ID", help="pool to draft from, where a line names none")
    parser.add_argument(
        "--document-id", metavar="ID", help="with --prompt and --learn: its document in the pool (default: a new one)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="F", help=".jsonl or .parquet; default: JSON lines to standard output"
    )
    how = parser.add_argument_group("how to generate")
    how.add_argument("--acceptance", choices=("strict", "relaxed"), help="default: the server's")
    add_relaxed_options(how)
    how.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="limit of the output (%(default)s)")
    how.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: greedy (%(default)s)")
    how.add_argument("--seed", type=int, metavar="N", help="with --temperature: the same seed, the same output")
    how.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it; up to 16 times")
    how.add_argument("--system", metavar="TEXT", help="system turn of the chat template")
    how.add_argument("--raw", action="store_true", help="no chat template")
    how.add_argument("--no-draft", action="store_true", help="plain decoding")
    how.add_argument("--learn", action="store_true", help="outputs join the pool, under the lines' ids")
    how.add_argument("--max-in-flight", type=int, default=256, metavar="N", help="prompts open at a time (%(default)s)")
    how.add_argument(
        "--timeout", type=float, default=limits.timeout, metavar="S", help="seconds of silence (%(default)s)"
    )
    how.add_argument("--deadline", type=float, default=limits.deadline, metavar="S", help="seconds for everything")
    add_connection_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Generates; 0, or 1 if the server refused some of the prompts."""
    with LaserClient(
        arguments.verifier, max_in_flight=arguments.max_in_flight, **connection_arguments(arguments)
    ) as client:
        return _run_one(client, arguments) if arguments.prompt is not None else _run_file(client, arguments)


def _run_one(client: LaserClient, arguments: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        writer: RowWriter | None = None
        if arguments.output is not None:
            writer = stack.enter_context(finishing(open_writer(arguments.output, None)))
        prompt = _read_prompt() if arguments.prompt == "-" else arguments.prompt
        document_id = arguments.document_id
        stream = client.stream(prompt, pool=arguments.pool, document_id=document_id, **_options(arguments))
        for chunk in stream:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
        generation = stream.finish()
        sys.stdout.write("\n")
        sys.stdout.flush()
        if writer is not None:
            writer.write(make_row(generation.request_id, generation))
    stats = generation.stats
    seconds = (stats.prefill_ms + stats.decode_ms) / 1000
    fields = [
        ("output tokens", f"{stats.num_output_tokens} ({generation.finish_reason})"),
        ("steps", f"{stats.num_steps} ({stats.tokens_per_step:.2f} tokens_per_step)"),
        ("drafts", f"{stats.num_accepted_tokens} of {stats.num_draft_tokens} tokens accepted ({stats.draft_status})"),
        ("time", f"{seconds:.2f} s ({stats.num_output_tokens / max(seconds, 1e-9):.1f} tokens/s)"),
    ]
    print_fields(fields, to_stderr=True)
    return 0


def _read_prompt() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")  # which `echo` adds
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"prompt: standard input is no UTF-8: {error}", field="prompt") from None


def _run_file(client: LaserClient, arguments: argparse.Namespace) -> int:
    if arguments.document_id is not None:
        raise InvalidRequest(
            f"document_id is {arguments.document_id!r}, must be left out with --input, whose lines have ids",
            field="document_id",
        )
    options = _options(arguments)
    settings, _ = split_options(options)
    lines = read_prompts(arguments.input, arguments.pool, settings)
    ids = [line.id for line in lines]
    # One of several servers may go and the others do what is left; of a single one the next prompts would fail alike.
    max_fatal = min(arguments.max_in_flight, len(ids)) if stands_for_many(arguments.verifier) else 1
    with Job(ids, open_writer(arguments.output, sys.stdout), max_fatal) as job:
        client.generate(
            [line.prompt for line in lines],
            pool=[line.pool for line in lines],
            document_id=[str(line.id) if line.has_own_id else None for line in lines],
            on_error="return",
            on_progress=job.take,
            **options,
        )
    print_fields(job.summary(), to_stderr=True)
    return 1 if job.num_failed else 0


class Job:
    """Takes outcomes as they come, writes them in the order of the input, and counts.

    Args:
        ids: one per prompt.
        writer: gets the rows; closed at the end, but aborted where an error or an interrupt came before any row.
        max_fatal: after so many errors in a row that mean a lost or dead server the job ends. They are written once a
            prompt succeeds: where none does, an earlier output stays.
    """

    def __init__(self, ids: list[str | int], writer: RowWriter, max_fatal: int = 1) -> None:
        self.num_failed = 0
        self._max_fatal = max_fatal
        self._fatal: list[tuple[int, LaserError]] = []  # in a row
        self._ids = ids
        self._writer = writer
        self._early: dict[int, dict[str, Any]] = {}
        self._next_idx = 0
        self._num_output_tokens = 0
        self._num_steps = 0
        self._num_accepted_tokens = 0
        self._statuses: Counter[str] = Counter()
        self._started_s = time.monotonic()
        self._bar = tqdm(total=len(ids), unit="prompt", disable=None)

    def take(self, index: int, outcome: Generation | LaserError) -> None:
        """One prompt ended.

        Raises:
            LaserError: the outcome, if it means that the others would fail alike.
        """
        if isinstance(outcome, Unauthenticated):
            raise outcome
        if isinstance(outcome, _FATAL):
            self._fatal.append((index, outcome))
            if len(self._fatal) >= self._max_fatal:
                raise outcome
            return
        lost, self._fatal = self._fatal, []
        for each in (*lost, (index, outcome)):
            self._write(*each)

    def _write(self, index: int, outcome: Generation | LaserError) -> None:
        self._count(outcome)
        self._early[index] = make_row(self._ids[index], outcome)
        while self._next_idx in self._early:
            self._writer.write(self._early.pop(self._next_idx))
            self._next_idx += 1
        self._bar.set_postfix_str(f"{self._tokens_per_s():.1f} tokens/s, {self._tokens_per_step():.2f} tokens_per_step")
        self._bar.update()

    def summary(self) -> list[tuple[str, object]]:
        """Names and values of the table at the end."""
        statuses = ", ".join(f"{status} {number}" for status, number in sorted(self._statuses.items()))
        return [
            ("prompts", f"{len(self._ids)} ({self.num_failed} failed)"),
            ("output tokens", f"{self._num_output_tokens:,}"),
            ("accepted draft tokens", f"{self._num_accepted_tokens:,}"),
            ("tokens_per_step", f"{self._tokens_per_step():.2f}"),
            ("time", f"{time.monotonic() - self._started_s:.1f} s"),
            ("tokens/s", f"{self._tokens_per_s():.1f}"),
            ("draft_status", statuses or "-"),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
        for each in self._fatal if error is None else ():  # the last ones
            self._write(*each)
        has_rows = self._next_idx > 0 or len(self._early) > 0
        end = self._writer.abort
        try:
            if error is None or has_rows:
                # After an interrupt or an error: what ended after a gap is kept too; its id tells which it is.
                for index in sorted(self._early):
                    self._writer.write(self._early[index])
                end = self._writer.close
        finally:
            end()

    def _count(self, outcome: Generation | LaserError) -> None:
        if isinstance(outcome, LaserError):
            self.num_failed += 1
            return
        self._num_output_tokens += outcome.stats.num_output_tokens
        self._num_steps += outcome.stats.num_steps
        self._num_accepted_tokens += outcome.stats.num_accepted_tokens
        self._statuses[outcome.stats.draft_status] += 1

    def _tokens_per_s(self) -> float:
        return self._num_output_tokens / max(time.monotonic() - self._started_s, 1e-9)

    def _tokens_per_step(self) -> float:
        return self._num_output_tokens / max(self._num_steps, 1)


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        acceptance=_acceptance(arguments),
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        stop=arguments.stop,
        draft=not arguments.no_draft,
        learn=arguments.learn,
        system=arguments.system,
        raw=arguments.raw,
        timeout=arguments.timeout,
        deadline=arguments.deadline,
    )


def _acceptance(arguments: argparse.Namespace) -> Acceptance | None:
    given = relaxed_arguments(arguments)
    if arguments.acceptance == "relaxed":
        return Relaxed(**given)
    return Strict() if arguments.acceptance == "strict" else None
