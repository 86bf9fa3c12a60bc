"""Time from the end of a sequence to its draft tree, against arctic-inference and draftretriever on one pool.

    make peers-retriever
    python -m benchmarks.retriever_lookup --corpus corpus_user.jsonl --peers .venv-peers-retriever --check

The pool is spliced out of the corpus's first outputs (`_spliced.py` says how, and into which segments, tail and
ancestors); the last outputs are the queries, taken up round robin as a server would: every document in turn is asked
for a tree at its next place, --stride tokens further, all its earlier tokens known. All systems see the same queries
in the same order in one process, one system after the other, each after a pass that is not timed.

  laser   lookup in all sources and in the sequence itself, and the tree grown: `TreeDrafter.draft`.
  arctic  `SuffixDecodingCache.speculate`, tree mode, the whole node budget (max_spec_factor 100, offset 0,
          min_token_prob 0), the pool and the sequence itself.
  rest    `draftretriever.Reader.search` with the last 16 tokens. The package of that name on PyPI is not REST's
          suffix array but its descendant ADED: trigrams and a tree search of 150 rounds, whose time hardly depends on
          the pool.

Without --peers only ours runs. `bytes_per_token` is the sum of the index's arrays, `rss_bytes_per_token` what the
process grew by when it was built. Prints one JSON line per system, then the ratios, then a table. With both peers 10
M tokens take two to four minutes and 3 GB.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks._spliced import Recorded, make_sources, read_recorded, splice
from laser_retriever.tree_drafter import DraftParams, DraftRequest, TokenBuffer, TreeDrafter

VOCAB_SIZE = 2**31 - 1
# (document index, tokens of its output that are known)
Queries = Sequence[tuple[int, int]]
# p50 and p99 of ours, as shares of a peer's.
BARS = {("arctic", "us_p50"): 0.05, ("arctic", "us_p99"): 0.05, ("rest", "us_p50"): 0.5}


def round_robin(documents: Sequence[Recorded], stride: int) -> Queries:
    """Every document's places, all documents' first place first."""
    places = [(at, i) for i, document in enumerate(documents) for at in range(0, len(document.output), stride)]
    return [(i, at) for at, i in sorted(places)]


def percentiles(name: str, times_ns: Sequence[int], num_nodes: int) -> dict[str, Any]:
    """What is reported of a system."""
    p50, p99, most = (round(float(value), 1) for value in np.percentile(times_ns, [50, 99, 100]) / 1e3)
    nodes = round(num_nodes / len(times_ns), 2)
    return {"system": name, "us_p50": p50, "us_p99": p99, "us_max": most, "nodes_per_tree": nodes}


def time_passes(ask: Callable[[int], int], num_queries: int, num_passes: int, name: str) -> dict[str, Any]:
    """Percentiles over the queries of all passes, after one that is not timed; and the mean nodes of a tree."""
    times_ns: list[int] = []
    num_nodes = 0
    for timed in tqdm([False] + [True] * num_passes, desc=name, unit="pass", leave=False):
        for i in range(num_queries):
            started = time.perf_counter_ns()
            nodes = ask(i)
            took = time.perf_counter_ns() - started
            if timed:
                times_ns.append(took)
                num_nodes += nodes
    return percentiles(name, times_ns, num_nodes)


def measure_laser(
    pool: Sequence[NDArray[np.int32]], test: Sequence[Recorded], queries: Queries, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Ours, on segments, tail and ancestors."""
    process = psutil.Process()
    make_sources(pool[:1000])  # compiles
    rss_before = process.memory_info().rss
    started = time.perf_counter()
    sources, indexes = make_sources(pool)
    build_s = time.perf_counter() - started
    rss_bytes = process.memory_info().rss - rss_before
    drafter = TreeDrafter(DraftParams(), VOCAB_SIZE)
    buffers = []
    for i, at in queries:
        buffer = TokenBuffer(len(test[i].prompt))
        buffer.extend(test[i].prompt)
        buffer.extend(test[i].output[:at])
        buffers.append(buffer)

    def ask(i: int) -> int:
        return len(drafter.draft([DraftRequest(buffers[i], sources, arguments.nodes)])[0].tree)

    result = time_passes(ask, len(queries), arguments.passes, "laser")
    num_tokens = sum(len(index.tokens) for index in indexes)
    num_bytes = sum(index.tokens.nbytes + index.suffixes.nbytes + index.offsets.nbytes for index in indexes)
    return {
        **result,
        "num_sources": len(indexes),
        "bytes_per_token": round(num_bytes / num_tokens, 2),
        "rss_bytes_per_token": round(rss_bytes / num_tokens, 2),
        "build_tokens_per_s": round(num_tokens / build_s),
    }


