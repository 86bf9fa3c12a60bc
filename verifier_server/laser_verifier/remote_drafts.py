"""Drafts from retriever shards over gRPC: the production DraftSource.

The engine thread calls the DraftSource methods; they only touch the inbox and hand the rest to the event loop, where
the streams live. A stream that breaks moves its sequences to the next shard of their pool's order; without any shard
sequences are decoded plainly until one comes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from laser_protocol.channel import Endpoint
from laser_protocol.tree import DraftTree
from laser_verifier.config import RetrieverConfig
from laser_verifier.drafts import Advanced, Opened
from laser_verifier.observer import NoObserver, Observer
from laser_verifier.outbox import RemoteSequence
from laser_verifier.resolution import Resolver
from laser_verifier.sequence import DraftStatus
from laser_verifier.shard_stream import Answer, Handshake, ShardStream
from laser_verifier.shards import choose_shard
from laser_verifier.tree_inbox import DraftCounters, TreeInbox

logger = logging.getLogger(__name__)

_RESOLVE_INTERVAL_S = 2.0
_MAX_LOGGED_CHARS = 200


@dataclass(slots=True)
class _Remote(RemoteSequence):
    """A sequence as the event loop knows it."""

    shard: ShardStream | None = None
    # Position at which another shard took over, or -1. A tree of this position may still be the one before's.
    moved_at: int = -1


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
        self._loop = asyncio.get_running_loop()
        self._resolver = Resolver(config.targets)
        self._shards: dict[str, ShardStream] = {}
        self._sequences: dict[int, _Remote] = {}
        self.counters = DraftCounters()
        self.inbox = TreeInbox(observer or NoObserver(), self.counters)

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
        self.inbox.open(opened.sequence_id, opened.node_budget)
        self._loop.call_soon_threadsafe(self._on_open, remote)

    def advance(self, steps: list[Advanced]) -> None:
        """Sends a step's outcome, one message per shard."""
        self.inbox.advance(steps)
        self._loop.call_soon_threadsafe(self._on_advance, steps)

    def close(self, sequence_id: int) -> None:
        """Ends a sequence."""
        self._loop.call_soon_threadsafe(self._on_close, sequence_id)

    def collect(self, positions: Mapping[int, int], timeout_s: float) -> dict[int, DraftTree]:
        """See DraftSource."""
        return self.inbox.collect(positions, timeout_s)

    def status(self, sequence_id: int) -> DraftStatus:
        """See DraftSource."""
        return self.inbox.status(sequence_id)

    # On the event loop.

    async def run(self) -> None:
        """Keeps a stream to every shard, looking the names up again every two seconds. Ends by cancellation."""
        try:
            while True:
                await self._resolve()
                await asyncio.sleep(_RESOLVE_INTERVAL_S)
        finally:
            ending = [shard.stop() for shard in self._shards.values()]
            await asyncio.gather(*ending, return_exceptions=True)

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
            self._shards[address] = ShardStream(endpoint, self._handshake, self)
        for address in self._shards.keys() - names.keys():
            # A name that fails to resolve for a moment must not cut streams that work.
            if not self._shards[address].connected and names:
                self._shards.pop(address).stop()

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
        self.inbox.assign(remote.sequence_id, remote.shard.patience if remote.shard is not None else None)
        if remote.shard is not None:
            remote.shard.open(remote)

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
                remote.shard.advance(step)

    def _on_close(self, sequence_id: int) -> None:
        remote = self._sequences.pop(sequence_id, None)
        self.inbox.forget(sequence_id)
        if remote is not None and remote.shard is not None:
            remote.shard.close(sequence_id)

    # What the streams tell.

    def on_connected(self, shard: ShardStream) -> None:
        """See ShardListener."""
        others = [other for other in self._shards.values() if other.connected and other is not shard]
        if any(other.name == shard.name for other in others):
            # Two retrievers of one host with the default name: each must get its share all the same.
            logger.warning(
                "shard.name_taken address=%s name=%s; give each retriever a --name", shard.address, shard.name
            )
            shard.name = f"{shard.name}@{shard.address}"
        logger.info("shard.connected address=%s name=%s", shard.address, shard.name)
        for remote in self._sequences.values():
            if remote.shard is None:
                self._reassign(remote)

    def on_lost(self, shard: ShardStream) -> None:
        """See ShardListener."""
        moved = [remote for remote in self._sequences.values() if remote.shard is shard]
        self.inbox.unassign(remote.sequence_id for remote in moved)
        for remote in moved:
            self.counters.num_failovers += 1
            self._reassign(remote)

    def on_answer(self, shard: ShardStream, answer: Answer) -> None:
        """See ShardListener."""
        self.counters.num_malformed += len(answer.malformed)
        for reason in answer.malformed:
            self._warn(shard, "draft.malformed", reason)
        self.inbox.deliver(shard.patience, answer.trees, answer.statuses)
        for sequence_id, reason in answer.faults:
            self._on_fault(shard, sequence_id, reason)

    def _on_fault(self, shard: ShardStream, sequence_id: int, reason: str) -> None:
        """The shard gave a sequence up: it is decoded plainly from here on."""
        self.counters.num_faults += 1
        self._warn(shard, "draft.fault", reason)
        remote = self._sequences.get(sequence_id)
        if remote is not None and remote.shard is shard:
            shard.gave_one_up()
            del self._sequences[sequence_id]
            self.inbox.unassign([sequence_id])

    def _warn(self, shard: ShardStream, event: str, error: str) -> None:
        """Tells what a shard sent wrong, about once a second: it may do so with every tree, and say anything."""
        if num_told := shard.warnings.count():
            logger.warning(
                "%s address=%s num_told=%d error=%r", event, shard.address, num_told, error[:_MAX_LOGGED_CHARS]
            )
