"""The retriever behind a real gRPC server on a free port, called through a real channel."""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import laser_retriever.writer
from laser_protocol.errors import (
    InvalidRequest,
    LaserError,
    NotReady,
    PoolMismatch,
    StorageUnavailable,
    UnknownPool,
    WriterElsewhere,
    from_rpc_error,
)
from laser_protocol.serving import LaserServer, ListenConfig
from laser_protocol.tree import tree_from_message
from laser_protocol.v1 import acceptance_pb2, retriever_pb2, retriever_pb2_grpc
from laser_retriever import service
from laser_retriever.config import RetrieverConfig
from laser_retriever.draft_messages import SEQUENCES_AT_ONCE
from laser_retriever.drafter import Drafter
from laser_retriever.log import FRAME_MAGIC
from laser_retriever.metrics import RetrieverMetrics
from laser_retriever.pools import Pools
from laser_retriever.service import SERVICE_NAME, WRITES_NAME, RetrieverService
from laser_retriever.writer_lock import WriterLock

FINGERPRINT = "f" * 64
VOCAB_SIZE = 100
POOL = "shop/user/1"


def pack(*token_ids: int) -> bytes:
    return np.array(token_ids, "<i4").tobytes()


class RunningServer:
    """A retriever in this process, with its event loop in a thread."""

    def __init__(self, directory: Path, name: str = "shard-a", draft_deadline_s: float = 60.0) -> None:
        config = RetrieverConfig(
            pools=directory,
            name=name,
            rescan_s=0.05,
            sample_interval_s=0,
            draft_deadline_s=draft_deadline_s,
            num_threads=3,
        )
        self.pools = Pools(config)
        self.metrics = RetrieverMetrics(self.pools)
        self.service = RetrieverService(self.pools, config, metrics=self.metrics)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        port = self._run(self._start())
        self.address = f"127.0.0.1:{port}"
        self.pools.advertise(self.address)
        self.channel = grpc.insecure_channel(self.address)
        self.stub = retriever_pb2_grpc.RetrieverStub(self.channel)

    async def _start(self) -> int:
        self._server = LaserServer(ListenConfig("127.0.0.1:0", grace_s=0.1), [SERVICE_NAME], self.service.register)
        port = await self._server.start()
        await self._server.set_serving(True)
        self._health = asyncio.get_running_loop().create_task(self.service.report_health(self._server))
        return port

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def stop(self) -> None:
        self.channel.close()
        self._loop.call_soon_threadsafe(self._health.cancel)
        self._run(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.service.close()
        self.pools.close()

    def add(
        self,
        documents: dict[str, list[int]],
        pool: str = POOL,
        fingerprint: str = FINGERPRINT,
        timeout_s: float | None = None,
    ) -> Any:
        messages = [retriever_pb2.Document(id=key, token_ids=pack(*tokens)) for key, tokens in documents.items()]
        request = retriever_pb2.AddDocumentsRequest(pool=pool, tokenizer_fingerprint=fingerprint, documents=messages)
        return self.stub.AddDocuments(iter([request]), timeout=timeout_s)

    def described(self, pool: str = POOL, timeout_s: float | None = None) -> retriever_pb2.PoolDescription:
        return self.stub.DescribePool(retriever_pb2.DescribePoolRequest(pool=pool), timeout=timeout_s).description


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path)
    yield running
    running.stop()


class Stream:
    """A draft stream, driven one message at a time."""

    def __init__(self, server: RunningServer, handshake: retriever_pb2.Handshake | None = None) -> None:
        self._requests: queue.Queue[retriever_pb2.DraftRequest | None] = queue.Queue()
        self._responses = server.stub.Draft(iter(self._requests.get, None))
        shake = handshake or retriever_pb2.Handshake(
            tokenizer_fingerprint=FINGERPRINT, vocab_size=VOCAB_SIZE, verifier_name="test"
        )
        self.reply = self.ask(retriever_pb2.DraftRequest(handshake=shake)).handshake

    def ask(self, request: retriever_pb2.DraftRequest) -> retriever_pb2.DraftResponse:
        self.send(request)
        response: retriever_pb2.DraftResponse = next(self._responses)
        return response

    def send(self, request: retriever_pb2.DraftRequest) -> None:
        self._requests.put(request)

    def end(self) -> None:
        self._requests.put(None)
        assert list(self._responses) == []


