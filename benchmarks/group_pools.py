"""Does grouping pay? tokens_per_step by replay with groups' pools, random pools of equal size, and one global pool.

    python -m benchmarks.group_pools --kind user --corpus corpus_user.jsonl --pool-ids 1-680 --test-ids 681-800
    python -m benchmarks.group_pools --kind item --corpus corpus_item.jsonl

Every test text is generated again from recorded outputs (see replay.py), drafted from: nothing but itself; the pool of
its group; a pool of as many texts, drawn from all; all texts; and its group's pool with all texts as the ancestor,
which is what a request gets. Groups are those of `laser-recsys group` on MovieLens-100k, from past ratings only.
Without --pool-ids every other text is pool, the rest is test (the paper's cold case: the tested have no text there).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks._corpus import NOTE, VOCAB_SIZE, Document, index_of, parse_ids, read_corpus
from benchmarks.replay import Totals, replay_document
from laser_recsys.cache import default_cache_dir
from laser_recsys.datasets.catalogue import read_dataset
from laser_recsys.datasets.dataset import split
from laser_recsys.groups.methods import item_groups, user_groups
from laser_retriever.drafter import Drafter
from laser_retriever.index import TokenIndex
from laser_retriever.sources import FixedSources, Source, Sources


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="JSON lines, ids of MovieLens-100k")
    parser.add_argument("--kind", choices=("user", "item"), required=True)
    parser.add_argument("--pool-ids", type=parse_ids, help="ids whose outputs fill the pools (default: odd ones)")
    parser.add_argument("--test-ids", type=parse_ids, help="ids whose outputs are replayed (default: even ones)")
    parser.add_argument("--num-groups", type=int, nargs="+", help="default: 3 for users, 9 for items")
    parser.add_argument("--nodes", type=int, default=32, help="node budget (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=3, help="random pools per group (default: %(default)s)")
    arguments = parser.parse_args()
    corpus = read_corpus(arguments.corpus)
    pool = [d for d in corpus if (d["id"] in arguments.pool_ids if arguments.pool_ids else d["id"] % 2)]
    test = [d for d in corpus if (d["id"] in arguments.test_ids if arguments.test_ids else not d["id"] % 2)]
    everything = index_of(pool)
    report("nothing", test, {d["id"]: Sources.of([]) for d in test}, arguments.nodes)
    report(f"all {len(pool)}", test, {d["id"]: Sources.of([Source(everything)]) for d in test}, arguments.nodes)
    for num_groups in arguments.num_groups or [3 if arguments.kind == "user" else 9]:
        compare(arguments, pool, test, num_groups)
    print(NOTE)


def compare(arguments: argparse.Namespace, pool: Sequence[Document], test: Sequence[Document], k: int) -> None:
    """The three kinds of pools that depend on the groups."""
    group_of = groups(arguments.kind, k)
    members: dict[int, list[Document]] = defaultdict(list)
    for document in pool:
        members[group_of[document["id"]]].append(document)
    own = {group: index_of(found) for group, found in members.items()}
    empty = index_of([])
    groups_of_test = {d["id"]: group_of[d["id"]] for d in test}

    def sources(indexes: Mapping[int, TokenIndex]) -> dict[int, Sources]:
        return {test_id: Sources.of([Source(indexes.get(group, empty))]) for test_id, group in groups_of_test.items()}

    sizes = ", ".join(str(len(members[group])) for group in sorted(members))
    report(f"own group of {k} ({sizes})", test, sources(own), arguments.nodes)
    for seed in range(arguments.draws):
        random = np.random.default_rng(seed)
        drawn = {
            group: index_of([pool[place] for place in random.permutation(len(pool))[: len(found)]])
            for group, found in members.items()
        }
        report(f"as many drawn of all, seed {seed}", test, sources(drawn), arguments.nodes)
    # As the retriever does: what the group's pool holds is passed over in its ancestor.
    wider = {
        group: Sources.of(
            [
                Source(own.get(group, empty)),
                Source(index_of([d for d in pool if group_of[d["id"]] != group]), 1),
            ]
        )
        for group in set(groups_of_test.values())
    }
    report(f"own group of {k}, then all", test, {d["id"]: wider[group_of[d["id"]]] for d in test}, arguments.nodes)


def groups(kind: str, num_groups: int, user_method: str = "collaborative") -> dict[int, int]:
    """The groups that `laser-recsys group` gives, by id."""
    dataset = read_dataset("ml-100k", None, default_cache_dir())
    if kind == "user":
        made = user_groups(user_method, dataset, split(dataset.ratings).seen, num_groups, 0)[0]
    else:
        made = item_groups("genre", dataset, num_groups, 0)
    return dict(zip(made.keys.tolist(), made.group_idx.tolist(), strict=True))


def report(name: str, test: Sequence[Document], sources: Mapping[int, Sources], num_nodes: int) -> None:
    """Replays all test documents, each with its own sources, and prints a JSON line."""
    totals = Totals()
    for document in test:
        replay_document(
            Drafter(FixedSources(sources[document["id"]]), "replay", VOCAB_SIZE), document, num_nodes, totals
        )
    result = {"pool": name, "tokens_per_step": round(totals.num_tokens / totals.num_steps, 3), "texts": len(test)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
