"""The retrievers of other projects behind one face, for the benchmarks.

`make peers-retriever` puts arctic-inference and draftretriever into `.venv-peers-retriever`, apart from what LASER is
built with. Each is given its best case: arctic-inference may spend the whole node budget at any match length and on any
probability. All see the same documents, and forget a replayed output when it ends, as LASER does in a replay.
"""

from __future__ import annotations

import bisect
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks._corpus import VOCAB_SIZE
from laser_protocol.tree import DraftTree
from laser_retriever.drafter import Drafter
from laser_retriever.index import build_index, lay_out
from laser_retriever.sources import FixedSources, Source, Sources
from laser_retriever.suffix_array import build_suffix_array

PEERS = Path(__file__).parents[1] / ".venv-peers-retriever"


class Proposer(Protocol):
    """One sequence at a time: opened, drafted for, advanced by what was emitted, closed."""

    def open(self, prompt: Sequence[int]) -> None: ...
    def draft(self, num_nodes: int) -> DraftTree: ...
    def advance(self, emitted: Sequence[int], tree: DraftTree, accepted_path: Sequence[int]) -> None: ...
    def close(self) -> None: ...


class Occurrences:
    """Where token sequences occur in documents, exactly and slowly.

    Attributes:
        tokens: int32[T], see `index.lay_out`: negative marks between the documents.
    """

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        self.tokens = lay_out([np.array(document, np.int32) for document in documents])[0]
        self._suffixes = build_suffix_array(self.tokens)

    def ends(self, query: Sequence[int]) -> NDArray[np.int64]:
        """int64[]: the places behind its occurrences."""

        def beginning(start: int) -> list[int]:
            return self.tokens[start : start + len(query)].tolist()

        low = bisect.bisect_left(self._suffixes, list(query), key=beginning)
        high = bisect.bisect_right(self._suffixes, list(query), lo=low, key=beginning)
        return self._suffixes[low:high].astype(np.int64) + len(query)


class Laser:
    """LASER's drafter, as the draft stream drives it."""

    def __init__(self, sources: Sources) -> None:
        self.drafter = Drafter(FixedSources(sources), "replay", VOCAB_SIZE)
        self._position = 0

    def open(self, prompt: Sequence[int]) -> None:
        """Takes up a sequence."""
        self.drafter.open(0, "replay", prompt, len(prompt))
        self._position = len(prompt)

    def draft(self, num_nodes: int) -> DraftTree:
        """The tree at the sequence's end."""
        return self.drafter.draft(0, num_nodes)

    def advance(self, emitted: Sequence[int], tree: DraftTree, accepted_path: Sequence[int]) -> None:
        """What the verifier found; all nodes were verified."""
        deepest = accepted_path[-1] if accepted_path else -1
        self.drafter.advance(0, self._position, emitted, len(tree), deepest)
        self._position += len(emitted)

    def close(self) -> None:
        """Forgets the sequence."""
        self.drafter.close(0)


class Arctic:
    """arctic-inference 0.1.1, `SuffixDecodingCache`, as its vLLM plugin drives it but with the full node budget."""

    def __init__(self, documents: Sequence[Sequence[int]], *, use_tree: bool) -> None:
        self._cache: Any = _peer("arctic_inference.suffix_decoding").SuffixDecodingCache()
        self._use_tree = use_tree
        for i, document in enumerate(documents):
            self._cache.start_request(i, [0])
            self._cache.add_active_response(i, np.array(document, np.int32))
            self._cache.stop_request(i)
        self._tokens: list[int] = []

    def open(self, prompt: Sequence[int]) -> None:
        """Takes up a sequence."""
        self._tokens = list(prompt)
        self._cache.start_request("test", np.array(prompt, np.int32))

    def draft(self, num_nodes: int) -> DraftTree:
        """Its draft, of the sequence's own tree or of the global one, as it chooses."""
        draft = self._cache.speculate(
            "test", np.array(self._tokens[-64:], np.int32), max_spec_tokens=num_nodes, max_spec_factor=100.0,
            max_spec_offset=0.0, min_token_prob=0.0, use_tree_spec=self._use_tree,
        )  # fmt: skip
        return _tree(len(self._tokens), draft.token_ids, draft.parents, draft.probs)

    def advance(self, emitted: Sequence[int], tree: DraftTree, accepted_path: Sequence[int]) -> None:
        """Appends what was emitted."""
        self._tokens += emitted
        self._cache.add_active_response("test", np.array(emitted, np.int32))

    def close(self) -> None:
        """Forgets the sequence and what it emitted."""
        self._cache.stop_request("test")
        self._cache.evict_cached_response("test")


