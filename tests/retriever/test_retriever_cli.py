"""`laser-retriever serve` as a process."""

from __future__ import annotations

import asyncio
import os
import queue
import re
import resource
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from test_service import until

from laser_client.pools import Document, PoolClient
from laser_protocol.channel import Endpoint
from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc
from laser_retriever.cli import DEFAULT_GRACE_S, main, own_address
from laser_retriever.service import WRITES_NAME
from laser_verifier.config import RetrieverConfig as VerifierRetrieverConfig
from laser_verifier.remote_pools import RemotePools

COMMAND = [sys.executable, "-m", "laser_retriever"]


@contextmanager
def serving(directory: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running command and its address."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--pools", str(directory), "--listen", "127.0.0.1:0", "--name", "shard", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stderr is not None
    with process:
        try:
            lines = iter(process.stderr.readline, "")
            port = next(
                m[1] for m in (re.search(r"laser_retriever\.listening port=(\d+)", line) for line in lines) if m
            )
            yield process, f"127.0.0.1:{port}"
        finally:
            process.kill()


def test_it_turns_healthy_keeps_what_it_acknowledged_through_a_kill_and_stops_on_sigterm(tmp_path: Path) -> None:
    document = retriever_pb2.Document(id="a", token_ids=b"\1\0\0\0")
    request = retriever_pb2.AddDocumentsRequest(pool="p", tokenizer_fingerprint="f", documents=[document])
    with serving(tmp_path) as (process, address), grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="laser.v1.Retriever"))
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        retriever_pb2_grpc.RetrieverStub(channel).AddDocuments(iter([request]))
        process.kill()
    with serving(tmp_path) as (process, address), grpc.insecure_channel(address) as channel:
        listed = retriever_pb2_grpc.RetrieverStub(channel).ListPools(retriever_pb2.ListPoolsRequest()).pools
        assert [(pool.pool, pool.num_documents) for pool in listed] == [("p", 1)]
        handshake = retriever_pb2.Handshake(tokenizer_fingerprint="f", vocab_size=9)
        never: queue.Queue[retriever_pb2.DraftRequest | None] = queue.Queue()
        never.put(retriever_pb2.DraftRequest(handshake=handshake))
        drafts = retriever_pb2_grpc.RetrieverStub(channel).Draft(iter(never.get, None))
        assert next(drafts).HasField("handshake")
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as ended:
            next(drafts)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert ended.value.details() == "this retriever is stopping; its sequences are for the other shards"
        assert process.wait(DEFAULT_GRACE_S / 2) == 0, "a verifier's stream does not hold it up"
        never.put(None)


def test_two_processes_on_one_directory_send_writers_to_each_other_and_clients_follow(tmp_path: Path) -> None:
    documents = [Document.make(str(i), [i]) for i in range(3)]
    with serving(tmp_path) as (first, one), serving(tmp_path) as (_, two):
        with PoolClient(Endpoint.make(one)) as client:
            assert sum(client.add("p", "f", documents[:1])) == 1
            assert client.describe("p").writer == one
        with PoolClient(Endpoint.make(two)) as client:
            assert sum(client.add("p", "f", documents[1:2])) == 1, "stored by the other, which holds the lock"
            assert (client.describe("p").num_documents, client.describe("p").writer) == (2, one)
            assert client.remove("p", ["0"]) == 1
            assert asyncio.run(learn(two, "learned", [7])) == 1, "the verifier goes there too"
            assert client.remove("p", ["learned"]) == 1
        first.kill()
        first.wait()
        with PoolClient(Endpoint.make(two)) as client:
            assert sum(client.add("p", "f", documents[2:])) == 1, "who is killed holds no lock"
            described = client.describe("p")
            assert (described.num_documents, described.writer) == (2, two)
            exported, stream = client.export("p")
            assert (exported, list(stream)) == (described, documents[1:])


async def learn(address: str, document_id: str, token_ids: list[int]) -> int:
    """As the verifier does, whose first choice is the retriever at `address`. How many documents were taken."""
    pools = RemotePools(VerifierRetrieverConfig(), "f", lambda: {"name": Endpoint(address)})
    running = asyncio.create_task(pools.run())
    pools.learn("p", document_id, token_ids)
    await asyncio.sleep(0)
    await pools.drain(10)
    running.cancel()
    return pools.counters.num_learned


