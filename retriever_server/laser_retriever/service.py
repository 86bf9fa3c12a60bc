"""The gRPC face of the retriever: messages in, messages out. Everything it does is done by `Pools` and `Drafter`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar, TypeVarTuple, Unpack

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from laser_protocol.errors import InvalidRequest, NotReady
from laser_protocol.fingerprint import check_fingerprint
from laser_protocol.limits import MAX_DOCUMENT_TOKENS, MAX_ID_BYTES
from laser_protocol.pool_id import check_pool_id
from laser_protocol.serving import LaserServer
from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc
from laser_retriever.calibration import Calibration
from laser_retriever.clock import TurnClock
from laser_retriever.config import RetrieverConfig
from laser_retriever.draft_messages import answer, check_size, tokens_of
from laser_retriever.drafter import Drafter
from laser_retriever.helpers import DraftHelpers
from laser_retriever.log import FRAME_MAGIC
from laser_retriever.metrics import RetrieverMetrics
from laser_retriever.pools import Pools
from laser_retriever.snapshot import PoolSnapshot
from laser_retriever.tree_drafter import DraftParams
from laser_retriever.writer_lock import WriterLock

logger = logging.getLogger(__name__)

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

SERVICE_NAME = "laser.v1.Retriever"
# Health of this name says whether pools can be written to; reading and drafting go on without.
WRITES_NAME = "laser.v1.Retriever.writes"
# Documents of one call are made durable whenever so many tokens have come, so that a call may be longer than memory.
FLUSH_TOKENS = 1_048_576
# Looked at before drafts have their turn, a third of a millisecond; what a document costs beside its tokens.
BYTES_AT_ONCE = 1 << 18
DOCUMENT_BYTES = 1 << 12
# Documents of one message of an export.
EXPORT_BYTES = 4 * 1024 * 1024
# Around each of them.
FRAMING_BYTES = 6
HEALTH_INTERVAL_S = 0.5

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Exported: TypeAlias = Iterator[retriever_pb2.ExportDocumentsResponse]


class RetrieverService(retriever_pb2_grpc.RetrieverServicer):
    """Serves pools and drafts from them.

    Args:
        pools: opened; closed by whoever opened them.
        config: limits, threads and the shard's name.
        params: how matches become probabilities.
        metrics: of the same pools.
    """

    def __init__(
        self,
        pools: Pools,
        config: RetrieverConfig,
        params: DraftParams | None = None,
        metrics: RetrieverMetrics | None = None,
    ) -> None:
        self._pools = pools
        self._config = config
        self._params = params or DraftParams()
        self._metrics = metrics or RetrieverMetrics(pools)
        self._calibration = Calibration(len(self._params.level_lengths))
        # The event loop drafts, with these beside it: from thread to thread each message would wait for Python's lock
        # several times, and one shard flat out would do half as much.
        self._helpers = DraftHelpers(config.num_threads - 1) if config.num_threads > 1 else None
        self._turn = TurnClock()
        # Writers wait for disks; drafting must never wait behind them, nor they behind a large pool's rebuilding.
        self._storage_threads = ThreadPoolExecutor(4, "storage")
        self._rebuild_threads = ThreadPoolExecutor(2, "rebuild")
        # Calls of Draft that may be cancelled, and whether they were told to: they run as long as their verifier does.
        self._drafting: set[asyncio.Task[Any]] = set()
        self._is_stopping = False

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server."""
        retriever_pb2_grpc.add_RetrieverServicer_to_server(self, server)

    def end_drafts(self) -> None:
        """Ends all draft streams as NotReady, so that their verifiers go to other shards at once and a stop need not
        wait for them, but for one that does not read what it is sent. To be called on the event loop."""
        self._is_stopping = True
        for call in self._drafting:
            call.cancel()

    def close(self) -> None:
        """Ends the threads. Called once no call is running."""
        if self._helpers:
            self._helpers.shutdown()
        self._storage_threads.shutdown()
        self._rebuild_threads.shutdown()

    async def Draft(  # noqa: N802
        self, request_iterator: AsyncIterator[retriever_pb2.DraftRequest], context: Context
    ) -> AsyncIterator[retriever_pb2.DraftResponse]:
        drafter: Drafter | None = None
        verifier = ""
        call = asyncio.current_task()
        assert call is not None, "gRPC runs every call in a task of its own"
        self._allow_cancelling(call)
        metrics = self._metrics.open_stream()
        try:
            async for request in request_iterator:
                if drafter is None:
                    drafter = self._shake_hands(request)
                    verifier = request.handshake.verifier_name[:80]
                    logger.info("draft.opened verifier=%r", verifier)
                    reply = retriever_pb2.HandshakeReply(name=self._config.name)
                    self._drafting.discard(call)
                    yield retriever_pb2.DraftResponse(handshake=reply)
                    self._allow_cancelling(call)
                    continue
                if request.HasField("handshake"):
                    raise InvalidRequest("handshake is set, must be only in the first message", field="handshake")
                check_size(request, self._config.max_sequences)
                came_s = self._turn.began_s()
                response = await answer(drafter, request, self._helpers, came_s + self._config.draft_deadline_s)
                metrics.answered(drafter, len(response.trees), time.monotonic() - came_s)
                if response.opened or response.trees or response.faults:
                    self._drafting.discard(call)
                    yield response
                    self._allow_cancelling(call)
                # The verifier has its trees; what they did not have to wait for is done while it uses them.
                drafter.calibrate()
        except asyncio.CancelledError:
            if self._is_stopping:
                raise _stopping() from None
            raise
        finally:
            # Reached however the stream ends; the sequences go with the drafter.
            self._drafting.discard(call)
            metrics.close()
            if drafter is not None:
                feedback = drafter.feedback
                logger.info(
                    "draft.closed verifier=%r open_sequences=%d trees=%d nodes=%d verified=%d accepted=%d",
                    verifier, len(drafter), feedback.num_trees, feedback.num_nodes, feedback.num_verified,
                    feedback.num_accepted,
                )  # fmt: skip

    def _allow_cancelling(self, call: asyncio.Task[Any]) -> None:
        """Not while a message is sent: gRPC would take the cancellation, and end the call without a status."""
        if self._is_stopping:
            raise _stopping()
        self._drafting.add(call)

    def _shake_hands(self, request: retriever_pb2.DraftRequest) -> Drafter:
        if not request.HasField("handshake"):
            raise InvalidRequest("handshake is missing, must be in the first message", field="handshake")
        if request.opens or request.advances or request.closes:
            raise InvalidRequest("handshake must stand alone in the first message", field="handshake")
        return Drafter(
            self._pools,
            request.handshake.tokenizer_fingerprint,
            request.handshake.vocab_size,
            self._params,
            self._config.max_sequences,
            self._config.num_threads,
            self._calibration,
        )

    async def AddDocuments(  # noqa: N802
        self, request_iterator: AsyncIterator[retriever_pb2.AddDocumentsRequest], context: Context
    ) -> retriever_pb2.AddDocumentsResponse:
        pool = fingerprint = ""
        pending: list[tuple[str, NDArray[np.int32]]] = []
        num_pending = num_documents = num_tokens = num_bytes = 0
        async for request in request_iterator:
            pool, fingerprint = _same_target(pool, fingerprint, request)
            for document in request.documents:
                pending.append(_document(document))
                num_pending += len(pending[-1][1])
                num_documents += 1
                num_bytes += DOCUMENT_BYTES + 4 * len(pending[-1][1])
                if num_bytes >= BYTES_AT_ONCE:
                    num_bytes = 0
                    await asyncio.sleep(0)
            if num_pending >= FLUSH_TOKENS:
                await self._in_storage(self._pools.add_documents, pool, fingerprint, pending)
                num_tokens += num_pending
                pending, num_pending = [], 0
        # A cancelled call ends the iteration like a finished one: what comes now is lost to the caller, and harmless.
        if not pool:
            raise InvalidRequest("pool is '', must be given in the first message", field="pool")
        if not num_documents:
            raise InvalidRequest("documents is empty, must hold at least one document", field="documents")
        if pending:
            await self._in_storage(self._pools.add_documents, pool, fingerprint, pending)
        logger.info("documents.added pool=%s documents=%d tokens=%d", pool, num_documents, num_tokens + num_pending)
        return retriever_pb2.AddDocumentsResponse(num_documents=num_documents, num_tokens=num_tokens + num_pending)

    async def DeleteDocuments(  # noqa: N802
        self, request: retriever_pb2.DeleteDocumentsRequest, context: Context
    ) -> retriever_pb2.DeleteDocumentsResponse:
        num_deleted = await self._in_storage(self._delete, request.pool, request.ids)
        logger.info("documents.deleted pool=%s documents=%d", request.pool, num_deleted)
        return retriever_pb2.DeleteDocumentsResponse(num_deleted=num_deleted)

    async def ListPools(  # noqa: N802
        self, request: retriever_pb2.ListPoolsRequest, context: Context
    ) -> retriever_pb2.ListPoolsResponse:
        return retriever_pb2.ListPoolsResponse(pools=await self._in_storage(self._list, request.root))

    async def DescribePool(  # noqa: N802
        self, request: retriever_pb2.DescribePoolRequest, context: Context
    ) -> retriever_pb2.DescribePoolResponse:
        return retriever_pb2.DescribePoolResponse(description=await self._in_storage(self._describe, request.pool))

    async def DropPool(  # noqa: N802
        self, request: retriever_pb2.DropPoolRequest, context: Context
    ) -> retriever_pb2.DropPoolResponse:
        await self._in_rebuild(self._pools.drop, request.pool)
        logger.info("pool.dropped pool=%s", request.pool)
        return retriever_pb2.DropPoolResponse()

    async def CompactPool(  # noqa: N802
        self, request: retriever_pb2.CompactPoolRequest, context: Context
    ) -> retriever_pb2.CompactPoolResponse:
        return retriever_pb2.CompactPoolResponse(description=await self._in_rebuild(self._compact, request.pool))

    async def ExportDocuments(  # noqa: N802
        self, request: retriever_pb2.ExportDocumentsRequest, context: Context
    ) -> AsyncIterator[retriever_pb2.ExportDocumentsResponse]:
        description, messages = await self._in_storage(self._begin_export, request.pool)
        yield retriever_pb2.ExportDocumentsResponse(description=description)
        while (message := await self._in_storage(next, messages, None)) is not None:
            yield message
        logger.info("documents.exported pool=%s documents=%d", request.pool, description.num_documents)

    async def report_health(self, server: LaserServer) -> None:
        """Keeps the health of writes up to date, until cancelled."""
        while True:
            await server.set_serving(self._pools.storage.writable, [WRITES_NAME])
            await asyncio.sleep(HEALTH_INTERVAL_S)

    # In storage threads: a description names the writer, which is read from a file; ids may be a million

    def _delete(self, pool: str, ids: Sequence[str]) -> int:
        return self._pools.delete_documents(pool, [_check_id(document_id, "ids") for document_id in ids])

    def _list(self, root: str) -> list[retriever_pb2.PoolDescription]:
        return [self._description(snapshot) for snapshot in self._pools.list_pools(root)]

    def _describe(self, pool: str) -> retriever_pb2.PoolDescription:
        return self._description(self._pools.describe(pool))

    def _compact(self, pool: str) -> retriever_pb2.PoolDescription:
        return self._description(self._pools.compact(pool))

    def _begin_export(self, pool: str) -> tuple[retriever_pb2.PoolDescription, Exported]:
        snapshot = self._pools.describe(pool)
        return self._description(snapshot), _exported(snapshot)

    def _description(self, snapshot: PoolSnapshot) -> retriever_pb2.PoolDescription:
        limits = self._config.limits
        return retriever_pb2.PoolDescription(
            pool=snapshot.pool,
            tokenizer_fingerprint=snapshot.fingerprint,
            num_documents=snapshot.num_documents,
            num_tokens=snapshot.num_tokens,
            num_segments=len(snapshot.segments),
            size_bytes=snapshot.size_bytes,
            num_log_documents=len(snapshot.tail_ids),
            num_dead_tokens=snapshot.num_dead_tokens,
            log_size_bytes=snapshot.log_size_bytes,
            oldest_unix_ms=snapshot.oldest_ms,
            newest_unix_ms=snapshot.newest_ms,
            writer=WriterLock.last_holder(self._config.pools / snapshot.pool),
            limits=retriever_pb2.PoolLimits(
                max_documents=limits.max_documents, max_tokens=limits.max_tokens, max_age_s=limits.max_age_s
            ),
        )

    async def _in_storage(self, function: Callable[[Unpack[Arguments]], T], *arguments: *Arguments) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._storage_threads, function, *arguments)

    async def _in_rebuild(self, function: Callable[[Unpack[Arguments]], T], *arguments: *Arguments) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._rebuild_threads, function, *arguments)


