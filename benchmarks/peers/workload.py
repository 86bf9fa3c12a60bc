"""What both engines are given: prompts to continue, and the documents that may be drafted from."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._corpus import read_corpus
from laser_recsys.measurement import repetition_share


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts and documents; disjoint.

    Attributes:
        name: "all", or "least" for the half of the prompts whose plain output repeats itself least.
        prompts: token ids each.
        documents: `id`, `prompt_token_ids`, `output_token_ids` each, of the served model.
        max_new_tokens: per prompt.
    """

    name: str
    prompts: tuple[list[int], ...]
    documents: tuple[dict[str, Any], ...]
    max_new_tokens: int

    @property
    def warm_up(self) -> tuple[list[int], ...]:
        """Prompts of documents: what a process runs before its clock starts."""
        return tuple(document["prompt_token_ids"] for document in self.documents)


def read_workload(
    corpus: Path, pool_ids: Container[int], test_ids: Container[int], name: str, max_new_tokens: int
) -> Workload:
    """Reads a corpus: JSON lines with `id`, `prompt_token_ids` and `output_token_ids` (what plain decoding gave).

    Raises:
        ValueError: an id is in both sets, or one of the sets picks nothing.
    """
    lines = read_corpus(corpus)
    documents = [line for line in lines if line["id"] in pool_ids]
    tests = [line for line in lines if line["id"] in test_ids]
    if not documents or not tests or {line["id"] for line in documents} & {line["id"] for line in tests}:
        raise ValueError(f"{len(documents)} documents and {len(tests)} prompts: both must be some, and none in both")
    if name == "least":
        by_repetition = sorted(tests, key=lambda line: repetition_share([line["output_token_ids"]]))
        least = {line["id"] for line in by_repetition[: len(tests) // 2]}
        tests = [line for line in tests if line["id"] in least]
    return Workload(name, tuple(line["prompt_token_ids"] for line in tests), tuple(documents), max_new_tokens)
