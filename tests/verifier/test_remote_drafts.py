"""The draft streams against scripted retrievers on real sockets: trees, lateness, lies, death, failover, learning."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laser_protocol.acceptance import Strict
from laser_protocol.channel import Endpoint
from laser_protocol.errors import WriterElsewhere
from laser_protocol.packing import unpack_token_ids
from laser_protocol.serving import LaserServer, ListenConfig
from laser_protocol.tree import tree_to_message
from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc
from laser_verifier import remote_drafts
from laser_verifier.config import RetrieverConfig
from laser_verifier.drafts import Advanced, Opened
from laser_verifier.metrics import VerifierMetrics
from laser_verifier.observer import Observer
from laser_verifier.outbox import Outbox, RemoteSequence
from laser_verifier.remote_drafts import RemoteDrafts
from laser_verifier.remote_pools import RemotePools
from laser_verifier.resolution import Resolver
from laser_verifier.sequence import DraftStatus
from laser_verifier.shard_stream import Handshake
from laser_verifier.shards import rendezvous_order
from tests.verifier.trees import make_tree

POOL = "a/b"
WAIT_S = 5.0


def closed_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


class ScriptedShard(retriever_pb2_grpc.RetrieverServicer):
    """A retriever that answers every open and advance with a chain of `next token` guesses, after `delay_s`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.delay_s = 0.0
        self.opened: list[retriever_pb2.OpenSequence] = []
        self.advanced: list[retriever_pb2.AdvanceSequence] = []
        self.closed: list[int] = []
        self.documents: list[retriever_pb2.Document] = []
        self.lengths: dict[int, int] = {}
        self.fault_on: set[int] = set()
        self.fault_message = "position is 1, must be 2"
        self.pool_state = retriever_pb2.POOL_STATE_OK
        self.writer_elsewhere: str | None = None
        self.num_adds = 0
        self.malformed = False
        self.silent_on: set[int] = set()

    async def Draft(self, requests: Any, context: Any) -> AsyncIterator[retriever_pb2.DraftResponse]:  # noqa: N802
        async for request in requests:
            if request.HasField("handshake"):
                yield retriever_pb2.DraftResponse(handshake=retriever_pb2.HandshakeReply(name=self.name))
                continue
            response = retriever_pb2.DraftResponse()
            for opened in request.opens:
                self.opened.append(opened)
                self.lengths[opened.sequence_id] = len(opened.token_ids) // 4
                response.opened.add(sequence_id=opened.sequence_id, pool_state=self.pool_state)
                self._tree(response, opened.sequence_id)
            for step in request.advances:
                self.advanced.append(step)
                self.lengths[step.sequence_id] += len(step.token_ids) // 4
                self._tree(response, step.sequence_id)
            self.closed.extend(request.closes)
            await asyncio.sleep(self.delay_s)
            yield response

    def _tree(self, response: retriever_pb2.DraftResponse, sequence_id: int) -> None:
        if sequence_id in self.fault_on:
            response.faults.add(sequence_id=sequence_id, message=self.fault_message)
            return
        if sequence_id in self.silent_on:
            return
        message = tree_to_message(sequence_id, make_tree(self.lengths[sequence_id], [1, 2], [-1, 0]))
        if self.malformed:
            message.parents = b"xyz"
        response.trees.append(message)

    async def AddDocuments(self, requests: Any, context: Any) -> retriever_pb2.AddDocumentsResponse:  # noqa: N802
        self.num_adds += 1
        if self.writer_elsewhere is not None:
            raise WriterElsewhere("written elsewhere", holder=self.writer_elsewhere)
        documents = [document async for request in requests for document in request.documents]
        await asyncio.sleep(self.delay_s)
        self.documents.extend(documents)
        return retriever_pb2.AddDocumentsResponse(num_documents=len(documents))