def measure_arctic(
    pool: Sequence[NDArray[np.int32]], test: Sequence[Recorded], queries: Queries, arguments: argparse.Namespace
) -> dict[str, Any]:
    """arctic-inference's suffix trees: one of the pool, one of each sequence."""
    from arctic_inference.suffix_decoding import SuffixDecodingCache

    cache = SuffixDecodingCache(max_tree_depth=64)
    started = time.perf_counter()
    for i, document in enumerate(tqdm(pool, desc="arctic index", unit="document", leave=False)):
        cache.start_request(i, document[:0])
        cache.add_active_response(i, document)
        cache.stop_request(i)
    build_s = time.perf_counter() - started
    contexts = [np.concatenate([test[i].prompt, test[i].output[:at]])[-64:] for i, at in queries]
    # The sequence's own tree holds what is known at each place; growing it is not timed.
    known = [-1] * len(test)

    def advance(i: int, at: int) -> None:
        if known[i] < 0 or at == 0:
            if known[i] >= 0:
                cache.stop_request(("test", i))
                cache.evict_cached_response(("test", i))
            cache.start_request(("test", i), test[i].prompt)
            known[i] = 0
        if at > known[i]:
            cache.add_active_response(("test", i), test[i].output[known[i] : at])
            known[i] = at

    times_ns: list[int] = []
    num_nodes = 0
    for timed in tqdm([False] + [True] * arguments.passes, desc="arctic", unit="pass", leave=False):
        for (i, at), context in zip(queries, contexts, strict=True):
            advance(i, at)
            started_ns = time.perf_counter_ns()
            draft = cache.speculate(
                ("test", i), context, max_spec_tokens=arguments.nodes, max_spec_factor=100.0, max_spec_offset=0.0,
                min_token_prob=0.0, use_tree_spec=True,
            )  # fmt: skip
            took = time.perf_counter_ns() - started_ns
            if timed:
                times_ns.append(took)
                num_nodes += len(draft.token_ids)
    return {**percentiles("arctic", times_ns, num_nodes), "build_tokens_per_s": round(sum(map(len, pool)) / build_s)}


def measure_rest(
    pool: Sequence[NDArray[np.int32]], test: Sequence[Recorded], queries: Queries, arguments: argparse.Namespace
) -> dict[str, Any]:
    """draftretriever: a suffix array, one search."""
    import draftretriever

    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "rest.idx")
        started = time.perf_counter()
        writer = draftretriever.Writer(path, vocab_size=arguments.vocab_size)
        for document in tqdm(pool, desc="rest index", unit="document", leave=False):
            writer.add_entry(document.tolist())
        del writer  # its end writes the file
        reader = draftretriever.Reader(path)
        build_s = time.perf_counter() - started
        ends = [np.concatenate([test[i].prompt, test[i].output[:at]])[-16:].tolist() for i, at in queries]

        def ask(i: int) -> int:
            return len(reader.search(ends[i], choices=arguments.nodes)[1])

        result = time_passes(ask, len(queries), arguments.passes, "rest")
    return {**result, "build_tokens_per_s": round(sum(map(len, pool)) / build_s)}


def ratios(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours as a share of each peer's, beside what it must be."""
    by_system = {result["system"]: result for result in results}
    return [
        {
            "peer": peer,
            "of": of,
            "ratio": round(by_system["laser"][of] / by_system[peer][of], 4),
            "must_be_at_most": bar,
        }
        for (peer, of), bar in BARS.items()
        if peer in by_system
    ]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="JSON lines of recorded outputs")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="where `make peers-retriever` put them")
    parser.add_argument(
        "--pool-tokens", type=float, default=1e7, metavar="N", help="of the pool (default: %(default)g)"
    )
    parser.add_argument("--nodes", type=int, default=32, metavar="N", help="per tree (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=3, metavar="N", help="timed passes (default: %(default)s)")
    parser.add_argument(
        "--stride", type=int, default=8, metavar="N", help="tokens from query to query (default: %(default)s)"
    )
    parser.add_argument("--vocab-size", type=int, default=49152, metavar="N", help="for rest (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="end with status 1 if a ratio is above its bar")
    arguments = parser.parse_args()
    measures = [measure_laser]
    if arguments.peers:
        sys.path.append(str(arguments.peers))
        measures += [measure_rest, measure_arctic]
    recorded = read_recorded(arguments.corpus)
    pool = splice([r.output for r in recorded[:-64]], int(arguments.pool_tokens))
    test = recorded[-60:]
    queries = round_robin(test, arguments.stride)
    results = []
    for measure in measures:
        results.append(measure(pool, test, queries, arguments))
        print(json.dumps(results[-1]), flush=True)
    compared = ratios(results)
    for ratio in compared:
        print(json.dumps(ratio), flush=True)
    columns = ("system", "us_p50", "us_p99", "us_max", "nodes_per_tree", "build_tokens_per_s")
    print("\n" + "  ".join(columns))
    for result in results:
        print("  ".join(str(result[column]).rjust(len(column)) for column in columns))
    for ratio in compared:
        print(f"{ratio['of']} is {ratio['ratio']} of {ratio['peer']}'s, must be at most {ratio['must_be_at_most']}")
    if arguments.check and any(ratio["ratio"] > ratio["must_be_at_most"] for ratio in compared):
        sys.exit(1)


if __name__ == "__main__":
    main()
