"""How fast an index is built on one core, and how long drafting waits meanwhile.

    python -m benchmarks.retriever_build --corpus corpus_user.jsonl

Builds the index of one segment of --tokens (spliced, see `_spliced.py`) --repeats times and prints the median rate.
Then one thread drafts 32-node trees from a pool of its own, alone and while another thread builds: how long each tree
takes then, from asking to having it. What is to be seen is that the build never holds the interpreter. Prints one
JSON line for each and a table.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks._spliced import make_sources, read_recorded, splice
from laser_retriever.cli import SWITCH_INTERVAL_S
from laser_retriever.index import TokenIndex, build_index
from laser_retriever.tree_drafter import DraftParams, DraftRequest, TokenBuffer, TreeDrafter
from laser_retriever.warmup import settle_garbage_collector

VOCAB_SIZE = 2**31 - 1


def draft_while(busy: Callable[[], bool], draft: Callable[[int], object], num_queries: int) -> dict[str, float]:
    """Percentiles of the time that trees take, one after the other with a pause of 1 ms, while something is busy."""
    times_us = []
    i = 0
    while busy():
        started = time.perf_counter_ns()
        draft(i % num_queries)
        times_us.append((time.perf_counter_ns() - started) / 1e3)
        i += 1
        time.sleep(0.001)
    p50, p99, most = np.percentile(times_us, [50, 99, 100])
    return {"us_p50": round(float(p50), 1), "us_p99": round(float(p99), 1), "us_max": round(float(most), 1)}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="JSON lines of recorded outputs")
    parser.add_argument("--tokens", type=float, default=1e7, metavar="N", help="of the index (default: %(default)g)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="builds timed (default: %(default)s)")
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # as the command does
    recorded = read_recorded(arguments.corpus)
    outputs = [r.output for r in recorded[:-64]]
    documents = splice(outputs, int(arguments.tokens))
    small, _ = make_sources(splice(outputs, 1_000_000, seed=1))
    build_index(documents[:100])  # compiles
    rates = []
    for _ in tqdm(range(arguments.repeats), desc="build", leave=False):
        started = time.perf_counter()
        index = build_index(documents)
        rates.append(len(index.tokens) / (time.perf_counter() - started))
    results: list[dict[str, Any]] = [
        {"what": "build", "tokens": len(index.tokens), "tokens_per_s": round(float(np.median(rates)))}
    ]
    print(json.dumps(results[0]), flush=True)

    drafter = TreeDrafter(DraftParams(), VOCAB_SIZE)
    buffers = []
    for document in recorded[-60:]:
        for at in range(0, len(document.output), 8):
            buffer = TokenBuffer(len(document.prompt))
            buffer.extend(document.prompt)
            buffer.extend(document.output[:at])
            buffers.append(buffer)

    def draft(i: int) -> object:
        return drafter.draft([DraftRequest(buffers[i], small, 32)])

    draft(0)
    stop = time.monotonic() + 5.0
    alone = draft_while(lambda: time.monotonic() < stop, draft, len(buffers))
    # What is built is kept: giving memory back is the business of whoever replaces an index, not of building one.
    built: list[TokenIndex] = []
    settle_garbage_collector()  # as the server does before it serves
    builder = threading.Thread(target=lambda: built.extend(build_index(documents) for _ in range(arguments.repeats)))
    builder.start()
    beside = draft_while(builder.is_alive, draft, len(buffers))
    for what, result in (("draft, alone", alone), ("draft, while an index is built", beside)):
        results.append({"what": what, **result})
        print(json.dumps(results[-1]), flush=True)
    print()
    for result in results:
        print("  ".join(f"{name} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
