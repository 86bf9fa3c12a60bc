"""The draft stream to one retriever shard: kept open, and what waits to be sent on it. Lives on the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio

from laser_protocol.channel import Endpoint
from laser_protocol.tree import DraftTree, MalformedTree, tree_from_message
from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc
from laser_verifier.drafts import Advanced
from laser_verifier.outbox import Outbox, RemoteSequence
from laser_verifier.sequence import DraftStatus
from laser_verifier.shard_patience import ShardPatience
from laser_verifier.throttle import Throttle

logger = logging.getLogger(__name__)

_RECONNECT_S = (0.1, 2.0)
# A message may be larger by one sequence's tokens, at most 4 MiB; a server refuses 16 MiB, and ends the stream.
_MAX_MESSAGE_BYTES = 4 * 1024 * 1024

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


@dataclass(frozen=True, slots=True)
class Answer:
    """What a shard sent.

    Attributes:
        trees: by sequence. One that cannot be read is empty, for an answer it is: nobody need wait for another.
        malformed: what was wrong with those.
        statuses: of sequences that were opened; None: one that this program does not know.
        faults: sequences that the shard gave up, and why; one may be named more than once.
    """

    trees: Mapping[int, DraftTree]
    malformed: Sequence[str]
    statuses: Mapping[int, DraftStatus | None]
    faults: Sequence[tuple[int, str]]


class ShardListener(Protocol):
    """Is told what becomes of a shard's stream, on the event loop."""

    def on_connected(self, shard: ShardStream) -> None:
        """It answered the handshake; its name may be changed."""

    def on_lost(self, shard: ShardStream) -> None:
        """It was connected, and is no more; what waited to be sent is forgotten."""

    def on_answer(self, shard: ShardStream, answer: Answer) -> None:
        """It sent something."""


class ShardStream:
    """One address. Begins to connect when it is made, on the running event loop.

    Args:
        endpoint: where it is. handshake: of the target model. listener: told of all that comes.

    Attributes:
        name: the shard's own, "" while it is not connected.
        connected: from the answer to the handshake until the stream is lost.
        num_open: sequences that are there.
        patience: of this connection; another one has another.
        warnings: of what it sends.
    """

    def __init__(self, endpoint: Endpoint, handshake: Handshake, listener: ShardListener) -> None:
        self.endpoint = endpoint
        self._handshake = handshake
        self._listener = listener
        self.name = ""
        self.connected = False
        self.num_open = 0
        self.patience = ShardPatience()
        self.warnings = Throttle()
        self._outbox = Outbox()
        self._wake = asyncio.Event()
        self._connected_s = 0.0
        # What it was lost for since it was connected last; told once, not at every try.
        self._lost_for: grpc.StatusCode | None = None
        self._task = asyncio.create_task(self._run())

    @property
    def address(self) -> str:
        """HOST:PORT, the host as a number."""
        return self.endpoint.target

    def open(self, sequence: RemoteSequence) -> None:
        """Has a sequence opened there."""
        self.num_open += 1
        self._outbox.open(sequence)
        self._wake.set()

    def advance(self, step: Advanced) -> None:
        """Sends what a step made of a sequence."""
        self._outbox.advance(step)
        self._wake.set()

    def close(self, sequence_id: int) -> None:
        """Has a sequence closed there."""
        self.num_open -= 1
        self._outbox.close(sequence_id)
        self._wake.set()

    def gave_one_up(self) -> None:
        """It closed a sequence by itself."""
        self.num_open -= 1

    def stop(self) -> asyncio.Task[None]:
        """Ends the stream; nobody is told. Returns what is over once it has ended."""
        self._task.cancel()
        return self._task

    async def _run(self) -> None:
        """Opens the stream, and again whenever it breaks. Ends by cancellation."""
        pause_s, longest_s = _RECONNECT_S
        while True:
            try:
                await self._run_once()
            except grpc.aio.AioRpcError as error:
                logger.log(
                    logging.DEBUG if error.code() is self._lost_for else logging.WARNING,
                    "shard.lost address=%s code=%s details=%s", self.address, error.code().name, error.details(),
                )  # fmt: skip
                self._lost_for = error.code()
            except Exception:
                # A fault of ours or of the shard's may cost drafts, never the engine its drafts for good.
                logger.exception("shard.broken address=%s", self.address)
            # One that is lost again and again as soon as it is there is asked ever more seldom too.
            was_good = self.connected and time.monotonic() - self._connected_s > longest_s
            self._on_lost()
            pause_s = _RECONNECT_S[0] if was_good else min(pause_s * 2, longest_s)
            await asyncio.sleep(pause_s)

    async def _run_once(self) -> None:
        async with self.endpoint.open_aio() as channel:
            call = retriever_pb2_grpc.RetrieverStub(channel).Draft(metadata=self.endpoint.metadata)
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
                        self._on_connected(response.handshake.name)
                        writer = asyncio.create_task(self._write(call))
                    self._listener.on_answer(self, _read(response))
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
                    writer.cancel()
                    await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, call: grpc.aio.StreamStreamCall[Any, Any]) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._outbox:
                    # Returns when flow control lets it: what comes meanwhile joins in the outbox.
                    await call.write(self._outbox.take(self._handshake.model_name, _MAX_MESSAGE_BYTES))
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            raise  # the stream broke: the reader says how
        except Exception:
            call.cancel()  # a fault of ours: the reader must not wait on, as if all were well
            raise

    def _on_connected(self, name: str) -> None:
        self.name, self.connected, self.patience = name, True, ShardPatience()
        self._outbox, self._lost_for, self._connected_s = Outbox(), None, time.monotonic()
        self._listener.on_connected(self)

    def _on_lost(self) -> None:
        if not self.connected:
            return
        # Another may have its name by the time it is back.
        self.name, self.connected, self.num_open, self._outbox = "", False, 0, Outbox()
        self._listener.on_lost(self)


def _read(response: retriever_pb2.DraftResponse) -> Answer:
    trees: dict[int, DraftTree] = {}
    malformed = []
    for message in response.trees:
        try:
            trees[message.sequence_id] = tree_from_message(message)
        except MalformedTree as error:
            trees[message.sequence_id] = DraftTree.empty(message.position)
            malformed.append(str(error))
    statuses = {opened.sequence_id: _STATUS.get(opened.pool_state) for opened in response.opened}
    return Answer(trees, malformed, statuses, [(fault.sequence_id, fault.message) for fault in response.faults])