def test_metrics_limits_and_health_of_writes_are_served(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ("--metrics-port", str(port), "--max-documents", "1", "--max-tokens", "9", "--max-age", "60.5")
    with serving(tmp_path, *arguments, "--read-into-memory") as (_, address):
        with PoolClient(Endpoint.make(address)) as client:
            assert sum(client.add("p", "f", [Document.make(str(i), [i]) for i in range(3)])) == 3
            until(lambda: client.describe("p").num_documents == 1)
            described = client.describe("p")
            assert (described.max_documents, described.max_tokens, described.max_age_s) == (1, 9, 60.5)
            assert [document.id for document in client.export("p")[1]] == ["2"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"laser_retriever_documents_evicted_total 2.0" in answer.read()
        with grpc.insecure_channel(address) as channel:
            request = health_pb2.HealthCheckRequest(service=WRITES_NAME)
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING


def test_it_may_open_as_many_files_as_the_system_lets_it(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard - 1), hard))
    try:
        with serving(tmp_path) as (process, _):
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_lock_taken_for_upkeep_at_the_start_names_this_server(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, address), PoolClient(Endpoint.make(address)) as client:
        assert sum(client.add("p", "f", [Document.make(str(i), [i]) for i in range(3)])) == 3
    with serving(tmp_path, "--max-documents", "1") as (_, address), PoolClient(Endpoint.make(address)) as client:
        until(lambda: client.describe("p").num_documents == 1)
        assert client.describe("p").writer == address


def test_it_works_without_a_place_to_cache_compiled_kernels(tmp_path: Path) -> None:
    program = "import laser_retriever.suffix_array as s, numpy as n; print(s.build_suffix_array(n.zeros(3, n.int32)))"
    patched = (
        "import numba.core.caching as c\n"
        "for locator in c.CacheImpl._locator_classes: locator.from_function = classmethod(lambda *a: None)\n"
    )
    done = subprocess.run([sys.executable, "-c", patched + program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[2 1 0]"


def test_arguments_that_make_no_sense_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = tmp_path / "token"
    token.write_bytes(b"caf\xc3\xa9\n")
    for arguments, part in (
        (["--listen", "nowhere"], "listen is 'nowhere'"),
        (["--metrics-port", "99999"], "metrics_port is 99999, must be from 0 to 65535"),
        (["--token-file", str(tmp_path / "none")], f"token_file {tmp_path / 'none'}: No such file"),
        (["--token-file", str(token)], f"token_file {token} must hold one line of printable ASCII, holds 0xc3"),
        (["--tls-cert", str(token), "--tls-key", str(token)], f"--tls-cert {token}: holds no PEM block"),
        (["--threads", "0"], "num_threads is 0"),
        (["--draft-deadline-ms", "0"], "draft_deadline_s is 0"),
        (["--name", ""], "name is ''"),
        (["--grace-s", "-1"], "grace_s is -1"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["serve", "--pools", str(tmp_path), *arguments])
        assert caught.value.code == 2
        assert part in capsys.readouterr().err


def test_a_pool_directory_that_cannot_be_used_ends_the_command_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [*COMMAND, "serve", "--pools", str(tmp_path / "file"), "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "laser-retriever: pools is" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_retriever_needs_no_torch() -> None:
    program = "import sys, laser_retriever.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_start_does_not_wait_for_numba_to_import_linear_algebra() -> None:
    pytest.importorskip("scipy")
    program = (
        "import sys; from laser_retriever.cli import warm_up, DraftParams; warm_up(DraftParams());"
        "loaded = [m for m in sys.modules if m.startswith('scipy.linalg')];"
        "import scipy.linalg; print(loaded, scipy.linalg.det([[2.0]]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[] 2.0\n"


def test_garbage_is_collected_again_once_the_command_is_imported() -> None:
    program = (
        "import gc, sys, laser_retriever.__main__ as command\n"
        "assert 'numba' not in sys.modules\n"
        "sys.argv = ['laser-retriever', '--help']\n"
        "try: command.main()\n"
        "except SystemExit: sys.exit(0 if gc.isenabled() and gc.get_freeze_count() > 10_000 else 3)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_a_server_on_all_addresses_advertises_its_host_name() -> None:
    assert own_address("0.0.0.0:0", 5) != "0.0.0.0:5"
    assert own_address("127.0.0.1:0", 5) == "127.0.0.1:5"
