"""Replay: how many tokens per step drafts would have given, by walking known outputs through a real retriever.

No LLM runs: the retriever drafts over its stream as it does for a verifier, and an accepted path is one along the known
output. So the effect of a pool's size is measured in seconds. Strict acceptance is what this gives.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from laser_protocol.acceptance import Strict, acceptance_to_message
from laser_protocol.errors import from_rpc_error
from laser_protocol.packing import pack_token_ids
from laser_protocol.tree import DraftTree, tree_from_message
from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc
from laser_recsys.errors import RecsysError

NODE_BUDGET = 32
_STREAM_TIMEOUT_S = 120.0
_ADD_TIMEOUT_S = 30.0


class ReplayFailed(RecsysError):
    """The retriever closed a sequence or the stream. The message says why."""


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """Whose tokens these are: the three values of the stream's handshake and opens."""

    fingerprint: str
    vocab_size: int
    model: str


@dataclass(frozen=True, slots=True)
class Known:
    """A prompt and the output that a model gave to it, as token ids."""

    prompt: Sequence[int]
    output: Sequence[int]


@dataclass(frozen=True, slots=True)
class ReplayPoint:
    """tokens_per_step (sum / sum) with a pool of so many documents."""

    num_documents: int
    tokens_per_step: float


class Replay:
    """Replays known outputs against a retriever, with a pool of its own.

    Args:
        channel: to the retriever.
        facts: the tokenizer that all tokens are of.
        pool: pool id without ancestors ('/'), which nothing else writes: then it holds what `add` put there, no more.
    """

    def __init__(self, channel: grpc.Channel, facts: TokenizerFacts, pool: str) -> None:
        self._stub = retriever_pb2_grpc.RetrieverStub(channel)
        self._facts = facts
        self._pool = pool
        self._num_documents = 0

    def series(
        self,
        known: Sequence[Known],
        documents: Sequence[Sequence[int]],
        sizes: Sequence[int],
        on_done: Callable[[], object] = lambda: None,
    ) -> tuple[ReplayPoint, ...]:
        """tokens_per_step with growing numbers of documents in the pool.

        Args:
            known: what to walk through.
            documents: output tokens, added in this order.
            sizes: how many documents to measure at, increasing; those above their number are left out.
            on_done: called after each sequence.

        Raises:
            ReplayFailed: the retriever closed a sequence.
            LaserError: what the retriever answered.
        """
        points = []
        for size in sizes:
            if size > len(documents):
                break
            self.add(documents[self._num_documents : size])
            points.append(ReplayPoint(size, self.tokens_per_step(known, on_done)))
        return tuple(points)

    def add(self, documents: Sequence[Sequence[int]]) -> None:
        """Adds documents to the pool.

        Raises:
            LaserError: what the retriever answered.
        """
        if not documents:
            return
        first = self._num_documents
        message = retriever_pb2.AddDocumentsRequest(
            pool=self._pool,
            tokenizer_fingerprint=self._facts.fingerprint,
            documents=[
                retriever_pb2.Document(id=str(number), token_ids=pack_token_ids(document))
                for number, document in enumerate(documents, start=first)
            ],
        )
        try:
            self._stub.AddDocuments(iter([message]), timeout=_ADD_TIMEOUT_S)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        self._num_documents += len(documents)

    def tokens_per_step(self, known: Sequence[Known], on_done: Callable[[], object] = lambda: None) -> float:
        """Output tokens / steps over all of `known`, sum / sum, with the pool as it stands.

        Raises:
            ReplayFailed: the retriever closed a sequence.
            LaserError: what the retriever answered.
        """
        num_steps = num_tokens = 0
        with self._stream() as stream:
            for sequence_id, sequence in enumerate(known):
                num_steps += self._num_steps(stream, sequence_id, sequence)
                num_tokens += len(sequence.output)
                on_done()
        return num_tokens / num_steps if num_steps else 0.0

    def _num_steps(self, stream: _DraftStream, sequence_id: int, known: Known) -> int:
        """Steps that decoding this output takes, each emitting the path along it and one bonus token."""
        tree = stream.open(
            retriever_pb2.OpenSequence(
                sequence_id=sequence_id,
                pool=self._pool,
                token_ids=pack_token_ids(known.prompt),
                num_prompt_tokens=len(known.prompt),
                model=self._facts.model,
                acceptance=acceptance_to_message(Strict()),
                node_budget=NODE_BUDGET,
            )
        )
        done = num_steps = 0
        while True:
            path = accepted_path(tree, known.output[done:])
            emitted = known.output[done : done + len(path) + 1]
            num_steps += 1
            position = len(known.prompt) + done
            done += len(emitted)
            if done >= len(known.output):
                stream.close_sequence(sequence_id)
                return num_steps
            tree = stream.advance(
                retriever_pb2.AdvanceSequence(
                    sequence_id=sequence_id,
                    position=position,
                    token_ids=pack_token_ids(emitted),
                    num_verified_nodes=len(tree),
                    accepted_node_idx=path[-1] if path else -1,
                    node_budget=NODE_BUDGET,
                )
            )

    @contextmanager
    def _stream(self) -> Iterator[_DraftStream]:
        requests: queue.SimpleQueue[retriever_pb2.DraftRequest | None] = queue.SimpleQueue()
        call = self._stub.Draft(iter(requests.get, None), timeout=_STREAM_TIMEOUT_S)
        stream = _DraftStream(requests, call)
        try:
            stream.shake_hands(
                retriever_pb2.Handshake(
                    tokenizer_fingerprint=self._facts.fingerprint,
                    vocab_size=self._facts.vocab_size,
                    verifier_name="replay",
                )
            )
            yield stream
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            requests.put(None)
            call.cancel()


