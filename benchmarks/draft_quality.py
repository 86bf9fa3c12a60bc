"""Draft quality against peers by replay: tokens_per_step and accepted tokens per node over node budgets.

    make peers-retriever
    python -m benchmarks.draft_quality --corpus corpus_user.jsonl --pool-ids 1-736 --test-ids 741-800

Recorded greedy outputs are generated again in one process by every drafter: the path that equals the real output is
accepted, one bonus token follows (`replay.py` says how steps count). Prints one JSON line per drafter and budget, then
LASER's ratio to the best mode of arctic-inference at each budget, and accepted tokens per drafted node at equal
tokens_per_step, read off the curves by linear interpolation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._corpus import NOTE, parse_ids, read_corpus
from benchmarks._retrieval_peers import Arctic, DraftRetriever, Proposer, Rest, laser_on
from benchmarks.replay import accepted_path

Row = dict[str, Any]
ARCTIC = ("arctic_path", "arctic_tree")


def measure(proposer: Proposer, test: Sequence[dict[str, Any]], num_nodes: int) -> Row:
    """Generates every test output again with one node budget."""
    num_steps = num_tokens = num_drafted = num_accepted = 0
    latencies_us = []
    for document in test:
        output: list[int] = document["output_token_ids"]
        proposer.open(document["prompt_token_ids"])
        done = 0
        while done < len(output):
            started = time.perf_counter()
            tree = proposer.draft(num_nodes)
            latencies_us.append((time.perf_counter() - started) * 1e6)
            path = accepted_path(tree, output[done:])
            emitted = output[done : done + len(path) + 1]
            proposer.advance(emitted, tree, path)
            done += len(emitted)
            num_steps += 1
            num_drafted += len(tree)
            num_accepted += len(path)
        num_tokens += len(output)
        proposer.close()
    return {
        "nodes": num_nodes,
        "tokens_per_step": round(num_tokens / num_steps, 4),
        "accepted_per_drafted_node": round(num_accepted / max(num_drafted, 1), 4),
        "nodes_per_tree": round(num_drafted / num_steps, 2),
        "num_steps": num_steps,
        "num_tokens": num_tokens,
        "draft_us_p50": round(float(np.percentile(latencies_us, 50)), 1),
    }


def compare(rows: Sequence[Row]) -> list[Row]:
    """Per budget: LASER's tokens_per_step over the best mode of arctic-inference."""
    best: dict[int, float] = {}
    for row in rows:
        if row["drafter"] in ARCTIC:
            best[row["nodes"]] = max(best.get(row["nodes"], 0.0), row["tokens_per_step"])
    return [
        {"nodes": row["nodes"], "laser_over_arctic": round(row["tokens_per_step"] / best[row["nodes"]], 4)}
        for row in rows
        if row["drafter"] == "laser" and row["nodes"] in best
    ]


def compare_efficiency(rows: Sequence[Row]) -> list[Row]:
    """At each point of arctic-inference's curves that LASER's reaches: accepted tokens per drafted node of both."""
    curve = sorted(
        (row["tokens_per_step"], row["accepted_per_drafted_node"]) for row in rows if row["drafter"] == "laser"
    )
    if not curve:
        return []
    xs, ys = zip(*curve, strict=True)
    compared = []
    for row in rows:
        if row["drafter"] in ARCTIC and xs[0] <= row["tokens_per_step"] <= xs[-1]:
            ours = float(np.interp(row["tokens_per_step"], xs, ys))
            compared.append(
                {
                    "at_tokens_per_step": row["tokens_per_step"],
                    "peer": row["drafter"],
                    "peer_accepted_per_drafted_node": row["accepted_per_drafted_node"],
                    "laser_accepted_per_drafted_node": round(ours, 4),
                }
            )
    return compared


def print_table(rows: Sequence[Row]) -> None:
    """Aligned columns."""
    if rows:
        print("\n" + "  ".join(rows[0]))
        for row in rows:
            print("  ".join(str(value).rjust(len(column)) for column, value in row.items()))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="JSON lines, see replay.py")
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="node budgets")
    parser.add_argument("--pool-ids", type=parse_ids, default="1-736", help="ids whose outputs fill the pool")
    parser.add_argument("--test-ids", type=parse_ids, default="741-800", help="ids whose outputs are replayed")
    parser.add_argument("--drafters", nargs="+", default=["laser", *ARCTIC, "rest", "draftretriever"])
    arguments = parser.parse_args()
    corpus = read_corpus(arguments.corpus)
    pool = [d["output_token_ids"] for d in corpus if d["id"] in arguments.pool_ids]
    test = [d for d in corpus if d["id"] in arguments.test_ids]
    if not pool or not test:
        parser.error("pool-ids and test-ids must each name documents of the corpus")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory:
        makers: dict[str, Callable[[], Proposer]] = {
            "laser": lambda: laser_on(pool),
            "arctic_path": lambda: Arctic(pool, use_tree=False),
            "arctic_tree": lambda: Arctic(pool, use_tree=True),
            "rest": lambda: Rest(pool),
            "draftretriever": lambda: DraftRetriever(pool, Path(directory) / "draftretriever.idx"),
        }
        for name in arguments.drafters:
            measure(makers[name](), test[:1], 4)  # compiles
            for num_nodes in arguments.nodes:
                # Made anew for every budget: what a drafter learns on the way is part of what is measured.
                row = {"drafter": name, **measure(makers[name](), test, num_nodes)}
                print(json.dumps(row), flush=True)
                rows.append(row)
    for comparison in (compare(rows), compare_efficiency(rows)):
        for row in comparison:
            print(json.dumps(row))
    for table in (rows, compare(rows), compare_efficiency(rows)):
        print_table(table)
    print(f"\n{len(pool)} documents in the pool, {len(test)} replayed. {NOTE}")


if __name__ == "__main__":
    main()