class Loop:
    """An event loop in a thread, to run servers and the adapter on."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._stops: list[Callable[[], Any]] = []

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def serve(self, shard: ScriptedShard, address: str = "127.0.0.1:0", **listen: Path) -> LaserServer:
        async def start() -> LaserServer:
            server = LaserServer(
                ListenConfig(address, grace_s=0.0, **listen),
                ["laser.v1.Retriever"],
                lambda server: retriever_pb2_grpc.add_RetrieverServicer_to_server(shard, server),
            )
            await server.start()
            return server

        server: LaserServer = self.run(start())
        self._stops.append(server.stop)
        return server

    def drafts(self, *ports: int, observer: Observer | None = None) -> RemoteDrafts:
        drafts = self.drafts_of(RetrieverConfig(tuple(f"127.0.0.1:{port}" for port in ports)), observer)
        until(lambda: len(drafts.connected()) == len(ports))
        return drafts

    def drafts_of(self, config: RetrieverConfig, observer: Observer | None = None) -> RemoteDrafts:
        async def start() -> tuple[RemoteDrafts, asyncio.Task[None]]:
            drafts = RemoteDrafts(config, Handshake("f" * 64, 100, "test", "tiny"), observer)
            return drafts, asyncio.create_task(drafts.run())

        drafts, task = self.run(start())
        self._stops.append(lambda: self.cancel(task))
        return drafts

    def pools(self, config: RetrieverConfig, connected: Callable[[], Mapping[str, Endpoint]]) -> RemotePools:
        async def start() -> tuple[RemotePools, asyncio.Task[None]]:
            pools = RemotePools(config, "f" * 64, connected)
            return pools, asyncio.create_task(pools.run())

        pools, task = self.run(start())
        self._stops.append(lambda: self.cancel(task))
        return pools

    async def cancel(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def close(self) -> None:
        for stop in reversed(self._stops):
            self.run(stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.005)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def lost_shard(loop: Loop, shard: ScriptedShard) -> tuple[RemoteDrafts, int]:
    """Drafts that had this one shard and have lost it, and the port it was at."""
    server = loop.serve(shard)
    drafts = loop.drafts(server.port)
    port = server.port
    loop.run(server.stop())
    until(lambda: not drafts.connected())
    return drafts, port


def opened(sequence_id: int, num_tokens: int = 3, pool: str = POOL, node_budget: int = 32) -> Opened:
    return Opened(sequence_id, pool, np.arange(num_tokens, dtype=np.int32), Strict(), 0.5, node_budget)


def advanced(sequence_id: int, position: int, *token_ids: int) -> Advanced:
    return Advanced(sequence_id, position, np.asarray(token_ids, np.int32), 2, 0, 32)


def test_trees_come_for_the_position_asked_for_and_are_given_once(loop: Loop) -> None:
    shard = ScriptedShard("s")
    drafts = loop.drafts(loop.serve(shard).port)
    drafts.open(opened(1))
    until(lambda: drafts.status(1) is DraftStatus.OK)
    trees = drafts.collect({1: 3}, WAIT_S)
    assert trees[1].position == 3 and trees[1].token_ids.tolist() == [1, 2]
    assert drafts.collect({1: 3}, 0.0) == {}
    drafts.advance([advanced(1, 3, 1, 9)])
    assert set(drafts.collect({1: 5}, WAIT_S)) == {1}
    (step,) = shard.advanced
    assert (step.position, step.num_verified_nodes, step.accepted_node_idx) == (3, 2, 0)
    assert unpack_token_ids(step.token_ids) == [1, 9]
    drafts.close(1)
    until(lambda: shard.closed == [1])


def test_a_tree_for_another_position_is_not_given(loop: Loop) -> None:
    drafts = loop.drafts(loop.serve(ScriptedShard("s")).port)
    drafts.open(opened(1))
    until(lambda: drafts.status(1) is DraftStatus.OK)
    assert drafts.collect({1: 4}, 0.05) == {}


def test_trees_that_come_after_their_step_are_counted_as_stale(loop: Loop) -> None:
    metrics = VerifierMetrics("tiny", 32)

    def num_stale() -> float | None:
        return metrics.registry.get_sample_value("laser_draft_dropped_trees_total", {"reason": "stale"})

    drafts = loop.drafts(loop.serve(ScriptedShard("s")).port, observer=metrics)
    drafts.open(opened(1))
    until(lambda: drafts.inbox.holds(1, 3))
    drafts.advance([advanced(1, 3, 7)])
    until(lambda: drafts.inbox.holds(1, 4))
    assert num_stale() == 1, "a newer tree came before anybody had read it"
    assert drafts.collect({1: 5}, 0.0) == {}
    assert num_stale() == 2, "the step that it was for is over"
    assert drafts.collect({1: 5}, 0.0) == {}
    drafts.advance([advanced(1, 4, 7)])
    assert set(drafts.collect({1: 5}, WAIT_S)) == {1}
    assert num_stale() == 2, "each is counted once, one that is read never"


def test_a_slow_shard_is_waited_for_three_times_and_then_no_more(loop: Loop) -> None:
    shard = ScriptedShard("s")
    shard.delay_s = 0.5
    drafts = loop.drafts(loop.serve(shard).port)
    drafts.open(opened(1))
    until(lambda: shard.opened)
    for _ in range(3):
        assert drafts.collect({1: 3}, 0.02) == {}
    started = time.monotonic()
    assert drafts.collect({1: 3}, 0.5) == {}
    assert time.monotonic() - started < 0.1
    # A tree that is there in time makes the shard worth waiting for again.
    until(lambda: drafts.collect({1: 3}, 0.0))
    shard.delay_s = 0.05
    drafts.advance([advanced(1, 3, 7)])
    assert set(drafts.collect({1: 4}, WAIT_S)) == {1}


def test_a_shard_that_is_quick_again_is_waited_for_again_though_nobody_waited_for_its_trees(loop: Loop) -> None:
    """An engine that does not wait asks and collects at once: no tree is ever there then, however quick the shard.

    That a sequence of which no tree is asked for gets none says nothing about the shard.
    """
    shard = ScriptedShard("s")
    shard.delay_s = 0.6
    shard.silent_on = {2}
    drafts = loop.drafts(loop.serve(shard).port)
    drafts.open(opened(1))
    drafts.open(opened(2, node_budget=0))
    until(lambda: shard.opened)
    for _ in range(3):
        assert drafts.collect({1: 3}, 0.1) == {}
    shard.delay_s = 0.0
    for position in range(3, 8):
        drafts.advance([advanced(1, position, 7)])
        if drafts.collect({1: position + 1}, 0.1):
            return
        time.sleep(0.4)
    raise AssertionError("the shard was never waited for again")


def test_a_shard_that_always_comes_a_little_too_late_is_tried_ever_more_seldom(loop: Loop) -> None:
    shard = ScriptedShard("s")
    drafts = loop.drafts(loop.serve(shard).port)
    drafts.open(opened(1))
    until(lambda: drafts.collect({1: 3}, 0.0))
    shard.delay_s = 0.075
    waited_s, num_waits = 0.0, 0
    for position in range(3, 27):
        drafts.advance([advanced(1, position, 7)])
        started = time.monotonic()
        drafts.collect({1: position + 1}, 0.05)
        took_s = time.monotonic() - started
        waited_s, num_waits = waited_s + took_s, num_waits + (took_s > 0.03)
        until(lambda position=position: drafts.inbox.holds(1, position + 1))  # type: ignore[misc]
    assert num_waits > 3, "it is tried"
    assert num_waits < 12 and waited_s < 0.6, "of 24 steps"


def test_a_shard_that_answers_one_sequence_and_never_another_is_not_waited_for_forever(loop: Loop) -> None:
    shard = ScriptedShard("s")
    shard.silent_on = {2}
    drafts = loop.drafts(loop.serve(shard).port)
    drafts.open(opened(1))
    drafts.open(opened(2))
    until(lambda: drafts.status(2) is DraftStatus.OK)
    for position in range(3, 6):
        assert set(drafts.collect({1: position, 2: 3}, 0.1)) == {1}
        drafts.advance([advanced(1, position, 7)])
    started = time.monotonic()
    drafts.collect({1: 6, 2: 3}, 0.5)
    assert time.monotonic() - started < 0.1


def test_a_shard_that_ends_every_stream_at_once_is_asked_ever_more_seldom(loop: Loop) -> None:
    class Leaving(ScriptedShard):
        connected_s: list[float]

        async def Draft(self, requests: Any, context: Any) -> AsyncIterator[retriever_pb2.DraftResponse]:  # noqa: N802
            self.connected_s.append(time.monotonic())
            yield retriever_pb2.DraftResponse(handshake=retriever_pb2.HandshakeReply(name=self.name))

    shard = Leaving("s")
    shard.connected_s = []
    loop.drafts_of(RetrieverConfig((f"127.0.0.1:{loop.serve(shard).port}",)))
    until(lambda: len(shard.connected_s) == 4)
    pauses_s = np.diff(shard.connected_s)
    assert (pauses_s > [0.15, 0.3, 0.6]).all(), "not as often as one that was there for a while: after 0.1 s"


def test_two_shards_of_one_name_both_get_sequences(loop: Loop) -> None:
    shards = [ScriptedShard("same"), ScriptedShard("same")]
    drafts = loop.drafts(*(loop.serve(shard).port for shard in shards))
    for i in range(1, 41):
        drafts.open(opened(i, pool=f"p/{i}"))
    until(lambda: sum(len(shard.opened) for shard in shards) == 40)
    assert min(len(shard.opened) for shard in shards) > 8


def test_a_lost_shard_is_shown_by_its_address_for_another_may_have_its_name_by_now(loop: Loop) -> None:
    drafts, port = lost_shard(loop, ScriptedShard("same"))
    assert [shard.name for shard in drafts.shards()] == [f"127.0.0.1:{port}"]


def test_a_dead_shard_costs_no_wait_and_its_sequences_move_with_all_their_tokens(loop: Loop) -> None:
    shards = {name: ScriptedShard(name) for name in ("s1", "s2")}
    servers = {name: loop.serve(shard) for name, shard in shards.items()}
    drafts = loop.drafts(*(server.port for server in servers.values()))
    drafts.open(opened(1))
    until(lambda: drafts.status(1) is DraftStatus.OK)
    first = next(name for name, shard in shards.items() if shard.opened)
    other = next(name for name in shards if name != first)
    drafts.advance([advanced(1, 3, 8, 9)])
    until(lambda: shards[first].advanced)
    loop.run(servers[first].stop())
    until(lambda: shards[other].opened)
    (moved,) = shards[other].opened
    assert unpack_token_ids(moved.token_ids) == [0, 1, 2, 8, 9]
    assert moved.num_prompt_tokens == 3
    assert moved.temperature == 0.5
    assert set(drafts.collect({1: 5}, WAIT_S)) == {1}
    assert drafts.counters.num_failovers == 1
    # What became of the dead shard's tree is no business of the other's.
    drafts.advance([advanced(1, 5, 1, 2)])
    until(lambda: shards[other].advanced)
    (step,) = shards[other].advanced
    assert (step.num_verified_nodes, step.accepted_node_idx) == (0, -1)


def test_without_any_shard_nothing_waits_and_sequences_are_taken_up_when_one_comes_back(loop: Loop) -> None:
    shard = ScriptedShard("s")
    drafts, port = lost_shard(loop, shard)
    drafts.open(opened(1))
    started = time.monotonic()
    assert drafts.collect({1: 3}, 1.0) == {}
    assert time.monotonic() - started < 0.2
    assert drafts.status(1) is DraftStatus.NO_RETRIEVER
    drafts.advance([advanced(1, 3, 4)])
    loop.serve(shard, f"127.0.0.1:{port}")
    until(lambda: drafts.status(1) is DraftStatus.OK)
    assert set(drafts.collect({1: 4}, WAIT_S)) == {1}


def test_a_fault_ends_drafting_of_that_sequence_alone(loop: Loop) -> None:
    shard = ScriptedShard("s")
    shard.fault_on = {1}
    drafts = loop.drafts(loop.serve(shard).port)
    drafts.open(opened(1))
    drafts.open(opened(2))
    assert set(drafts.collect({2: 3}, WAIT_S)) == {2}
    until(lambda: drafts.counters.num_faults == 1)
    started = time.monotonic()
    assert drafts.collect({1: 3}, 1.0) == {}
    assert time.monotonic() - started < 0.2


def test_a_shard_that_sends_nothing_but_faults_does_not_fill_the_log(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("laser_verifier.throttle._INTERVAL_S", 60.0)
    shard = ScriptedShard("s")
    shard.fault_on, shard.fault_message = set(range(1, 21)), "line\n" * 10_000
    drafts = loop.drafts(loop.serve(shard).port)
    for i in shard.fault_on:
        drafts.open(opened(i))
    until(lambda: drafts.counters.num_faults == 20)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("draft.fault")]
    assert "\n" not in line and len(line) < 400


def test_malformed_bytes_are_dropped_counted_and_not_waited_for(loop: Loop) -> None:
    shard = ScriptedShard("s")
    shard.malformed = True
    drafts = loop.drafts(loop.serve(shard).port)
    drafts.open(opened(1))
    until(lambda: drafts.counters.num_malformed == 1)
    tree = drafts.collect({1: 3}, WAIT_S)[1]
    assert (tree.position, len(tree)) == (3, 0), "an empty tree: nothing is drafted, and the engine need not wait"


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (retriever_pb2.POOL_STATE_OK, DraftStatus.OK),
        (retriever_pb2.POOL_STATE_NO_POOL, DraftStatus.NO_POOL),
        (retriever_pb2.POOL_STATE_TOKENIZER_MISMATCH, DraftStatus.TOKENIZER_MISMATCH),
    ],
)
def test_the_pool_state_becomes_the_draft_status(loop: Loop, state: Any, status: DraftStatus) -> None:
    shard = ScriptedShard("s")
    shard.pool_state = state
    drafts = loop.drafts(loop.serve(shard).port)
    drafts.open(opened(1))
    until(lambda: drafts.status(1) is not DraftStatus.NO_RETRIEVER)
    assert drafts.status(1) is status


def test_advances_that_could_not_be_sent_yet_join_so_that_a_stalled_shard_costs_no_memory(loop: Loop) -> None:
    outbox = Outbox()
    for position in range(3, 1003):
        outbox.advance(advanced(1, position, position))
    request = outbox.take("tiny", 2**20)
    (step,) = request.advances
    assert step.position == 3
    assert unpack_token_ids(step.token_ids) == list(range(3, 1003))
    assert not outbox


def test_what_finds_no_room_in_a_message_stays_for_the_next_one_and_nothing_is_sent_twice() -> None:
    outbox = Outbox()
    for i in range(10):
        outbox.open(RemoteSequence(i, POOL, Strict(), 0.0, 1, [7] * 1000, 32))
    for i in range(100, 110):
        outbox.advance(advanced(i, 3, *range(1000)))
    outbox.close(200)
    requests = []
    while outbox:
        requests.append(outbox.take("tiny", 10_000))
    assert [request.ByteSize() < 10_000 + 4_200 for request in requests] == [True] * 7
    assert [step.sequence_id for request in requests for step in request.advances] == list(range(100, 110))
    assert [opened.sequence_id for request in requests for opened in request.opens] == list(range(10))
    assert [sequence_id for request in requests for sequence_id in request.closes] == [200]


def test_sequences_that_are_together_too_large_for_a_message_are_all_taken_over(loop: Loop) -> None:
    """As when a shard comes back, or another one's sequences come over, all at once."""
    shard = ScriptedShard("s")
    drafts, port = lost_shard(loop, shard)
    for i in range(6):
        drafts.open(Opened(i, POOL, np.zeros(1_000_000, np.int32), Strict(), 0.0, 32))
    loop.serve(shard, f"127.0.0.1:{port}")
    until(lambda: all(drafts.status(i) is DraftStatus.OK for i in range(6)))
    assert len(shard.opened) == 6 and drafts.counters.num_failovers == 0