def _stopping() -> NotReady:
    return NotReady("this retriever is stopping; its sequences are for the other shards")


def _same_target(pool: str, fingerprint: str, request: retriever_pb2.AddDocumentsRequest) -> tuple[str, str]:
    """Pool and fingerprint of an AddDocuments call, given by its first message and contradicted by none."""
    if not pool:
        check_pool_id(request.pool)
        check_fingerprint(request.tokenizer_fingerprint)
        return request.pool, request.tokenizer_fingerprint
    for field, first, now in (
        ("pool", pool, request.pool),
        ("tokenizer_fingerprint", fingerprint, request.tokenizer_fingerprint),
    ):
        if now and now != first:
            raise InvalidRequest(f"{field} is {now[:80]!r}, must stay {first!r} throughout the call", field=field)
    return pool, fingerprint


def _check_id(document_id: str, field: str) -> str:
    size = len(document_id.encode())
    if not 1 <= size <= MAX_ID_BYTES:
        raise InvalidRequest(f"{field} has {size} bytes of UTF-8, must have 1 to {MAX_ID_BYTES}", field=field)
    return document_id


def _document(message: retriever_pb2.Document) -> tuple[str, NDArray[np.int32]]:
    _check_id(message.id, "id")
    tokens = tokens_of(packed := message.token_ids)
    if not 1 <= len(tokens) <= MAX_DOCUMENT_TOKENS:
        raise InvalidRequest(
            f"token_ids of document {message.id!r} has {len(tokens)} tokens, must have 1 to {MAX_DOCUMENT_TOKENS}",
            field="token_ids",
        )
    if FRAME_MAGIC in packed:
        raise InvalidRequest(
            f"token_ids of document {message.id!r} holds the bytes {FRAME_MAGIC!r} that mark a record of the log, must "
            "not (tokens below 1,290,000,000 do not)",
            field="token_ids",
        )
    if int(tokens.min()) < 0:
        raise InvalidRequest(
            f"token_ids of document {message.id!r} holds {tokens.min()}, must be at least 0", field="token_ids"
        )
    return message.id, tokens


def _exported(snapshot: PoolSnapshot) -> Exported:
    """The documents of a pool, oldest first, in messages."""
    batch: list[retriever_pb2.Document] = []
    size_bytes = 0
    for document_id, index, i in snapshot.documents():
        document = retriever_pb2.Document(id=document_id, token_ids=index.document(i).astype("<i4").tobytes())
        document_bytes = document.ByteSize() + FRAMING_BYTES
        if batch and size_bytes + document_bytes > EXPORT_BYTES:
            yield retriever_pb2.ExportDocumentsResponse(documents=batch)
            batch, size_bytes = [], 0
        batch.append(document)
        size_bytes += document_bytes
    if batch:
        yield retriever_pb2.ExportDocumentsResponse(documents=batch)
