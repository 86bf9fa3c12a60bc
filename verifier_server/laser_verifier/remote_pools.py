"""Sends finished outputs to the pools they join, apart from drafting and never in its way."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from laser_protocol.channel import Endpoint
from laser_protocol.errors import DeadlineExceeded, LaserError, NotReady, WriterElsewhere, from_rpc_error
from laser_protocol.packing import pack_token_ids
from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc
from laser_verifier.config import RetrieverConfig
from laser_verifier.learning import LearnCounters
from laser_verifier.shards import rendezvous_order

logger = logging.getLogger(__name__)

_MAX_WAITING = 4096
_MAX_BATCH = 64
# No output joins a batch of that size; a single one has at most 4 MiB, and a server refuses messages of 16 MiB.
_MAX_BATCH_BYTES = 1024 * 1024
_NUM_ROUNDS = 5
_FIRST_PAUSE_S = 0.2
_ADD_TIMEOUT_S = 30.0
_MAX_WRITERS = 4096


@dataclass(frozen=True, slots=True)
class _Finished:
    pool: str
    document_id: str
    packed_token_ids: bytes


class RemotePools:
    """Adds documents to pools through the shard that writes them.

    Args:
        config: credentials. tokenizer_fingerprint: of the model. connected: the reachable shards by name.
    """

    def __init__(
        self, config: RetrieverConfig, tokenizer_fingerprint: str, connected: Callable[[], Mapping[str, Endpoint]]
    ) -> None:
        self._config = config
        self._fingerprint = tokenizer_fingerprint
        self._connected = connected
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Queue[_Finished] = asyncio.Queue(_MAX_WAITING)
        # Of the batch that is being sent, outputs of which nothing is known yet.
        self._num_sending = 0
        # Names of the shards that took the last documents of a pool.
        self._writers: dict[str, str] = {}
        self.counters = LearnCounters()

    def learn(self, pool: str, document_id: str, token_ids: Sequence[int]) -> None:
        """Queues an output, from any thread; never blocks. A full queue drops it and counts it."""
        self._loop.call_soon_threadsafe(self._put, _Finished(pool, document_id, pack_token_ids(token_ids)))

    def _put(self, finished: _Finished) -> None:
        try:
            self._waiting.put_nowait(finished)
        except asyncio.QueueFull:
            self.counters.drop(1, f"{_MAX_WAITING} outputs wait already")

    async def run(self) -> None:
        """Sends what is queued until cancelled."""
        while True:
            batch = await self._next_batch()
            self._num_sending = len(batch)
            for pool in dict.fromkeys(entry.pool for entry in batch):
                documents = [entry for entry in batch if entry.pool == pool]
                await self._send_or_drop(pool, documents)
                self._num_sending -= len(documents)
            for _ in batch:
                self._waiting.task_done()

    async def _next_batch(self) -> list[_Finished]:
        batch = [await self._waiting.get()]
        size_bytes = len(batch[0].packed_token_ids)
        while len(batch) < _MAX_BATCH and size_bytes < _MAX_BATCH_BYTES and not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
            size_bytes += len(batch[-1].packed_token_ids)
        return batch

    async def drain(self, timeout_s: float) -> None:
        """Waits until all that was queued is sent or dropped; after `timeout_s` the rest is counted as dropped."""
        try:
            await asyncio.wait_for(self._waiting.join(), timeout_s)
        except TimeoutError:
            self.counters.drop(self._waiting.qsize() + self._num_sending, "stopping")

    async def _send_or_drop(self, pool: str, documents: list[_Finished]) -> None:
        """What no one thought of costs these documents, never the learning of those that come after them."""
        try:
            await self._send(pool, documents)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # gRPC says so of a call whose connection was lost at an unlucky moment.
            self.counters.drop(len(documents), f"the call to add those of pool {pool} was cut off")
        except Exception:
            logger.exception("learn.failed pool=%s", pool)
            self.counters.drop(len(documents), f"a fault while adding those of pool {pool}")

    async def _send(self, pool: str, documents: list[_Finished]) -> None:
        pause_s = _FIRST_PAUSE_S
        try:
            for _ in range(_NUM_ROUNDS):
                if await self._add_somewhere(pool, documents):
                    self.counters.num_learned += len(documents)
                    return
                # No shard is there, or the writer is changing: who it is will be known in a moment.
                await asyncio.sleep(pause_s)
                pause_s *= 2
        except LaserError as error:
            logger.warning("learn.refused pool=%s error=%s", pool, error)
        self.counters.drop(len(documents), f"no retriever took those of pool {pool}")

    async def _add_somewhere(self, pool: str, documents: list[_Finished]) -> bool:
        """Asks one shard after the other, the pool's last writer first, and whoever is said to be the writer.

        Raises:
            LaserError: the documents were refused, or twice not taken in time; another shard would say the same.
        """
        shards = self._connected()
        known = self._writers.get(pool)
        order = sorted(rendezvous_order(pool, shards), key=lambda name: name != known)
        to_ask = deque(shards[name] for name in order)
        asked: set[str] = set()
        num_slow = 0
        while to_ask:
            endpoint = to_ask.popleft()
            if endpoint.target in asked:
                continue
            asked.add(endpoint.target)
            try:
                await self._add(endpoint, pool, documents)
            except WriterElsewhere as error:
                if error.holder is not None:
                    to_ask.appendleft(_at(error.holder, shards.values(), self._config))
            except DeadlineExceeded:
                # Perhaps they were written all the same; written again they replace themselves.
                num_slow += 1
                if num_slow > 1:
                    raise
                asked.remove(endpoint.target)
                to_ask.appendleft(endpoint)
            except NotReady as error:
                logger.debug("learn.not_ready pool=%s target=%s error=%s", pool, endpoint.target, error)
            else:
                self._remember(pool, next((name for name, at in shards.items() if at.target == endpoint.target), None))
                return True
        return False

    def _remember(self, pool: str, writer: str | None) -> None:
        if len(self._writers) >= _MAX_WRITERS:
            self._writers.clear()
        if writer is not None:
            self._writers[pool] = writer

    async def _add(self, endpoint: Endpoint, pool: str, documents: list[_Finished]) -> None:
        request = retriever_pb2.AddDocumentsRequest(
            pool=pool,
            tokenizer_fingerprint=self._fingerprint,
            documents=[
                retriever_pb2.Document(id=entry.document_id, token_ids=entry.packed_token_ids) for entry in documents
            ],
        )
        async with endpoint.open_aio() as channel:
            try:
                await retriever_pb2_grpc.RetrieverStub(channel).AddDocuments(
                    iter([request]), metadata=endpoint.metadata, timeout=_ADD_TIMEOUT_S
                )
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error


def _at(holder: str, shards: Iterable[Endpoint], config: RetrieverConfig) -> Endpoint:
    """How to reach a writer that another shard named: as the shard that it is, else under its own address."""
    shards = list(shards)
    for endpoint in shards:
        if endpoint.target == holder:
            return endpoint
    # All shards carry certificates of one name where they were found by it.
    server_name = next((endpoint.server_name for endpoint in shards if endpoint.server_name is not None), None)
    return Endpoint(holder, config.credentials, config.metadata, server_name)