def test_outputs_that_are_together_too_large_for_a_message_are_all_learned(loop: Loop) -> None:
    shard = ScriptedShard("s")
    endpoint = Endpoint(f"127.0.0.1:{loop.serve(shard).port}")
    pools = loop.pools(RetrieverConfig(), lambda: {"s": endpoint})
    shard.delay_s = 0.5
    pools.learn(POOL, "first", [7])
    until(lambda: shard.documents)
    shard.delay_s = 0.0
    for i in range(6):
        pools.learn(POOL, str(i), [7] * 1_000_000)
    until(lambda: pools.counters.num_learned + pools.counters.num_dropped == 7)
    assert [document.id for document in shard.documents[1:]] == [str(i) for i in range(6)]


def test_learned_outputs_go_to_the_shard_that_writes_the_pool(loop: Loop) -> None:
    holder, other = ScriptedShard("holder"), ScriptedShard("other")
    holder_address = f"127.0.0.1:{loop.serve(holder).port}"
    other_address = f"127.0.0.1:{loop.serve(other).port}"
    other.writer_elsewhere = holder_address
    pools = loop.pools(RetrieverConfig(), lambda: {"other": Endpoint(other_address)})
    pools.learn(POOL, "user 1", [4, 5, 6])
    until(lambda: holder.documents)
    assert holder.documents[0].id == "user 1"
    assert unpack_token_ids(holder.documents[0].token_ids) == [4, 5, 6]
    until(lambda: pools.counters.num_learned == 1)


