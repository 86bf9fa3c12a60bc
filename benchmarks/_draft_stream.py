"""A real retriever process on a spliced pool, and a verifier's side of the draft stream, for the benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc.aio
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks._spliced import SEGMENT_SHARES, Recorded, share_out
from laser_protocol.tree import DraftTree, tree_from_message
from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc
from laser_retriever.config import RetrieverConfig
from laser_retriever.pool import Pool

FINGERPRINT = "f" * 64
POOL = "bench/user/1"
VOCAB_SIZE = 2**31 - 1


def fill(directory: Path, documents: Sequence[NDArray[np.int32]], pool_id: str = POOL) -> None:
    """Puts documents into a pool, in a segment for each of SEGMENT_SHARES but the last, which stays in the log."""
    pool = Pool(pool_id, RetrieverConfig(pools=directory))
    parts = share_out(documents, SEGMENT_SHARES)
    for number, part in enumerate(tqdm(parts, desc="pool", unit="segment", leave=False)):
        pool.writer.add(FINGERPRINT, [(f"{number}-{i}", document) for i, document in enumerate(part)])
        if number < len(parts) - 1:
            pool.writer.seal()
    pool.writer.close()


@contextlib.contextmanager
def retriever(directory: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A `laser-retriever` process: its address and itself. It may not listen yet."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "laser_retriever", "serve", "--pools", str(directory), "--listen", address]
    process = subprocess.Popen([*command, "--log-level", "warning", *options])
    try:
        yield address, process
    finally:
        process.terminate()
        process.wait()


async def until_serving(address: str) -> float:
    """Waits until a server's health is SERVING. Returns the seconds that took."""
    started = time.perf_counter()
    while True:
        # A channel of its own each time: one that was refused waits longer and longer before it tries again.
        async with grpc.aio.insecure_channel(address) as channel:
            with contextlib.suppress(grpc.aio.AioRpcError):
                reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return time.perf_counter() - started
        await asyncio.sleep(0.005)


class Replay:
    """One recorded output being generated again."""

    def __init__(self, sequence_id: int, recorded: Recorded, pool: str = POOL) -> None:
        self.sequence_id = sequence_id
        self._pool = pool
        self._output = recorded.output
        self._prompt = recorded.prompt
        self.num_done = 0

    @property
    def finished(self) -> bool:
        """Whether all of it has been emitted."""
        return self.num_done >= len(self._output)

    def opening(self, num_nodes: int) -> retriever_pb2.OpenSequence:
        """Opens it, and asks for its first tree."""
        return retriever_pb2.OpenSequence(
            sequence_id=self.sequence_id,
            pool=self._pool,
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
            accepted_node_idx=node,
            node_budget=num_nodes,
        )
        self.num_done += len(emitted)
        return step


class Verifier:
    """One draft stream: replays recorded outputs, `num_sequences` at a time, all of them in every message."""

    def __init__(
        self, channel: grpc.aio.Channel, test: Sequence[Recorded], num_sequences: int, num_nodes: int, pool: str = POOL
    ) -> None:
        self._test = test
        self._num_sequences = num_sequences
        self._num_nodes = num_nodes
        self._pool = pool
        self._call = retriever_pb2_grpc.RetrieverStub(channel).Draft()
        self._running: dict[int, Replay] = {}
        self._num_opened = 0
        self._request = retriever_pb2.DraftRequest()
        self.num_trees = self.num_nodes = self.num_empty = 0

    async def shake_hands(self) -> None:
        """To be called first."""
        handshake = retriever_pb2.Handshake(tokenizer_fingerprint=FINGERPRINT, vocab_size=VOCAB_SIZE)
        await self._call.write(retriever_pb2.DraftRequest(handshake=handshake))
        await self._call.read()
        self._open_more()

    async def step(self) -> float:
        """Sends the message that is ready and waits for its trees, then makes the next one ready.

        Returns:
            Milliseconds from sending to having the trees; taking them up is not in it.
        """
        started = time.perf_counter()
        await self._call.write(self._request)
        response = await self._call.read()
        took_ms = (time.perf_counter() - started) * 1e3
        assert not response.faults, response.faults
        self._request = retriever_pb2.DraftRequest()
        for message in response.trees:
            replay = self._running[message.sequence_id]
            self.num_trees += 1
            self.num_nodes += len(message.token_ids) // 4
            self.num_empty += not message.token_ids
            step = replay.advance(tree_from_message(message), self._num_nodes)
            if replay.finished:
                self._request.closes.append(replay.sequence_id)
                del self._running[replay.sequence_id]
            else:
                self._request.advances.append(step)
        self._open_more()
        return took_ms

    def _open_more(self) -> None:
        while len(self._running) < self._num_sequences:
            replay = Replay(self._num_opened, self._test[self._num_opened % len(self._test)], self._pool)
            self._running[self._num_opened] = replay
            self._request.opens.append(replay.opening(self._num_nodes))
            self._num_opened += 1

    def close(self) -> None:
        """Ends the stream."""
        self._call.cancel()