class _DraftStream:
    """One Draft stream, one message at a time: ask, and wait for the tree."""

    def __init__(
        self,
        requests: queue.SimpleQueue[retriever_pb2.DraftRequest | None],
        responses: Iterator[retriever_pb2.DraftResponse],
    ) -> None:
        self._requests = requests
        self._responses = responses

    def shake_hands(self, handshake: retriever_pb2.Handshake) -> None:
        self._requests.put(retriever_pb2.DraftRequest(handshake=handshake))
        if not self._next().HasField("handshake"):
            raise ReplayFailed("the retriever did not answer the handshake")

    def open(self, message: retriever_pb2.OpenSequence) -> DraftTree:
        self._requests.put(retriever_pb2.DraftRequest(opens=[message]))
        return self._tree(message.sequence_id)

    def advance(self, message: retriever_pb2.AdvanceSequence) -> DraftTree:
        self._requests.put(retriever_pb2.DraftRequest(advances=[message]))
        return self._tree(message.sequence_id)

    def close_sequence(self, sequence_id: int) -> None:
        self._requests.put(retriever_pb2.DraftRequest(closes=[sequence_id]))

    def _tree(self, sequence_id: int) -> DraftTree:
        while True:
            response = self._next()
            for fault in response.faults:
                raise ReplayFailed(f"the retriever closed sequence {fault.sequence_id}: {fault.message}")
            for tree in response.trees:
                if tree.sequence_id == sequence_id:
                    return tree_from_message(tree)

    def _next(self) -> retriever_pb2.DraftResponse:
        response = next(self._responses, None)
        if response is None:
            raise ReplayFailed("the retriever ended the stream")
        return response


def accepted_path(tree: DraftTree, output: Sequence[int]) -> list[int]:
    """Node indices of the tree's path along `output`, from the root's child on; leaves a token over for the bonus."""
    path: list[int] = []
    node_idx = -1
    for token_id in output[: max(len(output) - 1, 0)]:
        children = [
            child
            for child in range(node_idx + 1, len(tree))
            if tree.parents[child] == node_idx and tree.token_ids[child] == token_id
        ]
        if not children:
            break
        node_idx = children[0]
        path.append(node_idx)
    return path
