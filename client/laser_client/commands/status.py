"""`laser health` and `laser model`: is a server up, and what does it serve."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from laser_client.client import LaserClient
from laser_client.commands.common import make_endpoint, print_fields
from laser_client.generation import Model
from laser_client.health import check_health
from laser_protocol.commands import add_connection_options, connection_arguments


def add_health_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `laser health`."""
    parser.add_argument("target", metavar="HOST:PORT", help="a verifier or a retriever")
    parser.add_argument("--service", default="", metavar="NAME", help="one service, such as laser.v1.Verifier")
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="S", help="seconds to wait (default: %(default)s)"
    )
    add_connection_options(parser)


def run_health(arguments: argparse.Namespace) -> int:
    """Prints the status; 0 if it is SERVING, else 1."""
    status = check_health(make_endpoint(arguments.target, arguments), arguments.service, arguments.timeout)
    sys.stdout.write(f"{status}\n")
    return 0 if status == "SERVING" else 1


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `laser model`."""
    parser.add_argument("--verifier", required=True, metavar="HOST:PORT", help="the server to ask")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    add_connection_options(parser)


def run_model(arguments: argparse.Namespace) -> int:
    """Prints what a verifier serves."""
    with LaserClient(arguments.verifier, **connection_arguments(arguments)) as client:
        model = client.model()
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(Model)}
    fields["default_acceptance"] = str(model.default_acceptance)
    if arguments.json:
        sys.stdout.write(json.dumps(fields) + "\n")
    else:
        fields["eos_token_ids"] = ", ".join(map(str, model.eos_token_ids))
        print_fields(list(fields.items()))
    return 0
