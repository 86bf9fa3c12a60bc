"""The arguments of a generation, checked before anything is sent. Knows nothing of gRPC.

The server checks the same again; either way the caller gets InvalidRequest with the argument's name in `field`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from laser_protocol.acceptance import Acceptance, Relaxed, Strict
from laser_protocol.errors import InvalidRequest
from laser_protocol.limits import MAX_ID_BYTES, MAX_STOP_CHARS, MAX_STOPS, MAX_TEMPERATURE
from laser_protocol.pool_id import check_pool_id

# Text, or token ids.
Prompt = str | list[int] | tuple[int, ...]
OnError = Literal["raise", "return"]

# Of a prompt and of a system prompt each: no model takes as much, and a message of 16 MiB is not even looked at.
MAX_TEXT_BYTES = 4 * 1024 * 1024
# The server gives a sign of life every half second.
MIN_TIMEOUT_S = 1.0


class Options(TypedDict, total=False):
    """Arguments that hold for every prompt of a call. Defaults stand in `Settings` and `Limits`."""

    acceptance: Acceptance | None
    max_new_tokens: int
    temperature: float
    seed: int | None
    stop: Sequence[str]
    draft: bool
    learn: bool
    system: str | None
    raw: bool
    timeout: float | None
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Settings:
    """How to generate, the same for every prompt of a call.

    Attributes:
        acceptance: which draft tokens may stand; None: the server's default.
        max_new_tokens: output limit in tokens, at least 1.
        temperature: 0 is greedy; above 0 sampling, up to 100.
        seed: with a temperature, the same seed gives the same output; 0 to 2^64-1; None: drawn by the server.
        stop: the output ends before the first of these, at most 16; a lone string stands for one of them.
        draft: False: plain decoding.
        learn: the finished output joins the pool.
        system: system turn of the chat template; None: the template's own.
        raw: text prompts are tokenised as they stand.

    Raises:
        InvalidRequest: names the argument, its value and what would be right.
    """

    acceptance: Acceptance | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    draft: bool = True
    learn: bool = False
    system: str | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        if self.acceptance is not None and not isinstance(self.acceptance, Strict | Relaxed):
            raise _invalid("acceptance", self.acceptance, "None, Strict() or Relaxed(top_k, min_prob)")
        if not _is_int(self.max_new_tokens) or not 1 <= self.max_new_tokens < 2**31:
            raise _invalid("max_new_tokens", self.max_new_tokens, "an integer of at least 1")
        _check_number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        if self.temperature > 0 and isinstance(self.acceptance, Relaxed):
            raise _invalid("temperature", self.temperature, "0 with relaxed acceptance")
        if self.seed is not None and not (_is_int(self.seed) and 0 <= self.seed < 2**64):
            raise _invalid("seed", self.seed, "None or an integer from 0 to 2^64-1")
        object.__setattr__(self, "stop", _check_stop(self.stop))
        for name in ("draft", "learn", "raw"):
            if not isinstance(getattr(self, name), bool):
                raise _invalid(name, getattr(self, name), "True or False")
        if self.system is not None:
            _check_text("system", self.system)
            _check_size("system", len(self.system.encode()), MAX_TEXT_BYTES, "bytes of UTF-8")
            if self.raw:
                raise _invalid("system", self.system, "None with raw=True, which applies no chat template")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait.

    Attributes:
        timeout: seconds of silence after which a call is given up, at least 1; None: without limit.
        deadline: seconds for the whole call; None: without limit.

    Raises:
        InvalidRequest: too small, or not finite.
    """

    timeout: float | None = 60.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None and not (_is_finite(self.timeout) and self.timeout >= MIN_TIMEOUT_S):
            right = f"None or at least {MIN_TIMEOUT_S:g} s: the server gives a sign of life every half second"
            raise _invalid("timeout", self.timeout, right)
        if self.deadline is not None and not (_is_finite(self.deadline) and self.deadline > 0):
            raise _invalid("deadline", self.deadline, "None or a number of seconds above 0")


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt with all that belongs to it, checked.

    Raises:
        InvalidRequest: names the argument, its value and what would be right.
    """

    prompt: Prompt
    pool: str | None
    document_id: str | None
    settings: Settings

    def __post_init__(self) -> None:
        _check_prompt(self.prompt, self.settings)
        if self.pool is not None:
            if not isinstance(self.pool, str):
                raise _invalid("pool", self.pool, "None or a pool id")
            check_pool_id(self.pool)
        elif self.settings.learn:
            raise _invalid("pool", None, "named with learn=True, which adds the output to it")
        if self.document_id is not None:
            check_document_id("document_id", self.document_id)


def split_options(options: Options) -> tuple[Settings, Limits]:
    """The two values that a call's keyword arguments make.

    Raises:
        InvalidRequest: a value is wrong.
        TypeError: an argument does not exist.
    """
    arguments: dict[str, Any] = dict(options)
    limits = Limits(**{name: arguments.pop(name) for name in ("timeout", "deadline") if name in arguments})
    try:
        return Settings(**arguments), limits
    except TypeError as error:
        raise TypeError(str(error).replace("Settings.__init__()", "generate()")) from None


def is_many(prompt: Any) -> bool:
    """Whether the argument is a list of prompts; text and a list of integers are one prompt.

    Raises:
        InvalidRequest: it is neither.
    """
    if isinstance(prompt, str):
        return False
    if isinstance(prompt, list | tuple):
        return not prompt or not _is_int(prompt[0])
    raise InvalidRequest(
        f"prompt is a {type(prompt).__name__}, must be text, a list of token ids, or a list of such prompts",
        field="prompt",
    )


def make_requests(
    prompts: Sequence[Prompt], pool: Any, document_id: Any, settings: Settings
) -> list[Request | InvalidRequest]:
    """One request per prompt; where its own values are wrong, the error stands at its place, with its `index`.

    Raises:
        InvalidRequest: `pool` or `document_id` does not fit the number of prompts.
    """
    pools = pool if isinstance(pool, list | tuple) else [pool] * len(prompts)
    if document_id is not None and not isinstance(document_id, list | tuple):
        raise _invalid("document_id", document_id, "a list with one id per prompt, as there is a list of prompts")
    document_ids = document_id if document_id is not None else [None] * len(prompts)
    for name, values in (("pool", pools), ("document_id", document_ids)):
        if len(values) != len(prompts):
            raise InvalidRequest(
                f"{name} has {len(values)} entries, must have {len(prompts)}: one per prompt", field=name
            )
    made: list[Request | InvalidRequest] = []
    for index, (prompt, its_pool, its_id) in enumerate(zip(prompts, pools, document_ids, strict=True)):
        try:
            made.append(Request(prompt, its_pool, its_id, settings))
        except InvalidRequest as error:
            error.index = index
            made.append(error)
    return made


def check_document_id(name: str, document_id: Any) -> None:
    """Raises InvalidRequest, under the argument's name, unless it is text of 1 to 256 bytes of UTF-8."""
    _check_text(name, document_id)
    if not 1 <= len(document_id.encode()) <= MAX_ID_BYTES:
        raise _invalid(name, document_id[:80], f"1 to {MAX_ID_BYTES} bytes of UTF-8")


