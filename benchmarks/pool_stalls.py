"""Whether drafting and adding stall while a pool is sealed and compacted: latencies with and without, in one process.

    python -m benchmarks.pool_stalls --tokens 2000000

A pool is filled with random documents (Zipf over 20,000 tokens, --document-len of them each) in six segments. One
thread drafts trees of 32 nodes for 16 sequences, a millisecond between two, another adds a document every 20 ms, each
made durable. First that is all; then the pool is compacted over and over. One JSON line per phase and call, a table.

The directory must lie on the disk to be measured (default: the current directory's).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from laser_retriever.cli import SWITCH_INTERVAL_S
from laser_retriever.config import RetrieverConfig
from laser_retriever.drafter import Drafter
from laser_retriever.pools import Pools
from laser_retriever.tree_drafter import DraftParams
from laser_retriever.warmup import settle_garbage_collector, warm_up

POOL, FINGERPRINT = "bench/pool", "f"
VOCAB_SIZE, NUM_SEGMENTS, NUM_SEQUENCES, NUM_NODES = 20_000, 6, 16, 32
DRAFT_INTERVAL_S, ADD_INTERVAL_S = 0.001, 0.02


def make_documents(num_documents: int, document_len: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """Random documents with ids of their own."""
    chance = np.random.default_rng(seed)
    tokens = np.minimum(chance.zipf(1.2, (num_documents, document_len)), VOCAB_SIZE - 1).astype(np.int32)
    return [(f"{seed}-{i}", row) for i, row in enumerate(tokens)]


def fill(pools: Pools, num_tokens: int, document_len: int) -> None:
    """The pool's segments."""
    for segment in range(NUM_SEGMENTS):
        documents = make_documents(num_tokens // document_len // NUM_SEGMENTS, document_len, segment)
        for start in range(0, len(documents), 500):
            pools.add_documents(POOL, FINGERPRINT, documents[start : start + 500])
        pools._pools[POOL].writer.seal()
    pools.refresh()


class Drafting:
    """Drafts for open sequences, one after the other."""

    def __init__(self, pools: Pools) -> None:
        self._drafter = Drafter(pools, FINGERPRINT, VOCAB_SIZE)
        self._next = 0
        for sequence_id, (_, tokens) in enumerate(make_documents(NUM_SEQUENCES, 200, 99)):
            self._drafter.open(sequence_id, POOL, tokens, 50)

    def __call__(self) -> None:
        self._drafter.draft(self._next % NUM_SEQUENCES, NUM_NODES)
        self._next += 1


class Adding:
    """Adds documents one by one."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._documents = iter(make_documents(100_000, 200, 77))

    def __call__(self) -> None:
        self._pools.add_documents(POOL, FINGERPRINT, [next(self._documents)])


def time_calls(call: Callable[[], None], ended: threading.Event, interval_s: float, took_s: list[float]) -> None:
    """Calls until told to end; appends how long each call took."""
    while not ended.is_set():
        started_s = time.perf_counter()
        call()
        took_s.append(time.perf_counter() - started_s)
        time.sleep(interval_s)


def measure(pools: Pools, phase: str, work: Callable[[], float]) -> list[dict[str, object]]:
    """Latencies of both kinds of calls while `work` runs."""
    ended = threading.Event()
    times: dict[str, list[float]] = {"draft": [], "add": []}
    threads = [
        threading.Thread(target=time_calls, args=(Drafting(pools), ended, DRAFT_INTERVAL_S, times["draft"])),
        threading.Thread(target=time_calls, args=(Adding(pools), ended, ADD_INTERVAL_S, times["add"])),
    ]
    for thread in threads:
        thread.start()
    amount = work()
    ended.set()
    for thread in threads:
        thread.join()
    results: list[dict[str, object]] = []
    for name, took_s in times.items():
        p50, p99, p999 = (round(float(np.quantile(took_s, q)) * 1000, 3) for q in (0.5, 0.99, 0.999))
        over = sum(seconds > 0.005 for seconds in took_s)
        results.append(
            {"phase": phase, "call": name, "calls": len(took_s), "p50_ms": p50, "p99_ms": p99, "p999_ms": p999,
             "max_ms": round(max(took_s) * 1000, 3), "over_5_ms": over, "compactions": amount}
        )  # fmt: skip
    return results


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="in the pool (default: %(default)s)")
    parser.add_argument("--document-len", type=int, default=200, help="tokens of a document (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase (default: %(default)s)")
    parser.add_argument("--directory", type=Path, default=Path(), help="where the pool is made and removed again")
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    warm_up(DraftParams())
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        pools = Pools(RetrieverConfig(pools=Path(directory)))
        fill(pools, arguments.tokens, arguments.document_len)
        settle_garbage_collector()

        def rest() -> float:
            time.sleep(arguments.seconds)
            return 0

        def compact() -> float:
            ends_s = time.monotonic() + arguments.seconds
            number = 0
            while time.monotonic() < ends_s:
                pools.delete_documents(POOL, [f"0-{number}"])
                pools.compact(POOL)
                number += 1
            return number

        results = measure(pools, "rest", rest) + measure(pools, "compaction", compact)
        pools.close()
    for result in results:
        print(json.dumps(result), flush=True)
    print()
    print("  ".join(results[0]))
    for result in results:
        print("  ".join(str(value).rjust(len(name)) for name, value in result.items()))


if __name__ == "__main__":
    main()
