"""`laser-verifier serve`: builds model, engine and server, and runs them until a signal."""

from __future__ import annotations

import os

# By default OpenMP's threads spin at every barrier for milliseconds. With anything else running on the machine (the
# retriever, a client) they spin for a thread that is not scheduled. Measured on two cores, bfloat16, one token, beside
# another busy process: 1040 ms a forward by default, 40 ms with 20,000 spins. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import logging
import socket
import sys
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prometheus_client import start_http_server

from laser_protocol.acceptance import Acceptance, Relaxed, Strict
from laser_protocol.channel import Endpoint, read_token
from laser_protocol.commands import (
    add_log_level,
    add_relaxed_options,
    add_version,
    laser_version,
    relaxed_arguments,
    start_logging,
)
from laser_protocol.errors import InvalidRequest
from laser_protocol.serving import LaserServer, ListenConfig, catch_signals, end_at_signals, serving_metrics
from laser_verifier.config import DEVICES, DRAFT_POLICIES, DTYPES, EngineConfig, ModelConfig, RetrieverConfig
from laser_verifier.drafts import DraftSource, NoDrafts
from laser_verifier.engine import Engine, run_engine
from laser_verifier.learning import NoPools
from laser_verifier.metrics import VerifierMetrics
from laser_verifier.model import TargetModel, check_model_path, tokenizer_fingerprint
from laser_verifier.remote_drafts import RemoteDrafts
from laser_verifier.remote_pools import RemotePools
from laser_verifier.service import SERVICE_NAME, ModelDescription, VerifierService, register
from laser_verifier.shard_stream import Handshake
from laser_verifier.startup import load_runner

logger = logging.getLogger(__name__)

# Seconds that finished outputs get to reach their pools after the last request.
_DRAIN_S = 5.0
# Clients that spread their calls over all verifiers of a name find those that were added within this time.
_MAX_CONNECTION_AGE_S = 300.0
# A step of a long prompt's chunk on slow processors may take a minute; one of these hangs, in a driver or at a barrier.
_LONGEST_STEP_S = 600.0
_WATCH_S = 1.0
# What the step under way gets to end after the last call; then the process ends without it.
_ENGINE_END_S = 10.0
_EPILOG = """example:
  laser-retriever serve --pools ./pools --listen 127.0.0.1:50051
  laser-verifier serve --model ./smollm2 --retriever 127.0.0.1:50051 --listen 127.0.0.1:50052
  laser generate --verifier 127.0.0.1:50052 --prompt "Name three films."
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0, or 2 for wrong arguments, 1 for anything else."""
    arguments = _parser().parse_args(argv)
    start_logging(arguments.log_level)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        listen = ListenConfig.from_arguments(arguments)
        listen.check_files()
        model_config = ModelConfig(
            arguments.model, arguments.device, arguments.dtype, arguments.threads, arguments.revision,
            arguments.served_model_name, arguments.chat_template,
        )  # fmt: skip
        engine_config = _engine_config(arguments)
        retriever_config = _retriever_config(arguments)
        check_model_path(model_config)
        end_at_signals()
        asyncio.run(_serve(listen, model_config, engine_config, retriever_config))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="laser-verifier", description="Serves one model, drafting from retrievers.")
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve", help="serve a model", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_model(serve.add_argument_group("model"))
    _add_scheduling(serve.add_argument_group("scheduling"), EngineConfig())
    _add_drafting(serve.add_argument_group("drafting"), EngineConfig())
    add_log_level(serve)
    ListenConfig.add_arguments(serve, "127.0.0.1:50052")
    return parser


def _add_model(group: argparse._ActionsContainer) -> None:
    group.add_argument("--model", required=True, metavar="PATH_OR_HUB_ID", help="transformers directory or hub id")
    group.add_argument("--revision", metavar="COMMIT", help="of a hub id: branch, tag or commit (default: the newest)")
    group.add_argument("--served-model-name", metavar="NAME",
                       help="what the server calls the model (default: the last part of PATH_OR_HUB_ID)")  # fmt: skip
    group.add_argument("--chat-template", type=Path, metavar="FILE",
                       help="Jinja template of text prompts (default: the model's own)")  # fmt: skip
    group.add_argument("--device", choices=DEVICES, default="auto",
                       help="default: %(default)s, CUDA where there is one")  # fmt: skip
    group.add_argument("--dtype", choices=DTYPES, default="auto",
                       help="float type of the model (default: %(default)s: bfloat16 where it is quick, as on most "
                            "devices and for the usual models; else float32)")  # fmt: skip
    group.add_argument("--threads", type=int, metavar="N",
                       help="processors that the model takes (default: all that this process may use)")  # fmt: skip


