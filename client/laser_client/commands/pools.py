"""`laser pools`: looks after the pools of a retriever."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from tqdm import tqdm

from laser_client.client import LaserClient
from laser_client.commands.common import (
    add_connection_options,
    connection_arguments,
    make_endpoint,
    print_fields,
    print_table,
)
from laser_client.jsonl import read_documents
from laser_client.pools import Pool, PoolClient
from laser_protocol.errors import InvalidRequest
from laser_protocol.pool_id import check_pool_id

_EXAMPLES = {
    "list": "laser pools list --retriever localhost:50051 --root ml-100k",
    "describe": "laser pools describe --retriever localhost:50051 --pool ml-100k/kar/user/2",
    "add": (
        "laser pools add --retriever localhost:50051 --verifier localhost:50052 \\\n"
        "      --pool ml-100k/kar/user/2 --input outputs.jsonl\n\n"
        '  where a line of outputs.jsonl is {"id": "user-17", "output_token_ids": [464, 2836, 2]}'
    ),
    "remove": "laser pools remove --retriever localhost:50051 --pool ml-100k/kar/user/2 --id user-17 --id user-18",
    "drop": "laser pools drop --retriever localhost:50051 --pool ml-100k/kar/user/2 --yes",
    "compact": "laser pools compact --retriever localhost:50051 --pool ml-100k/kar/user/2",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `laser pools`, one subcommand per action."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    helps = {
        "list": "all pools, or those below a root",
        "describe": "one pool",
        "add": "add outputs; acknowledged ones survive a power loss",
        "remove": "delete documents by id",
        "drop": "delete a pool with all its documents",
        "compact": "merge a pool into one segment, without deleted documents",
    }
    for name, text in helps.items():
        action = actions.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  {_EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.add_argument("--retriever", required=True, metavar="HOST:PORT", help="any of them")
        if name != "list":
            action.add_argument("--pool", required=True, metavar="ID", help="such as ml-100k/kar/user/2")
        _add_own_arguments(name, action)
        add_connection_options(action)


def run(arguments: argparse.Namespace) -> int:
    """Runs the action that was named."""
    actions = {"list": _list, "describe": _describe, "add": _add, "remove": _remove, "drop": _drop, "compact": _compact}
    if arguments.action != "list":
        check_pool_id(arguments.pool)
    with PoolClient(make_endpoint(arguments.retriever, arguments)) as client:
        return actions[arguments.action](client, arguments)


def _add_own_arguments(name: str, action: argparse.ArgumentParser) -> None:
    if name == "list":
        action.add_argument("--root", default="", metavar="ID", help="only pools at or below it")
    if name in ("list", "describe", "compact"):
        action.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    if name == "add":
        action.add_argument(
            "--input", required=True, type=Path, metavar="F.jsonl", help="lines with id, output_token_ids"
        )
        action.add_argument("--verifier", required=True, metavar="HOST:PORT", help="whose tokenizer the ids are of")
    if name == "remove":
        action.add_argument(
            "--id", required=True, action="append", dest="ids", metavar="X", help="may be given more than once"
        )
    if name == "drop":
        action.add_argument("--yes", action="store_true", help="really delete")


def _list(client: PoolClient, arguments: argparse.Namespace) -> int:
    pools = client.list_pools(arguments.root)
    if arguments.json:
        for pool in pools:
            _print_json(pool)
        return 0
    header = ("pool", "documents", "tokens", "segments", "in log", "KiB", "tokenizer")
    rows = [
        (
            pool.id,
            f"{pool.num_documents:,}",
            f"{pool.num_tokens:,}",
            str(pool.num_segments),
            f"{pool.num_log_documents:,}",
            f"{pool.size_bytes / 1024:,.0f}",
            pool.tokenizer_fingerprint[:12],
        )
        for pool in pools
    ]
    print_table(header, rows)
    return 0


def _describe(client: PoolClient, arguments: argparse.Namespace) -> int:
    _print_pool(client.describe(arguments.pool), arguments)
    return 0


def _add(client: PoolClient, arguments: argparse.Namespace) -> int:
    documents = read_documents(arguments.input)
    with LaserClient(arguments.verifier, **connection_arguments(arguments)) as verifier:
        fingerprint = verifier.model().tokenizer_fingerprint
    num_added = 0
    with tqdm(total=len(documents), unit="document", disable=None) as bar:
        try:
            for num_documents in client.add(arguments.pool, fingerprint, documents):
                num_added += num_documents
                bar.update(num_documents)
        finally:
            bar.close()
            sys.stdout.write(f"{num_added} of {len(documents)} documents stored in {arguments.pool}\n")
    return 0


def _remove(client: PoolClient, arguments: argparse.Namespace) -> int:
    num_deleted = client.remove(arguments.pool, arguments.ids)
    sys.stdout.write(f"{num_deleted} of {len(arguments.ids)} documents existed and are deleted\n")
    return 0


def _drop(client: PoolClient, arguments: argparse.Namespace) -> int:
    if not arguments.yes:
        num_documents = client.describe(arguments.pool).num_documents
        raise InvalidRequest(f"{arguments.pool} holds {num_documents} documents: add --yes to delete them", field="yes")
    client.drop(arguments.pool)
    sys.stdout.write(f"{arguments.pool} is dropped\n")
    return 0


def _compact(client: PoolClient, arguments: argparse.Namespace) -> int:
    _print_pool(client.compact(arguments.pool), arguments)
    return 0


def _print_pool(pool: Pool, arguments: argparse.Namespace) -> None:
    if arguments.json:
        _print_json(pool)
    else:
        print_fields([(field.name, getattr(pool, field.name)) for field in dataclasses.fields(Pool)])


def _print_json(pool: Pool) -> None:
    sys.stdout.write(json.dumps(dataclasses.asdict(pool)) + "\n")
