"""Round trip of one message of many sequences: from sending what was emitted to having all trees, over loopback gRPC.

    python -m benchmarks.retriever_round_trip --corpus corpus_user.jsonl

Starts `laser-retriever` as a process of its own on a pool of --pool-tokens (spliced out of the corpus's first outputs,
see `_spliced.py`) in six segments and a log, with two ancestors, which hold samples of a pool beside it and of one
further off (8,192 documents at most; `_spliced.py` says how many tokens). Then replays the corpus's last outputs as a
verifier would, --sequences at a time, one message each step: every sequence is advanced by the accepted path and the
bonus token and asked for a tree of --nodes. A round trip is from handing the message to grpc.aio until the message
with the trees is there; comparing trees with the real outputs is not in it. `cpu_ms` is what the retriever's process
spent per message. An empty tree is one that the retriever had not begun at its deadline, or had nothing for. With
--adding another process adds documents of so many tokens to a pool of their own meanwhile, as fast as they are taken.
Prints one JSON line and a table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import psutil
import uvloop
from tqdm import tqdm

from benchmarks._draft_stream import FINGERPRINT, Verifier, fill, retriever, until_serving
from benchmarks._spliced import ANCESTOR_SHARES, Recorded, read_recorded, splice
from laser_client.pools import Document, PoolClient
from laser_protocol.channel import Endpoint

SIBLINGS = ("bench/user/2", "bench/item/1")
ADDED_TO = "added/user/1"
# A retriever serves before its ancestors' samples are built.
SAMPLING_S = 5.0


def add_forever(address: str, document_len: int, begun: Event) -> None:
    """Adds random documents, 40,000 ids again and again; says when the first are stored."""
    chance = np.random.default_rng(0)
    texts = [chance.integers(0, 40_000, document_len).astype("<i4").tobytes() for _ in range(100)]
    client = PoolClient(Endpoint(address))
    for _ in client.add(ADDED_TO, FINGERPRINT, (Document(str(i % 40_000), texts[i % 100]) for i in itertools.count())):
        begun.set()


@contextlib.contextmanager
def adding(address: str, document_len: int | None) -> Iterator[None]:
    """Documents are added by another process meanwhile, if they have a length."""
    if document_len is None:
        yield
        return
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=add_forever, args=(address, document_len, begun))
    process.start()
    try:
        begun.wait(60)
        yield
        if not process.is_alive():
            raise RuntimeError(f"adding ended by itself, with exit status {process.exitcode}: see above")
    finally:
        process.kill()
        process.join()


async def measure(address: str, pid: int, test: Sequence[Recorded], arguments: argparse.Namespace) -> dict[str, Any]:
    """Replays and times once the retriever serves."""
    process = psutil.Process(pid)
    await until_serving(address)
    await asyncio.sleep(SAMPLING_S)
    with adding(address, arguments.adding):
        return await replay(address, process, test, arguments)


async def replay(
    address: str, process: psutil.Process, test: Sequence[Recorded], arguments: argparse.Namespace
) -> dict[str, Any]:
    """The part that is timed."""
    async with grpc.aio.insecure_channel(address) as channel:
        verifier = Verifier(channel, test, arguments.sequences, arguments.nodes)
        await verifier.shake_hands()
        times_ms: list[float] = []
        for number in tqdm(range(arguments.warm_up + arguments.messages), desc="messages", leave=False):
            if number == arguments.warm_up:
                verifier.num_trees = verifier.num_nodes = verifier.num_empty = 0
                cpu_s = sum(process.cpu_times()[:2])
                times_ms.clear()
            times_ms.append(await verifier.step())
            await asyncio.sleep(arguments.pause_ms / 1e3)
        cpu_s = sum(process.cpu_times()[:2]) - cpu_s
        verifier.close()
    p50, p90, p99, most = (round(float(value), 3) for value in np.percentile(times_ms, [50, 90, 99, 100]))
    return {
        "ms_p50": p50,
        "ms_p90": p90,
        "ms_p99": p99,
        "ms_max": most,
        "cpu_ms": round(cpu_s * 1e3 / len(times_ms), 3),
        "nodes_per_tree": round(verifier.num_nodes / verifier.num_trees, 2),
        "empty_trees": round(verifier.num_empty / verifier.num_trees, 4),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="JSON lines of recorded outputs")
    parser.add_argument(
        "--pool-tokens", type=float, default=1e6, metavar="N", help="of the pool (default: %(default)g)"
    )
    parser.add_argument("--sequences", type=int, default=32, metavar="N", help="per message (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=32, metavar="N", help="per tree (default: %(default)s)")
    parser.add_argument("--messages", type=int, default=1500, metavar="N", help="timed (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=100, metavar="N", help="messages before (default: %(default)s)")
    parser.add_argument(
        "--pause-ms", type=float, default=5.0, metavar="MS", help="between messages, a forward (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads that draft (default: the retriever's own)")
    parser.add_argument("--adding", type=int, metavar="N", help="add documents of N tokens meanwhile (default: none)")
    arguments = parser.parse_args()
    recorded = read_recorded(arguments.corpus)
    documents = splice([r.output for r in recorded[:-64]], int(arguments.pool_tokens))
    options = [] if arguments.threads is None else ["--threads", str(arguments.threads)]
    with tempfile.TemporaryDirectory() as directory:
        fill(Path(directory), documents)
        for number, (pool, share) in enumerate(zip(SIBLINGS, ANCESTOR_SHARES, strict=True), 1):
            others = splice([r.output for r in recorded[:-64]], int(share * arguments.pool_tokens), seed=number)
            fill(Path(directory), others, pool)
        with retriever(Path(directory), *options) as (address, process):
            measured = uvloop.run(measure(address, process.pid, recorded[-60:], arguments))
    result = {
        "sequences": arguments.sequences,
        "nodes": arguments.nodes,
        "pool_tokens": int(arguments.pool_tokens),
        "adding": arguments.adding,
        **measured,
    }
    print(json.dumps(result), flush=True)
    print("\n" + "  ".join(result))
    print("  ".join(str(value).rjust(len(name)) for name, value in result.items()))


if __name__ == "__main__":
    main()
