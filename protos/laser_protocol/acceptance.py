"""The two acceptance settings as values. What they mean for logits: `laser_verifier.acceptance`."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from laser_protocol.errors import InvalidRequest
from laser_protocol.v1 import acceptance_pb2

MAX_TOP_K = 16


@dataclass(frozen=True, slots=True)
class Strict:
    """Accepts a draft token only if it is the token plain decoding would emit. Output equals plain decoding."""


@dataclass(frozen=True, slots=True)
class Relaxed:
    """Accepts a draft token also if it is among the `top_k` most probable and its probability exceeds `min_prob`.

    Output then depends on the drafts, so on the pool and the load: it is not reproducible.

    Args:
        top_k: candidates per place, 1 to 16. 1 accepts what Strict accepts.
        min_prob: probability a candidate other than the argmax must exceed, 0 to 1.

    Raises:
        InvalidRequest: a value out of range.
    """

    top_k: int = 2
    min_prob: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.top_k, int) or isinstance(self.top_k, bool) or not 1 <= self.top_k <= MAX_TOP_K:
            raise InvalidRequest(f"top_k is {self.top_k!r}, must be an integer from 1 to {MAX_TOP_K}", field="top_k")
        if not isinstance(self.min_prob, int | float) or not (
            math.isfinite(self.min_prob) and 0.0 <= self.min_prob <= 1.0
        ):
            raise InvalidRequest(f"min_prob is {self.min_prob!r}, must be from 0 to 1", field="min_prob")


Acceptance = Strict | Relaxed


def acceptance_to_message(acceptance: Acceptance) -> acceptance_pb2.Acceptance:
    """The message of an acceptance setting."""
    if isinstance(acceptance, Relaxed):
        relaxed = acceptance_pb2.Relaxed(top_k=acceptance.top_k, min_prob=acceptance.min_prob)
        return acceptance_pb2.Acceptance(relaxed=relaxed)
    return acceptance_pb2.Acceptance(strict=acceptance_pb2.Strict())


def acceptance_from_message(message: acceptance_pb2.Acceptance) -> Acceptance:
    """The acceptance setting of a message.

    Raises:
        InvalidRequest: no kind set, or a value out of range.
    """
    kind = message.WhichOneof("kind")
    if kind == "relaxed":
        return Relaxed(top_k=message.relaxed.top_k, min_prob=_as_written(message.relaxed.min_prob))
    if kind == "strict":
        return Strict()
    raise InvalidRequest("acceptance has no kind, must be strict or relaxed", field="acceptance")


def _as_written(value: float) -> float:
    """What a caller wrote for a float32 of the wire, 0.1 for 0.10000000149: the shortest number that gives it."""
    if not 0.0 <= value <= 1.0:  # no probability, as `Relaxed` says
        return value
    numbers = (float(f"{value:.{num_digits}g}") for num_digits in range(1, 10))
    return next((number for number in numbers if struct.unpack("<f", struct.pack("<f", number))[0] == value), value)
