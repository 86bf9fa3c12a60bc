"""Round trip of one message of many sequences: from sending what was emitted to having all trees, over loopback gRPC.

    python benchmarks/retriever_round_trip.py --corpus corpus_user.jsonl

Starts `laser-retriever` as a process of its own on a pool of `--pool-tokens` (spliced out of the corpus's first outputs,
see `_spliced.py`) in segments of different size, with two ancestors. Then replays the corpus's last outputs as a verifier
would, `--sequences` at a time, one message each step: every sequence is advanced by the accepted path and the bonus token,
and asked for a tree of `--nodes`. A round trip is from handing the message to grpc.aio until the message with the trees is
there; comparing the trees with the real outputs is not in it. Prints one JSON line and a table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import numpy as np
import uvloop
from _spliced import Recorded, read_recorded, share_out, splice
from tqdm import tqdm

from laser_protocol.tree import DraftTree, tree_from_message
from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc
from laser_retriever.config import RetrieverConfig
from laser_retriever.pool import Pool

FINGERPRINT = "f" * 64
POOL = "bench/user/1"
VOCAB_SIZE = 2**31 - 1
# Consecutive parts of the pool, each sealed into a segment of its own.
PARTS = (0.50, 0.25, 0.125, 0.07, 0.035, 0.0175, 0.0025)


def fill(directory: Path, documents: list[np.ndarray]) -> None:
    """Puts documents into the pool, in a segment for each of PARTS but the last, which stays in the log."""
    pool = Pool(POOL, RetrieverConfig(pools=directory))
    parts = share_out(documents, PARTS)
    for number, part in enumerate(tqdm(parts, desc="pool", unit="segment", leave=False)):
        pool.writer.add(FINGERPRINT, [(f"{number}-{i}", document) for i, document in enumerate(part)])
        if number < len(parts) - 1:
            pool.writer.seal()
    pool.writer.close()


@contextlib.contextmanager
def retriever(directory: Path, *options: str) -> Iterator[str]:
    """A `laser-retriever` process; gives its address once its port accepts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = "import sys; from laser_retriever.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", "--pools", str(directory), "--listen", address, *options]
    process = subprocess.Popen([*command, "--log-level", "warning"])
    try:
        yield address
    finally:
        process.terminate()
        process.wait()


class Replay:
    """One recorded output being generated again."""

    def __init__(self, sequence_id: int, recorded: Recorded) -> None:
        self.sequence_id = sequence_id
        self._output = recorded.output
        self._prompt = recorded.prompt
        self.num_done = 0

    @property
    def finished(self) -> bool:
        return self.num_done >= len(self._output)

    def opening(self, num_nodes: int) -> retriever_pb2.OpenSequence:
        return retriever_pb2.OpenSequence(
            sequence_id=self.sequence_id,
            pool=POOL,
            token_ids=self._prompt.astype("<i4").tobytes(),
            num_prompt_tokens=len(self._prompt),
            node_budget=num_nodes,
        )

    def advance(self, tree: DraftTree, num_nodes: int) -> retriever_pb2.AdvanceSequence:
        """Takes the accepted path and one bonus token."""
        children = {(int(p), int(t)): i for i, (p, t) in enumerate(zip(tree.parents, tree.token_ids, strict=True))}
        node, depth = -1, 0
        rest = self._output[self.num_done :]
        while depth < len(rest) and (node, int(rest[depth])) in children:
            node = children[node, int(rest[depth])]
            depth += 1
        emitted = rest[: depth + 1]
        step = retriever_pb2.AdvanceSequence(
            sequence_id=self.sequence_id,
            position=len(self._prompt) + self.num_done,
            token_ids=emitted.astype("<i4").tobytes(),
            num_verified_nodes=len(tree),
            accepted_node_idx=node if depth <= len(emitted) else -1,
            node_budget=num_nodes,
        )
        self.num_done += len(emitted)
        return step


