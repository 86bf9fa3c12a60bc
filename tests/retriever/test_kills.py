"""`kill -9` in the middle of durable adds, again and again: no acknowledged document is lost, no wrong one appears."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from test_retriever_cli import serving

from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc
from laser_retriever.config import RetrieverConfig
from laser_retriever.pool import Pool

POOL = "p/q"


def tokens_of(number: int) -> list[int]:
    """What the document of this number holds, so that a wrong token shows."""
    chance = random.Random(number)
    return [chance.randrange(50_000) for _ in range(chance.randrange(1, 200))]


def write_until_killed(directory: Path, first: int, acknowledged: int) -> None:
    """Adds documents from number `first` on, telling of each that is acknowledged; seals and compacts now and then."""
    config = RetrieverConfig(pools=directory, max_segments=3, seal_tokens=2000, unlink_after_s=0)
    pool = Pool(POOL, config, lambda: "child:1")
    number = first
    while True:
        pool.writer.add("f", [(str(number), np.array(tokens_of(number), np.int32))])
        os.write(acknowledged, f"{number}\n".encode())
        number += 1
        if number % 7 == 0:
            pool.refresh()
            pool.upkeep()
        if number % 31 == 0:
            pool.writer.compact()


def fork(work: Callable[[int], None]) -> tuple[int, int]:
    """A child process, which starts at once where it has all this one has loaded. (its id, what it writes to)"""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            work(write_end)
        finally:
            os._exit(1)
    os.close(write_end)
    return child, read_end


def acknowledged_numbers(read_end: int) -> list[int]:
    data = b""
    while part := os.read(read_end, 65536):
        data += part
    os.close(read_end)
    return [int(line) for line in data.split(b"\n")[:-1]]


def kill_in_a_loop(directory: Path, num_kills: int) -> int:
    """How many documents were acknowledged, all of which are there at the end and after every kill."""
    Pool("warm", RetrieverConfig(pools=directory)).refresh()  # compiles kernels, so that the children need not
    chance = random.Random(5)
    acknowledged = 0
    first = 0
    for _ in range(num_kills):
        child, read_end = fork(lambda write_end, first=first: write_until_killed(directory, first, write_end))
        time.sleep(chance.uniform(0.005, 0.15))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it was killed, and did not fail before"
        numbers = acknowledged_numbers(read_end)
        acknowledged += len(numbers)
        found = contents(directory)
        first = max([first, *(number + 1 for number in numbers)])
        assert found.keys() >= set(range(first)), "acknowledged and lost"
        assert found.keys() <= set(range(first + 1)), "at most the one under way came through"
        assert all(tokens == tokens_of(number) for number, tokens in found.items()), "wrong tokens"
        first = len(found)
    return acknowledged


def contents(directory: Path) -> dict[int, list[int]]:
    pool = Pool(POOL, RetrieverConfig(pools=directory))
    pool.refresh()
    return {int(key): index.document(i).tolist() for key, index, i in pool.snapshot.documents()}


def test_a_few_kills_of_a_writing_process_lose_nothing(tmp_path: Path) -> None:
    kill_in_a_loop(tmp_path, 5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_200_kills_of_a_writing_process_lose_nothing(tmp_path: Path) -> None:
    assert kill_in_a_loop(tmp_path, 200) > 200


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kills_of_a_server_that_takes_documents_lose_nothing(tmp_path: Path) -> None:
    number = 0
    for _ in range(5):
        with serving(tmp_path) as (process, address), grpc.insecure_channel(address) as channel:
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            ends_s = time.monotonic() + 0.5
            while time.monotonic() < ends_s:
                data = np.array(tokens_of(number), "<i4").tobytes()
                document = retriever_pb2.Document(id=str(number), token_ids=data)
                request = retriever_pb2.AddDocumentsRequest(pool=POOL, tokenizer_fingerprint="f", documents=[document])
                stub.AddDocuments(iter([request]))
                number += 1
            process.kill()
            process.wait()
        found = contents(tmp_path)
        assert found == {i: tokens_of(i) for i in range(number)}