def _add_scheduling(group: argparse._ActionsContainer, defaults: EngineConfig) -> None:
    group.add_argument("--max-sequences", type=int, default=defaults.max_sequences, metavar="S",
                       help="sequences served at once, as vLLM's --max-num-seqs (default: %(default)s)")  # fmt: skip
    group.add_argument("--max-model-len", type=int, default=None, metavar="T",
                       help="tokens of prompt and output together (default: the model's, at most "
                            f"{defaults.max_model_len}); S x T places of keys and values are reserved at the start",
                       )  # fmt: skip
    group.add_argument("--max-queue", type=int, default=defaults.max_queue, metavar="N",
                       help="requests that may wait (default: %(default)s)")  # fmt: skip
    group.add_argument("--max-step-tokens", type=int, default=None, metavar="N",
                       help="tokens of prompts and last tokens that one forward takes, as vLLM's "
                            "--max-num-batched-tokens; more may fill a GPU better "
                            f"(default: {defaults.max_step_tokens}, at least S)")  # fmt: skip
    group.add_argument("--max-slowdown", type=float, default=defaults.max_slowdown, metavar="X",
                       help="with prompts beside decoding sequences a step takes at most X times as long as one in "
                            "which all that run decode (default: %(default)s)")  # fmt: skip
    group.add_argument("--no-prefix-reuse", action="store_true",
                       help="compute every prompt whole, also where it begins as another did")  # fmt: skip


def _add_drafting(group: argparse._ActionsContainer, defaults: EngineConfig) -> None:
    group.add_argument("--retriever", default="", metavar="HOST:PORT[,HOST:PORT...]",
                       help="where drafts come from; a name with several addresses means several shards "
                            "(default: none, plain decoding)")  # fmt: skip
    group.add_argument("--retriever-token-file", type=Path, metavar="FILE", help="token to send to retrievers")
    group.add_argument("--retriever-tls-ca", type=Path, metavar="FILE", help="PEM: talk TLS to retrievers signed by it")
    group.add_argument(
        "--retriever-tls-cert", type=Path, metavar="FILE", help="PEM: own certificate towards retrievers"
    )
    group.add_argument("--retriever-tls-key", type=Path, metavar="FILE", help="PEM: key of --retriever-tls-cert")
    group.add_argument("--acceptance", choices=("strict", "relaxed"), default="strict",
                       help="for requests that name none (default: %(default)s)")  # fmt: skip
    add_relaxed_options(group)
    group.add_argument("--max-draft-nodes", type=int, default=defaults.max_draft_nodes, metavar="N",
                       help="nodes of a sequence's largest draft tree, 0 to 256 (default: %(default)s)")  # fmt: skip
    group.add_argument("--draft-wait-ms", type=float, default=defaults.draft_wait_ms, metavar="MS",
                       help="longest that a step waits for trees, and never longer than a quarter of a plain step "
                            "(default: %(default)g)")  # fmt: skip
    group.add_argument("--draft-policy", choices=DRAFT_POLICIES, default=defaults.draft_policy,
                       help="verify the nodes worth their cost, or all (default: %(default)s)")  # fmt: skip


def _engine_config(arguments: argparse.Namespace) -> EngineConfig:
    relaxed = relaxed_arguments(arguments)
    acceptance: Acceptance = Relaxed(**relaxed) if arguments.acceptance == "relaxed" else Strict()
    max_step_tokens = arguments.max_step_tokens
    if max_step_tokens is None:
        max_step_tokens = max(EngineConfig().max_step_tokens, arguments.max_sequences)
    config = EngineConfig(
        max_sequences=arguments.max_sequences,
        max_queue=arguments.max_queue,
        max_step_tokens=max_step_tokens,
        max_slowdown=arguments.max_slowdown,
        prefix_reuse=not arguments.no_prefix_reuse,
        max_draft_nodes=arguments.max_draft_nodes,
        draft_policy=arguments.draft_policy,
        draft_wait_ms=arguments.draft_wait_ms,
        default_acceptance=acceptance,
    )
    if arguments.max_model_len is None:
        return config
    return dataclasses.replace(config, max_model_len=arguments.max_model_len)


def _retriever_config(arguments: argparse.Namespace) -> RetrieverConfig:
    targets = tuple(target.strip() for target in arguments.retriever.split(",") if target.strip())
    config = RetrieverConfig(targets)
    if not targets:
        return config
    token_file = arguments.retriever_token_file
    try:
        endpoint = Endpoint.make(
            targets[0],
            token=read_token(token_file) if token_file is not None else None,
            tls_ca=arguments.retriever_tls_ca,
            tls_cert=arguments.retriever_tls_cert,
            tls_key=arguments.retriever_tls_key,
        )
    except InvalidRequest as error:
        raise ValueError(f"retriever: {error}") from error
    return dataclasses.replace(config, credentials=endpoint.credentials, metadata=endpoint.metadata)


