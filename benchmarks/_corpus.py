"""Recorded outputs: JSON lines of id, prompt_token_ids and output_token_ids (and text, where words are compared); made
by `python -m benchmarks.record`. And what replays of them share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from laser_retriever.index import TokenIndex, build_index

Document = dict[str, Any]
VOCAB_SIZE = 2**31 - 1
NOTE = (
    "Note: the texts of the corpora in this project are repetitive, as a 135M model writes them: 28 % of a user text's "
    "8-grams repeat inside it, and 99 % end by length."
)


def read_corpus(path: Path) -> list[Document]:
    """The corpus, one document a line."""
    with path.open(encoding="utf8") as file:
        return [json.loads(line) for line in file]


def parse_ids(text: str) -> list[int]:
    """`1-736` or `3,5,10-12`, both ends included; increasing."""
    ids: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        ids.update(range(int(first), int(last or first) + 1))
    return sorted(ids)


def index_of(documents: Sequence[Document]) -> TokenIndex:
    """The index of recorded outputs."""
    return build_index([np.array(document["output_token_ids"], np.int32) for document in documents])
