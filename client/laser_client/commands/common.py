"""What the subcommands share: the endpoint of their options, and tables on standard output."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from laser_protocol.channel import Endpoint
from laser_protocol.commands import connection_arguments


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
