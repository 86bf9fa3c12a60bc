"""`laser-recsys generate`: the knowledge job, from prompts.parquet to knowledge.parquet."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path

HELP = "generate the knowledge: resumable, through one or many verifiers"
EPILOG = """\
Run the same command again after a kill or a failure: it goes on where it was, and each id stands in the output exactly
once. Finished texts join their pools (--no-learn: they do not), so later ones are drafted from them. Plain texts do so
only with --learn: they are what drafted runs are compared with, and would be drafts of the very same texts.

examples:
  laser-recsys generate --prompts data/prompts-kar.parquet --verifier localhost:50052 --output knowledge-strict
  laser-recsys generate --prompts data/prompts-kar.parquet --verifier gpu1:50052 gpu2:50052 --acceptance relaxed \\
      --baseline 128 --output knowledge-relaxed

--ray runs the same job on a Ray cluster (extra 'ray'), from where all workers see the files; 'local' starts one here.
The same command goes on there too; there is no speed-up or progress but Ray's own.

Texts that are to be compared must not draft each other: give each of such jobs an empty retriever, or drop the pools in
between, also between strict and relaxed ones (a user's own strict text is plain decoding's).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `laser-recsys generate`."""
    from laser_protocol.commands import add_connection_options, add_relaxed_options

    parser.add_argument("--prompts", type=Path, nargs="+", required=True, metavar="FILE", help="what 'prompts' wrote")
    parser.add_argument("--verifier", nargs="+", required=True, metavar="HOST:PORT", help="one or many, of one model")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the job: parts, knowledge.parquet")
    parser.add_argument(
        "--acceptance", choices=("plain", "strict", "relaxed"), default="strict", help="default: %(default)s"
    )
    add_relaxed_options(parser)
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--concurrency", type=int, default=32, metavar="N", help="prompts open at each verifier (default: %(default)s)"
    )
    parser.add_argument(
        "--learn",
        action=argparse.BooleanOptionalAction,
        help="whether finished texts join their pools (default: strict and relaxed ones do)",
    )
    parser.add_argument(
        "--baseline",
        type=int,
        default=0,
        metavar="N",
        help="the first N prompts also plainly, to know the speed-up: 0, or two for each that is open (default: 0)",
    )
    parser.add_argument(
        "--part-s",
        type=float,
        default=15.0,
        metavar="S",
        help="seconds that a kill costs at most (default: %(default)s)",
    )
    parser.add_argument(
        "--patience", type=float, default=300.0, metavar="S", help="seconds without any verifier (default: %(default)s)"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="run on this Ray cluster; 'local': start one here")
    parser.add_argument(
        "--ray-workers", type=int, default=2, metavar="N", help="batches at a time (default: %(default)s)"
    )
    add_connection_options(parser)


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Runs it.

    Raises:
        LaserError, RecsysError, ValueError: see `laser_recsys.knowledge.session`.
    """
    from laser_protocol.commands import connection_arguments, relaxed_arguments
    from laser_recsys.knowledge.job import JobConfig
    from laser_recsys.knowledge.prompt_files import PromptFiles
    from laser_recsys.knowledge.rows import PLAIN, STRICT, relaxed_mode
    from laser_recsys.knowledge.session import run_session

    relaxed = relaxed_arguments(arguments)
    modes = {"plain": PLAIN, "strict": STRICT}
    config = JobConfig(
        verifiers=tuple(arguments.verifier),
        mode=modes.get(arguments.acceptance) or relaxed_mode(**relaxed),
        max_new_tokens=arguments.max_new_tokens,
        learn=arguments.acceptance != "plain" if arguments.learn is None else arguments.learn,
        concurrency=arguments.concurrency,
        part_s=arguments.part_s,
        patience_s=arguments.patience,
        connection=connection_arguments(arguments),
    )
    least = 2 * config.concurrency * len(config.verifiers)
    if arguments.baseline != 0 and arguments.baseline < least:
        raise ValueError(
            f"--baseline is {arguments.baseline}, must be 0 or at least {least}, two for each of the prompts open: the "
            "rate of fewer is that of verifiers half idle"
        )
    if arguments.ray is not None:
        if arguments.baseline:
            raise ValueError(f"--baseline is {arguments.baseline}, must be 0 with --ray, which shows no speed-up")
        from laser_recsys.knowledge.ray_job import run_ray_session

        run_ray_session(config, arguments.prompts, arguments.output, arguments.ray_workers, arguments.ray, say)
        return
    asyncio.run(run_session(config, PromptFiles(arguments.prompts), arguments.output, arguments.baseline, say))
