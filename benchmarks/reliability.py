"""Reliability of the drafter's probabilities on held-out outputs, before and after calibration by fed-back outcomes.

    python -m benchmarks.reliability --corpus corpus_user.jsonl --pool-ids 1-480 --feed-ids 481-680 --test-ids 681-800

Three runs over the test outputs by replay: with the fitted coefficients alone, with shifts learned from outcomes of
the fed sequences and then held, and with shifts that go on learning. A node's outcome: it lies on the emitted path or
not. Two things to beat, on the same nodes: the share of fed nodes of the same depth that were emitted, and raw count
ratios (of the occurrences of the longest match, in pool and sequence, the share that continues with the node's path).
Prints JSON lines and a table; writes a reliability diagram (--svg). Recorded outputs are greedy: acceptance is strict.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._corpus import NOTE, VOCAB_SIZE, parse_ids, read_corpus
from benchmarks._retrieval_peers import Occurrences
from benchmarks.replay import accepted_path
from laser_protocol.acceptance import Strict
from laser_protocol.tree import DraftTree
from laser_retriever.calibration import Calibration, CalibrationParams, key_of
from laser_retriever.drafter import Drafter
from laser_retriever.index import TokenIndex, build_index
from laser_retriever.sources import FixedSources, Source, Sources
from laser_retriever.tree_drafter import DraftParams

NUM_BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """All nodes of a run: probability, whether emitted, depth, raw count ratio; [N] each."""

    probs: NDArray[np.float64]
    emitted: NDArray[np.float64]
    depths: NDArray[np.int64]
    ratios: NDArray[np.float64]

    def __getitem__(self, chosen: NDArray[np.bool_]) -> Nodes:
        return Nodes(self.probs[chosen], self.emitted[chosen], self.depths[chosen], self.ratios[chosen])


def count_ratios(pool: Occurrences, tokens: Sequence[int], tree: DraftTree) -> NDArray[np.float64]:
    """float64[N]: share of the longest match's occurrences, in pool and sequence, that go on as each node."""
    depth = int(tree.depths().max(initial=1))
    own = np.array([*tokens, *[-1] * depth], np.int32)
    rows = np.empty((0, depth), np.int32)
    for length in range(min(16, len(tokens) - 1), 0, -1):
        windows = np.lib.stride_tricks.sliding_window_view(own[: len(tokens) - 1], length)
        own_ends = np.flatnonzero((windows == own[len(tokens) - length : len(tokens)]).all(axis=1)) + length
        ends = pool.ends(tokens[-length:])
        if len(ends) + len(own_ends):
            behind = np.arange(depth)
            follow = np.take(pool.tokens, ends[:, None] + behind, mode="clip")
            rows = np.concatenate([follow, own[own_ends[:, None] + behind]])
            break
    ratios = np.zeros(len(tree))
    agree = {-1: np.ones(len(rows), bool)}
    depths = tree.depths()
    for node, (token, parent) in enumerate(zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True)):
        agree[node] = agree[parent] & (rows[:, depths[node] - 1] == token)
        ratios[node] = agree[node].sum() / max(len(rows), 1)
    return ratios


