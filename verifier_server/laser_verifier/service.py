"""The gRPC face of an engine: messages in, checked requests to the engine, its events out as messages."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import secrets
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc.aio

from laser_protocol.acceptance import Acceptance, Relaxed, Strict, acceptance_from_message, acceptance_to_message
from laser_protocol.errors import InvalidRequest, LaserError
from laser_protocol.limits import MAX_ID_BYTES, MAX_STOP_CHARS, MAX_STOPS, MAX_TEMPERATURE
from laser_protocol.packing import pack_token_ids, unpack_token_ids
from laser_protocol.pool_id import check_pool_id
from laser_protocol.v1 import verifier_pb2, verifier_pb2_grpc
from laser_verifier.engine import Engine
from laser_verifier.mailbox import JoinedDeltas, Mailbox
from laser_verifier.prompt import encode_text, has_chat_template
from laser_verifier.sequence import Admitted, DraftStatus, Emitted, Event, Finished, FinishReason, Request

logger = logging.getLogger(__name__)

_QUEUED_INTERVAL_S = 0.5
# More characters per token than any text has; what is longer is refused before it is tokenised.
_MAX_CHARS_PER_TOKEN = 128
_MAX_DELTA_INTERVAL_MS = 60_000

_FINISH_REASONS = {
    FinishReason.STOP: verifier_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: verifier_pb2.FINISH_REASON_LENGTH,
}
_DRAFT_STATUSES = {
    DraftStatus.OK: verifier_pb2.DRAFT_STATUS_OK,
    DraftStatus.OFF: verifier_pb2.DRAFT_STATUS_OFF,
    DraftStatus.NO_POOL: verifier_pb2.DRAFT_STATUS_NO_POOL,
    DraftStatus.TOKENIZER_MISMATCH: verifier_pb2.DRAFT_STATUS_TOKENIZER_MISMATCH,
    DraftStatus.NO_RETRIEVER: verifier_pb2.DRAFT_STATUS_NO_RETRIEVER,
}


SERVICE_NAME = "laser.v1.Verifier"


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What GetModel tells; fields as in verifier.proto `GetModelResponse`."""

    name: str
    model_type: str
    tokenizer_fingerprint: str
    vocab_size: int
    max_model_len: int
    max_sequences: int
    eos_token_ids: tuple[int, ...]
    dtype: str
    device: str
    default_acceptance: Acceptance


