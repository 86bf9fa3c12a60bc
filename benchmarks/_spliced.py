"""A large pool out of few real outputs, and the sources that the retriever's benchmarks draft from.

Recorded outputs alone make 0.15 M tokens. A spliced document has a recorded document's length and is put together from
1 to 4 pieces of recorded ones, each piece at its own place (the begin of a document stays a begin); then every token is
replaced with the probability MUTATION_RATE by one drawn from all recorded tokens, so with their own frequencies. Short
n-grams are therefore as frequent as in real text, long ones end where a splice or a mutation stands: about every 25
tokens. All draws come from one seeded generator.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from laser_retriever.index import TokenIndex, build_index
from laser_retriever.sources import Source, Sources

MUTATION_RATE = 0.03
# Shares of a pool: six segments that at least halve from one to the next, as merging leaves them, and the log's tail.
SEGMENT_SHARES = (0.50, 0.25, 0.125, 0.07, 0.035, 0.0175, 0.0025)
# Tokens of the two ancestors' samples, as shares of the pool's.
ANCESTOR_SHARES = (0.15, 0.15)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded generation."""

    prompt: NDArray[np.int32]
    output: NDArray[np.int32]


def read_recorded(path: Path) -> list[Recorded]:
    """The generations of a JSON-lines file with prompt_token_ids and output_token_ids, in its order."""
    with path.open(encoding="utf8") as file:
        lines: list[dict[str, Any]] = [json.loads(line) for line in file]
    return [
        Recorded(np.array(line["prompt_token_ids"], np.int32), np.array(line["output_token_ids"], np.int32))
        for line in lines
    ]


def splice(outputs: Sequence[NDArray[np.int32]], num_tokens: int, seed: int = 0) -> list[NDArray[np.int32]]:
    """Documents of at least `num_tokens` tokens together, made as the module says."""
    random = np.random.default_rng(seed)
    words = np.concatenate(outputs)
    documents: list[NDArray[np.int32]] = []
    made = 0
    while made < num_tokens:
        size = len(outputs[random.integers(len(outputs))])
        cuts = np.sort(random.integers(0, size, random.integers(0, 4)))
        document = np.empty(size, np.int32)
        for start, end in zip((0, *cuts), (*cuts, size), strict=True):
            piece = outputs[random.integers(len(outputs))][start:end]
            document[start : start + len(piece)] = piece
            if len(piece) < end - start:
                document[start + len(piece) : end] = random.choice(words, end - start - len(piece))
        mutated = np.flatnonzero(random.random(size) < MUTATION_RATE)
        document[mutated] = random.choice(words, len(mutated))
        documents.append(document)
        made += size
    return documents


def share_out(documents: Sequence[NDArray[np.int32]], shares: Sequence[float]) -> list[list[NDArray[np.int32]]]:
    """Consecutive runs of documents, by shares of their number."""
    bounds = np.round(np.cumsum((0.0, *shares)) / sum(shares) * len(documents)).astype(int)
    return [list(documents[start:end]) for start, end in pairwise(bounds)]


def make_sources(documents: Sequence[NDArray[np.int32]], seed: int = 0) -> tuple[Sources, list[TokenIndex]]:
    """The pool in segments of SEGMENT_SHARES, its tail, and two ancestors with a random sample of it each."""
    random = np.random.default_rng(seed)
    parts = [(part, 0) for part in share_out(documents, SEGMENT_SHARES)]
    for distance, share in enumerate(ANCESTOR_SHARES, 1):
        chosen = random.choice(len(documents), max(int(share * len(documents)), 1), replace=False)
        parts.append(([documents[i] for i in chosen], distance))
    sources = [
        Source(build_index(part), distance)
        for part, distance in tqdm(parts, desc="our index", unit="segment", leave=False)
    ]
    return Sources.of(sources), [source.index for source in sources]