def run(
    drafter: Drafter, pool: Occurrences, documents: Sequence[dict[str, Any]], num_nodes: int, *, learn: bool
) -> Nodes:
    """Replays outputs and gathers every drafted node with its outcome; `learn`: outcomes are fed back."""
    parts: list[tuple[NDArray[np.float64], ...]] = []
    for document in documents:
        prompt, output = document["prompt_token_ids"], document["output_token_ids"]
        drafter.open(0, "replay", prompt, len(prompt))
        done = 0
        while done < len(output):
            tree = drafter.draft(0, num_nodes)
            path = accepted_path(tree, output[done:])
            emitted = output[done : done + len(path) + 1]
            depths = tree.depths()
            # What lies behind the end of the output has no outcome.
            known = depths <= len(output) - done
            on_path = np.zeros(len(tree))
            on_path[path] = 1.0
            ratios = count_ratios(pool, prompt + output[:done], tree)
            parts.append((tree.probs[known].astype(np.float64), on_path[known], depths[known], ratios[known]))
            num_verified = len(tree) if learn else 0
            deepest = path[-1] if path and learn else -1
            drafter.advance(0, len(prompt) + done, emitted, num_verified, deepest)
            done += len(emitted)
        drafter.close(0)
    return Nodes(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def calibration_error(probs: NDArray[np.float64], emitted: NDArray[np.float64]) -> float:
    """Expected calibration error over ten bins of equal width (Naeini, Cooper and Hauskrecht, 2015)."""
    if not len(probs):
        return float("nan")
    bins = np.minimum((probs * NUM_BINS).astype(int), NUM_BINS - 1)
    return float(np.abs(np.bincount(bins, emitted - probs, NUM_BINS)).sum() / len(probs))


def brier(probs: NDArray[np.float64], emitted: NDArray[np.float64]) -> float:
    """Mean squared error of the probabilities."""
    return float(((probs - emitted) ** 2).mean())


def base_rates(fed: Nodes) -> NDArray[np.float64]:
    """float64[64]: share of the fed nodes of each depth that were emitted."""
    counts = np.bincount(fed.depths, minlength=64)
    return np.bincount(fed.depths, fed.emitted, 64) / np.maximum(counts, 1)


def describe(name: str, nodes: Nodes, rates: NDArray[np.float64]) -> dict[str, Any]:
    """One run's figures."""
    above = nodes[nodes.probs > 0.5]
    own, depth, ratio = (brier(p, nodes.emitted) for p in (nodes.probs, rates[nodes.depths], nodes.ratios))
    return {
        "run": name,
        "num_nodes": len(nodes.probs),
        "ece": round(calibration_error(nodes.probs, nodes.emitted), 4),
        "ece_above_half": round(calibration_error(above.probs, above.emitted), 4),
        "brier": round(own, 4),
        "brier_depth_rate": round(depth, 4),
        "brier_count_ratio": round(ratio, 4),
        "below_depth_rate": round(1 - own / depth, 3),
        "below_count_ratio": round(1 - own / ratio, 3),
    }


def deciles(name: str, nodes: Nodes) -> list[dict[str, Any]]:
    """Mean probability and emitted share per tenth of the probability, of all nodes and of those above 0.5 alone."""
    rows = []
    for scope, chosen in (("all", nodes), ("above_half", nodes[nodes.probs > 0.5])):
        low, high = (0.0, 1.0) if scope == "all" else (0.5, 1.0)
        bins = np.minimum(((chosen.probs - low) / (high - low) * NUM_BINS).astype(int), NUM_BINS - 1)
        for i in range(NUM_BINS):
            here = chosen[bins == i]
            if len(here.probs):
                means = {"prob": round(float(here.probs.mean()), 4), "emitted": round(float(here.emitted.mean()), 4)}
                rows.append({"run": name, "scope": scope, "bin": i, "num_nodes": len(here.probs), **means})
    return rows


def diagram(rows: Sequence[dict[str, Any]]) -> str:
    """A reliability diagram as SVG: emitted share over probability, one panel per scope, one line per run."""
    colours = {"fitted": "#999999", "after_feed": "#1f77b4", "learning_on": "#d62728"}
    shapes = []
    for panel, (scope, low) in enumerate((("all", 0.0), ("above_half", 0.5))):
        left = 50 + panel * 330

        def place(value: float, low: float = low) -> float:
            return (value - low) / (1 - low) * 260

        shapes.append(f'<rect x="{left}" y="30" width="260" height="260" fill="none" stroke="#444"/>')
        shapes.append(f'<line x1="{left}" y1="290" x2="{left + 260}" y2="30" stroke="#bbb" stroke-dasharray="4"/>')
        title = "all nodes" if scope == "all" else "nodes above 0.5"
        shapes.append(f'<text x="{left}" y="22">{title}: emitted share over probability</text>')
        for value in (low, (1 + low) / 2, 1.0):
            shapes.append(f'<text x="{left + place(value)}" y="306" text-anchor="middle">{value:g}</text>')
            shapes.append(f'<text x="{left - 6}" y="{294 - place(value)}" text-anchor="end">{value:g}</text>')
        for number, (name, colour) in enumerate(colours.items()):
            here = [row for row in rows if row["run"] == name and row["scope"] == scope]
            points = [(left + place(row["prob"]), 290 - place(max(row["emitted"], low))) for row in here]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            shapes.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            shapes += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
            shapes.append(f'<text x="{left + 8}" y="{48 + 16 * number}" fill="{colour}">{name}</text>')
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 670 320" font-family="sans-serif" font-size="12">\n'
        f'<rect width="670" height="320" fill="#fff"/>\n{body}\n</svg>\n'
    )


