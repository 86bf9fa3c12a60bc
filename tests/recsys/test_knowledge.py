from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laser_client import Internal, LaserClient
from laser_protocol.v1 import verifier_pb2
from laser_recsys.frameworks.prompts import Prompt
from laser_recsys.knowledge import measured
from laser_recsys.knowledge.rows import PLAIN, RELAXED, SCHEMA, STRICT, Task, pool_id, pool_root, write_knowledge
from tests.recsys.scripted import EchoVerifier, serving

TASKS = [
    Task(Prompt(str(user_id), "user", "kar", f"about {user_id}"), f"ml-100k/kar/user/{user_id % 2}")
    for user_id in range(5)
]


def test_each_prompt_is_drafted_from_its_own_pool_and_answers_stand_in_the_order_of_the_tasks() -> None:
    verifier = EchoVerifier()
    done = []
    with serving(verifier) as address, LaserClient(address, max_in_flight=3) as client:
        run = measured.generate(client, TASKS, STRICT, max_new_tokens=9, on_done=done.append)
    assert [made.text for made in run.generations] == [task.prompt.text[::-1] for task in TASKS]
    assert {request.text.text: request.pool for request in verifier.requests} == {
        task.prompt.text: task.pool for task in TASKS
    }
    assert {request.max_new_tokens for request in verifier.requests} == {9}
    assert len(done) == 5
    assert run.tokens_per_step == 1.5


def test_learning_names_each_document_after_its_user_and_measuring_learns_nothing() -> None:
    verifier = EchoVerifier()
    with serving(verifier) as address, LaserClient(address) as client:
        measured.generate(client, TASKS, STRICT, max_new_tokens=9, learn=True)
        learned = {request.document_id for request in verifier.requests if request.learn}
        verifier.requests.clear()
        measured.generate(client, TASKS, RELAXED, max_new_tokens=9)
    assert learned == {"0", "1", "2", "3", "4"}
    assert not any(request.learn or request.document_id for request in verifier.requests)


def test_the_modes_are_drafting_off_strict_and_relaxed() -> None:
    verifier = EchoVerifier()
    with serving(verifier) as address, LaserClient(address) as client:
        for mode in (PLAIN, STRICT, RELAXED):
            measured.generate(client, TASKS[:1], mode, max_new_tokens=9)
    plain, strict, relaxed = verifier.requests
    assert plain.drafting == verifier_pb2.DRAFTING_OFF
    assert strict.drafting != verifier_pb2.DRAFTING_OFF and strict.acceptance.HasField("strict")
    assert relaxed.acceptance.relaxed.top_k == 2
    assert relaxed.acceptance.relaxed.min_prob == pytest.approx(0.1)


def test_a_prompt_that_fails_ends_the_job_with_its_place() -> None:
    tasks = [*TASKS, Task(Prompt("9", "user", "kar", "fail"), "ml-100k")]
    with serving(EchoVerifier()) as address, LaserClient(address) as client, pytest.raises(Internal) as caught:
        measured.generate(client, tasks, STRICT, max_new_tokens=9)
    assert caught.value.index == 5


def test_parquet_holds_one_row_per_task_with_all_columns(tmp_path: Path) -> None:
    with serving(EchoVerifier()) as address, LaserClient(address) as client:
        run = measured.generate(client, TASKS, RELAXED, max_new_tokens=9)
    path = tmp_path / "knowledge.parquet"
    write_knowledge(path, measured.rows(TASKS, run, RELAXED, "tiny"))
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    first = table.to_pylist()[0]
    assert first["created_at"].tzinfo is not None
    del first["created_at"]
    assert first == {
        "id": "0",
        "kind": "user",
        "framework": "kar",
        "pool": "ml-100k/kar/user/0",
        "prompt": "about 0",
        "text": "0 tuoba",
        "token_ids": [5, 6, 7],
        "finish_reason": "length",
        "model": "tiny",
        "acceptance": "relaxed (2, 0.1)",
        "num_steps": 2,
        "num_relaxed_tokens": 0,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["knowledge.parquet"]


def test_pool_ids_have_dataset_framework_kind_and_group() -> None:
    assert pool_id("ml-100k", "kar", "user", 2) == "ml-100k/kar/user/2"
    assert pool_root("ml-100k", "none 0123456789abcdef") == pool_root("ml-100k") == "ml-100k"
    assert pool_root("ml-100k", "time 0123456789abcdef") == "ml-100k-time-012345"
