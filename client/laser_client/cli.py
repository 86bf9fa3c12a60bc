"""The `laser` command. Reads argv; the subcommands live in `laser_client.commands`.

Exit codes: 0 done, 1 the server refused or was not reached, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from laser_client.commands import generate, pools, status
from laser_protocol.commands import add_version
from laser_protocol.errors import InvalidRequest, LaserError

_HELP = {
    "generate": "generate text for one prompt or a file of prompts",
    "pools": "look after the pools of a retriever",
    "health": "is a server ready: prints its status, exits 0 if it is SERVING",
    "model": "what a verifier serves, and its limits",
}
_EPILOG = {
    "generate": generate.EXAMPLE,
    "pools": "example:\n  laser pools list --retriever localhost:50051\n\nACTION --help shows an example of each.",
    "health": "example:\n  laser health localhost:50052",
    "model": "example:\n  laser model --verifier localhost:50052",
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = _Parser(
        prog="laser",
        description="Generate text with LASER, and look after its servers.",
        epilog='example:\n  laser generate --verifier localhost:50052 --prompt "Which films does a fan of Alien like?"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {
        name: commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=_EPILOG[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, text in _HELP.items()
    }
    generate.add_arguments(parsers["generate"])
    pools.add_arguments(parsers["pools"])
    status.add_health_arguments(parsers["health"])
    status.add_model_arguments(parsers["model"])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code.

    Args:
        argv: arguments without the program's name; None: those of the process.
    """
    arguments = build_parser().parse_args(argv)
    run = {"generate": generate.run, "pools": pools.run, "health": status.run_health, "model": status.run_model}
    try:
        return run[arguments.command](arguments)
    except LaserError as error:
        _report(f"error: {error}")
        return 2 if isinstance(error, InvalidRequest) else 1
    except BrokenPipeError:
        # The reader went away (`| head`); Python must not complain about the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _report(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _report("interrupted")
        return 130


def _report(line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
