"""`kill -9` in the middle of durable adds, again and again: no acknowledged document is lost, no wrong one appears."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from killed_writers import POOL, tokens_of
from test_retriever_cli import serving

from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc
from laser_retriever.config import RetrieverConfig
from laser_retriever.pool import Pool


class KilledWriters:
    """Starts writers of a pool and kills them."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("killed_writers.py")), str(directory)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> KilledWriters:
        return self

    def __exit__(self, *error: object) -> None:
        with self._process:
            self._process.kill()

    def kill_one(self, first: int, after_s: float) -> list[int]:
        """The documents acknowledged by a writer that adds them from number `first` on."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{first}\n")
        self._process.stdin.flush()
        numbers: list[int] = []
        for line in self._process.stdout:
            word, _, value = line.strip().partition(" ")
            if word == "pid":
                time.sleep(after_s)
                os.kill(int(value), signal.SIGKILL)
            elif word == "dead":
                assert int(value) == signal.SIGKILL, "it was killed, and did not fail before"
                return numbers
            else:
                numbers.append(int(word))
        raise AssertionError("the process that starts writers is gone")


def kill_in_a_loop(directory: Path, num_kills: int) -> int:
    """How many documents were acknowledged, all of which are there at the end and after every kill."""
    chance = random.Random(5)
    num_acknowledged = first = 0
    with KilledWriters(directory) as writers:
        for _ in range(num_kills):
            numbers = writers.kill_one(first, chance.uniform(0.005, 0.15))
            num_acknowledged += len(numbers)
            found = contents(directory)
            first = max([first, *(number + 1 for number in numbers)])
            assert found.keys() >= set(range(first)), "acknowledged and lost"
            assert found.keys() <= set(range(first + 1)), "at most the one under way came through"
            assert all(tokens == tokens_of(number) for number, tokens in found.items()), "wrong tokens"
            first = len(found)
    return num_acknowledged


def contents(directory: Path) -> dict[int, list[int]]:
    pool = Pool(POOL, RetrieverConfig(pools=directory))
    pool.refresh()
    return {int(key): index.document(i).tolist() for key, index, i in pool.snapshot.documents()}


def test_a_few_kills_of_a_writing_process_lose_nothing(tmp_path: Path) -> None:
    assert kill_in_a_loop(tmp_path, 5) > 0


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
