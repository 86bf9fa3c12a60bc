"""Reading back JSON answers: an object with "summarization" and "reasoning", as RLMRec asks for.

A small model wraps it in a code fence, adds a sentence before it, or is cut off by the token limit; the first two are
read, the last is a failure that is counted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """The two parts of a JSON answer."""

    summarization: str
    reasoning: str


def parse_answer(text: str) -> Answer | None:
    """The first JSON object in `text` with both parts as strings that are not empty; None where there is none."""
    start = text.find("{")
    while start >= 0:
        try:
            found, _ = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):  # also numbers too long, objects too deep
            found = None
        if isinstance(found, dict):
            parts = found.get("summarization"), found.get("reasoning")
            if all(isinstance(part, str) and part.strip() for part in parts):
                return Answer(*(_valid_unicode(str(part).strip()) for part in parts))
        start = text.find("{", start + 1)
    return None


def _valid_unicode(text: str) -> str:
    """JSON's escapes may spell half a character, which no encoder takes."""
    return text.encode("utf8", "replace").decode("utf8")


def knowledge_text(text: str) -> str:
    """What the recommender encodes: of a JSON answer its parts, of any other (also one that failed to parse) the
    text."""
    parsed = parse_answer(text)
    return f"{parsed.summarization} {parsed.reasoning}" if parsed else text
