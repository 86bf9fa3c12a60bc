"""Small servers with the real interceptors and services, whose answers the test scripts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from laser_protocol.errors import LaserError, PoolMismatch, UnknownPool
from laser_protocol.packing import pack_token_ids, unpack_token_ids
from laser_protocol.serving import LaserServer, ListenConfig
from laser_protocol.v1 import acceptance_pb2, retriever_pb2, retriever_pb2_grpc, verifier_pb2, verifier_pb2_grpc

FINGERPRINT = "f" * 64


def queued() -> verifier_pb2.GenerateResponse:
    return verifier_pb2.GenerateResponse(queued=verifier_pb2.Queued(num_ahead=1))


def delta(text: str, *token_ids: int, accepted_length: int = 0) -> verifier_pb2.GenerateResponse:
    message = verifier_pb2.Delta(text=text, token_ids=pack_token_ids(token_ids), accepted_length=accepted_length)
    return verifier_pb2.GenerateResponse(delta=message)


def finished(num_output_tokens: int, text: str = "", request_id: str = "r-1") -> verifier_pb2.GenerateResponse:
    stats = verifier_pb2.GenerationStats(
        num_prompt_tokens=3,
        num_output_tokens=num_output_tokens,
        num_steps=2,
        num_draft_tokens=8,
        num_accepted_tokens=num_output_tokens - 2,
        prefill_ms=1.5,
        decode_ms=2.5,
        draft_status=verifier_pb2.DRAFT_STATUS_OK,
    )
    message = verifier_pb2.Finished(
        finish_reason=verifier_pb2.FINISH_REASON_STOP, stats=stats, text=text, request_id=request_id
    )
    return verifier_pb2.GenerateResponse(finished=message)


def prompt_of(request: verifier_pb2.GenerateRequest) -> str:
    if request.HasField("tokens"):
        return f"tokens {unpack_token_ids(request.tokens.token_ids)}"
    return request.text.text


async def echo(request: verifier_pb2.GenerateRequest) -> AsyncIterator[verifier_pb2.GenerateResponse]:
    """The prompt comes back in two steps of two tokens each."""
    text = prompt_of(request)
    half = len(text) // 2
    yield delta(text[:half], 1, 2, accepted_length=1)
    yield delta(text[half:], 3, 4, accepted_length=1)
    yield finished(4)


Script = Callable[[verifier_pb2.GenerateRequest], AsyncIterator[verifier_pb2.GenerateResponse]]


class ScriptedVerifier(verifier_pb2_grpc.VerifierServicer):
    """Answers with `script`, keeps what was asked, and notices calls that the client gave up."""

    def __init__(self) -> None:
        self.script: Script = echo
        self.requests: list[verifier_pb2.GenerateRequest] = []
        self.metadata: list[dict[str, Any]] = []
        self.given_up = threading.Semaphore(0)
        self.num_open = 0
        self.most_open = 0

    async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        done = False
        try:
            async for response in self.script(request):
                yield response
            done = True
        except LaserError:
            done = True
            raise
        finally:
            self.num_open -= 1
            if not done:
                self.given_up.release()

    async def GetModel(self, request: Any, context: Any) -> verifier_pb2.GetModelResponse:  # noqa: N802
        return verifier_pb2.GetModelResponse(
            name="tiny",
            model_type="llama",
            tokenizer_fingerprint=FINGERPRINT,
            vocab_size=100,
            max_model_len=512,
            max_sequences=8,
            has_chat_template=True,
            eos_token_ids=[2],
            dtype="float32",
            device="cpu",
            default_acceptance=acceptance_pb2.Acceptance(strict=acceptance_pb2.Strict()),
        )


class ScriptedRetriever(retriever_pb2_grpc.RetrieverServicer):
    """Keeps documents in dictionaries. With `refuse` set, writing raises it."""

    def __init__(self) -> None:
        self.pools: dict[str, dict[str, list[int]]] = {}
        self.refuse: LaserError | None = None

    def _describe(self, pool: str) -> retriever_pb2.PoolDescription:
        if pool not in self.pools:
            raise UnknownPool(f"pool {pool!r} holds no documents", field="pool")
        documents = self.pools[pool]
        return retriever_pb2.PoolDescription(
            pool=pool,
            tokenizer_fingerprint=FINGERPRINT,
            num_documents=len(documents),
            num_tokens=sum(map(len, documents.values())),
            num_segments=1,
            size_bytes=4096,
        )

    async def AddDocuments(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        if self.refuse is not None:
            raise self.refuse
        num_documents = 0
        async for request in request_iterator:
            if request.tokenizer_fingerprint != FINGERPRINT:
                raise PoolMismatch(f"pool is of {FINGERPRINT}, documents of {request.tokenizer_fingerprint}")
            for document in request.documents:
                self.pools.setdefault(request.pool, {})[document.id] = unpack_token_ids(document.token_ids)
                num_documents += 1
        return retriever_pb2.AddDocumentsResponse(num_documents=num_documents)

    async def DeleteDocuments(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.refuse is not None:
            raise self.refuse
        self._describe(request.pool)
        num_deleted = sum(self.pools[request.pool].pop(name, None) is not None for name in request.ids)
        return retriever_pb2.DeleteDocumentsResponse(num_deleted=num_deleted)

    async def ListPools(self, request: Any, context: Any) -> Any:  # noqa: N802
        pools = [self._describe(pool) for pool in sorted(self.pools) if pool.startswith(request.root)]
        return retriever_pb2.ListPoolsResponse(pools=pools)

    async def DescribePool(self, request: Any, context: Any) -> Any:  # noqa: N802
        return retriever_pb2.DescribePoolResponse(description=self._describe(request.pool))

    async def DropPool(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._describe(request.pool)
        del self.pools[request.pool]
        return retriever_pb2.DropPoolResponse()

    async def ExportDocuments(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield retriever_pb2.ExportDocumentsResponse(description=self._describe(request.pool))
        for document_id, tokens in self.pools[request.pool].items():
            document = retriever_pb2.Document(id=document_id, token_ids=pack_token_ids(tokens))
            yield retriever_pb2.ExportDocumentsResponse(documents=[document])

    async def CompactPool(self, request: Any, context: Any) -> Any:  # noqa: N802
        return retriever_pb2.CompactPoolResponse(description=self._describe(request.pool))


class ServerThread:
    """A LaserServer on an event loop and a thread of its own, so that blocking clients can be tested."""

    def __init__(self, servicer: Any, **config: Path) -> None:
        self._servicer = servicer
        self._config = ListenConfig(listen="127.0.0.1:0", grace_s=0.0, **config)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._server: LaserServer | None = None
        self.port = 0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def set_serving(self, serving: bool) -> None:
        asyncio.run_coroutine_threadsafe(self._server.set_serving(serving), self._loop).result(5)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)

    def __enter__(self) -> ServerThread:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        is_verifier = isinstance(self._servicer, ScriptedVerifier)
        add = (
            verifier_pb2_grpc.add_VerifierServicer_to_server
            if is_verifier
            else retriever_pb2_grpc.add_RetrieverServicer_to_server
        )
        name = "laser.v1.Verifier" if is_verifier else "laser.v1.Retriever"
        self._server = LaserServer(self._config, [name], lambda server: add(self._servicer, server))
        self.port = await self._server.start()
        await self._server.set_serving(True)
        self._started.set()
        await self._stop.wait()
        await self._server.stop()
