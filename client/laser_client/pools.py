"""PoolClient: administers the pools of a retriever. The only file of the client that touches the retriever's stubs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from laser_client.request import check_document_id
from laser_protocol.channel import Endpoint
from laser_protocol.errors import InvalidRequest, NotReady, WriterElsewhere, from_rpc_error
from laser_protocol.limits import MAX_DOCUMENT_TOKENS
from laser_protocol.packing import pack_token_ids
from laser_protocol.pool_id import check_pool_id
from laser_protocol.v1 import retriever_pb2 as pb
from laser_protocol.v1 import retriever_pb2_grpc

# Documents of one call, so of one acknowledgement; well below the server's message limit.
_BATCH_BYTES = 1024 * 1024
_TIMEOUT_S = 60.0
# The writer may change between the answer and our going there, but not for ever.
_MAX_MOVES = 3


@dataclass(frozen=True, slots=True)
class Document:
    """An output to keep.

    Attributes:
        id: unique in its pool, 1 to 256 bytes of UTF-8; adding it again replaces the document.
        packed_token_ids: little-endian int32, 1 to 1,048,576 tokens.
    """

    id: str
    packed_token_ids: bytes

    @staticmethod
    def make(document_id: str, token_ids: Sequence[int]) -> Document:
        """A document of output tokens, with the EOS only if the model emitted it.

        Raises:
            InvalidRequest: names `id` or `output_token_ids`.
        """
        check_document_id("id", document_id)
        if not 1 <= len(token_ids) <= MAX_DOCUMENT_TOKENS:
            raise InvalidRequest(
                f"output_token_ids has {len(token_ids)} tokens, must have 1 to {MAX_DOCUMENT_TOKENS}",
                field="output_token_ids",
            )
        for position, token_id in enumerate(token_ids):
            if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < 2**31:
                raise InvalidRequest(
                    f"output_token_ids[{position}] is {token_id!r}, must be from 0 to 2^31-1", field="output_token_ids"
                )
        return Document(document_id, pack_token_ids(token_ids))


@dataclass(frozen=True, slots=True)
class Pool:
    """What a retriever says of a pool.

    Attributes:
        id: its path, for instance `ml-100k/kar/user/2`.
        tokenizer_fingerprint: of the model whose outputs it holds.
        num_documents, num_tokens: documents and their output tokens.
        num_segments, num_log_documents: sealed parts, and documents not yet in one.
        num_dead_tokens: of deleted and replaced documents, gone with the next compaction.
        size_bytes, log_size_bytes: on disk, and of that the write-ahead log.
        oldest_unix_ms, newest_unix_ms: when the first and the last document were added; 0: there is none.
        writer: HOST:PORT of the retriever that writes it, or, should it have been killed, wrote it last; "": none does.
        max_documents, max_tokens, max_age_s: what the retriever lets it hold; 0: no limit.
    """

    id: str
    tokenizer_fingerprint: str
    num_documents: int
    num_tokens: int
    num_segments: int
    num_log_documents: int
    num_dead_tokens: int
    size_bytes: int
    log_size_bytes: int
    oldest_unix_ms: int
    newest_unix_ms: int
    writer: str
    max_documents: int
    max_tokens: int
    max_age_s: float


class PoolClient:
    """Administers pools through any retriever; follows to the one that writes a pool at present.

    Args:
        endpoint: the retriever. The same TLS and token are used for the others.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channels: dict[str, grpc.Channel] = {}
        # Where each pool was last written.
        self._writers: dict[str, str] = {}

    def list_pools(self, root: str = "") -> list[Pool]:
        """All pools that hold documents of their own, at or below `root`, sorted by id."""
        if root:
            check_pool_id(root)
        request = pb.ListPoolsRequest(root=root)
        response = self._call(self._endpoint.target, lambda stub, options: stub.ListPools(request, **options))
        return [_pool_from_message(pool) for pool in response.pools]

    def describe(self, pool: str) -> Pool:
        """What is known of one pool.

        Raises:
            UnknownPool: there is none.
        """
        request = pb.DescribePoolRequest(pool=check_pool_id(pool))
        response = self._call(self._endpoint.target, lambda stub, options: stub.DescribePool(request, **options))
        return _pool_from_message(response.description)

    def add(self, pool: str, tokenizer_fingerprint: str, documents: Iterable[Document]) -> Iterator[int]:
        """Adds documents in batches.

        Args:
            pool: comes into being with its first document.
            tokenizer_fingerprint: of the model that gave the tokens (`LaserClient.model`).
            documents: what to add; a later one of the same id replaces the earlier.

        Yields:
            How many documents were put on stable storage, batch by batch.

        Raises:
            PoolMismatch: the pool holds another tokenizer's outputs.
            StorageUnavailable: disk full or read-only.
        """
        check_pool_id(pool)
        for batch in _batches(documents):
            request = pb.AddDocumentsRequest(
                pool=pool,
                tokenizer_fingerprint=tokenizer_fingerprint,
                documents=[pb.Document(id=document.id, token_ids=document.packed_token_ids) for document in batch],
            )
            self._add_batch(pool, request)
            yield len(batch)

    def export(self, pool: str) -> tuple[Pool, Iterator[Document]]:
        """Reads a pool's documents back, oldest first, as they are now.

        Returns:
            What is known of the pool, and its documents; iterate over them before the client is closed.

        Raises:
            UnknownPool: there is none.
        """
        request = pb.ExportDocumentsRequest(pool=check_pool_id(pool))
        options = {"metadata": self._endpoint.metadata}
        stream = self._stub(self._endpoint.target).ExportDocuments(request, **options)
        try:
            description = _pool_from_message(next(stream).description)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return description, _documents(stream)

    def remove(self, pool: str, ids: Sequence[str]) -> int:
        """Deletes documents by id. Returns how many of them existed.

        Raises:
            UnknownPool: there is none.
            InvalidRequest: an id that no document can have.
        """
        for document_id in ids:
            check_document_id("id", document_id)
        request = pb.DeleteDocumentsRequest(pool=check_pool_id(pool), ids=ids)
        response = self._call_writer(pool, lambda stub, options: stub.DeleteDocuments(request, **options))
        return int(response.num_deleted)

    def drop(self, pool: str) -> None:
        """Removes a pool with all its documents, but not its descendants.

        Raises:
            UnknownPool: there is none.
        """
        request = pb.DropPoolRequest(pool=check_pool_id(pool))
        self._call_writer(pool, lambda stub, options: stub.DropPool(request, **options))

    def compact(self, pool: str) -> Pool:
        """Merges the segments of a pool, as far as 2^31 tokens go into one, without deleted documents. May take long.

        Raises:
            UnknownPool: there is none.
        """
        request = pb.CompactPoolRequest(pool=check_pool_id(pool))
        response = self._call_writer(
            pool, lambda stub, options: stub.CompactPool(request, **{**options, "timeout": None})
        )
        return _pool_from_message(response.description)

    def close(self) -> None:
        """Gives the connections back."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _add_batch(self, pool: str, request: pb.AddDocumentsRequest) -> None:
        self._call_writer(pool, lambda stub, options: stub.AddDocuments(iter([request]), **options))

    def _call_writer(self, pool: str, call: Callable[[Any, dict[str, Any]], Any]) -> Any:
        """The call, at the retriever that writes the pool."""
        for _ in range(_MAX_MOVES):
            try:
                return self._call(self._writers.get(pool, self._endpoint.target), call)
            except WriterElsewhere as error:
                if error.holder:
                    self._writers[pool] = error.holder
                else:  # the writer is changing: who it is will be known in a moment
                    time.sleep(error.retry_after_s or 0.0)
            except NotReady:
                if self._writers.pop(pool, None) is None:
                    raise
        return self._call(self._writers.get(pool, self._endpoint.target), call)

    def _call(self, target: str, call: Callable[[Any, dict[str, Any]], Any]) -> Any:
        try:
            return call(self._stub(target), {"timeout": _TIMEOUT_S, "metadata": self._endpoint.metadata})
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def _stub(self, target: str) -> Any:
        if target not in self._channels:
            self._channels[target] = Endpoint(target, self._endpoint.credentials, self._endpoint.metadata).open()
        return retriever_pb2_grpc.RetrieverStub(self._channels[target])


def _documents(stream: Any) -> Iterator[Document]:
    try:
        for message in stream:
            for document in message.documents:
                yield Document(document.id, document.token_ids)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _batches(documents: Iterable[Document]) -> Iterator[Sequence[Document]]:
    batch: list[Document] = []
    size_bytes = 0
    for document in documents:
        batch.append(document)
        size_bytes += len(document.packed_token_ids) + len(document.id)
        if size_bytes >= _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _pool_from_message(message: pb.PoolDescription) -> Pool:
    return Pool(
        id=message.pool,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        num_documents=message.num_documents,
        num_tokens=message.num_tokens,
        num_segments=message.num_segments,
        num_log_documents=message.num_log_documents,
        num_dead_tokens=message.num_dead_tokens,
        size_bytes=message.size_bytes,
        log_size_bytes=message.log_size_bytes,
        oldest_unix_ms=message.oldest_unix_ms,
        newest_unix_ms=message.newest_unix_ms,
        writer=message.writer,
        max_documents=message.limits.max_documents,
        max_tokens=message.limits.max_tokens,
        max_age_s=message.limits.max_age_s,
    )