@pytest.fixture
def stream(server: RunningServer) -> Iterator[Stream]:
    opened = Stream(server)
    yield opened
    opened.end()


def opening(sequence_id: int, tokens: list[int], *, pool: str = POOL, **fields: Any) -> retriever_pb2.OpenSequence:
    fields = {"num_prompt_tokens": 1, "node_budget": 8, **fields}
    strict = acceptance_pb2.Acceptance(strict=acceptance_pb2.Strict())
    return retriever_pb2.OpenSequence(
        sequence_id=sequence_id, pool=pool, token_ids=pack(*tokens), model="m", acceptance=strict, **fields
    )


def raised(call: Callable[[], object]) -> LaserError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return from_rpc_error(caught.value)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come about within 10 s"
        time.sleep(0.02)


def first_path(response: retriever_pb2.DraftResponse) -> list[int]:
    """Tokens of the deepest node's path in the first tree."""
    tree = tree_from_message(response.trees[0])
    depths = tree.depths()
    return [int(tree.token_ids[i]) for i in tree.path(int(depths.argmax()))] if len(tree) else []


CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
KEY = b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("cert", "key", "client_ca", "message"),
    [
        (b"", KEY, CERTIFICATE, r"--tls-cert .*/cert\.pem: holds no PEM block '-----BEGIN CERTIFICATE-----'"),
        (KEY, CERTIFICATE, CERTIFICATE, r"--tls-cert .*/cert\.pem: holds no PEM block"),
        (CERTIFICATE, b"\x30\x82", CERTIFICATE, r"--tls-key .*/key\.pem: .*'-----BEGIN PRIVATE KEY-----'"),
        (CERTIFICATE, KEY, KEY, r"--tls-client-ca .*/ca\.pem: holds no PEM block"),
        (CERTIFICATE, KEY, None, r"--tls-client-ca .*/ca\.pem: No such file"),
    ],
)
def test_a_certificate_or_key_that_is_none_is_named_with_its_option(
    tmp_path: Path, cert: bytes, key: bytes, client_ca: bytes | None, message: str
) -> None:
    paths = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    for path, content in zip(paths, (cert, key, client_ca), strict=True):
        if content is not None:
            path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        LaserServer(ListenConfig("127.0.0.1:0", *paths), [], lambda server: None)


