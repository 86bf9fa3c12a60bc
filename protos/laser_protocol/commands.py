"""Options that several commands of LASER have, spelt alike in all of them."""

from __future__ import annotations

import argparse
import logging
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from laser_protocol.channel import read_token
from laser_protocol.errors import InvalidRequest

LOG_LEVELS = ("debug", "info", "warning", "error")


def add_version(parser: argparse.ArgumentParser) -> None:
    """Adds `--version`."""
    parser.add_argument("--version", action="version", version=f"{parser.prog} {laser_version()}")


def laser_version() -> str:
    """The installed version; "unknown" where the code runs without having been installed."""
    try:
        return version("laser-rec")
    except PackageNotFoundError:
        return "unknown"


def add_log_level(parser: argparse.ArgumentParser) -> None:
    """Adds `--log-level`, in upper or lower case."""
    parser.add_argument("--log-level", type=str.lower, default="info", choices=LOG_LEVELS, help="default: %(default)s")


def start_logging(level: str) -> None:
    """Has a server log to standard error, from one of LOG_LEVELS on."""
    logging.basicConfig(level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")


def add_relaxed_options(group: argparse._ActionsContainer) -> None:
    """Adds `--top-k` and `--min-prob`, without defaults: `relaxed_arguments` must know whether they were given."""
    group.add_argument(
        "--top-k", type=int, metavar="K",
        help="relaxed only: how many of the most probable tokens may be accepted, 1 to 16 (default: 2)",
    )  # fmt: skip
    group.add_argument(
        "--min-prob", type=float, metavar="P",
        help="relaxed only: the probability that such a token must exceed, 0 to 1 (default: 0.1)",
    )  # fmt: skip


def relaxed_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_relaxed_options` that were given, as arguments of `Relaxed`.

    Raises:
        InvalidRequest: there are some, but `--acceptance` is not relaxed: they would do nothing.
    """
    given = {name: getattr(arguments, name) for name in ("top_k", "min_prob") if getattr(arguments, name) is not None}
    if given and arguments.acceptance != "relaxed":
        name, value = next(iter(given.items()))
        raise InvalidRequest(f"{name} is {value}, must be left out without --acceptance relaxed", field=name)
    return given


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """Adds a caller's options for token and TLS."""
    group = parser.add_argument_group("connection")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="file with the server's token")
    group.add_argument("--tls", action="store_true", help="TLS with the system's roots")
    group.add_argument("--tls-ca", type=Path, metavar="FILE", help="PEM: authorities to trust instead; implies --tls")
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM: own certificate, for mutual TLS")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM: key of --tls-cert")


def connection_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of LaserClient and Endpoint.make that those options give.

    Raises:
        InvalidRequest: the token file cannot be read, or holds no token.
    """
    token = None if arguments.token_file is None else read_token(arguments.token_file)
    return {"token": token, **{name: getattr(arguments, name) for name in ("tls", "tls_ca", "tls_cert", "tls_key")}}