def check_on_error(on_error: str) -> None:
    """Raises InvalidRequest unless it is "raise" or "return"."""
    if on_error not in ("raise", "return"):
        raise _invalid("on_error", on_error, "'raise' or 'return'")


def _check_prompt(prompt: Any, settings: Settings) -> None:
    if isinstance(prompt, str):
        if not prompt:
            raise _invalid("prompt", prompt, "not empty")
        _check_text("prompt", prompt)
        _check_size("prompt", len(prompt.encode()), MAX_TEXT_BYTES, "bytes of UTF-8")
        return
    if not isinstance(prompt, list | tuple):
        raise _invalid("prompt", prompt, "text or a list of token ids")
    if not prompt:
        raise _invalid("prompt", prompt, "not empty")
    _check_size("prompt", len(prompt), MAX_TEXT_BYTES // 4, "token ids")
    for position, token_id in enumerate(prompt):
        if not _is_int(token_id) or not 0 <= token_id < 2**31:
            raise _invalid(f"prompt[{position}]", token_id, "a token id from 0 to 2^31-1", field="prompt")
    if settings.system is not None:
        raise _invalid("system", settings.system, "None with token ids, which take no chat template")


def _check_stop(stop: Any) -> tuple[str, ...]:
    if isinstance(stop, str):
        stop = (stop,)
    if stop is None:
        stop = ()
    if not isinstance(stop, list | tuple) or len(stop) > MAX_STOPS:
        raise _invalid("stop", stop, f"a list of at most {MAX_STOPS} strings")
    for text in stop:
        if not isinstance(text, str) or not text:
            raise _invalid("stop", stop, "strings, none empty")
        if len(text) > MAX_STOP_CHARS:
            raise _invalid("stop", f"{text[:20]}...", f"at most {MAX_STOP_CHARS} characters each, not {len(text)}")
        _check_text("stop", text)
    return tuple(stop)


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise _invalid(name, text, "text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _invalid(name, text, f"valid Unicode, without the lone surrogate at {error.start}") from None


def _check_size(name: str, size: int, most: int, unit: str) -> None:
    if size > most:
        raise InvalidRequest(f"{name} has {size:,} {unit}, must have at most {most:,}", field=name)


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    # Not `value < low or value > high`: a NaN must fail too.
    if not _is_number(value) or not low <= value <= high:
        raise _invalid(name, value, f"a number from {low:g} to {high:g}")


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_int(value: Any) -> bool:
    """Also for numpy's integers; not for bool, which would be a mistake here."""
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _invalid(name: str, value: Any, right: str, field: str | None = None) -> InvalidRequest:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return InvalidRequest(f"{name} is {shown}, must be {right}", field=field or name)