async def _serve(
    listen: ListenConfig,
    model_config: ModelConfig,
    engine_config: EngineConfig,
    retriever_config: RetrieverConfig,
) -> None:
    """Loads and measures, listens, serves until a signal or the engine's death, stops in the reverse order."""
    logger.info("model.loading model=%s", model_config.model)
    # All of torch on one thread: each that ran an operator keeps a team of OpenMP threads, and as soon as all teams
    # together are more than the processors, none of them spins any more. Measured: a third of the processors idle.
    loop, device = asyncio.get_running_loop(), ThreadPoolExecutor(1, "engine")
    tokenizer, config, runner, cost = await loop.run_in_executor(device, load_runner, model_config, engine_config)
    model = runner.model
    logger.info(
        "model.ready name=%s type=%s dtype=%s device=%s forward=%s kv_cache_bytes=%d step_ms=%s",
        model.name, model.model_type, model.dtype, model.device,
        "transformers" if model.packed is None else "packed", runner.cache_size_bytes,
        ",".join(f"{size}:{seconds * 1e3:.1f}" for size, seconds in zip(cost.sizes, cost.seconds, strict=True)),
    )  # fmt: skip
    fingerprint = tokenizer_fingerprint(tokenizer.get_vocab())
    async with contextlib.AsyncExitStack() as stack:
        metrics = VerifierMetrics(model.name, config.max_draft_nodes)
        drafts, pools = await _connect(stack, retriever_config, fingerprint, model, metrics)
        engine = Engine(runner, tokenizer, drafts, config, cost, pools.learn, metrics)
        metrics.watch_engine(engine)
        metrics.watch_learning(pools.counters)
        if isinstance(drafts, RemoteDrafts):
            metrics.watch_drafts(drafts.shards, drafts.counters)
        stack.enter_context(serving_metrics(listen, functools.partial(start_http_server, registry=metrics.registry)))
        service = VerifierService(engine, tokenizer, _describe(model, config, fingerprint))
        signalled = catch_signals()
        server = LaserServer(listen, [SERVICE_NAME], functools.partial(register, service), _MAX_CONNECTION_AGE_S)
        port = await server.start()
        stopping, died = threading.Event(), asyncio.Event()
        # A dead engine ends the process: whoever runs it starts it again.
        ended = loop.run_in_executor(device, run_engine, engine, stopping, lambda: loop.call_soon_threadsafe(died.set))
        await server.set_serving(True)
        watching = loop.create_task(end_if_it_hangs(engine, died))
        logger.info("laser_verifier.listening address=%s port=%d version=%s", listen.listen, port, laser_version())
        try:
            await _first_of(signalled.wait(), died.wait())
            logger.info("laser_verifier.stopping")
            await server.stop()
        finally:
            watching.cancel()
            stopping.set()
            await asyncio.wait((ended,), timeout=_ENGINE_END_S)
        await pools.drain(_DRAIN_S)
        if not ended.done():  # its thread would keep the process from ever ending; all calls have ended
            logger.warning("engine.step_under_way seconds=%g the process ends all the same", _ENGINE_END_S)
            os._exit(1 if died.is_set() else 0)
        ended.result()
        if died.is_set():
            raise OSError("the engine ended after a fault, or hangs: see the log")


async def end_if_it_hangs(engine: Engine, died: asyncio.Event) -> None:
    """Sets `died` once a step has lasted longer than any may: nothing else would notice, callers that wait least."""
    num_steps, watched_s = -1, 0.0  # looks are counted, not time: a process may be stopped, and go on later
    while watched_s <= _LONGEST_STEP_S:
        await asyncio.sleep(_WATCH_S)
        if not engine.is_busy or engine.counters.num_steps != num_steps:
            num_steps, watched_s = engine.counters.num_steps, 0.0
        else:
            watched_s += _WATCH_S
    logger.critical("engine.hangs seconds=%.0f num_steps=%d the server stops", watched_s, num_steps)
    died.set()


def _describe(model: TargetModel, config: EngineConfig, fingerprint: str) -> ModelDescription:
    """What GetModel tells."""
    return ModelDescription(
        name=model.name,
        model_type=model.model_type,
        tokenizer_fingerprint=fingerprint,
        vocab_size=model.vocab_size,
        max_model_len=config.max_model_len,
        max_sequences=config.max_sequences,
        eos_token_ids=model.eos_token_ids,
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        default_acceptance=config.default_acceptance,
    )


async def _first_of(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Returns when the first of them does; the others are cancelled."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _connect(
    stack: contextlib.AsyncExitStack,
    config: RetrieverConfig,
    fingerprint: str,
    model: TargetModel,
    metrics: VerifierMetrics,
) -> tuple[DraftSource, RemotePools | NoPools]:
    """Drafts and pools of the configured retrievers, running until the stack closes."""
    if not config.targets:
        return NoDrafts(), NoPools()
    name = f"{socket.gethostname()}:{os.getpid()}"
    drafts = RemoteDrafts(config, Handshake(fingerprint, model.vocab_size, name, model.name), metrics)
    pools = RemotePools(config, fingerprint, drafts.connected)
    for coroutine in (drafts.run(), pools.run()):
        task = asyncio.create_task(coroutine)
        task.add_done_callback(_log_end)
        stack.push_async_callback(_cancel, task)
    return drafts, pools


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("background.ended task=%s", task.get_coro(), exc_info=task.exception())


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    sys.exit(main())
