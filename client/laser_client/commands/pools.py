"""`laser pools`: looks after the pools of a retriever."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from laser_client.client import LaserClient
from laser_client.commands.common import make_endpoint, print_fields, print_table
from laser_client.document_files import read_document_file, write_document_file
from laser_client.pools import Document, Pool, PoolClient
from laser_protocol.commands import add_connection_options, connection_arguments
from laser_protocol.errors import InvalidRequest
from laser_protocol.packing import unpack_token_ids
from laser_protocol.pool_id import check_pool_id

_EXAMPLES = {
    "list": "laser pools list --retriever localhost:50051 --root ml-100k",
    "describe": "laser pools describe --retriever localhost:50051 --pool ml-100k/kar/user/2",
    "add": (
        "laser pools add --retriever localhost:50051 --verifier localhost:50052 \\\n"
        "      --pool ml-100k/kar/user/2 --input outputs.jsonl\n\n"
        '  where a line of outputs.jsonl is {"id": "user-17", "output_token_ids": [464, 2836, 2]};\n'
        "  a Parquet file has these as columns, and needs no --verifier if `laser pools export` wrote it"
    ),
    "export": "laser pools export --retriever localhost:50051 --pool ml-100k/kar/user/2 --output pool.parquet",
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
        "export": "write all documents to a file",
        "remove": "delete documents by id",
        "drop": "delete a pool with all its documents",
        "compact": "merge the segments of a pool, without deleted documents",
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
    actions = {
        "list": _list,
        "describe": _describe,
        "add": _add,
        "export": _export,
        "remove": _remove,
        "drop": _drop,
        "compact": _compact,
    }
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
            "--input", required=True, type=Path, metavar="F.jsonl|F.parquet", help="rows of id and output_token_ids"
        )
        action.add_argument(
            "--verifier",
            metavar="HOST:PORT",
            help="whose tokenizer the ids are of; needed unless the file says so. Token and certificates go to both",
        )
    if name == "export":
        action.add_argument("--output", required=True, type=Path, metavar="F.jsonl|F.parquet", help="file to write")
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
    file = read_document_file(arguments.input)
    documents, fingerprint = file.documents, file.tokenizer_fingerprint
    if arguments.verifier is not None:
        with LaserClient(arguments.verifier, **connection_arguments(arguments)) as verifier:
            model = verifier.model()
        fingerprint = _check_tokenizer(arguments.input, fingerprint, model.tokenizer_fingerprint)
        _check_vocabulary(arguments.input, documents, model.vocab_size)
    if not fingerprint:
        raise InvalidRequest(f"verifier is missing: {arguments.input} does not name its tokenizer", field="verifier")
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


def _check_tokenizer(path: Path, named: str, served: str) -> str:
    if named and named != served:
        raise InvalidRequest(f"{path} holds tokens of tokenizer {named}, the verifier has {served}", field="verifier")
    return served


def _check_vocabulary(path: Path, documents: Sequence[Document], vocab_size: int) -> None:
    for document in documents:
        largest = max(unpack_token_ids(document.packed_token_ids))
        if largest >= vocab_size:
            raise InvalidRequest(
                f"output_token_ids of {document.id!r} in {path} holds {largest}, must be below the verifier's "
                f"vocabulary of {vocab_size}",
                field="output_token_ids",
            )


def _export(client: PoolClient, arguments: argparse.Namespace) -> int:
    pool, documents = client.export(arguments.pool)
    with tqdm(documents, total=pool.num_documents, unit="document", disable=None) as bar:
        num_documents = write_document_file(arguments.output, pool.tokenizer_fingerprint, bar)
    sys.stdout.write(f"{num_documents} documents of {arguments.pool} written to {arguments.output}\n")
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
        print_fields(
            [(field.name, _readable(field.name, getattr(pool, field.name))) for field in dataclasses.fields(Pool)]
        )


def _readable(name: str, value: object) -> object:
    """A field's value for people: times as dates, no limit as a word."""
    if name.endswith("_unix_ms") and isinstance(value, int):
        return datetime.fromtimestamp(value / 1000, UTC).isoformat(timespec="seconds") if value else "-"
    if name.startswith("max_"):
        return value or "no limit"
    return "-" if value == "" else value


def _print_json(pool: Pool) -> None:
    sys.stdout.write(json.dumps(dataclasses.asdict(pool)) + "\n")
