"""What a message of a draft stream says to its drafter, and the message that answers it."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from laser_protocol.acceptance import Strict, acceptance_from_message
from laser_protocol.errors import InvalidRequest
from laser_protocol.v1 import retriever_pb2
from laser_retriever.drafter import Drafter
from laser_retriever.sources import PoolStatus
from laser_retriever.tree_drafter import Draft

# What one message may say of sequences, as a multiple of those that may be open.
MAX_CHANGES_PER_SEQUENCE = 4
# Gone through, and drafted for, before other streams have their turn: a few milliseconds each. A verifier that comes to
# another shard may open thousands of sequences at once.
SEQUENCES_AT_ONCE = 256

_POOL_STATES = {
    PoolStatus.OK: retriever_pb2.POOL_STATE_OK,
    PoolStatus.NO_POOL: retriever_pb2.POOL_STATE_NO_POOL,
    PoolStatus.TOKENIZER_MISMATCH: retriever_pb2.POOL_STATE_TOKENIZER_MISMATCH,
}


def check_size(request: retriever_pb2.DraftRequest, max_sequences: int) -> None:
    """Returns if a message says no more than one of all sequences may.

    What is wrong is answered for each sequence: without a limit a message of bytes would take minutes.

    Raises:
        InvalidRequest: it says more.
    """
    num_changes = len(request.opens) + len(request.advances) + len(request.closes)
    if num_changes > (most := MAX_CHANGES_PER_SEQUENCE * max_sequences):
        raise InvalidRequest(
            f"opens, advances and closes are {num_changes} together, must be at most {most} in one message",
            field="opens",
        )


async def answer(
    drafter: Drafter,
    request: retriever_pb2.DraftRequest,
    helpers: Executor | None = None,
    deadline_s: float = math.inf,
) -> retriever_pb2.DraftResponse:
    """Applies a message to a stream's sequences and drafts what it asks for.

    A fault of one sequence is answered for that one; the others go on. Trees not begun at the deadline come back empty.
    """
    response = retriever_pb2.DraftResponse()
    for sequence_id in request.closes:
        drafter.close(sequence_id)
    wanted: dict[int, int] = {}
    messages: list[retriever_pb2.OpenSequence | retriever_pb2.AdvanceSequence] = [*request.opens, *request.advances]
    for number, message in enumerate(messages, 1):
        wanted.pop(message.sequence_id, None)
        try:
            if isinstance(message, retriever_pb2.OpenSequence):
                status = _open(drafter, message)
                response.opened.add(sequence_id=message.sequence_id, pool_state=_POOL_STATES[status])
            else:
                _advance(drafter, message)
            if message.node_budget:
                drafter.check_budget(message.sequence_id, message.node_budget)
                wanted[message.sequence_id] = message.node_budget
        except InvalidRequest as error:
            drafter.close(message.sequence_id)
            response.faults.add(sequence_id=message.sequence_id, message=str(error))
        if number % SEQUENCES_AT_ONCE == 0 and number < len(messages):
            await asyncio.sleep(0)
    asked = list(wanted.items())
    for start in range(0, len(asked), SEQUENCES_AT_ONCE):
        if start and time.monotonic() <= deadline_s:  # later ones stay empty, which takes no time
            await asyncio.sleep(0)
        portion = asked[start : start + SEQUENCES_AT_ONCE]
        drafts = drafter.draft_all(portion, helpers, deadline_s)
        for _, together in itertools.groupby(zip(portion, drafts, strict=True), lambda each: id(each[1].batch)):
            _add_trees(response, [(sequence_id, draft) for (sequence_id, _), draft in together])
    return response


def _add_trees(response: retriever_pb2.DraftResponse, drafts: Sequence[tuple[int, Draft]]) -> None:
    """Adds the trees of one batch, by sequence, to a message: as `tree_to_message`, but each array is copied once for
    all."""
    batch = drafts[0][1].batch
    width = batch.token_ids.shape[1]
    token_ids, parents, probs = (
        np.ascontiguousarray(array, kind).tobytes()
        for array, kind in ((batch.token_ids, "<i4"), (batch.parents, "<i4"), (batch.probs, "<f4"))
    )
    sources = batch.origins.tobytes()
    for sequence_id, draft in drafts:
        start, end = draft.row * width, draft.row * width + draft.num_nodes
        response.trees.add(
            sequence_id=sequence_id,
            position=draft.position,
            token_ids=token_ids[4 * start : 4 * end],
            parents=parents[4 * start : 4 * end],
            probs=probs[4 * start : 4 * end],
            sources=sources[start:end],
        )


def _open(drafter: Drafter, message: retriever_pb2.OpenSequence) -> PoolStatus:
    has_acceptance = message.HasField("acceptance")
    return drafter.open(
        message.sequence_id,
        message.pool,
        tokens_of(message.token_ids),
        message.num_prompt_tokens,
        model=message.model,
        acceptance=acceptance_from_message(message.acceptance) if has_acceptance else Strict(),
        temperature=message.temperature,
    )


def _advance(drafter: Drafter, message: retriever_pb2.AdvanceSequence) -> None:
    drafter.advance(
        message.sequence_id,
        message.position,
        tokens_of(message.token_ids),
        message.num_verified_nodes,
        message.accepted_node_idx,
    )


def tokens_of(data: bytes) -> NDArray[np.int32]:
    if len(data) % 4:
        raise InvalidRequest(f"token_ids has {len(data)} bytes, must be a multiple of 4", field="token_ids")
    return np.frombuffer(data, "<i4")
