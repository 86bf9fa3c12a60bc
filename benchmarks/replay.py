"""Draft quality by replay: tokens_per_step of the real drafter on recorded greedy outputs, strict acceptance.

    python -m benchmarks.replay --corpus corpus_user.jsonl --nodes 16 32 64 --pool-ids 1-736 --test-ids 741-800

A line of the corpus holds id, prompt_token_ids and output_token_ids. The pool's outputs are indexed; every test output
is then generated again: a tree is drafted, the path equal to the real output is accepted, one bonus token follows.
Steps count as the engine counts them: every forward that emits tokens, the one that ends the prefill first, whose tree
is drafted at the prompt's end. Prints one JSON line per budget and a table.
The coefficients were fitted on users 1-680 only:

    python -m benchmarks.replay --corpus corpus_user.jsonl --pool-ids 1-680 --fit coefficients.json
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._corpus import NOTE, VOCAB_SIZE, parse_ids, read_corpus
from laser_protocol.tree import DraftTree
from laser_retriever.drafter import Drafter
from laser_retriever.fitting import Examples, fit
from laser_retriever.index import build_index
from laser_retriever.sources import FixedSources, Source, Sources
from laser_retriever.tree_drafter import DraftParams


def accepted_path(tree: DraftTree, real: Sequence[int]) -> list[int]:
    """Indices of the nodes that agree with the real continuation, from the root down."""
    children = {
        (parent, token): node
        for node, (parent, token) in enumerate(zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True))
    }
    path: list[int] = []
    for token in real:
        node = children.get((path[-1] if path else -1, token))
        if node is None:
            break
        path.append(node)
    return path


@dataclass(slots=True)
class Totals:
    """Sums over a replay."""

    num_steps: int = 0
    num_tokens: int = 0
    num_nodes: int = 0
    num_accepted: int = 0
    latencies_us: list[float] | None = None


def replay_document(drafter: Drafter, document: dict[str, Any], num_nodes: int, totals: Totals) -> None:
    """Generates one recorded output again and adds to the totals."""
    output: list[int] = document["output_token_ids"]
    prompt: list[int] = document["prompt_token_ids"]
    drafter.open(0, "replay", prompt, len(prompt))
    done = 0
    while done < len(output):
        started = time.perf_counter()
        tree = drafter.draft(0, num_nodes)
        if totals.latencies_us is not None:
            totals.latencies_us.append((time.perf_counter() - started) * 1e6)
        path = accepted_path(tree, output[done:])
        emitted = output[done : done + len(path) + 1]
        drafter.advance(0, len(prompt) + done, emitted, len(tree), path[-1] if path else -1)
        done += len(emitted)
        totals.num_steps += 1
        totals.num_tokens += len(emitted)
        totals.num_nodes += len(tree)
        totals.num_accepted += len(path)
    drafter.close(0)


def replay(sources: Sources, test: Sequence[dict[str, Any]], num_nodes: int) -> tuple[dict[str, Any], Drafter]:
    """Replays all test documents with one node budget."""
    drafter = Drafter(FixedSources(sources), "replay", VOCAB_SIZE)
    totals = Totals(latencies_us=[])
    for document in test:
        replay_document(drafter, document, num_nodes, totals)
    assert totals.latencies_us is not None
    p50, p99 = np.percentile(totals.latencies_us, [50, 99])
    result = {
        "nodes": num_nodes,
        "tokens_per_step": round(totals.num_tokens / totals.num_steps, 4),
        "accepted_per_drafted_node": round(totals.num_accepted / max(totals.num_nodes, 1), 4),
        "nodes_per_tree": round(totals.num_nodes / totals.num_steps, 2),
        "num_steps": totals.num_steps,
        "num_tokens": totals.num_tokens,
        "draft_us_p50": round(float(p50), 1),
        "draft_us_p99": round(float(p99), 1),
    }
    return result, drafter


def fit_coefficients(documents: Sequence[dict[str, Any]], output: Path) -> None:
    """Fits the drafter's coefficients on the first and the last quarter, each with all other documents as its pool."""
    examples = Examples(DraftParams())
    quarter = max(len(documents) // 4, 1)
    for held_out in (slice(0, quarter), slice(len(documents) - quarter, None)):
        test = documents[held_out]
        ids = {document["id"] for document in test}
        pool = [np.array(d["output_token_ids"], np.int32) for d in documents if d["id"] not in ids]
        sources = Sources.of([Source(build_index(pool))])
        for document in test:
            examples.walk(sources, document["prompt_token_ids"], document["output_token_ids"], max_depth=24)
    output.write_text(json.dumps([round(float(value), 4) for value in fit(examples)]) + "\n", encoding="utf8")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="JSON lines")
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 32, 64], help="node budgets")
    parser.add_argument("--pool-ids", type=parse_ids, default="1-736", help="ids whose outputs fill the pool")
    parser.add_argument("--test-ids", type=parse_ids, default="741-800", help="ids whose outputs are replayed")
    parser.add_argument(
        "--fit", type=Path, metavar="FILE", help="fit the coefficients on --pool-ids (use 1-680), write them and end"
    )
    arguments = parser.parse_args()
    corpus = read_corpus(arguments.corpus)
    if arguments.fit:
        logging.basicConfig(level=logging.INFO)
        fit_coefficients([d for d in corpus if d["id"] in arguments.pool_ids], arguments.fit)
        return
    pool = [np.array(d["output_token_ids"], np.int32) for d in corpus if d["id"] in arguments.pool_ids]
    test = [document for document in corpus if document["id"] in arguments.test_ids]
    if not pool or not test:
        parser.error("pool-ids and test-ids must each name documents of the corpus")
    sources = Sources.of([Source(build_index(pool))])
    replay(sources, test[:1], 4)  # compiles
    results = []
    for num_nodes in arguments.nodes:
        result, drafter = replay(sources, test, num_nodes)
        drafter.calibrate()
        counts, probs, hits = drafter.feedback.verified_per_decile
        present = counts > 0
        error = np.abs(probs - hits)[present].sum() / counts.sum()
        result["calibration_error"] = round(float(error), 4)
        print(json.dumps(result), flush=True)
        results.append(result)
    print(f"\n{len(pool)} documents in the pool, {len(test)} replayed. {NOTE}\n")
    columns = list(results[0])
    print("  ".join(columns))
    for result in results:
        print("  ".join(str(result[column]).rjust(len(column)) for column in columns))


if __name__ == "__main__":
    main()