async def measure(address: str, test: list[Recorded], arguments: argparse.Namespace) -> dict[str, object]:
    """Replays and times."""
    requests: asyncio.Queue[retriever_pb2.DraftRequest] = asyncio.Queue()

    async def sending() -> AsyncIterator[retriever_pb2.DraftRequest]:
        while True:
            yield await requests.get()

    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 120)
        call = retriever_pb2_grpc.RetrieverStub(channel).Draft(sending())
        handshake = retriever_pb2.Handshake(tokenizer_fingerprint=FINGERPRINT, vocab_size=VOCAB_SIZE)
        requests.put_nowait(retriever_pb2.DraftRequest(handshake=handshake))
        await call.read()
        times_ms: list[float] = []
        num_nodes = num_trees = num_empty = next_id = 0
        running: dict[int, Replay] = {}
        request = retriever_pb2.DraftRequest()
        for number in tqdm(range(arguments.warm_up + arguments.messages), desc="messages", leave=False):
            while len(running) < arguments.sequences:
                running[next_id] = Replay(next_id, test[next_id % len(test)])
                request.opens.append(running[next_id].opening(arguments.nodes))
                next_id += 1
            started = time.perf_counter()
            requests.put_nowait(request)
            response = await call.read()
            took_ms = (time.perf_counter() - started) * 1e3
            if number >= arguments.warm_up:
                times_ms.append(took_ms)
                num_trees += len(response.trees)
                num_nodes += sum(len(tree.token_ids) // 4 for tree in response.trees)
                num_empty += sum(not tree.token_ids for tree in response.trees)
            assert not response.faults, response.faults
            request = retriever_pb2.DraftRequest()
            for message in response.trees:
                replay = running[message.sequence_id]
                step = replay.advance(tree_from_message(message), arguments.nodes)
                if replay.finished:
                    request.closes.append(replay.sequence_id)
                    del running[replay.sequence_id]
                else:
                    request.advances.append(step)
            await asyncio.sleep(arguments.pause_ms / 1e3)
        call.cancel()
    p50, p90, p99, most = (round(float(v), 3) for v in np.percentile(times_ms, [50, 90, 99, 100]))
    return {
        "ms_p50": p50, "ms_p90": p90, "ms_p99": p99, "ms_max": most,
        "trees_per_message": round(num_trees / len(times_ms), 2), "nodes_per_tree": round(num_nodes / num_trees, 2),
        "empty_trees": num_empty,
    }  # fmt: skip


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--corpus",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON lines with prompt_token_ids and output_token_ids",
    )
    parser.add_argument(
        "--pool-tokens", type=float, default=1e6, metavar="N", help="tokens of the pool (default: %(default)g)"
    )
    parser.add_argument("--sequences", type=int, default=32, metavar="N", help="per message (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=32, metavar="N", help="per tree (default: %(default)s)")
    parser.add_argument("--messages", type=int, default=1500, metavar="N", help="timed (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=100, metavar="N", help="messages before (default: %(default)s)")
    parser.add_argument(
        "--pause-ms",
        type=float,
        default=5.0,
        metavar="MS",
        help="between messages: the verifier's forward (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="drafting threads of the retriever (default: its own)")
    arguments = parser.parse_args()
    recorded = read_recorded(arguments.corpus)
    documents = splice([r.output for r in recorded[:-64]], int(arguments.pool_tokens))
    options = [] if arguments.threads is None else ["--threads", str(arguments.threads)]
    with tempfile.TemporaryDirectory() as directory:
        fill(Path(directory), documents)
        with retriever(Path(directory), *options) as address:
            result = uvloop.run(measure(address, recorded[-60:], arguments))
    result = {
        "sequences": arguments.sequences,
        "nodes": arguments.nodes,
        "pool_tokens": int(arguments.pool_tokens),
        **result,
    }
    print(json.dumps(result), flush=True)
    print("\n" + "  ".join(result))
    print("  ".join(str(value).rjust(len(name)) for name, value in result.items()))


if __name__ == "__main__":
    main()
