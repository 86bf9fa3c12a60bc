"""The verifier over a real gRPC server with a tiny model: answers, bad input, ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest

from laser_client import DeadlineExceeded, InvalidRequest, LaserClient, Relaxed, Strict
from laser_protocol.acceptance import Acceptance, acceptance_to_message
from laser_protocol.errors import EngineDead, Overloaded, from_rpc_error
from laser_protocol.packing import pack_token_ids, unpack_token_ids
from laser_protocol.serving import LaserServer, ListenConfig
from laser_protocol.v1 import acceptance_pb2, verifier_pb2, verifier_pb2_grpc
from laser_verifier import service
from laser_verifier.config import EngineConfig
from laser_verifier.drafts import DraftSource, NoDrafts
from laser_verifier.engine import Engine, run_engine
from laser_verifier.runner import ModelRunner
from laser_verifier.service import SERVICE_NAME, ModelDescription, VerifierService, register
from tests.oracles import plain_decoding
from tests.verifier.tiny import VOCAB_SIZE, tiny_model, tiny_network, tiny_tokenizer
from tests.verifier.trees import RandomDrafts

MAX_MODEL_LEN = 64
STRICT = Strict()


@contextmanager
def serving(
    network: Any,
    drafts: DraftSource,
    default_acceptance: Acceptance = STRICT,
    **config: Any,
) -> Iterator[tuple[str, Engine]]:
    """A verifier on a free port, its loop and engine in threads of their own."""
    settings = EngineConfig(max_sequences=2, max_model_len=MAX_MODEL_LEN, draft_policy="all", **config)
    model = tiny_model(network)
    engine = Engine(ModelRunner(model, 2, MAX_MODEL_LEN, 32), tiny_tokenizer(), drafts, settings)
    description = ModelDescription(
        "tiny", model.model_type, "f" * 64, VOCAB_SIZE, MAX_MODEL_LEN, 2, (), "float64", "cpu", default_acceptance
    )
    started, stopping, stop_loop = threading.Event(), threading.Event(), asyncio.Event()
    state: dict[str, Any] = {}

    async def serve() -> None:
        service = VerifierService(engine, tiny_tokenizer(), description)
        server = LaserServer(ListenConfig("127.0.0.1:0", grace_s=0.2), [SERVICE_NAME], partial(register, service))
        state["port"], state["loop"] = await server.start(), asyncio.get_running_loop()
        started.set()
        await stop_loop.wait()
        await server.stop()

    threads = [
        threading.Thread(target=lambda: asyncio.run(serve())),
        threading.Thread(target=run_engine, args=(engine, stopping)),
    ]
    for thread in threads:
        thread.start()
    started.wait()
    try:
        yield f"127.0.0.1:{state['port']}", engine
    finally:
        state["loop"].call_soon_threadsafe(stop_loop.set)
        stopping.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny_network("llama", seed=3)


@pytest.fixture(scope="module")
def target(network: Any) -> Iterator[str]:
    with serving(network, RandomDrafts(VOCAB_SIZE)) as (target, _):
        yield target


@pytest.fixture(scope="module")
def stub(target: str) -> Iterator[Any]:
    with grpc.insecure_channel(target) as channel:
        yield verifier_pb2_grpc.VerifierStub(channel)


def request(**fields: Any) -> verifier_pb2.GenerateRequest:
    tokens = verifier_pb2.TokenPrompt(token_ids=pack_token_ids([1, 2, 3]))
    return verifier_pb2.GenerateRequest(**{"tokens": tokens, "max_new_tokens": 8, **fields})


def test_many_clients_get_what_plain_decoding_gives(network: Any, target: str) -> None:
    prompts = [[i, i + 1, i + 2] for i in range(12)]
    with LaserClient(target) as client:
        generations = client.generate(prompts, pool="a/b", max_new_tokens=16)
    assert [g.token_ids for g in generations] == [plain_decoding(network, p, 16) for p in prompts]
    assert [g.text for g in generations] == [" ".join(f"w{t}" for t in g.token_ids) for g in generations]
    assert all(g.finish_reason == "length" and g.stats.draft_status == "ok" for g in generations)


def test_text_prompts_are_tokenised_and_a_model_without_template_takes_them_raw(network: Any, target: str) -> None:
    with LaserClient(target) as client:
        assert not client.model().has_chat_template
        assert client.generate("w4 w5", max_new_tokens=6).token_ids == plain_decoding(network, [4, 5], 6)


def test_streamed_chunks_join_to_the_generation(target: str) -> None:
    with LaserClient(target) as client:
        whole = client.generate([7, 8], max_new_tokens=10)
        chunks = list(client.stream([7, 8], max_new_tokens=10))
    assert [t for chunk in chunks for t in chunk.token_ids] == whole.token_ids
    assert "".join(chunk.text for chunk in chunks) == whole.text


def test_deltas_are_joined_where_the_request_asks_for_few(stub: Any) -> None:
    def ask(interval_ms: int) -> tuple[list[int], str, int]:
        events = list(stub.Generate(request(max_new_tokens=40, delta_interval_ms=interval_ms)))
        deltas = [event.delta for event in events if event.HasField("delta")]
        token_ids = [t for delta in deltas for t in unpack_token_ids(delta.token_ids)]
        text = "".join(delta.text for delta in deltas) + events[-1].finished.text
        assert sum(delta.accepted_length for delta in deltas) == events[-1].finished.stats.num_accepted_tokens
        return token_ids, text, len(deltas)

    every_step, joined = ask(0), ask(60_000)
    assert joined[:2] == every_step[:2]
    # The first at once, the rest before Finished.
    assert joined[2] == 2 < every_step[2]


def relaxed(top_k: int, min_prob: float) -> acceptance_pb2.Acceptance:
    return acceptance_pb2.Acceptance(relaxed=acceptance_pb2.Relaxed(top_k=top_k, min_prob=min_prob))


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"tokens": verifier_pb2.TokenPrompt()}, "prompt", "empty"),
        ({"tokens": None}, "prompt", "empty"),
        ({"tokens": None, "text": verifier_pb2.TextPrompt(text="  ")}, "prompt", "empty"),
        ({"tokens": verifier_pb2.TokenPrompt(token_ids=b"abc")}, "token_ids", "multiple of 4"),
        ({"tokens": verifier_pb2.TokenPrompt(token_ids=pack_token_ids([VOCAB_SIZE]))}, "prompt", f"{VOCAB_SIZE}"),
        ({"tokens": verifier_pb2.TokenPrompt(token_ids=pack_token_ids([-1]))}, "prompt", "-1"),
        ({"tokens": verifier_pb2.TokenPrompt(token_ids=pack_token_ids([1] * 64))}, "prompt", "64 tokens"),
        ({"max_new_tokens": 62}, "max_new_tokens", "at most 61"),
        ({"max_new_tokens": 0}, "max_new_tokens", "at least 1"),
        ({"delta_interval_ms": 60_001}, "delta_interval_ms", "at most 60000"),
        ({"pool": "a/../b"}, "pool", "a/../b"),
        ({"pool": "log/b"}, "pool", "components"),
        ({"pool": "A"}, "pool", "components"),
        ({"acceptance": relaxed(0, 0.1)}, "top_k", "0"),
        ({"acceptance": relaxed(17, 0.1)}, "top_k", "17"),
        ({"acceptance": relaxed(2, 1.5)}, "min_prob", "1.5"),
        ({"acceptance": relaxed(2, float("nan"))}, "min_prob", "nan"),
        ({"acceptance": acceptance_pb2.Acceptance()}, "acceptance", "strict or relaxed"),
        ({"acceptance": relaxed(2, 0.1), "temperature": 0.7}, "temperature", "relaxed"),
        ({"temperature": -1.0}, "temperature", "-1"),
        ({"temperature": float("inf")}, "temperature", "inf"),
        ({"stop": [""]}, "stop", "none empty"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": ["x" * 257]}, "stop", "256"),
        ({"request_id": "x" * 257}, "request_id", "256"),
        ({"tokens": None, "text": verifier_pb2.TextPrompt(text="w1 " * 9000)}, "prompt", "characters"),
        ({"tokens": None, "text": verifier_pb2.TextPrompt(text="w1", system="be brief")}, "system", "template"),
        ({"learn": True}, "pool", "learn"),
        ({"learn": True, "pool": "a", "document_id": "x" * 257}, "document_id", "256"),
    ],
)
def test_bad_input_is_refused_with_its_field_and_what_would_be_right(
    stub: Any, fields: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(request(**fields), timeout=10))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidRequest)
    assert error.field == field
    assert says in str(error)


def test_a_relaxed_default_gives_way_to_sampling(network: Any) -> None:
    drafts = RandomDrafts(VOCAB_SIZE)
    with serving(network, drafts, default_acceptance=Relaxed()) as (target, _), LaserClient(target) as client:
        sampled = client.generate([1, 2], temperature=0.9, seed=7, max_new_tokens=12)
    assert sampled.token_ids == plain_decoding(network, [1, 2], 12, temperature=0.9, seed=7)


def test_cancelling_frees_the_slots_for_others(network: Any) -> None:
    with serving(network, NoDrafts()) as (target, engine), grpc.insecure_channel(target) as channel:
        stub = verifier_pb2_grpc.VerifierStub(channel)
        calls = [stub.Generate(request(max_new_tokens=60)) for _ in range(2)]
        for call in calls:
            next(call)
            call.cancel()
        assert len(list(stub.Generate(request(), timeout=10))) >= 1
        deadline = time.monotonic() + 5
        while engine.is_busy and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not engine.is_busy


def test_a_deadline_that_passes_frees_the_slot_for_others(network: Any) -> None:
    class Slow(NoDrafts):
        def collect(self, positions: Any, timeout_s: float) -> dict[int, Any]:
            time.sleep(0.02)
            return {}

    with serving(network, Slow()) as (target, engine), grpc.insecure_channel(target) as channel:
        stub = verifier_pb2_grpc.VerifierStub(channel)
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Generate(request(max_new_tokens=60), timeout=0.2))
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until = time.monotonic() + 5
        while engine.num_running and time.monotonic() < until:
            time.sleep(0.01)
        assert engine.num_running == 0
        assert list(stub.Generate(request(), timeout=10))[-1].HasField("finished")


def test_a_long_prompt_is_no_silence_and_an_engine_that_hangs_is(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_QUEUED_INTERVAL_S", 0.05)
    hangs = threading.Event()
    step = ModelRunner.run

    def slowly(runner: ModelRunner, inputs: Any) -> Any:
        time.sleep(2.0 if hangs.is_set() else 0.1)
        return step(runner, inputs)

    monkeypatch.setattr(ModelRunner, "run", slowly)
    with serving(network, NoDrafts(), max_step_tokens=2) as (target, _), LaserClient(target) as client:
        assert client.generate([1] * 30, max_new_tokens=2, timeout=1.0).stats.prefill_ms > 1400
        hangs.set()
        with pytest.raises(DeadlineExceeded, match="silent"):
            client.generate([1] * 30, max_new_tokens=2, timeout=1.0)


def test_a_full_queue_is_resource_exhausted_with_the_time_to_come_back(network: Any) -> None:
    class Slow(NoDrafts):
        def collect(self, positions: Any, timeout_s: float) -> dict[int, Any]:
            time.sleep(0.05)
            return {}

    with serving(network, Slow(), max_queue=0) as (target, engine), grpc.insecure_channel(target) as channel:
        stub = verifier_pb2_grpc.VerifierStub(channel)
        running = [stub.Generate(request(max_new_tokens=60)) for _ in range(2)]
        for call in running:
            while not next(call).HasField("delta"):
                pass
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(request(), timeout=10))
        error = from_rpc_error(caught.value)
        assert isinstance(error, Overloaded)
        assert error.retry_after_s is not None and 0.1 <= error.retry_after_s <= 30
        for call in running:
            call.cancel()
        until = time.monotonic() + 5
        while engine.is_busy and time.monotonic() < until:
            time.sleep(0.01)


@contextmanager
def tokenising_held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No text becomes tokens before the end."""
    go_on = threading.Event()

    def encode_text(*_: Any) -> list[int]:
        assert go_on.wait(10)
        return [1, 2, 3]

    monkeypatch.setattr(service, "_QUEUED_INTERVAL_S", 0.05)
    monkeypatch.setattr(service, "encode_text", encode_text)
    yield
    go_on.set()


