"""What the subcommands share: options to reach a server, and tables on standard output."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laser_protocol.channel import Endpoint
from laser_protocol.errors import InvalidRequest


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for token and TLS."""
    group = parser.add_argument_group("connection")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="file with the server's token")
    group.add_argument("--tls", action="store_true", help="TLS with the system's roots")
    group.add_argument("--tls-ca", type=Path, metavar="FILE", help="PEM: authorities to trust instead; implies --tls")
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM: own certificate, for mutual TLS")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM: key of --tls-cert")


def connection_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of LaserClient and Endpoint.make that the options give.

    Raises:
        InvalidRequest: the token file cannot be read or is empty.
    """
    names = ("tls", "tls_ca", "tls_cert", "tls_key")
    return {"token": _read_token(arguments.token_file), **{name: getattr(arguments, name) for name in names}}


def make_endpoint(target: str, arguments: argparse.Namespace) -> Endpoint:
    """The endpoint of a target with the connection options."""
    return Endpoint.make(target, **connection_arguments(arguments))


def print_fields(fields: Sequence[tuple[str, object]], *, to_stderr: bool = False) -> None:
    """Two columns, name and value."""
    width = max(len(name) for name, _ in fields)
    (sys.stderr if to_stderr else sys.stdout).write("".join(f"{name:<{width}}  {value}\n" for name, value in fields))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns under a header; the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"token_file {path}: {error}", field="token_file") from error
    if not token:
        raise InvalidRequest(f"token_file {path} is empty", field="token_file")
    return token
