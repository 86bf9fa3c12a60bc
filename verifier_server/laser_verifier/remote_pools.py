"""Sends finished outputs to the pools they join, apart from drafting and never in its way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from laser_protocol.channel import Endpoint
from laser_protocol.errors import LaserError, NotReady, WriterElsewhere, from_rpc_error
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
_NUM_TRIES = 5


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
        holder: str | None = None
        for attempt in range(_NUM_TRIES):
            endpoint = self._endpoint(pool, attempt, holder)
            try:
                if endpoint is None:
                    raise NotReady("no retriever can be reached")
                await self._add(endpoint, pool, documents)
                self.counters.num_learned += len(documents)
                return
            except WriterElsewhere as error:
                holder = error.holder
                if holder is None:  # the writer is changing: who it is will be known in a moment
                    await asyncio.sleep(0.2 * 2**attempt)
            except NotReady:
                holder = None
                await asyncio.sleep(0.2 * 2**attempt)
            except LaserError as error:
                logger.warning("learn.refused pool=%s error=%s", pool, error)
                break
        self.counters.drop(len(documents), f"no retriever took those of pool {pool}")

    def _endpoint(self, pool: str, attempt: int, holder: str | None) -> Endpoint | None:
        """Where to try: the pool's writer if it is known, else one shard of the pool's order after the other."""
        shards = self._connected()
        if holder is not None:
            known = (endpoint for endpoint in shards.values() if endpoint.target == holder)
            return next(known, Endpoint(holder, self._config.credentials, self._config.metadata))
        order = rendezvous_order(pool, shards)
        return shards[order[attempt % len(order)]] if order else None

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
                    iter([request]), metadata=endpoint.metadata, timeout=30.0
                )
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