def test_a_certificate_and_key_that_do_not_go_together_are_not_taken_for_an_address_in_use(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(CERTIFICATE)
    key.write_bytes(KEY)

    async def start() -> None:
        await LaserServer(ListenConfig("127.0.0.1:0", cert, key), [], lambda server: None).start()

    with pytest.raises(OSError, match=r"cannot listen on .*cert\.pem and --tls-key .*key\.pem are damaged or no pair"):
        asyncio.run(start())


def test_the_handshake_names_the_shard(stream: Stream) -> None:
    assert stream.reply.name == "shard-a"


def test_added_documents_are_drafted_from_and_followed_as_the_sequence_advances(
    server: RunningServer, stream: Stream
) -> None:
    response = server.add({"a": [1, 2, 3, 4, 5, 6], "b": [9]})
    assert (response.num_documents, response.num_tokens) == (2, 7)
    until(lambda: len(server.pools.sources(POOL, FINGERPRINT)[1].table) > 0)
    answer = stream.ask(retriever_pb2.DraftRequest(opens=[opening(7, [50], node_budget=4)]))
    assert [(o.sequence_id, o.pool_state) for o in answer.opened] == [(7, retriever_pb2.POOL_STATE_OK)]
    assert first_path(answer)[:3] == [1, 2, 3]
    tree = tree_from_message(answer.trees[0])
    tree.check(4, VOCAB_SIZE)
    assert (answer.trees[0].sequence_id, tree.position) == (7, 1)
    advance = retriever_pb2.AdvanceSequence(
        sequence_id=7, position=1, token_ids=pack(1, 2), num_verified_nodes=1, accepted_node_idx=0, node_budget=8
    )
    answer = stream.ask(retriever_pb2.DraftRequest(advances=[advance]))
    assert not answer.faults
    assert answer.trees[0].position == 3
    assert first_path(answer) == [3, 4, 5, 6]


def test_the_trees_of_one_message_come_together_and_budget_0_gives_none(stream: Stream) -> None:
    opens = [opening(i, [1, 2, 1], node_budget=0 if i == 3 else 4) for i in range(5)]
    answer = stream.ask(retriever_pb2.DraftRequest(opens=opens))
    assert [tree.sequence_id for tree in answer.trees] == [0, 1, 2, 4]
    assert [o.sequence_id for o in answer.opened] == [0, 1, 2, 3, 4]


def test_an_open_says_what_became_of_the_pool(server: RunningServer, stream: Stream) -> None:
    server.add({"a": [1]}, "mine")
    server.add({"a": [1, 2]}, "other", "0" * 64)
    server.described("mine"), server.described("other")
    opens = [opening(i, [1, 2, 1], pool=pool) for i, pool in enumerate(["mine", "new", "", "other"])]
    answer = stream.ask(retriever_pb2.DraftRequest(opens=opens))
    assert [o.pool_state for o in answer.opened] == [
        retriever_pb2.POOL_STATE_OK,
        retriever_pb2.POOL_STATE_NO_POOL,
        retriever_pb2.POOL_STATE_NO_POOL,
        retriever_pb2.POOL_STATE_TOKENIZER_MISMATCH,
    ]
    assert [len(tree.token_ids) > 0 for tree in answer.trees] == [True] * 4, "the sequence itself is always there"


def test_a_fault_closes_one_sequence_and_the_others_go_on(stream: Stream) -> None:
    stream.ask(retriever_pb2.DraftRequest(opens=[opening(1, [1, 2, 1]), opening(2, [1, 2, 1])]))
    wrong = retriever_pb2.AdvanceSequence(sequence_id=1, position=9, token_ids=pack(2), node_budget=4)
    wrong.accepted_node_idx = -1
    right = retriever_pb2.AdvanceSequence(
        sequence_id=2, position=3, token_ids=pack(2), accepted_node_idx=-1, node_budget=4
    )
    answer = stream.ask(retriever_pb2.DraftRequest(advances=[wrong, right]))
    assert [fault.sequence_id for fault in answer.faults] == [1]
    assert answer.faults[0].message.startswith("position is 9, must be 3")
    assert [tree.sequence_id for tree in answer.trees] == [2]
    answer = stream.ask(retriever_pb2.DraftRequest(advances=[wrong]))
    assert "sequence_id 1 is not open" in answer.faults[0].message
    assert not stream.ask(retriever_pb2.DraftRequest(opens=[opening(1, [1, 2])])).faults


@pytest.mark.parametrize(
    ("message", "start"),
    [
        (opening(1, [1], pool="../etc"), "pool is '../etc'"),
        (opening(1, []), "token_ids is empty"),
        (opening(1, [1, VOCAB_SIZE]), f"token_ids[1] is {VOCAB_SIZE}"),
        (opening(1, [1], num_prompt_tokens=2), "num_prompt_tokens is 2"),
        (opening(1, [1], node_budget=257), "node_budget is 257"),
        (opening(1, [1], temperature=-0.5), "temperature is -0.5"),
        (opening(1, [1], temperature=math.nan), "temperature is nan"),
        (retriever_pb2.OpenSequence(sequence_id=1, token_ids=b"abc", num_prompt_tokens=1), "token_ids has 3 bytes"),
    ],
)
def test_an_open_that_makes_no_sense_is_a_fault_of_that_sequence(
    stream: Stream, message: retriever_pb2.OpenSequence, start: str
) -> None:
    answer = stream.ask(retriever_pb2.DraftRequest(opens=[message, opening(2, [1, 2, 1])]))
    assert [fault.sequence_id for fault in answer.faults] == [1]
    assert answer.faults[0].message.startswith(start)
    assert [tree.sequence_id for tree in answer.trees] == [2]


def test_closed_sequences_are_forgotten_and_unknown_ones_ignored(stream: Stream) -> None:
    stream.ask(retriever_pb2.DraftRequest(opens=[opening(1, [1, 2])]))
    answer = stream.ask(retriever_pb2.DraftRequest(closes=[1, 99], opens=[opening(1, [3, 4])]))
    assert not answer.faults


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (retriever_pb2.DraftRequest(closes=[1]), "handshake"),
        (retriever_pb2.DraftRequest(handshake=retriever_pb2.Handshake(vocab_size=5)), "tokenizer_fingerprint"),
        (retriever_pb2.DraftRequest(handshake=retriever_pb2.Handshake(tokenizer_fingerprint="f")), "vocab_size"),
    ],
)
def test_a_stream_without_a_proper_handshake_is_refused(
    server: RunningServer, request_: retriever_pb2.DraftRequest, field: str
) -> None:
    error = raised(lambda: list(server.stub.Draft(iter([request_]))))
    assert isinstance(error, InvalidRequest)
    assert error.field == field


