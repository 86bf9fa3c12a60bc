"""Drafts from retriever shards over gRPC: the production DraftSource.

The engine thread calls the DraftSource methods; they only touch what `_condition` guards and hand the rest to the event
loop, where the streams live. A stream that breaks moves its sequences to the next shard of their pool's order; without
any shard sequences are decoded plainly until one comes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
import grpc.aio

from laser_protocol.channel import Endpoint
from laser_protocol.tree import DraftTree, MalformedTree, tree_from_message
from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc
from laser_verifier.config import RetrieverConfig
from laser_verifier.drafts import Advanced, Opened
from laser_verifier.observer import NoObserver, Observer
from laser_verifier.outbox import Outbox, RemoteSequence
from laser_verifier.resolution import Resolver
from laser_verifier.sequence import DraftStatus
from laser_verifier.shard_patience import ShardPatience
from laser_verifier.shards import choose_shard
from laser_verifier.throttle import Throttle

logger = logging.getLogger(__name__)

_RESOLVE_INTERVAL_S = 2.0
_RECONNECT_S = (0.1, 2.0)
# A message may be larger by one sequence's tokens, at most 4 MiB; a server refuses 16 MiB, and ends the stream.
_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
_MAX_LOGGED_CHARS = 200

_STATUS = {
    retriever_pb2.POOL_STATE_OK: DraftStatus.OK,
    retriever_pb2.POOL_STATE_NO_POOL: DraftStatus.NO_POOL,
    retriever_pb2.POOL_STATE_TOKENIZER_MISMATCH: DraftStatus.TOKENIZER_MISMATCH,
}


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a retriever must know of the target model."""

    tokenizer_fingerprint: str
    vocab_size: int
    verifier_name: str
    model_name: str


@dataclass(slots=True)
class _Remote(RemoteSequence):
    """A sequence as the event loop knows it."""

    shard: _Shard | None = None
    # Position at which another shard took over, or -1. A tree of this position may still be the one before's.
    moved_at: int = -1


