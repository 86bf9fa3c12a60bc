"""`laser-retriever`: the command that serves pools."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import resource
import socket
import sys
from functools import partial
from pathlib import Path

import uvloop
from prometheus_client import start_http_server

from laser_protocol.commands import add_log_level, add_version, laser_version, start_logging
from laser_protocol.errors import LaserError
from laser_protocol.serving import LaserServer, ListenConfig, catch_signals, end_at_signals, serving_metrics
from laser_retriever.config import DRAFT_DEADLINE_S, RetrieverConfig, usable_processors
from laser_retriever.limits import NO_LIMITS, PoolLimits
from laser_retriever.metrics import RetrieverMetrics
from laser_retriever.pools import Pools
from laser_retriever.service import SERVICE_NAME, RetrieverService
from laser_retriever.tree_drafter import DraftParams
from laser_retriever.warmup import settle_garbage_collector, warm_up

logger = logging.getLogger(__name__)

DEFAULT_LISTEN = "127.0.0.1:50051"
# For documents that are being added or exported. Draft streams, which never end by themselves, are ended at once.
DEFAULT_GRACE_S = 10.0
# A thread that builds an index or hashes ids may keep a drafting one waiting for this long; Python's default is 5 ms.
SWITCH_INTERVAL_S = 0.0005
_EPILOG = """examples:
  laser-retriever serve --pools ./pools --listen 127.0.0.1:50051
  laser-retriever serve --pools ./pools --listen 127.0.0.1:50053 --name second   # another shard of the same pools
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0 after an orderly stop, 2 for wrong arguments, 1 for other errors."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    start_logging(arguments.log_level)
    try:
        config = RetrieverConfig(
            pools=arguments.pools,
            name=arguments.name,
            advertise=arguments.advertise or "",
            num_threads=arguments.threads,
            draft_deadline_s=arguments.draft_deadline_ms / 1000,
            limits=PoolLimits(arguments.max_documents, arguments.max_tokens, arguments.max_age),
            read_into_memory=arguments.read_into_memory,
        )
        listen = ListenConfig.from_arguments(arguments)
        listen.check_files()
    except ValueError as error:
        parser.error(str(error))
    raise_file_limit()
    end_at_signals()
    try:
        uvloop.run(serve(config, listen))
    except (LaserError, OSError, ValueError) as error:
        print(f"laser-retriever: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="laser-retriever", description="Serves pools of earlier outputs as drafts.")
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    serve_parser = commands.add_parser(
        "serve", help="serve a directory of pools", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    serve_parser.add_argument("--pools", type=Path, required=True, metavar="DIR", help="directory of the pools")
    serve_parser.add_argument(
        "--name", default=socket.gethostname(), help="this shard's name, stable over restarts (default: host name)"
    )
    serve_parser.add_argument(
        "--advertise",
        metavar="HOST:PORT",
        help="address at which other shards' callers reach this one (default: the one listened on, by host name)",
    )
    serve_parser.add_argument(
        "--threads",
        type=int,
        default=usable_processors(),
        metavar="N",
        help="threads that draft a message of many trees (default: one for each processor, here %(default)s)",
    )
    serve_parser.add_argument(
        "--draft-deadline-ms",
        type=float,
        default=DRAFT_DEADLINE_S * 1000,
        metavar="MS",
        help="trees of a message not begun this long after it came are left empty: a verifier does not wait for them "
        "(default: %(default)g)",
    )
    serve_parser.add_argument(
        "--read-into-memory",
        action="store_true",
        help="read segments instead of mapping them: for pools on a network file system",
    )
    _add_limits(serve_parser)
    add_log_level(serve_parser)
    ListenConfig.add_arguments(serve_parser, DEFAULT_LISTEN, DEFAULT_GRACE_S)
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("limits", "of each pool; beyond them its oldest documents go (default: none)")
    limits.add_argument("--max-documents", type=int, default=NO_LIMITS.max_documents, metavar="N",
                        help="most documents of one pool")  # fmt: skip
    limits.add_argument("--max-tokens", type=int, default=NO_LIMITS.max_tokens, metavar="N",
                        help="most output tokens of one pool")  # fmt: skip
    limits.add_argument(
        "--max-age",
        type=float,
        default=NO_LIMITS.max_age_s,
        metavar="SECONDS",
        help="longest time that a document stays after it was added",
    )


async def serve(config: RetrieverConfig, listen: ListenConfig) -> None:
    """Serves until SIGTERM or SIGINT. Healthy once pools are open and kernels compiled.

    Args:
        config: of the pools.
        listen: where.
    """
    loop = asyncio.get_running_loop()
    params = DraftParams()
    pools, _ = await asyncio.gather(
        loop.run_in_executor(None, partial(Pools, config, started=False)),
        loop.run_in_executor(None, warm_up, params),
    )
    settle_garbage_collector()
    metrics = RetrieverMetrics(pools)
    service = RetrieverService(pools, config, params, metrics)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(loop.run_in_executor, None, pools.close)
        stack.callback(service.close)
        stack.enter_context(serving_metrics(listen, partial(start_http_server, registry=metrics.registry)))
        signalled = catch_signals()
        server = LaserServer(listen, [SERVICE_NAME], service.register)
        port = await server.start()
        pools.advertise(config.advertise or own_address(listen.listen, port))
        await server.set_serving(True)
        pools.start()
        pools.refresh_soon()
        health = loop.create_task(service.report_health(server))
        logger.info(
            "laser_retriever.listening port=%d pools=%s name=%s version=%s",
            port, config.pools, config.name, laser_version(),
        )  # fmt: skip
        await signalled.wait()
        logger.info("laser_retriever.stopping")
        health.cancel()
        service.end_drafts()
        await server.stop()
        await loop.run_in_executor(None, pools.give_up_locks)
    logger.info("laser_retriever.stopped")


def raise_file_limit() -> None:
    """Lets this process open as many files as it may: each large segment takes two, each caller one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # some systems give less than they say
        logger.debug("laser_retriever.file_limit soft=%d hard=%d kept: %s", soft, hard, error)
    else:
        logger.debug("laser_retriever.file_limit soft=%d raised_to=%d", soft, hard)


def own_address(listen: str, port: int) -> str:
    """HOST:PORT under which others reach a server listening on `listen`: the host name where that is all addresses."""
    host = listen.rpartition(":")[0]
    return f"{socket.gethostname() if host in ('0.0.0.0', '[::]', '*') else host}:{port}"