def drafter_on(index: TokenIndex, calibration: Calibration, params: DraftParams) -> Drafter:
    """A drafter on one pool."""
    return Drafter(FixedSources(Sources.of([Source(index)])), "f", VOCAB_SIZE, params, calibration=calibration)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="JSON lines, see replay.py")
    parser.add_argument("--nodes", type=int, default=32, help="node budget (default: %(default)s)")
    parser.add_argument("--pool-ids", type=parse_ids, default="1-480", help="default: %(default)s")
    parser.add_argument("--feed-ids", type=parse_ids, default="481-680", help="default: %(default)s")
    parser.add_argument("--test-ids", type=parse_ids, default="681-800", help="default: %(default)s")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="where to write the diagram")
    parser.add_argument("--coefficients", type=Path, metavar="FILE", help="default: those shipped")
    parser.add_argument("--prior", type=float, default=CalibrationParams().prior)
    parser.add_argument("--memory", type=float, default=CalibrationParams().memory)
    arguments = parser.parse_args()
    corpus = read_corpus(arguments.corpus)
    pool, feed, test = (
        [d for d in corpus if d["id"] in ids]
        for ids in (arguments.pool_ids, arguments.feed_ids, arguments.test_ids)
    )  # fmt: skip
    outputs = [d["output_token_ids"] for d in pool]
    occurrences = Occurrences(outputs)
    index = build_index([np.array(output, np.int32) for output in outputs])
    coefficients = tuple(json.loads(arguments.coefficients.read_bytes())) if arguments.coefficients else ()
    params = DraftParams(coefficients=coefficients)
    calibration = Calibration(
        len(params.level_lengths), CalibrationParams(prior=arguments.prior, memory=arguments.memory)
    )
    drafter = drafter_on(index, calibration, params)
    runs = {"fitted": run(drafter, occurrences, test, arguments.nodes, learn=False)}
    fed = run(drafter, occurrences, feed, arguments.nodes, learn=True)
    runs["after_feed"] = run(drafter, occurrences, test, arguments.nodes, learn=False)
    scalings = calibration.scalings(key_of("", Strict(), "replay")).values
    runs["learning_on"] = run(drafter, occurrences, test, arguments.nodes, learn=True)
    rates = base_rates(fed)
    rows = [describe(name, nodes, rates) for name, nodes in runs.items()]
    bins = [row for name, nodes in runs.items() for row in deciles(name, nodes)]
    for row in (*rows, *bins):
        print(json.dumps(row))
    print(json.dumps({"scalings": scalings.round(2).tolist()}))
    if arguments.svg:
        arguments.svg.parent.mkdir(parents=True, exist_ok=True)
        arguments.svg.write_text(diagram(bins), encoding="utf8")
    print("\n" + "  ".join(rows[0]))
    for row in rows:
        print("  ".join(str(value).rjust(len(column)) for column, value in row.items()))
    print(f"\n{len(pool)} documents in the pool, {len(feed)} fed, {len(test)} tested, {arguments.nodes} nodes. {NOTE}")


if __name__ == "__main__":
    main()