class VerifierService(verifier_pb2_grpc.VerifierServicer):
    """Generate and GetModel. Made and run on one event loop.

    Args:
        engine: running in a thread of its own. tokenizer: the model's. description: for GetModel and for checks.
    """

    def __init__(self, engine: Engine, tokenizer: Any, description: ModelDescription) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._model = description
        self._loop = asyncio.get_running_loop()
        self._mailbox = Mailbox(self._loop)
        # One thread: a fast tokenizer is not to be used by two at once.
        self._tokeniser = ThreadPoolExecutor(1, "tokenise")
        # Texts that wait for it or are in it, in the order they came, with how many came before.
        self._tokenising: OrderedDict[asyncio.Future[list[int]], int] = OrderedDict()
        self._num_texts = 0

    async def GetModel(  # noqa: N802
        self, request: verifier_pb2.GetModelRequest, context: Any
    ) -> verifier_pb2.GetModelResponse:
        """See verifier.proto."""
        model = self._model
        return verifier_pb2.GetModelResponse(
            name=model.name,
            model_type=model.model_type,
            tokenizer_fingerprint=model.tokenizer_fingerprint,
            vocab_size=model.vocab_size,
            max_model_len=model.max_model_len,
            max_sequences=model.max_sequences,
            has_chat_template=has_chat_template(self._tokenizer),
            eos_token_ids=model.eos_token_ids,
            dtype=model.dtype,
            device=model.device,
            default_acceptance=acceptance_to_message(model.default_acceptance),
        )

    async def Generate(  # noqa: N802
        self, request: verifier_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[verifier_pb2.GenerateResponse]:
        """See verifier.proto."""
        arrived_s = time.monotonic()
        acceptance = self._check(request)
        if request.WhichOneof("prompt") == "text":
            tokenising = self._tokenise(request)
            try:
                while not (await asyncio.wait((tokenising,), timeout=_QUEUED_INTERVAL_S))[0]:
                    yield self._response(self._num_ahead(tokenising), "")
            finally:
                tokenising.cancel()
            prompt_token_ids = tokenising.result()
        else:
            prompt_token_ids = self._unpack(request)
        checked = _engine_request(request, acceptance, prompt_token_ids, arrived_s)
        events: asyncio.Queue[Event] = asyncio.Queue()
        # The engine's name for it is ours: two callers may choose the same request_id.
        deliver = functools.partial(self._mailbox.put, events)
        self._engine.submit(checked, JoinedDeltas(deliver, request.delta_interval_ms / 1e3))
        ended = False
        try:
            async for event in self._events(events, checked.request_id):
                ended = isinstance(event, Finished | LaserError)
                if isinstance(event, LaserError):
                    raise event
                yield self._response(event, request.request_id or checked.request_id)
        finally:
            # Cancelled, deadline passed, or the caller is gone.
            if not ended:
                self._engine.cancel(checked.request_id)

    def _tokenise(self, request: verifier_pb2.GenerateRequest) -> asyncio.Future[list[int]]:
        """Begins to make checked token ids of a text, in a thread: the draft streams share the loop, and must go on.

        Raises:
            Overloaded: the engine would have no room for it, with those that come before it.
        """
        self._engine.check_room(len(self._tokenising))
        tokenising = self._loop.run_in_executor(self._tokeniser, self._encode, request)
        self._tokenising[tokenising] = self._num_texts
        self._num_texts += 1
        tokenising.add_done_callback(self._tokenising.pop)
        return tokenising

    def _num_ahead(self, tokenising: asyncio.Future[list[int]]) -> int:
        """Requests that wait ahead of a text."""
        first = next(iter(self._tokenising.values()))
        return self._engine.num_waiting + self._tokenising[tokenising] - first

    async def _events(self, events: asyncio.Queue[Event], request_id: str) -> AsyncIterator[Event | int]:
        """The engine's events; before the first tokens also, every half second, the number of requests ahead.

        Once the request is admitted, only while the engine makes steps: that one of them hangs must not go unnoticed.
        """
        admitted = emits = False
        num_steps = 0
        while True:
            try:
                event = await asyncio.wait_for(events.get(), None if emits else _QUEUED_INTERVAL_S)
            except TimeoutError:
                before, num_steps = num_steps, self._engine.counters.num_steps
                if not admitted or num_steps > before:
                    yield self._engine.num_ahead(request_id)
                continue
            admitted = True
            emits = emits or isinstance(event, Emitted)
            yield event
            if isinstance(event, Finished | LaserError):
                return

    def _response(self, event: Event | int, request_id: str) -> verifier_pb2.GenerateResponse:
        if isinstance(event, int | Admitted):
            num_ahead = event if isinstance(event, int) else 0
            return verifier_pb2.GenerateResponse(queued=verifier_pb2.Queued(num_ahead=num_ahead))
        if isinstance(event, Emitted):
            token_ids = pack_token_ids(event.token_ids)
            delta = verifier_pb2.Delta(text=event.text, token_ids=token_ids, accepted_length=event.accepted_length)
            return verifier_pb2.GenerateResponse(delta=delta)
        assert isinstance(event, Finished)
        stats = event.stats
        logger.info(
            "request.finished request_id=%r reason=%s num_output_tokens=%d num_steps=%d draft_status=%s",
            request_id, event.reason.value, stats.num_output_tokens, stats.num_steps, stats.draft_status.value,
        )  # fmt: skip
        return verifier_pb2.GenerateResponse(
            finished=verifier_pb2.Finished(
                finish_reason=_FINISH_REASONS[event.reason],
                text=event.text,
                request_id=request_id,
                stats=verifier_pb2.GenerationStats(
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
            )
        )

    def _check(self, request: verifier_pb2.GenerateRequest) -> Acceptance:
        """Checks all that needs no token ids, and gives the acceptance.

        Raises:
            InvalidRequest: names the field, its value and what would be right.
        """
        if request.pool:
            check_pool_id(request.pool)
        acceptance = self._acceptance(request)
        self._check_sizes(request)
        if request.delta_interval_ms > _MAX_DELTA_INTERVAL_MS:
            raise InvalidRequest(
                f"delta_interval_ms is {request.delta_interval_ms}, must be at most {_MAX_DELTA_INTERVAL_MS}",
                field="delta_interval_ms",
            )
        if request.learn and not request.pool:
            raise InvalidRequest("learn needs a pool to join: pool is empty", field="pool")
        for field in ("request_id", "document_id"):
            num_bytes = len(getattr(request, field).encode())
            if num_bytes > MAX_ID_BYTES:
                raise InvalidRequest(f"{field} has {num_bytes} bytes, must be at most {MAX_ID_BYTES}", field=field)
        return acceptance

    def _acceptance(self, request: verifier_pb2.GenerateRequest) -> Acceptance:
        given = request.HasField("acceptance")
        acceptance = acceptance_from_message(request.acceptance) if given else self._model.default_acceptance
        temperature = request.temperature
        if not (math.isfinite(temperature) and 0.0 <= temperature <= MAX_TEMPERATURE):
            raise InvalidRequest(
                f"temperature is {temperature}, must be from 0 to {MAX_TEMPERATURE:g}", field="temperature"
            )
        if temperature > 0.0 and isinstance(acceptance, Relaxed):
            if given:
                raise InvalidRequest(
                    f"temperature is {temperature:g}, must be 0 with relaxed acceptance", field="temperature"
                )
            return Strict()
        return acceptance

    def _encode(self, request: verifier_pb2.GenerateRequest) -> list[int]:
        """The checked token ids of a text prompt."""
        text, raw = request.text.text, request.text.raw
        system = request.text.system if request.text.HasField("system") else None
        return self._checked(request, encode_text(self._tokenizer, text, raw, system))

    def _unpack(self, request: verifier_pb2.GenerateRequest) -> list[int]:
        """The checked token ids of a prompt that consists of them, or of none."""
        packed = request.tokens.token_ids
        self._check_length(len(packed) // 4)  # before millions of them become objects
        token_ids = unpack_token_ids(packed)
        if not token_ids:
            raise InvalidRequest("prompt is empty, must be text or token ids", field="prompt")
        return self._checked(request, token_ids)

    def _checked(self, request: verifier_pb2.GenerateRequest, token_ids: list[int]) -> list[int]:
        num_tokens = len(token_ids)
        self._check_length(num_tokens)
        if num_tokens + request.max_new_tokens > self._model.max_model_len:
            raise InvalidRequest(
                f"max_new_tokens is {request.max_new_tokens}, must be at most "
                f"{self._model.max_model_len - num_tokens}: the prompt has {num_tokens} tokens and the "
                f"model takes {self._model.max_model_len}",
                field="max_new_tokens",
            )
        # On the event loop, so not one by one: a prompt may have 100,000 tokens.
        wrong = next((end for end in (min(token_ids), max(token_ids)) if not 0 <= end < self._model.vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(
                f"prompt has token id {wrong}, must be from 0 to {self._model.vocab_size - 1}", field="prompt"
            )
        return token_ids

    def _check_length(self, num_prompt_tokens: int) -> None:
        if num_prompt_tokens >= self._model.max_model_len:
            raise InvalidRequest(
                f"prompt has {num_prompt_tokens} tokens, must be below the model's {self._model.max_model_len}",
                field="prompt",
            )

    def _check_sizes(self, request: verifier_pb2.GenerateRequest) -> None:
        num_chars = len(request.text.text) + len(request.text.system)
        if num_chars > _MAX_CHARS_PER_TOKEN * self._model.max_model_len:
            raise InvalidRequest(
                f"prompt has {num_chars} characters, too many for the model's {self._model.max_model_len} tokens",
                field="prompt",
            )
        if request.max_new_tokens < 1:
            raise InvalidRequest(
                f"max_new_tokens is {request.max_new_tokens}, must be at least 1", field="max_new_tokens"
            )
        lengths = [len(stop) for stop in request.stop]
        if len(lengths) > MAX_STOPS or not all(1 <= length <= MAX_STOP_CHARS for length in lengths):
            raise InvalidRequest(
                f"stop has {len(lengths)} strings of {min(lengths)} to {max(lengths)} characters, "
                f"must be at most {MAX_STOPS}, none empty or longer than {MAX_STOP_CHARS}",
                field="stop",
            )


def _engine_request(
    request: verifier_pb2.GenerateRequest, acceptance: Acceptance, prompt_token_ids: list[int], arrived_s: float
) -> Request:
    """What the engine takes of a checked request."""
    request_id = uuid.uuid4().hex
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(prompt_token_ids),
        pool=request.pool,
        acceptance=acceptance,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        seed=request.seed if request.HasField("seed") else secrets.randbits(64),
        stop=tuple(request.stop),
        draft=request.drafting != verifier_pb2.DRAFTING_OFF,
        learn=request.learn,
        document_id=request.document_id or request.request_id or request_id,
        arrived_s=arrived_s,
    )


def register(service: VerifierService, server: grpc.aio.Server) -> None:
    """Adds the service to a server."""
    verifier_pb2_grpc.add_VerifierServicer_to_server(service, server)
