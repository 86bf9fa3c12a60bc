"""`laser-recsys`: the command. Only this file reads arguments and the environment; the subcommands live in
`commands`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from laser_recsys.cache import default_cache_dir
from laser_recsys.commands import demo, evaluate, generate, group, prepare, prompts
from laser_recsys.errors import RecsysError

_DESCRIPTION = "LLM knowledge for recommenders, generated fast: earlier texts draft, the model verifies."
_EPILOG = """\
the pipeline, Parquet between the steps:
  laser-recsys prepare  --output data
  laser-recsys group    --data data
  laser-recsys prompts  --data data --framework kar --model ./smollm2   # with the tokenizer: none is too long
  laser-recsys generate --prompts data/prompts-kar.parquet --verifier localhost:50052 --output knowledge
  laser-recsys evaluate --data data --knowledge kar=knowledge/knowledge.parquet
"""


@dataclass(frozen=True, slots=True)
class _Command:
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Callable[[str], None]], None]
    epilog: str = ""
    description: str = ""
    extra: str = "recsys"


# What a command does without unless it is asked for.
_EXTRAS = {"ray": "ray", "transformers": "demo", "tokenizers": "demo"}

_COMMANDS = {
    "demo": _Command(demo.HELP, demo.add_arguments, demo.run, demo.EPILOG, demo.DESCRIPTION, "demo"),
    "model": _Command(demo.MODEL_HELP, demo.add_model_arguments, demo.run_model, "", demo.MODEL_DESCRIPTION, "demo"),
    **{
        step.__name__.rsplit(".", 1)[1]: _Command(step.HELP, step.add_arguments, step.run, step.EPILOG)
        for step in (prepare, group, prompts, generate)
    },
    "evaluate": _Command(evaluate.HELP, evaluate.add_arguments, evaluate.run, evaluate.EPILOG, extra="ctr"),
}


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 for an error, 2 for wrong arguments, 130 after Ctrl-C."""
    parser, parsers = _parsers()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _COMMANDS[arguments.command].run(arguments, _say)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except argparse.ArgumentTypeError as error:
        parsers[arguments.command].error(str(error))
    except ImportError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0]) or _COMMANDS[arguments.command].extra
        missing = f"{error.name} is not installed" if isinstance(error, ModuleNotFoundError) else str(error)
        return _fail(f"{missing}: the extra '{extra}' is needed (pip install '.[{extra}]' in the project's folder)")
    except (RecsysError, OSError, ValueError) as error:
        return _fail(str(error))
    except Exception as error:
        # Here, because gRPC takes long to import and most commands do without.
        from laser_protocol.errors import LaserError

        if not isinstance(error, LaserError):
            raise
        return _fail(str(error))
    return 0


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM as Ctrl-C: servers are ended, and what is finished is written, on the way out."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells have it for what runs in the background
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    from laser_protocol.commands import add_version  # gRPC takes long to import

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="laser-recsys", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw
    )  # fmt: skip
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {}
    for name, command in _COMMANDS.items():
        description = command.description or f"{command.help[0].upper()}{command.help[1:]}."
        parsers[name] = commands.add_parser(
            name, help=command.help, description=description, epilog=command.epilog, formatter_class=raw
        )
        command.add_arguments(parsers[name])
        parsers[name].add_argument(
            "--cache",
            type=Path,
            default=Path(os.environ.get("LASER_CACHE") or default_cache_dir()),
            metavar="DIR",
            help="downloads and the example model (default: $LASER_CACHE, else %(default)s)",
        )
    return parser, parsers


def _say(line: str) -> None:
    print(line, flush=True)


def _fail(message: str, status: int = 1) -> int:
    print(f"laser-recsys: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