def test_a_second_handshake_ends_the_stream(server: RunningServer) -> None:
    handshake = retriever_pb2.Handshake(tokenizer_fingerprint=FINGERPRINT, vocab_size=5)
    request = retriever_pb2.DraftRequest(handshake=handshake)
    error = raised(lambda: list(server.stub.Draft(iter([request, request]))))
    assert (type(error), error.field) == (InvalidRequest, "handshake")


def test_a_message_of_more_changes_than_sequences_may_be_open_ends_the_stream(server: RunningServer) -> None:
    handshake = retriever_pb2.Handshake(tokenizer_fingerprint=FINGERPRINT, vocab_size=5)
    flood = retriever_pb2.DraftRequest(opens=[retriever_pb2.OpenSequence()] * 20_000)
    error = raised(lambda: list(server.stub.Draft(iter([retriever_pb2.DraftRequest(handshake=handshake), flood]))))
    assert (type(error), error.field) == (InvalidRequest, "opens")
    assert "20000" in str(error) and "16384" in str(error)


def add_request(**fields: Any) -> retriever_pb2.AddDocumentsRequest:
    document = retriever_pb2.Document(id="a", token_ids=pack(1))
    fields = {"pool": POOL, "tokenizer_fingerprint": FINGERPRINT, "documents": [document], **fields}
    return retriever_pb2.AddDocumentsRequest(**fields)


def document(document_id: str, token_ids: bytes) -> list[retriever_pb2.Document]:
    return [retriever_pb2.Document(id=document_id, token_ids=token_ids)]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (add_request(pool=""), "pool"),
        (add_request(pool="a/../b"), "pool"),
        (add_request(tokenizer_fingerprint=""), "tokenizer_fingerprint"),
        (add_request(documents=[]), "documents"),
        (add_request(documents=document("", pack(1))), "id"),
        (add_request(documents=document("é" * 129, pack(1))), "id"),
        (add_request(documents=document("a", b"")), "token_ids"),
        (add_request(documents=document("a", b"abc")), "token_ids"),
        (add_request(documents=document("a", pack(1, -1))), "token_ids"),
        (add_request(documents=document("a", pack(1) + b"ab" + FRAME_MAGIC + b"cd")), "token_ids"),
    ],
)
def test_documents_that_cannot_be_stored_are_refused_naming_the_field(
    server: RunningServer, request_: retriever_pb2.AddDocumentsRequest, field: str
) -> None:
    error = raised(lambda: server.stub.AddDocuments(iter([request_])))
    assert (type(error), error.field) == (InvalidRequest, field)
    assert not server.stub.ListPools(retriever_pb2.ListPoolsRequest()).pools


def test_a_call_must_not_change_its_pool(server: RunningServer) -> None:
    error = raised(lambda: server.stub.AddDocuments(iter([add_request(), add_request(pool="elsewhere")])))
    assert (type(error), error.field) == (InvalidRequest, "pool")


def test_documents_of_another_tokenizer_are_a_mismatch_naming_both(server: RunningServer) -> None:
    server.add({"a": [1]})
    error = raised(lambda: server.add({"b": [2]}, fingerprint="other"))
    assert isinstance(error, PoolMismatch)
    assert "other" in str(error)
    assert FINGERPRINT in str(error)


