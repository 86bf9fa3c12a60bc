"""Does the wider pool help the group's? tokens_per_step by replay with a group's pool, with and without its ancestor.

    python -m benchmarks.ancestor_pools --kind user --corpus corpus_user.jsonl --pool-ids 1-736 --test-ids 741-800
    python -m benchmarks.ancestor_pools --kind item --corpus corpus_item.jsonl --pool-ids 1-780 --test-ids 781-841

Every test text is generated again from recorded outputs (see replay.py), drafted from: its group's pool alone; one pool
of all texts; the group's pool with its ancestor, a sample of all texts or of a quarter of them in which, as in the
retriever, the group's own are passed over. Groups: users by k-means, k = 3, on their mean rating per genre, items by
genre, on MovieLens-100k.
Differences to the group's pool alone and to the one pool come with a 95 % interval of a bootstrap over the test texts
(Efron, 1979), paired: both sides take the same texts. One JSON line each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._corpus import NOTE, VOCAB_SIZE, Document, index_of, parse_ids, read_corpus
from benchmarks.group_pools import groups
from benchmarks.replay import Totals, replay_document
from laser_retriever.drafter import Drafter
from laser_retriever.sources import FixedSources, Source, Sources
from laser_retriever.tree_drafter import DraftParams

NUM_RESAMPLES = 10_000


def arrangements(pool: Sequence[Document], group_of: Mapping[int, int], seed: int) -> dict[str, dict[int, Sources]]:
    """By name what each group is drafted from."""
    sample = np.random.default_rng(seed).permutation(len(pool))[: len(pool) // 4]
    quarter = [pool[i] for i in sorted(sample.tolist())]
    made: dict[str, dict[int, Sources]] = {}
    everything = index_of(pool)
    for group in sorted(set(group_of.values())):
        own = index_of([d for d in pool if group_of.get(d["id"]) == group])
        ancestors = {"group": [], "group, ancestor": pool, "group, quarter ancestor": quarter}
        for name, wider in ancestors.items():
            others = index_of([d for d in wider if group_of.get(d["id"]) != group])
            made.setdefault(name, {})[group] = Sources.of([Source(own), Source(others, 1)])
        made.setdefault("one pool", {})[group] = Sources.of([Source(everything)])
    return made


def replay_all(
    test: Sequence[Document], sources: Mapping[int, Sources], group_of: Mapping[int, int], weight: float, nodes: int
) -> NDArray[np.int64]:
    """int64[D, 2]: tokens and steps of each test text."""
    params = DraftParams(ancestor_weight=weight)
    drafters = {group: Drafter(FixedSources(s), "replay", VOCAB_SIZE, params) for group, s in sources.items()}
    counts = np.zeros((len(test), 2), np.int64)
    for row, document in zip(counts, test, strict=True):
        totals = Totals()
        replay_document(drafters[group_of[document["id"]]], document, nodes, totals)
        row[:] = totals.num_tokens, totals.num_steps
    return counts


def difference(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> dict[str, Any]:
    """Difference of tokens_per_step (sum / sum) with its paired bootstrap interval."""
    drawn = np.random.default_rng(0).integers(0, len(ours), (NUM_RESAMPLES, len(ours)))

    def rates(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        sums = counts[drawn].sum(axis=1)
        return sums[:, 0] / sums[:, 1]

    low, high = np.percentile(rates(ours) - rates(theirs), [2.5, 97.5])
    mean = ours[:, 0].sum() / ours[:, 1].sum() - theirs[:, 0].sum() / theirs[:, 1].sum()
    return {"difference": round(float(mean), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="JSON lines, ids of MovieLens-100k")
    parser.add_argument("--kind", choices=("user", "item"), required=True)
    parser.add_argument("--pool-ids", type=parse_ids, required=True, help="ids whose outputs fill the pools")
    parser.add_argument("--test-ids", type=parse_ids, required=True, help="ids whose outputs are replayed")
    parser.add_argument("--num-groups", type=int, help="default: 3 for users, 9 for items")
    parser.add_argument("--nodes", type=int, default=32, help="node budget (default: %(default)s)")
    parser.add_argument(
        "--ancestor-weights",
        type=float,
        nargs="+",
        default=[DraftParams().ancestor_weight],
        help="default: %(default)s",
    )
    arguments = parser.parse_args()
    corpus = read_corpus(arguments.corpus)
    group_of = groups(arguments.kind, arguments.num_groups or (3 if arguments.kind == "user" else 9), "genre")
    pool = [d for d in corpus if d["id"] in arguments.pool_ids and d["id"] in group_of]
    test = [d for d in corpus if d["id"] in arguments.test_ids and d["id"] in group_of]
    made = arrangements(pool, group_of, seed=0)
    fixed = {name: replay_all(test, made.pop(name), group_of, 1.0, arguments.nodes) for name in ("group", "one pool")}
    for name, counts in fixed.items():
        rate = counts[:, 0].sum() / counts[:, 1].sum()
        print(json.dumps({"drafted_from": name, "tokens_per_step": round(float(rate), 3)}), flush=True)
    for weight in arguments.ancestor_weights:
        for name, sources in made.items():
            counts = replay_all(test, sources, group_of, weight, arguments.nodes)
            rate = round(float(counts[:, 0].sum() / counts[:, 1].sum()), 3)
            against = {f"over_{other}".replace(" ", "_"): difference(counts, found) for other, found in fixed.items()}
            row = {"drafted_from": name, "ancestor_weight": weight, "tokens_per_step": rate, **against}
            print(json.dumps(row), flush=True)
    print(f"{len(pool)} texts in the pools, {len(test)} replayed, {arguments.nodes} nodes. {NOTE}")


if __name__ == "__main__":
    main()
