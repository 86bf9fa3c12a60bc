"""What a caller of LaserClient and AsyncLaserClient can rely on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import time

import pytest
from scripted_servers import ScriptedVerifier, ServerThread, delta, echo, finished, prompt_of, queued

import laser_client
from laser_client import (
    AsyncLaserClient,
    DeadlineExceeded,
    Generation,
    Internal,
    InvalidRequest,
    LaserClient,
    NotReady,
    Overloaded,
    Relaxed,
    Strict,
)


def test_one_prompt_gives_one_generation_with_text_tokens_and_stats(client, verifier):
    g = client.generate("hello world", pool="ml-100k/kar/user/2")
    assert isinstance(g, Generation)
    assert (g.text, g.token_ids, g.finish_reason, g.request_id) == ("hello world", [1, 2, 3, 4], "stop", "r-1")
    assert (g.stats.num_output_tokens, g.stats.num_steps, g.stats.tokens_per_step) == (4, 2, 2.0)
    assert g.stats.draft_status == "ok"
    assert verifier.requests[0].pool == "ml-100k/kar/user/2"


def test_every_argument_reaches_the_server(client, verifier):
    client.generate(
        "p",
        pool="a/b",
        acceptance=Relaxed(top_k=3, min_prob=0.25),
        max_new_tokens=7,
        stop=["\n\n", "###"],
        draft=False,
        learn=True,
        document_id="d",
        system="be brief",
    )
    client.generate("p", temperature=0.5, seed=2**64 - 1, acceptance=Strict(), raw=True)
    client.generate("p")
    first, second, third = verifier.requests
    assert (first.acceptance.relaxed.top_k, first.acceptance.relaxed.min_prob) == (3, 0.25)
    assert (first.max_new_tokens, list(first.stop), first.drafting) == (7, ["\n\n", "###"], 2)
    assert (first.learn, first.document_id, first.text.system, first.text.raw) == (True, "d", "be brief", False)
    assert (second.temperature, second.seed, second.text.raw) == (0.5, 2**64 - 1, True)
    assert second.acceptance.WhichOneof("kind") == "strict"
    assert not third.HasField("seed") and not third.HasField("acceptance") and not third.text.HasField("system")
    assert (third.max_new_tokens, third.drafting) == (256, 1)


def test_a_list_gives_a_list_in_its_order_though_later_ones_end_first(client, verifier):
    async def slow_first(request):
        await asyncio.sleep(0.2 if prompt_of(request) == "p0" else 0.0)
        async for response in echo(request):
            yield response

    verifier.script = slow_first
    ended = []
    prompts = [f"p{i}" for i in range(20)]
    generations = client.generate(prompts, on_progress=lambda index, outcome: ended.append((index, outcome.text)))
    assert [g.text for g in generations] == prompts
    assert ended[-1] == (0, "p0") and sorted(ended) == sorted(enumerate(prompts))
    assert client.generate([]) == []


def test_a_list_of_integers_is_one_prompt_and_a_list_of_lists_many(client):
    assert client.generate([5, 6]).text == "tokens [5, 6]"
    assert [g.text for g in client.generate([[5, 6], [7], "x"])] == ["tokens [5, 6]", "tokens [7]", "x"]


def test_pool_and_document_id_go_one_to_each_prompt(client, verifier):
    client.generate(["a", "b"], pool=["x/1", "x/2"], learn=True, document_id=["i", None])
    got = {prompt_of(request): (request.pool, request.document_id) for request in verifier.requests}
    assert got == {"a": ("x/1", "i"), "b": ("x/2", "")}
    client.generate(["c", "d"], pool="x")
    assert [request.pool for request in verifier.requests[2:]] == ["x", "x"]


def test_no_more_than_max_in_flight_are_open(verifier_server, verifier):
    async def slow(request):
        await asyncio.sleep(0.02)
        async for response in echo(request):
            yield response

    verifier.script = slow
    with LaserClient(verifier_server.target, max_in_flight=3) as client:
        client.generate([str(i) for i in range(12)])
    assert verifier.most_open == 3


async def refuse_b(request):
    if prompt_of(request) == "b":
        raise InvalidRequest("prompt has 600 tokens, must be at most 500", field="prompt")
    if prompt_of(request) == "slow":
        await asyncio.sleep(60)
    async for response in echo(request):
        yield response


def test_calls_to_a_target_of_several_servers_are_spread_over_all() -> None:
    many = [ScriptedVerifier(), ScriptedVerifier()]
    with (
        ServerThread(many[0]) as one,
        ServerThread(many[1]) as other,
        LaserClient(f"ipv4:{one.target},{other.target}") as client,
    ):
        deadline = time.monotonic() + 10
        while not all(each.requests for each in many):  # the first calls go where a connection is there first
            client.generate("a")
            assert time.monotonic() < deadline, "one server was never asked"
        before = [len(each.requests) for each in many]
        client.generate(["b"] * 20)
    assert [len(each.requests) - num for each, num in zip(many, before, strict=True)] == [10, 10]


def test_the_first_error_is_raised_with_its_index_and_cancels_the_rest(client, verifier):
    async def refuse_b_when_all_run(request):
        while prompt_of(request) == "b" and verifier.num_open < 3:
            await asyncio.sleep(0.01)
        async for response in refuse_b(request):
            yield response

    verifier.script = refuse_b_when_all_run
    with pytest.raises(InvalidRequest, match="600 tokens") as caught:
        client.generate(["slow", "slow", "b"])
    assert (caught.value.index, caught.value.field) == (2, "prompt")
    assert verifier.given_up.acquire(timeout=5) and verifier.given_up.acquire(timeout=5)


def test_on_error_return_puts_the_error_at_its_place(client, verifier):
    verifier.script = refuse_b
    a, b, empty, c = client.generate(["a", "b", "", "c"], on_error="return")
    assert (a.text, c.text) == ("a", "c")
    assert isinstance(b, InvalidRequest) and b.index == 1
    assert isinstance(empty, InvalidRequest) and empty.index == 2
    assert len(verifier.requests) == 3


def test_overloaded_is_retried_as_the_server_asks(client, verifier):
    refusals = iter([True, True, False])

    async def full_twice(request):
        if next(refusals):
            raise Overloaded("queue is full", retry_after_s=0.05)
        async for response in echo(request):
            yield response

    verifier.script = full_twice
    begin = time.monotonic()
    assert client.generate("a").text == "a"
    assert time.monotonic() - begin >= 0.1
    assert len(verifier.requests) == 3


def test_retries_of_overloaded_end_with_the_deadline(client, verifier):
    async def full(request):
        raise Overloaded("queue is full", retry_after_s=0.05)
        yield

    verifier.script = full
    with pytest.raises(DeadlineExceeded, match=r"deadline of 1 s") as caught:
        client.generate("a", deadline=1)
    assert isinstance(caught.value.__cause__, Overloaded)
    assert len(verifier.requests) > 1


def test_a_stream_closed_while_the_server_is_full_asks_no_more(client, verifier):
    refusals = iter([True, False])

    async def full_once(request):
        if next(refusals):
            asyncio.get_running_loop().call_later(0.2, stream.close)
            raise Overloaded("queue is full", retry_after_s=0.5)
        async for response in echo(request):
            yield response

    verifier.script = full_once
    stream = client.stream("a")
    assert list(stream) == []
    assert len(verifier.requests) == 1


def test_overloaded_without_a_time_to_come_back_is_raised(client, verifier):
    async def full(request):
        raise Overloaded("message too large")
        yield

    verifier.script = full
    with pytest.raises(Overloaded):
        client.generate("a", deadline=5)
    assert len(verifier.requests) == 1


async def fall_silent(request):
    yield delta("x", 1)
    await asyncio.sleep(60)


def test_silence_beyond_the_timeout_ends_the_call_and_frees_the_server(client, verifier):
    verifier.script = fall_silent
    with pytest.raises(DeadlineExceeded, match=r"silent for the timeout of 1 s"):
        client.generate("a", timeout=1)
    assert verifier.given_up.acquire(timeout=5)


def test_queued_messages_keep_a_waiting_call_alive_beyond_the_timeout(client, verifier):
    async def wait_in_queue(request):
        for _ in range(15):
            yield queued()
            await asyncio.sleep(0.1)
        async for response in echo(request):
            yield response

    verifier.script = wait_in_queue
    assert client.generate("a", timeout=1).text == "a"


def test_the_deadline_holds_for_the_whole_call_though_the_server_keeps_sending(client, verifier):
    async def never_ends(request):
        while True:
            yield delta("x", 1)
            await asyncio.sleep(0.02)

    verifier.script = never_ends
    with pytest.raises(DeadlineExceeded, match=r"deadline of 0\.3 s"):
        client.generate("a", deadline=0.3)
    outcomes = client.generate(["a", "b", "c"], deadline=0.3, on_error="return")
    assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded] * 3
    assert [outcome.index for outcome in outcomes] == [0, 1, 2]


def test_the_deadline_holds_while_other_threads_have_all_slots(verifier_server, verifier):
    async def never_ends(request):
        while prompt_of(request) == "long":
            yield delta("x", 1)
            await asyncio.sleep(0.02)
        async for response in echo(request):
            yield response

    verifier.script = never_ends
    with LaserClient(verifier_server.target, max_in_flight=1) as client:
        long = threading.Thread(target=lambda: client.generate(["long"], deadline=3, on_error="return"))
        long.start()
        while not verifier.requests:
            time.sleep(0.01)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"deadline of 0\.2 s"):
            client.generate(["short"], deadline=0.2)
        assert time.monotonic() - started < 2
        long.join()
        assert client.generate(["short"], deadline=3)[0].text == "short", "and the slot comes back"


def test_a_stream_without_its_finished_message_is_an_error(client, verifier):
    async def stop_short(request):
        yield delta("x", 1)

    verifier.script = stop_short
    with pytest.raises(Internal, match="without its Finished message"):
        client.generate("a")


def test_output_stands_though_the_call_fails_after_its_finished_message(client, verifier):
    async def fail_late(request):
        yield finished(2, text="done")
        raise RuntimeError("too late")

    verifier.script = fail_late
    assert client.generate("a").text == "done"


def test_a_fault_of_the_server_arrives_as_internal_with_a_request_id_and_no_more(client, verifier):
    async def fail(request):
        raise RuntimeError("secret")
        yield

    verifier.script = fail
    with pytest.raises(Internal, match="internal error, request id") as caught:
        client.generate("a")
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_not_ready():
    with LaserClient("127.0.0.1:1") as client, pytest.raises(NotReady):
        client.generate("a")


def test_a_server_that_stops_in_the_middle_is_not_ready(verifier_server, verifier):
    verifier.script = fall_silent
    with LaserClient(verifier_server.target) as client:
        stream = client.stream("a")
        assert next(stream).text == "x"
        verifier_server.stop()
        with pytest.raises(NotReady):
            next(stream)


def test_stream_gives_the_steps_and_then_the_whole(client, verifier):
    async def steps(request):
        yield queued()
        yield delta("he", 1, 2, accepted_length=1)
        yield delta("", 3)
        yield finished(3, text="llo")

    verifier.script = steps
    stream = client.stream("a")
    chunks = [(chunk.text, chunk.token_ids, chunk.accepted_length) for chunk in stream]
    assert chunks == [("he", (1, 2), 1), ("", (3,), 0), ("llo", (), 0)]
    assert stream.finish().text == "hello"
    assert stream.finish().token_ids == [1, 2, 3]


def test_an_output_wanted_whole_asks_for_few_messages_but_for_more_than_its_timeout_needs(client, verifier):
    client.generate("a")
    client.generate(["a", "b"], timeout=None)
    client.generate("a", timeout=2)
    list(client.stream("a"))
    assert [request.delta_interval_ms for request in verifier.requests] == [1000, 1000, 1000, 500, 0]


def test_leaving_a_stream_frees_the_server(client, verifier):
    verifier.script = fall_silent
    with client.stream("a") as stream:
        next(stream)
    assert verifier.given_up.acquire(timeout=5)
    for _ in client.stream("b"):
        break
    gc.collect()
    assert verifier.given_up.acquire(timeout=5)
    with pytest.raises(RuntimeError, match="closed before its end"):
        stream.finish()


def test_a_stream_goes_on_though_nobody_keeps_its_client(verifier_server):
    stream = LaserClient(verifier_server.target).stream("hello")
    gc.collect()
    assert "".join(chunk.text for chunk in stream) == "hello"
    assert stream.finish().text == "hello"


def test_the_sync_client_serves_several_threads_at_once(client, verifier):
    results: dict[int, list[str]] = {}

    def work(number: int) -> None:
        results[number] = [g.text for g in client.generate([f"{number}-{i}" for i in range(10)])]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [f"{number}-{i}" for i in range(10)] for number in range(4)}


def test_closing_ends_the_calls_of_other_threads_and_refuses_new_ones(client, verifier):
    verifier.script = fall_silent
    errors = []

    def work() -> None:
        try:
            client.generate("a")
        except NotReady as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not verifier.requests:
        time.sleep(0.01)
    client.close()
    thread.join(5)
    assert len(errors) == 1
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.generate("a")


def test_what_on_progress_raises_ends_the_call(client, verifier):
    verifier.script = refuse_b

    def stop(index, outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.generate(["slow", "a"], on_progress=stop)
    assert verifier.given_up.acquire(timeout=5)


def test_the_async_client_generates_streams_and_describes_the_model(verifier_server):
    async def run():
        async with AsyncLaserClient(verifier_server.target) as client:
            assert [g.text for g in await client.generate(["a", "b"])] == ["a", "b"]
            texts = [chunk.text async for chunk in client.stream("word")]
            assert texts == ["wo", "rd"]
            model = await client.model()
            assert (model.name, model.vocab_size, model.eos_token_ids) == ("tiny", 100, (2,))
            assert model.default_acceptance == Strict()

    asyncio.run(run())


def test_cancelling_an_async_call_frees_the_server(verifier_server, verifier):
    verifier.script = fall_silent

    async def run():
        async with AsyncLaserClient(verifier_server.target) as client:
            task = asyncio.create_task(client.generate(["a", "b"]))
            while len(verifier.requests) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(verifier.given_up.acquire, timeout=5)
            assert await asyncio.to_thread(verifier.given_up.acquire, timeout=5)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await client.generate("c")
            assert await asyncio.to_thread(verifier.given_up.acquire, timeout=5)

    asyncio.run(run())


def test_an_async_client_of_another_loop_says_so(verifier_server):
    client = AsyncLaserClient(verifier_server.target)

    async def use():
        await client.model()

    asyncio.run(use())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(use())


BAD = [
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": [[]]}),
    ("prompt", {"prompt": [""]}),
    ("prompt", {"prompt": [1, -2]}),
    ("prompt", {"prompt": [1, 2**31]}),
    ("prompt", {"prompt": [1, "a"]}),
    ("prompt", {"prompt": ["a", 1]}),
    ("prompt", {"prompt": [True]}),
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": b"bytes"}),
    ("prompt", {"prompt": "\ud800"}),
    ("prompt", {"prompt": "é" * (2 * 1024 * 1024 + 1)}),
    ("prompt", {"prompt": [1] * (1024 * 1024 + 1)}),
    ("system", {"system": "x" * (4 * 1024 * 1024 + 1)}),
    ("pool", {"pool": "a/../b"}),
    ("pool", {"pool": ""}),
    ("pool", {"pool": 3}),
    ("pool", {"pool": ["a"]}),
    ("pool", {"prompt": ["a", "b"], "pool": ["x"]}),
    ("document_id", {"prompt": ["a", "b"], "document_id": ["x"]}),
    ("document_id", {"prompt": ["a", "b"], "document_id": "x"}),
    ("document_id", {"document_id": ""}),
    ("document_id", {"document_id": "x" * 257}),
    ("acceptance", {"acceptance": "strict"}),
    ("temperature", {"acceptance": Relaxed(), "temperature": 0.5}),
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": 100.5}),
    ("temperature", {"temperature": float("nan")}),
    ("temperature", {"temperature": "1"}),
    ("max_new_tokens", {"max_new_tokens": 0}),
    ("max_new_tokens", {"max_new_tokens": 1.5}),
    ("seed", {"seed": -1}),
    ("seed", {"seed": 2**64}),
    ("stop", {"stop": [""]}),
    ("stop", {"stop": ["x"] * 17}),
    ("stop", {"stop": [3]}),
    ("pool", {"learn": True}),
    ("learn", {"learn": 1, "pool": "a"}),
    ("draft", {"draft": None}),
    ("system", {"system": "x", "raw": True}),
    ("system", {"system": "x", "prompt": [1, 2]}),
    ("timeout", {"timeout": 0}),
    ("timeout", {"timeout": 0.9}),
    ("timeout", {"timeout": float("inf")}),
    ("deadline", {"deadline": -1}),
    ("on_error", {"on_error": "ignore"}),
]


@pytest.mark.parametrize(("field", "arguments"), BAD)
def test_a_wrong_argument_is_named_before_anything_is_sent(client, verifier, field, arguments):
    with pytest.raises(InvalidRequest) as caught:
        client.generate(**{"prompt": "a", **arguments})
    assert caught.value.field == field
    assert field in str(caught.value) and "must" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert verifier.requests == []


def test_a_wrong_prompt_in_a_list_is_named_by_index_before_any_is_sent(client, verifier):
    with pytest.raises(InvalidRequest) as caught:
        client.generate(["a", "b", ""])
    assert caught.value.index == 2 and verifier.requests == []


def test_a_length_that_does_not_fit_names_both_lengths(client):
    with pytest.raises(InvalidRequest, match="pool has 1 entries, must have 2"):
        client.generate(["a", "b"], pool=["x"])


@pytest.mark.parametrize(("field", "arguments"), [("top_k", {"top_k": 0}), ("min_prob", {"min_prob": 1.5})])
def test_relaxed_names_its_wrong_value(field, arguments):
    with pytest.raises(InvalidRequest) as caught:
        Relaxed(**arguments)
    assert caught.value.field == field


def test_an_argument_that_does_not_exist_is_a_type_error(client):
    with pytest.raises(TypeError, match="top_p"):
        client.generate("a", top_p=0.9)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("target", {"target": "localhost"}),
        ("token", {"token": ""}),
        ("token", {"token": "a\nb"}),
        ("tls_key", {"tls_cert": b"-----BEGIN"}),
        ("tls_ca", {"tls_ca": "no/such/file"}),
        ("tls_ca", {"tls_ca": b"nonsense"}),
        ("max_in_flight", {"max_in_flight": 0}),
    ],
)
def test_a_wrong_argument_of_the_client_is_named(field, arguments):
    with pytest.raises(InvalidRequest) as caught:
        LaserClient(**{"target": "localhost:1", **arguments})
    assert caught.value.field == field


def test_all_errors_are_exported():
    from laser_protocol import errors

    assert {cls.__name__ for cls in errors.STATUS_CODES} | {"LaserError"} <= set(laser_client.__all__)
    assert all(hasattr(laser_client, name) for name in laser_client.__all__)


def test_importing_the_client_loads_no_heavy_library():
    heavy = ("numpy", "torch", "tqdm", "pyarrow", "grpc_health.v1", "grpc_reflection.v1alpha", "laser_protocol.tree")
    code = f"import sys, laser_client; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_client_that_is_never_closed_does_not_keep_the_interpreter(verifier_server):
    code = (
        "import sys; from laser_client import LaserClient\n"
        "client = LaserClient(sys.argv[1]); stream = client.stream('hello'); print(next(stream).text)"
    )
    command = [sys.executable, "-W", "error", "-c", code, verifier_server.target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "he\n", "")