def test_storage_that_fails_is_said_to_be_unavailable(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add({"a": [1]})

    def fail(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", fail)
        error = raised(lambda: server.add({"b": [2]}))
    assert isinstance(error, StorageUnavailable)
    assert "disk full" in str(error)
    assert server.described().num_documents == 1


@pytest.mark.parametrize("call", ["DescribePool", "DropPool", "CompactPool", "DeleteDocuments"])
def test_unknown_pools_and_bad_pool_ids_are_told_apart(server: RunningServer, call: str) -> None:
    make = getattr(retriever_pb2, f"{call}Request")
    method = getattr(server.stub, call)
    unknown = raised(lambda: method(make(pool="no/such")))
    assert (type(unknown), unknown.field) == (UnknownPool, "pool")
    assert "no/such" in str(unknown)
    assert type(raised(lambda: method(make(pool="no/../such")))) is InvalidRequest


def test_pools_are_listed_described_compacted_and_dropped(server: RunningServer) -> None:
    server.add({"a": [1, 2], "b": [3]})
    server.add({"a": [1]}, "shop")
    described = server.described()
    assert (described.pool, described.tokenizer_fingerprint) == (POOL, FINGERPRINT)
    assert (described.num_documents, described.num_tokens, described.num_log_documents) == (2, 3, 2)
    deleted = server.stub.DeleteDocuments(retriever_pb2.DeleteDocumentsRequest(pool=POOL, ids=["a", "x"]))
    assert deleted.num_deleted == 1
    compacted = server.stub.CompactPool(retriever_pb2.CompactPoolRequest(pool=POOL)).description
    assert (compacted.num_documents, compacted.num_segments, compacted.num_log_documents) == (1, 1, 0)
    listed = server.stub.ListPools(retriever_pb2.ListPoolsRequest()).pools
    assert [pool.pool for pool in listed] == ["shop", POOL]
    server.stub.DropPool(retriever_pb2.DropPoolRequest(pool=POOL))
    listed = server.stub.ListPools(retriever_pb2.ListPoolsRequest(root="shop")).pools
    assert [pool.pool for pool in listed] == ["shop"]


def test_no_file_is_read_on_the_event_loop_to_describe_a_pool(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    last_holder = WriterLock.last_holder

    def recorded(directory: Path) -> str:
        threads.append(threading.current_thread().name.partition("_")[0])
        return last_holder(directory)

    monkeypatch.setattr(WriterLock, "last_holder", recorded)
    server.add({"a": [1]})
    assert server.described().writer == server.address
    assert [pool.writer for pool in server.stub.ListPools(retriever_pb2.ListPoolsRequest()).pools] == [server.address]
    export(server)
    server.stub.CompactPool(retriever_pb2.CompactPoolRequest(pool=POOL))
    assert threads == ["storage", "storage", "storage", "rebuild"]


def test_no_number_of_compactions_and_drops_keeps_other_calls_waiting(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    building, go_on = threading.Semaphore(0), threading.Event()
    write = laser_retriever.writer.write_segment

    def slow_write(*arguments: Any) -> str:
        building.release()
        assert go_on.wait(30)
        return write(*arguments)

    compacted, dropped = [f"large/{i}" for i in range(8)], [f"old/{i}" for i in range(8)]
    for pool in compacted + dropped:
        server.add({"a": [1], "b": [2]}, pool)
    monkeypatch.setattr(laser_retriever.writer, "write_segment", slow_write)
    compacting = [server.stub.CompactPool.future(retriever_pb2.CompactPoolRequest(pool=pool)) for pool in compacted]
    dropping = [server.stub.DropPool.future(retriever_pb2.DropPoolRequest(pool=pool)) for pool in dropped]
    try:
        assert building.acquire(timeout=10) and building.acquire(timeout=10)
        server.add({"c": [3]}, timeout_s=10)
        assert server.described(timeout_s=10).num_documents == 1
        assert not any(call.done() for call in compacting)
    finally:
        go_on.set()
    for call in compacting + dropping:
        call.result(20)
    listed = server.stub.ListPools(retriever_pb2.ListPoolsRequest()).pools
    assert [(pool.pool, pool.num_segments) for pool in listed] == [*((pool, 1) for pool in compacted), (POOL, 0)]


def test_documents_come_back_in_order_of_arrival_in_messages_of_bounded_size(server: RunningServer) -> None:
    sizes = {"long": 900_000, "longer": 1_000_000, "z": 1, "a": 2}
    for document_id, num_tokens in sizes.items():
        server.add({document_id: list(range(num_tokens))})
    server.stub.DeleteDocuments(retriever_pb2.DeleteDocumentsRequest(pool=POOL, ids=["z"]))
    server.add({"long": [7]})
    first, *rest = server.stub.ExportDocuments(retriever_pb2.ExportDocumentsRequest(pool=POOL))
    described = server.described()  # of the same documents, though their log may have been sealed in between
    assert (first.description.pool, first.description.num_documents) == (POOL, described.num_documents)
    assert first.description.num_tokens == described.num_tokens == 1_000_003
    found = [(document.id, len(document.token_ids) // 4) for message in rest for document in message.documents]
    assert found == [("longer", 1_000_000), ("a", 2), ("long", 1)]
    assert len(rest) == 1
    server.add({"last": list(range(900_000))})
    assert [len(message.documents) for message in export(server)] == [3, 1]
    error = raised(lambda: list(server.stub.ExportDocuments(retriever_pb2.ExportDocumentsRequest(pool="none"))))
    assert type(error) is UnknownPool


def test_no_message_of_an_export_is_larger_than_promised(server: RunningServer) -> None:
    for first in (0, 10_000):
        server.add({f"{i:05}" + "😀" * 62: [1] for i in range(first, first + 10_000)})
    messages = export(server)
    assert len(messages) > 1
    assert max(message.ByteSize() for message in messages) <= 4 * 1024 * 1024
    assert sum(len(message.documents) for message in messages) == 20_000


def export(server: RunningServer) -> list[retriever_pb2.ExportDocumentsResponse]:
    return list(server.stub.ExportDocuments(retriever_pb2.ExportDocumentsRequest(pool=POOL)))[1:]


def test_health_of_writes_is_its_own(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    health = health_pb2_grpc.HealthStub(server.channel)

    def status(name: str) -> int:
        return int(health.Check(health_pb2.HealthCheckRequest(service=name)).status)

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    server.add({"a": [1]})
    until(lambda: status(WRITES_NAME) == serving)

    def fail(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", fail)
        assert isinstance(raised(lambda: server.add({"b": [2]})), StorageUnavailable)
        until(lambda: status(WRITES_NAME) == not_serving)
        assert status(SERVICE_NAME) == serving
        assert server.described().num_documents == 1
    until(lambda: status(WRITES_NAME) == serving)
    server.add({"b": [2]})


def test_two_shards_on_one_directory_share_pools_and_send_writers_to_each_other(
    server: RunningServer, tmp_path: Path
) -> None:
    other = RunningServer(tmp_path, "shard-b")
    try:
        server.add({"a": [1, 2, 3]})
        error = raised(lambda: other.add({"b": [4]}))
        assert isinstance(error, WriterElsewhere)
        assert error.holder == server.address
        until(lambda: len(other.pools.sources(POOL, FINGERPRINT)[1].table) > 0)
        stream = Stream(other)
        assert first_path(stream.ask(retriever_pb2.DraftRequest(opens=[opening(1, [50])])))[:2] == [1, 2]
        stream.end()
    finally:
        other.stop()


@contextmanager
def counted_turns(server: RunningServer) -> Iterator[Callable[[], int]]:
    """Counts the turns of the server's event loop: what it does in one of them holds everything else up."""
    number = 0
    is_over = threading.Event()

    async def count() -> None:
        nonlocal number
        while not is_over.is_set():
            number += 1
            await asyncio.sleep(0)

    counting = asyncio.run_coroutine_threadsafe(count(), server._loop)
    try:
        yield lambda: number
    finally:
        is_over.set()
        counting.result(10)


def test_a_message_of_many_documents_lets_drafts_have_their_turn(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = service._document
    looked_at: list[int] = []
    with counted_turns(server) as turn:
        monkeypatch.setattr(service, "_document", lambda message: (looked_at.append(turn()), check(message))[1])
        server.add({str(i): [1, 2, 3] for i in range(1000)})
        server.add({str(i): [7] * 200_000 for i in range(4)})
    assert len(looked_at) == 1004
    assert max(Counter(looked_at).values()) <= service.BYTES_AT_ONCE // service.DOCUMENT_BYTES
    assert len(set(looked_at[1000:])) == 4, "a long one is a turn's work"


def test_a_message_of_many_sequences_lets_others_have_their_turn(
    server: RunningServer, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add({"a": [1, 2, 3, 4]})
    until(lambda: bool(server.pools.sources(POOL, FINGERPRINT)[1].indexes))
    open_one, draft_all = Drafter.open, Drafter.draft_all
    opened: list[int] = []
    drafted: list[int] = []
    with counted_turns(server) as turn:

        def counted_open(drafter: Drafter, *arguments: Any, **options: Any) -> Any:
            opened.append(turn())
            return open_one(drafter, *arguments, **options)

        def counted_draft(drafter: Drafter, wanted: Any, *arguments: Any) -> Any:
            drafted.extend([turn()] * len(wanted))
            return draft_all(drafter, wanted, *arguments)

        monkeypatch.setattr(Drafter, "open", counted_open)
        monkeypatch.setattr(Drafter, "draft_all", counted_draft)
        response = stream.ask(retriever_pb2.DraftRequest(opens=[opening(i, [9, 1]) for i in range(600)]))
    assert [tree.sequence_id for tree in response.trees] == list(range(600))
    assert all(tree.token_ids for tree in response.trees)
    for turns in (opened, drafted):
        assert len(turns) == 600 and max(Counter(turns).values()) <= SEQUENCES_AT_ONCE


def test_trees_not_begun_at_the_deadline_come_back_empty_and_are_counted(tmp_path: Path) -> None:
    server = RunningServer(tmp_path, draft_deadline_s=1e-9)
    try:
        stream = Stream(server)
        answer = stream.ask(retriever_pb2.DraftRequest(opens=[opening(i, [1, 2, 1]) for i in range(3)]))
        assert [(tree.sequence_id, tree.position, tree.token_ids) for tree in answer.trees] == [
            (i, 3, b"") for i in range(3)
        ]
        assert not answer.faults
        advance = retriever_pb2.AdvanceSequence(
            sequence_id=1, position=3, token_ids=pack(2), accepted_node_idx=-1, node_budget=4
        )
        assert not stream.ask(retriever_pb2.DraftRequest(advances=[advance])).faults, "the sequence goes on"
        assert server.metrics.registry.get_sample_value("laser_retriever_late_drafts_total") == 4
        stream.end()
    finally:
        server.stop()


def test_the_trees_of_a_long_message_are_those_of_short_ones_and_a_sequence_that_comes_twice_gets_one(
    server: RunningServer,
) -> None:
    server.add({str(i): [i % 7, i % 5, i % 3, i] for i in range(60)})
    long, short = Stream(server), Stream(server)
    opens = [opening(i, [9, i % 7], node_budget=1 + i % 9) for i in range(40)]
    trees = long.ask(retriever_pb2.DraftRequest(opens=opens)).trees
    assert sum(len(tree.token_ids) for tree in trees) > 40 * 4
    assert list(trees) == [short.ask(retriever_pb2.DraftRequest(opens=[one])).trees[0] for one in opens]
    once = [
        retriever_pb2.AdvanceSequence(
            sequence_id=i, position=2, token_ids=pack(i % 5), accepted_node_idx=-1, node_budget=1 + i % 9
        )
        for i in range(40)
    ]
    trees = long.ask(retriever_pb2.DraftRequest(advances=once)).trees
    assert list(trees) == [short.ask(retriever_pb2.DraftRequest(advances=[one])).trees[0] for one in once]
    twice = [
        retriever_pb2.AdvanceSequence(
            sequence_id=i, position=position, token_ids=pack(i % 5), accepted_node_idx=-1, node_budget=8
        )
        for i, position in [*((i, 3) for i in range(40)), (3, 4), (7, 3), (7, 3)]
    ]
    answer = long.ask(retriever_pb2.DraftRequest(advances=twice))
    assert sorted((tree.sequence_id, tree.position) for tree in answer.trees) == sorted(
        (i, 5 if i == 3 else 4) for i in range(40) if i != 7
    )
    assert {fault.sequence_id for fault in answer.faults} == {7}, "it came for a position that was over"
    long.end()
    short.end()


def test_a_stream_that_dies_takes_its_sequences_with_it(server: RunningServer) -> None:
    def num_open() -> float | None:
        return server.metrics.registry.get_sample_value("laser_retriever_open_sequences")

    requests: queue.Queue[retriever_pb2.DraftRequest | None] = queue.Queue()
    call = server.stub.Draft(iter(requests.get, None))
    handshake = retriever_pb2.Handshake(tokenizer_fingerprint=FINGERPRINT, vocab_size=VOCAB_SIZE)
    requests.put(retriever_pb2.DraftRequest(handshake=handshake))
    requests.put(retriever_pb2.DraftRequest(opens=[opening(i, [1, 2, 1]) for i in range(50)]))
    next(call), next(call)
    assert num_open() == 50
    call.cancel()
    requests.put(None)
    until(lambda: num_open() == 0)


def overfill(server: RunningServer, stream: Stream, num_messages: int) -> float:
    """Sends messages whose trees nobody reads. How many trees were drafted until it came to a stand."""
    texts = np.random.default_rng(0).integers(0, VOCAB_SIZE, (32, 300))
    opens = [opening(i, text.tolist(), node_budget=0) for i, text in enumerate(texts)]
    stream.ask(retriever_pb2.DraftRequest(opens=opens))
    for number in range(num_messages):
        advances = [
            retriever_pb2.AdvanceSequence(
                sequence_id=i, position=300 + number, token_ids=pack(number % VOCAB_SIZE), accepted_node_idx=-1,
                node_budget=256,
            )
            for i in range(32)
        ]  # fmt: skip
        stream.send(retriever_pb2.DraftRequest(advances=advances))

    def num_drafted() -> float:
        return server.metrics.registry.get_sample_value("laser_retriever_drafts_total") or 0.0

    seen = [-1.0]
    while num_drafted() != seen[-1]:  # until it stands still
        seen.append(num_drafted())
        time.sleep(0.3)
    return seen[-1]


def test_a_verifier_that_does_not_read_is_not_worked_for_without_end(server: RunningServer) -> None:
    stream, num_messages = Stream(server), 400
    num_drafted = overfill(server, stream, num_messages)
    assert num_drafted < 32 * num_messages / 2, "its trees fill what is in flight, and then it waits"
    for _ in range(num_messages):
        assert not next(stream._responses).faults
    stream.end()


def test_a_stream_that_is_being_sent_to_is_told_that_the_retriever_stops(server: RunningServer) -> None:
    stream = Stream(server)
    overfill(server, stream, 200)
    server._loop.call_soon_threadsafe(server.service.end_drafts)
    with pytest.raises(grpc.RpcError) as ended:
        for _ in range(200):
            next(stream._responses)
    assert isinstance(from_rpc_error(ended.value), NotReady) and "is stopping" in str(ended.value.details())
    stream._requests.put(None)
    assert isinstance(raised(lambda: Stream(server)), NotReady), "and no other one begins"


def test_a_cancelled_stream_leaves_nothing_behind(server: RunningServer) -> None:
    call = server.stub.Draft(
        iter(
            [
                retriever_pb2.DraftRequest(
                    handshake=retriever_pb2.Handshake(tokenizer_fingerprint=FINGERPRINT, vocab_size=9)
                )
            ]
        )
    )
    assert next(call).handshake.name == "shard-a"
    call.cancel()
    again = Stream(server)
    assert not again.ask(retriever_pb2.DraftRequest(opens=[opening(1, [1, 2])])).faults
    again.end()