class DraftRetriever:
    """draftretriever 0.1.1: it bears the name of REST's index, but holds ADED's tri-gram matrix and tree search."""

    def __init__(self, documents: Sequence[Sequence[int]], path: Path, vocab_size: int = 50_000) -> None:
        module = _peer("draftretriever")
        writer = module.Writer(str(path), vocab_size)
        for document in documents:
            writer.add_entry(list(document))
        writer.finalize()
        self._reader: Any = module.Reader(str(path))
        self._tokens: list[int] = []

    def open(self, prompt: Sequence[int]) -> None:
        """Takes up a sequence."""
        self._tokens = list(prompt)

    def draft(self, num_nodes: int) -> DraftTree:
        """The trie of the paths it finds, up to the budget. It aborts the process on a query of one token."""
        paths = self._reader.search(self._tokens[-16:], choices=num_nodes)[0] if len(self._tokens) > 1 else []
        return _trie(len(self._tokens), paths, num_nodes)

    def advance(self, emitted: Sequence[int], tree: DraftTree, accepted_path: Sequence[int]) -> None:
        """Appends what was emitted."""
        self._tokens += emitted

    def close(self) -> None:
        """Nothing is kept."""


class Rest:
    """REST (He et al., 2023, arXiv 2311.08252) rebuilt on LASER's suffix array, as no package of it installs.

    One search at the longest match of 16 to 1 tokens, at most 5,000 occurrences, the next 10 tokens of each; the most
    frequent prefixes of these become the tree.
    """

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        self._occurrences = Occurrences(documents)
        self._tokens: list[int] = []

    def open(self, prompt: Sequence[int]) -> None:
        """Takes up a sequence."""
        self._tokens = list(prompt)

    def draft(self, num_nodes: int) -> DraftTree:
        """The most frequent continuations of the longest match."""
        prefixes: Counter[tuple[int, ...]] = Counter()
        for length in range(min(16, len(self._tokens)), 0, -1):
            for end in self._occurrences.ends(self._tokens[-length:])[:5000].tolist():
                follow = self._occurrences.tokens[end : end + 10].tolist()
                known = next((i for i, token in enumerate(follow) if token < 0), len(follow))
                prefixes.update(tuple(follow[: i + 1]) for i in range(known))
            if prefixes:
                break
        # A prefix is at least as frequent as what continues it, and comes first among equals for being shorter.
        best = sorted(prefixes, key=lambda prefix: (-prefixes[prefix], len(prefix)))[:num_nodes]
        return _trie(len(self._tokens), best, num_nodes)

    def advance(self, emitted: Sequence[int], tree: DraftTree, accepted_path: Sequence[int]) -> None:
        """Appends what was emitted."""
        self._tokens += emitted

    def close(self) -> None:
        """Nothing is kept."""


def laser_on(documents: Sequence[Sequence[int]]) -> Laser:
    """LASER on one pool of these documents."""
    return Laser(Sources.of([Source(build_index([np.array(document, np.int32) for document in documents]))]))


def _peer(module: str) -> Any:
    """A peer's module. Its directory is looked in last, so that nothing of LASER's own comes from there."""
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise SystemExit(f"{module} is missing: run `make peers-retriever` ({error})") from error


def _tree(position: int, token_ids: list[int], parents: list[int], probs: list[float]) -> DraftTree:
    return DraftTree(position, np.array(token_ids, np.int32), np.array(parents, np.int32), np.array(probs, np.float32))


def _trie(position: int, paths: Sequence[Sequence[int]], num_nodes: int) -> DraftTree:
    nodes: dict[tuple[int, int], int] = {}
    for path in paths:
        node = -1
        for token in path:
            if token < 0 or ((node, token) not in nodes and len(nodes) == num_nodes):  # negative: padding
                break
            node = nodes.setdefault((node, token), len(nodes))
    token_ids = [token for _, token in nodes]
    return _tree(position, token_ids, [parent for parent, _ in nodes], [0.0] * len(nodes))