def test_the_writer_is_found_among_the_shards_where_the_name_it_gives_itself_leads_nowhere(loop: Loop) -> None:
    shards = {name: ScriptedShard(name) for name in ("a", "b", "c")}
    endpoints = {name: Endpoint(f"127.0.0.1:{loop.serve(shard).port}") for name, shard in shards.items()}
    writer = rendezvous_order(POOL, shards)[-1]
    for name, shard in shards.items():
        shard.writer_elsewhere = None if name == writer else f"127.0.0.1:{closed_port()}"
    pools = loop.pools(RetrieverConfig(), lambda: endpoints)
    for i in range(3):
        pools.learn(POOL, str(i), [4])
        until(lambda i=i: pools.counters.num_learned == i + 1)
    assert [document.id for document in shards[writer].documents] == ["0", "1", "2"]
    assert pools.counters.num_dropped == 0
    assert sum(shard.num_adds for shard in shards.values()) <= 5, "the writer of the first is asked first by the others"


def test_documents_that_were_not_taken_in_time_are_sent_once_more_and_then_dropped(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laser_verifier.remote_pools._ADD_TIMEOUT_S", 1.0)
    shard = ScriptedShard("s")
    endpoint = Endpoint(f"127.0.0.1:{loop.serve(shard).port}")
    pools = loop.pools(RetrieverConfig(), lambda: {"s": endpoint})
    shard.delay_s = 30.0
    pools.learn(POOL, "never", [7])
    until(lambda: pools.counters.num_dropped == 1)
    assert shard.num_adds == 2
    pools.learn(POOL, "later", [7])
    until(lambda: shard.num_adds == 3)
    shard.delay_s = 0.0
    until(lambda: pools.counters.num_learned == 1)
    assert [document.id for document in shard.documents] == ["later"]


def test_an_output_that_finds_the_queue_full_is_counted(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laser_verifier.remote_pools._MAX_WAITING", 2)
    pools = loop.pools(RetrieverConfig(), dict)
    pools.learn(POOL, "0", [7])
    until(lambda: pools._num_sending == 1)
    for i in range(1, 6):
        pools.learn(POOL, str(i), [7])
    until(lambda: pools.counters.num_dropped == 3)
    assert pools._waiting.qsize() == 2 and pools.counters.num_learned == 0


def test_a_fault_while_learning_costs_those_outputs_and_not_the_next(
    loop: Loop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = ScriptedShard("s")
    endpoint = Endpoint(f"127.0.0.1:{loop.serve(shard).port}")
    pools = loop.pools(RetrieverConfig(), lambda: {"s": endpoint})
    add = RemotePools._add
    faults: list[BaseException] = [ZeroDivisionError(), asyncio.CancelledError()]

    async def fail_twice(*arguments: Any) -> None:
        if faults:
            raise faults.pop(0)
        await add(*arguments)

    monkeypatch.setattr(RemotePools, "_add", fail_twice)
    for i in range(3):
        pools.learn(POOL, str(i), [7])
        until(lambda i=i: pools.counters.num_learned + pools.counters.num_dropped == i + 1)
    assert (pools.counters.num_learned, pools.counters.num_dropped) == (1, 2)
    assert [document.id for document in shard.documents] == ["2"]
    (record,) = [record for record in caplog.records if record.getMessage().startswith("learn.failed")]
    assert record.exc_info is not None and record.exc_info[0] is ZeroDivisionError


def test_draining_waits_for_the_batch_under_way_and_counts_it_if_the_time_is_over(loop: Loop) -> None:
    shard = ScriptedShard("s")
    endpoint = Endpoint(f"127.0.0.1:{loop.serve(shard).port}")
    pools = loop.pools(RetrieverConfig(), lambda: {"s": endpoint})
    shard.delay_s = 0.3
    pools.learn(POOL, "in time", [7])
    until(lambda: pools._num_sending == 1)
    loop.run(pools.drain(WAIT_S))
    assert (pools.counters.num_learned, pools.counters.num_dropped) == (1, 0)
    shard.delay_s = 60.0
    for i in range(5):
        pools.learn(POOL, str(i), [7])
    until(lambda: pools._num_sending)
    loop.run(pools.drain(0.05))
    assert (pools.counters.num_learned, pools.counters.num_dropped) == (1, 5)


def test_shards_that_join_or_leave_behind_a_name_are_found_while_running(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ScriptedShard("s1"), ScriptedShard("s2")
    servers = {shard.name: loop.serve(shard) for shard in (first, second)}
    found = {f"127.0.0.1:{servers['s1'].port}": "retriever"}

    async def resolve_name(resolver: Resolver) -> dict[str, str | None]:
        return dict(found)

    monkeypatch.setattr(Resolver, "resolve", resolve_name)
    monkeypatch.setattr(remote_drafts, "_RESOLVE_INTERVAL_S", 0.02)
    drafts = loop.drafts_of(RetrieverConfig(("retriever:50051",)))
    until(lambda: list(drafts.connected()) == ["s1"])
    for i in range(1, 21):
        drafts.open(opened(i, pool=f"p/{i}"))
    until(lambda: len(first.opened) == 20)

    found[f"127.0.0.1:{servers['s2'].port}"] = "retriever"
    until(lambda: set(drafts.connected()) == {"s1", "s2"})
    for i in range(21, 61):
        drafts.open(opened(i, pool=f"p/{i}"))
    until(lambda: len(first.opened) + len(second.opened) == 60)
    assert len(second.opened) > 8, "new sequences go to both"
    assert {message.sequence_id for message in first.opened} >= set(range(1, 21)), "open ones stay where they are"

    del found[f"127.0.0.1:{servers['s1'].port}"]
    time.sleep(0.1)
    assert set(drafts.connected()) == {"s1", "s2"}, "a stream that works outlives its name"
    loop.run(servers["s1"].stop())
    until(lambda: {message.sequence_id for message in second.opened} == set(range(1, 61)))
    until(lambda: [shard.name for shard in drafts.shards()] == ["s2"])
    assert set(drafts.collect(dict.fromkeys(range(1, 61), 3), WAIT_S)) == set(range(1, 61))


def test_names_resolve_to_addresses_and_unknown_ones_to_none() -> None:
    def resolve(*targets: str) -> dict[str, str | None]:
        return asyncio.run(Resolver(targets).resolve())

    assert resolve("localhost:50051") == {"127.0.0.1:50051": "localhost"}
    assert resolve("127.0.0.1:50051", "[::1]:50051") == {"127.0.0.1:50051": None, "[::1]:50051": None}
    assert resolve("no-such-host.invalid:50051") == {}


def test_a_name_that_does_not_resolve_is_told_once_and_once_more_when_it_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answers: list[Any] = [
        OSError("no such name"),
        OSError("no such name"),
        [(socket.AF_INET, 0, 0, "", ("10.0.0.7", 5))],
    ]

    async def look_up(loop: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(answer := answers.pop(0), OSError):
            raise answer
        return answer

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up)
    resolver = Resolver(("retreiver:5",))
    found = [asyncio.run(resolver.resolve()) for _ in range(3)]
    assert found == [{}, {}, {"10.0.0.7:5": "retreiver"}]
    assert [(record.levelno, record.getMessage()) for record in caplog.records if "shard." in record.getMessage()] == [
        (logging.WARNING, "shard.unresolved target=retreiver:5 error=no such name"),
        (logging.INFO, "shard.resolved target=retreiver:5"),
    ]


def test_a_retriever_is_reached_over_tls_by_the_name_in_its_certificate_and_that_name_alone(
    loop: Loop, tmp_path: Path
) -> None:
    from tests.certificates import Authority

    shard, authority = ScriptedShard("s"), Authority(tmp_path / "tls", "localhost")
    server = loop.serve(shard, tls_cert=authority.cert, tls_key=authority.key)
    credentials = Endpoint.make("any:1", tls_ca=authority.ca).credentials
    drafts = loop.drafts_of(RetrieverConfig((f"localhost:{server.port}",), credentials))
    drafts.open(opened(1))
    until(lambda: drafts.status(1) is DraftStatus.OK)
    assert set(drafts.collect({1: 3}, WAIT_S)) == {1}
    pools = loop.pools(RetrieverConfig((), credentials), drafts.connected)
    pools.learn(POOL, "user 1", [4, 5, 6])
    until(lambda: shard.documents)
    by_address = loop.drafts_of(RetrieverConfig((f"127.0.0.1:{server.port}",), credentials))
    time.sleep(0.5)
    assert not by_address.connected(), "the certificate is checked"


def test_what_a_shard_refuses_is_a_warning_once_and_not_at_every_try(
    loop: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "laser_verifier.shard_stream")

    def lost() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.getMessage().startswith("shard.lost")]

    token_file = tmp_path / "token"
    token_file.write_text("s3cret")
    server = loop.serve(ScriptedShard("s"), token_file=token_file)
    loop.drafts_of(RetrieverConfig((f"127.0.0.1:{server.port}",)))
    until(lambda: len(lost()) == 3)
    assert [record.levelno for record in lost()] == [logging.WARNING, logging.DEBUG, logging.DEBUG]
    assert "UNAUTHENTICATED" in lost()[0].getMessage()
    loop.run(server.stop())
    until(lambda: "UNAVAILABLE" in lost()[-1].getMessage())
    first = next(record for record in lost() if "UNAVAILABLE" in record.getMessage())
    assert first.levelno == logging.WARNING, "something else is wrong now"


def test_a_fault_while_writing_ends_the_stream_which_is_opened_again(
    loop: Loop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(outbox: Outbox, model: str, max_bytes: int) -> Any:
        raise ZeroDivisionError

    forgotten: list[Any] = []
    loop.loop.set_exception_handler(lambda loop, context: forgotten.append(context))
    server = loop.serve(ScriptedShard("s"))
    drafts = loop.drafts(server.port)
    take = Outbox.take
    monkeypatch.setattr(Outbox, "take", fail)
    drafts.open(opened(1))
    until(lambda: [record for record in caplog.records if record.getMessage().startswith("shard.broken")])
    monkeypatch.setattr(Outbox, "take", take)
    until(lambda: set(drafts.collect({1: 3}, WAIT_S)) == {1})
    gc.collect()
    assert forgotten == []
    record = next(record for record in caplog.records if record.getMessage().startswith("shard.broken"))
    assert record.exc_info is not None and record.exc_info[0] is ZeroDivisionError
