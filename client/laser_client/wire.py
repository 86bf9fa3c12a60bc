"""Values to messages and back: the only file of the generating client that touches the verifier's stubs."""

from __future__ import annotations

from laser_client.generation import Chunk, DraftStatus, FinishReason, Generation, GenerationStats, Model
from laser_client.request import Request
from laser_protocol.acceptance import Strict, acceptance_from_message, acceptance_to_message
from laser_protocol.errors import Internal, InvalidRequest
from laser_protocol.packing import pack_token_ids, unpack_token_ids
from laser_protocol.v1 import verifier_pb2 as pb

_FINISH_REASONS: dict[int, FinishReason] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}
_DRAFT_STATUSES: dict[int, DraftStatus] = {
    pb.DRAFT_STATUS_OK: "ok",
    pb.DRAFT_STATUS_OFF: "off",
    pb.DRAFT_STATUS_NO_POOL: "no_pool",
    pb.DRAFT_STATUS_TOKENIZER_MISMATCH: "tokenizer_mismatch",
    pb.DRAFT_STATUS_NO_RETRIEVER: "no_retriever",
}


def request_to_message(request: Request, delta_interval_ms: int) -> pb.GenerateRequest:
    """The message of a checked request; see verifier.proto `GenerateRequest.delta_interval_ms`."""
    settings = request.settings
    message = pb.GenerateRequest(
        pool=request.pool or "",
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        stop=settings.stop,
        drafting=pb.DRAFTING_ON if settings.draft else pb.DRAFTING_OFF,
        learn=settings.learn,
        document_id=request.document_id or "",
        delta_interval_ms=delta_interval_ms,
    )
    if isinstance(request.prompt, str):
        message.text.text = request.prompt
        message.text.raw = settings.raw
        if settings.system is not None:
            message.text.system = settings.system
    else:
        message.tokens.token_ids = pack_token_ids(request.prompt)
    if settings.acceptance is not None:
        message.acceptance.CopyFrom(acceptance_to_message(settings.acceptance))
    return message


def chunk_from_message(delta: pb.Delta) -> Chunk:
    """What one Delta says.

    Raises:
        Internal: the server sent nonsense.
    """
    try:
        token_ids = unpack_token_ids(delta.token_ids)
    except InvalidRequest as error:
        raise Internal(f"the server sent a malformed delta: {error}") from error
    return Chunk(delta.text, tuple(token_ids), delta.accepted_length)


def generation_from_message(finished: pb.Finished, text: str, token_ids: list[int]) -> Generation:
    """The whole output, from the terminal message and what came before it.

    Raises:
        Internal: the server sent no reason or status this client knows.
    """
    stats = finished.stats
    if finished.finish_reason not in _FINISH_REASONS or stats.draft_status not in _DRAFT_STATUSES:
        raise Internal(
            f"the server sent finish_reason {finished.finish_reason} and draft_status {stats.draft_status}, "
            "which this client does not know"
        )
    return Generation(
        text=text,
        token_ids=token_ids,
        finish_reason=_FINISH_REASONS[finished.finish_reason],
        stats=GenerationStats(
            num_prompt_tokens=stats.num_prompt_tokens,
            num_output_tokens=stats.num_output_tokens,
            num_steps=stats.num_steps,
            num_draft_tokens=stats.num_draft_tokens,
            num_accepted_tokens=stats.num_accepted_tokens,
            num_relaxed_tokens=stats.num_relaxed_tokens,
            queue_ms=stats.queue_ms,
            prefill_ms=stats.prefill_ms,
            decode_ms=stats.decode_ms,
            draft_status=_DRAFT_STATUSES[stats.draft_status],
        ),
        request_id=finished.request_id,
    )


def model_from_message(message: pb.GetModelResponse) -> Model:
    """The model of a GetModel answer."""
    has_default = message.default_acceptance.WhichOneof("kind") is not None
    return Model(
        name=message.name,
        model_type=message.model_type,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        vocab_size=message.vocab_size,
        max_model_len=message.max_model_len,
        max_sequences=message.max_sequences,
        has_chat_template=message.has_chat_template,
        eos_token_ids=tuple(message.eos_token_ids),
        dtype=message.dtype,
        device=message.device,
        default_acceptance=acceptance_from_message(message.default_acceptance) if has_default else Strict(),
    )