@dataclass(slots=True, eq=False)
class _Shard:
    """One address. `name` is known and `connected` true from the answer to its handshake until it is lost."""

    endpoint: Endpoint
    name: str = ""
    connected: bool = False
    connected_s: float = 0.0
    # What it was lost for since it was connected last; told once, not at every try.
    lost_for: grpc.StatusCode | None = None
    num_open: int = 0
    patience: ShardPatience = field(default_factory=ShardPatience)
    warnings: Throttle = field(default_factory=Throttle)
    outbox: Outbox = field(default_factory=Outbox)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT, the host as a number."""
        return self.endpoint.target


@dataclass(slots=True)
class DraftCounters:
    """What became of the traffic; read by tests and metrics."""

    num_trees: int = 0
    num_malformed: int = 0
    num_missing: int = 0
    num_late: int = 0
    num_failovers: int = 0
    num_faults: int = 0


@dataclass(frozen=True, slots=True)
class ShardState:
    """A shard as metrics show it; `name` is its address while it is not connected."""

    name: str
    connected: bool
    num_open: int


class RemoteDrafts:
    """Draft trees from all shards behind the configured names.

    Made and run on an event loop (`run`); used by the engine thread.

    Args:
        config: where the shards are. handshake: of the target model. observer: told of trees that are dropped.
    """

    def __init__(self, config: RetrieverConfig, handshake: Handshake, observer: Observer | None = None) -> None:
        self._config = config
        self._handshake = handshake
        self._observer: Observer = observer or NoObserver()
        self._loop = asyncio.get_running_loop()
        self._resolver = Resolver(config.targets)
        self._shards: dict[str, _Shard] = {}
        self._sequences: dict[int, _Remote] = {}
        # Guards the rest, which both threads touch.
        self._condition = threading.Condition()
        self._trees: dict[int, DraftTree] = {}
        self._statuses: dict[int, DraftStatus] = {}
        self._shard_of: dict[int, _Shard] = {}
        # Opened, but the event loop did not come to choose a shard yet.
        self._unassigned: set[int] = set()
        # When each sequence's outstanding tree was asked for, and how long the engine waits at most.
        self._asked_s: dict[int, float] = {}
        self._allowed_s = 0.0
        self.counters = DraftCounters()

    # DraftSource, from the engine thread.

    def open(self, opened: Opened) -> None:
        """Begins a sequence on a shard of its pool."""
        remote = _Remote(
            opened.sequence_id,
            opened.pool,
            opened.acceptance,
            opened.temperature,
            len(opened.token_ids),
            opened.token_ids.tolist(),
            opened.node_budget,
        )
        with self._condition:
            self._unassigned.add(opened.sequence_id)
            # Without a budget no tree is asked for, and none can be late.
            if opened.node_budget:
                self._asked_s[opened.sequence_id] = time.monotonic()
        self._loop.call_soon_threadsafe(self._on_open, remote)

    def advance(self, steps: list[Advanced]) -> None:
        """Sends a step's outcome, one message per shard."""
        now_s = time.monotonic()
        with self._condition:
            for step in steps:
                self._asked_s.pop(step.sequence_id, None)
                if step.node_budget:
                    self._asked_s[step.sequence_id] = now_s
        self._loop.call_soon_threadsafe(self._on_advance, steps)

    def close(self, sequence_id: int) -> None:
        """Ends a sequence."""
        self._loop.call_soon_threadsafe(self._on_close, sequence_id)

    def collect(self, positions: Mapping[int, int], timeout_s: float) -> dict[int, DraftTree]:
        """See DraftSource. Waits only for shards that did not miss three times in a row."""
        deadline = time.monotonic() + timeout_s
        with self._condition:
            self._allowed_s = timeout_s
            while missing := [i for i in positions if self._is_worth_waiting_for(i, positions[i])]:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._condition.wait(left_s):
                    break
            late = {self._shard_of[i] for i in missing if i in self._shard_of}
            for shard in late:
                shard.patience.missed()
            found = {i: self._trees.pop(i) for i, position in positions.items() if self._has(i, position)}
            self.counters.num_missing += sum(i in self._shard_of for i in positions if i not in found)
            for i, position in positions.items():
                self._drop_stale(i, position)
            # A shard that answers some sequences and never others is late all the same.
            for shard in {self._shard_of[i] for i in found if i in self._shard_of} - late:
                if all(i in found for i in positions if self._shard_of.get(i) is shard):
                    shard.patience.kept()
            return found

    def status(self, sequence_id: int) -> DraftStatus:
        """See DraftSource."""
        with self._condition:
            return self._statuses.get(sequence_id, DraftStatus.NO_RETRIEVER)

    def _is_worth_waiting_for(self, sequence_id: int, position: int) -> bool:
        if self._has(sequence_id, position):
            return False
        shard = self._shard_of.get(sequence_id)
        if shard is None:
            return sequence_id in self._unassigned
        return shard.patience.is_worth_waiting

    def _has(self, sequence_id: int, position: int) -> bool:
        tree = self._trees.get(sequence_id)
        return tree is not None and tree.position == position

    def _drop_stale(self, sequence_id: int, position: int) -> None:
        """Drops a tree for an earlier position than this one: nobody read it in time."""
        tree = self._trees.get(sequence_id)
        if tree is not None and tree.position < position:
            del self._trees[sequence_id]
            self._observer.dropped_tree("stale")

    # On the event loop.

    async def run(self) -> None:
        """Keeps a stream to every shard, looking the names up again every two seconds. Ends by cancellation."""
        try:
            while True:
                await self._resolve()
                await asyncio.sleep(_RESOLVE_INTERVAL_S)
        finally:
            tasks = [shard.task for shard in self._shards.values() if shard.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def connected(self) -> dict[str, Endpoint]:
        """Every shard that can be reached, by its name."""
        return {shard.name: shard.endpoint for shard in self._shards.values() if shard.connected}

    def shards(self) -> list[ShardState]:
        """All shards known at present. May be called from any thread."""
        return [
            ShardState(shard.name or shard.address, shard.connected, shard.num_open)
            for shard in list(self._shards.values())
        ]

    async def _resolve(self) -> None:
        names = await self._resolver.resolve()
        for address in names.keys() - self._shards.keys():
            endpoint = Endpoint(address, self._config.credentials, self._config.metadata, names[address])
            shard = self._shards[address] = _Shard(endpoint)
            shard.task = asyncio.create_task(self._keep_stream(shard))
        for address in self._shards.keys() - names.keys():
            shard = self._shards[address]
            # A name that fails to resolve for a moment must not cut streams that work.
            if not shard.connected and names:
                del self._shards[address]
                if shard.task is not None:
                    shard.task.cancel()

    async def _keep_stream(self, shard: _Shard) -> None:
        pause_s, longest_s = _RECONNECT_S
        while True:
            try:
                await self._run_stream(shard)
            except grpc.aio.AioRpcError as error:
                logger.log(
                    logging.DEBUG if error.code() is shard.lost_for else logging.WARNING,
                    "shard.lost address=%s code=%s details=%s", shard.address, error.code().name, error.details(),
                )  # fmt: skip
                shard.lost_for = error.code()
            except Exception:
                # A fault of ours or of the shard's may cost drafts, never the engine its drafts for good.
                logger.exception("shard.broken address=%s", shard.address)
            # One that is lost again and again as soon as it is there is asked ever more seldom too.
            was_good = shard.connected and time.monotonic() - shard.connected_s > longest_s
            self._on_lost(shard)
            pause_s = _RECONNECT_S[0] if was_good else min(pause_s * 2, longest_s)
            await asyncio.sleep(pause_s)

    async def _run_stream(self, shard: _Shard) -> None:
        async with shard.endpoint.open_aio() as channel:
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            call = stub.Draft(metadata=shard.endpoint.metadata)
            writer: asyncio.Task[None] | None = None
            try:
                await call.write(
                    retriever_pb2.DraftRequest(
                        handshake=retriever_pb2.Handshake(
                            tokenizer_fingerprint=self._handshake.tokenizer_fingerprint,
                            vocab_size=self._handshake.vocab_size,
                            verifier_name=self._handshake.verifier_name,
                        )
                    )
                )
                async for response in call:
                    if writer is None:
                        if not response.HasField("handshake"):
                            raise ValueError("the stream did not begin with a handshake")
                        self._on_connected(shard, response.handshake.name)
                        writer = asyncio.create_task(self._write(shard, call))
                    self._on_response(shard, response)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Not we were cancelled but the call: by the writer, or by gRPC at an unlucky moment.
                is_over = writer is not None and writer.done() and not writer.cancelled()
                failure = writer.exception() if writer is not None and is_over else None
                raise failure or ConnectionError("the stream was cut off") from None
            finally:
                call.cancel()
                if writer is not None:
                    await _end(writer)

    async def _write(self, shard: _Shard, call: grpc.aio.StreamStreamCall) -> None:  # type: ignore[type-arg]
        try:
            while True:
                await shard.wake.wait()
                shard.wake.clear()
                while shard.outbox:
                    # Returns when flow control lets it: what comes meanwhile joins in the outbox.
                    await call.write(shard.outbox.take(self._handshake.model_name, _MAX_MESSAGE_BYTES))
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            raise  # the stream broke: the reader says how
        except Exception:
            call.cancel()  # a fault of ours: the reader must not wait on, as if all were well
            raise

    def _on_open(self, remote: _Remote) -> None:
        self._sequences[remote.sequence_id] = remote
        self._assign(remote)

    def _reassign(self, remote: _Remote) -> None:
        remote.moved_at = len(remote.token_ids)
        self._assign(remote)

    def _assign(self, remote: _Remote) -> None:
        by_name = {shard.name: shard for shard in self._shards.values() if shard.connected}
        name = choose_shard(remote.pool, {name: shard.num_open for name, shard in by_name.items()})
        remote.shard = by_name[name] if name is not None else None
        with self._condition:
            self._unassigned.discard(remote.sequence_id)
            if remote.shard is not None:
                self._shard_of[remote.sequence_id] = remote.shard
            self._condition.notify_all()
        if remote.shard is not None:
            remote.shard.num_open += 1
            remote.shard.outbox.open(remote)
            remote.shard.wake.set()

    def _on_advance(self, steps: list[Advanced]) -> None:
        for step in steps:
            remote = self._sequences.get(step.sequence_id)
            if remote is None:
                continue
            remote.token_ids.extend(step.token_ids.tolist())
            remote.node_budget = step.node_budget
            if step.position == remote.moved_at:
                step = dataclasses.replace(step, num_verified_nodes=0, accepted_node_idx=-1)
            if remote.shard is not None:
                remote.shard.outbox.advance(step)
                remote.shard.wake.set()

    def _on_close(self, sequence_id: int) -> None:
        remote = self._sequences.pop(sequence_id, None)
        self._forget(sequence_id)
        if remote is not None and remote.shard is not None:
            remote.shard.num_open -= 1
            remote.shard.outbox.close(sequence_id)
            remote.shard.wake.set()

    def _forget(self, sequence_id: int) -> None:
        with self._condition:
            self._trees.pop(sequence_id, None)
            self._statuses.pop(sequence_id, None)
            self._shard_of.pop(sequence_id, None)
            self._unassigned.discard(sequence_id)
            self._asked_s.pop(sequence_id, None)
            self._condition.notify_all()

    def _on_connected(self, shard: _Shard, name: str) -> None:
        if any(other.name == name for other in self._shards.values() if other.connected):
            # Two retrievers of one host with the default name: each must get its share all the same.
            logger.warning("shard.name_taken address=%s name=%s; give each retriever a --name", shard.address, name)
            name = f"{name}@{shard.address}"
        shard.name, shard.connected, shard.lost_for, shard.patience = name, True, None, ShardPatience()
        shard.outbox, shard.connected_s = Outbox(), time.monotonic()
        logger.info("shard.connected address=%s name=%s", shard.address, name)
        for remote in self._sequences.values():
            if remote.shard is None:
                self._reassign(remote)

    def _on_lost(self, shard: _Shard) -> None:
        if not shard.connected:
            return
        # Another may have its name by the time it is back.
        shard.name, shard.connected, shard.num_open, shard.outbox = "", False, 0, Outbox()
        moved = [remote for remote in self._sequences.values() if remote.shard is shard]
        with self._condition:
            for remote in moved:
                self._shard_of.pop(remote.sequence_id, None)
            # Whoever waits for this shard waits for nothing.
            self._condition.notify_all()
        for remote in moved:
            self.counters.num_failovers += 1
            self._reassign(remote)

    def _on_response(self, shard: _Shard, response: retriever_pb2.DraftResponse) -> None:
        trees: dict[int, DraftTree] = {}
        for message in response.trees:
            try:
                trees[message.sequence_id] = tree_from_message(message)
            except MalformedTree as error:
                # Counted as an empty one, for an answer it is: the engine need not wait for another.
                trees[message.sequence_id] = DraftTree.empty(message.position)
                self.counters.num_malformed += 1
                self._warn(shard, "draft.malformed", str(error))
        statuses = {opened.sequence_id: _STATUS.get(opened.pool_state) for opened in response.opened}
        with self._condition:
            for sequence_id, status in statuses.items():
                if status is not None and self._shard_of.get(sequence_id) is shard:
                    self._statuses[sequence_id] = status
            for sequence_id, tree in trees.items():
                if self._shard_of.get(sequence_id) is shard:
                    self._drop_stale(sequence_id, tree.position)
                    self._trees[sequence_id] = tree
                    self.counters.num_trees += 1
                else:
                    self.counters.num_late += 1
            self._judge(shard, trees)
            self._condition.notify_all()
        for fault in response.faults:
            self._on_fault(shard, fault)

    def _judge(self, shard: _Shard, trees: Mapping[int, DraftTree]) -> None:
        """Has the shard's patience know how long this answer took, unless another one is overdue."""
        now_s = time.monotonic()
        asked = [self._asked_s.pop(i) for i in trees if i in self._asked_s and self._shard_of.get(i) is shard]
        waiting = [at for i, at in self._asked_s.items() if self._shard_of.get(i) is shard]
        if not asked or (waiting and now_s - min(waiting) > self._allowed_s):
            return
        shard.patience.answered(now_s - min(asked), self._allowed_s)

    def _on_fault(self, shard: _Shard, fault: retriever_pb2.SequenceFault) -> None:
        """The shard gave a sequence up: it is decoded plainly from here on."""
        self.counters.num_faults += 1
        self._warn(shard, "draft.fault", fault.message)
        remote = self._sequences.get(fault.sequence_id)
        if remote is not None and remote.shard is shard:
            shard.num_open -= 1
            del self._sequences[fault.sequence_id]
            with self._condition:
                self._shard_of.pop(fault.sequence_id, None)
                self._condition.notify_all()

    def _warn(self, shard: _Shard, event: str, error: str) -> None:
        """Tells what a shard sent wrong, about once a second: it may do so with every tree, and say anything."""
        if num_told := shard.warnings.count():
            logger.warning(
                "%s address=%s num_told=%d error=%r", event, shard.address, num_told, error[:_MAX_LOGGED_CHARS]
            )


async def _end(writer: asyncio.Task[None]) -> None:
    """Cancels a writer and waits until it has ended."""
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