def test_texts_that_wait_to_be_tokenised_are_told_so_count_as_waiting_and_hold_up_no_token_ids(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = request(text=verifier_pb2.TextPrompt(text="w1 w2 w3"))
    with serving(network, NoDrafts(), max_queue=0) as (target, _), grpc.insecure_channel(target) as channel:
        stub = verifier_pb2_grpc.VerifierStub(channel)
        calls = []
        with tokenising_held_up(monkeypatch):
            for num_ahead in range(2):
                calls.append(stub.Generate(text, timeout=10))
                assert next(calls[-1]).queued.num_ahead == num_ahead
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Generate(text, timeout=10))
            error = from_rpc_error(caught.value)
            assert isinstance(error, Overloaded) and error.retry_after_s is not None
            assert list(stub.Generate(request(), timeout=10))[-1].HasField("finished")
        finished = [list(call)[-1].finished for call in calls]
    assert all(each.stats.num_output_tokens == 8 for each in finished)
    assert finished[0].stats.queue_ms >= 50, "from the call on"


def test_what_needs_no_tokens_is_checked_before_a_text_is_tokenised(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = request(text=verifier_pb2.TextPrompt(text="w1"), max_new_tokens=0)
    with (
        serving(network, NoDrafts()) as (target, _),
        grpc.insecure_channel(target) as channel,
        tokenising_held_up(monkeypatch),
        pytest.raises(grpc.RpcError) as caught,
    ):
        next(verifier_pb2_grpc.VerifierStub(channel).Generate(wrong, timeout=10))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_engine_fault_reaches_every_caller_as_engine_dead(network: Any) -> None:
    class Broken(NoDrafts):
        def collect(self, positions: Any, timeout_s: float) -> Any:
            raise RuntimeError("secret detail")

    with serving(network, Broken()) as (target, _), LaserClient(target) as client:
        for _ in range(2):
            with pytest.raises(EngineDead) as caught:
                client.generate([1, 2], max_new_tokens=4)
            assert "secret" not in str(caught.value)


def test_get_model_describes_what_is_served(stub: Any) -> None:
    model = stub.GetModel(verifier_pb2.GetModelRequest())
    assert (model.vocab_size, model.max_model_len, model.max_sequences) == (VOCAB_SIZE, MAX_MODEL_LEN, 2)
    assert model.default_acceptance == acceptance_to_message(Strict())


def test_packed_prompt_ids_arrive_as_they_were_sent() -> None:
    assert np.frombuffer(pack_token_ids([1, 2, 2**31 - 1]), "<i4").tolist() == [1, 2, 2**31 - 1]
