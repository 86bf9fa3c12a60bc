"""Real gRPC servers with scripted answers: a verifier that echoes, and a retriever whose trees are given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from laser_protocol.packing import pack_token_ids, unpack_token_ids
from laser_protocol.tree import DraftTree, tree_to_message
from laser_protocol.v1 import retriever_pb2, retriever_pb2_grpc, verifier_pb2, verifier_pb2_grpc

# The tokens after which a tree is asked for, and how many documents the pool holds, to (token, parent) nodes.
Draft = Callable[[list[int], int], Sequence[tuple[int, int]]]


class EchoVerifier(verifier_pb2_grpc.VerifierServicer):
    """Answers every prompt with its own words upside down, three tokens in two steps; keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[verifier_pb2.GenerateRequest] = []
        self.fails = True  # at prompts that hold "fail"
        self._lock = threading.Lock()

    def Generate(self, request: verifier_pb2.GenerateRequest, context: Any) -> Iterator[verifier_pb2.GenerateResponse]:  # noqa: N802
        with self._lock:
            self.requests.append(request)
        if self.fails and "fail" in request.text.text:
            context.abort(grpc.StatusCode.INTERNAL, "internal error, request id abc")
        for token_ids, accepted in (([5, 6], 1), ([7], 0)):
            delta = verifier_pb2.Delta(token_ids=pack_token_ids(token_ids), accepted_length=accepted)
            yield verifier_pb2.GenerateResponse(delta=delta)
        stats = verifier_pb2.GenerationStats(
            num_prompt_tokens=4,
            num_output_tokens=3,
            num_steps=2,
            num_accepted_tokens=1,
            draft_status=verifier_pb2.DRAFT_STATUS_OK,
        )
        yield verifier_pb2.GenerateResponse(
            finished=verifier_pb2.Finished(
                finish_reason=verifier_pb2.FINISH_REASON_LENGTH, stats=stats, text=request.text.text[::-1]
            )
        )


class ScriptedRetriever(retriever_pb2_grpc.RetrieverServicer):
    """Drafts what `draft` says, and keeps every message."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self.documents: list[list[int]] = []
        self.opens: list[retriever_pb2.OpenSequence] = []
        self.advances: list[retriever_pb2.AdvanceSequence] = []

    def AddDocuments(  # noqa: N802
        self, request_iterator: Iterator[retriever_pb2.AddDocumentsRequest], context: Any
    ) -> retriever_pb2.AddDocumentsResponse:
        for request in request_iterator:
            if request.pool == "full":
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no space left")
            self.documents += [unpack_token_ids(document.token_ids) for document in request.documents]
        return retriever_pb2.AddDocumentsResponse(num_documents=len(self.documents))

    def Draft(  # noqa: N802
        self, request_iterator: Iterator[retriever_pb2.DraftRequest], context: Any
    ) -> Iterator[retriever_pb2.DraftResponse]:
        tokens: dict[int, list[int]] = {}
        for request in request_iterator:
            if request.HasField("handshake"):
                yield retriever_pb2.DraftResponse(handshake=retriever_pb2.HandshakeReply(name="scripted"))
            for opened in request.opens:
                self.opens.append(opened)
                tokens[opened.sequence_id] = unpack_token_ids(opened.token_ids)
                reply = retriever_pb2.SequenceOpened(sequence_id=opened.sequence_id)
                yield retriever_pb2.DraftResponse(opened=[reply])
                yield self._response(opened.sequence_id, tokens[opened.sequence_id])
            for advanced in request.advances:
                self.advances.append(advanced)
                assert advanced.position == len(tokens[advanced.sequence_id])
                tokens[advanced.sequence_id] += unpack_token_ids(advanced.token_ids)
                yield self._response(advanced.sequence_id, tokens[advanced.sequence_id])

    def _response(self, sequence_id: int, tokens: list[int]) -> retriever_pb2.DraftResponse:
        if 666 in tokens:
            fault = retriever_pb2.SequenceFault(sequence_id=sequence_id, message="token_ids holds 666")
            return retriever_pb2.DraftResponse(faults=[fault])
        nodes = self._draft(tokens, len(self.documents))
        tree = DraftTree(
            len(tokens),
            np.array([token for token, _ in nodes], np.int32),
            np.array([parent for _, parent in nodes], np.int32),
            np.full(len(nodes), 0.5, np.float32),
        )
        return retriever_pb2.DraftResponse(trees=[tree_to_message(sequence_id, tree)])


@contextmanager
def serving(verifier: EchoVerifier | None = None, retriever: ScriptedRetriever | None = None) -> Iterator[str]:
    """A server on a free port, with the given services; yields its address."""
    server = grpc.server(ThreadPoolExecutor(8))
    if verifier is not None:
        verifier_pb2_grpc.add_VerifierServicer_to_server(verifier, server)
    if retriever is not None:
        retriever_pb2_grpc.add_RetrieverServicer_to_server(retriever, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
