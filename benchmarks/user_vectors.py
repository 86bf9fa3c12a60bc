"""User vectors for grouping: ALS (what `laser-recsys group` uses) against LightGCN (what the paper uses), on
MovieLens-100k.

Measured of each, over seeds: seconds to train, recall@20 of held-back items, stability of k-means' groups (adjusted
Rand index between seeds), and how much more alike texts are inside a group than across groups (shared 3- to 5-grams of
words, ratio of means; needs recorded texts). --copies shows how training grows with the number of users: of so many
copies of the users, each with four fifths of their ratings drawn anew, the seconds of ALS and of one LightGCN epoch.
LightGCN comes from torch-geometric, which the product does not need: install it beside it for this script (`pip install
torch-geometric`).
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import vstack
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from benchmarks._corpus import read_corpus
from laser_recsys.cache import default_cache_dir
from laser_recsys.datasets.catalogue import read_dataset
from laser_recsys.datasets.dataset import Ratings, split
from laser_recsys.groups.collaborative import NUM_FACTORS, item_vectors, rating_matrix, user_vectors
from laser_recsys.groups.groups import Groups, stability

Vectors = tuple[NDArray[Any], NDArray[Any]]  # of users and items
# Users beyond these are held out in every experiment on the recorded texts.
LAST_USER_WITH_TEXT = 680
NUM_LAYERS, NUM_EPOCHS, BATCH = 3, 40, 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, metavar="F", help="recorded texts of users: JSON lines with id and text")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--num-groups", type=int, nargs="+", default=[3, 5, 10], metavar="K")
    parser.add_argument("--copies", type=int, nargs="+", default=[], metavar="N", help="of all users (default: none)")
    arguments = parser.parse_args()
    dataset = read_dataset("ml-100k", None, default_cache_dir())
    parts = split(dataset.ratings)
    keys, item_keys = np.array(sorted(dataset.users)), np.array(sorted(dataset.items))
    past = rating_matrix(keys, item_keys, parts.past)
    held_back = rating_matrix(keys, item_keys, Ratings.sort(*_joined(parts.training, parts.validation, parts.test)))
    alike = _likeness(arguments.corpus, keys) if arguments.corpus else None
    methods: dict[str, Callable[[Any, int], Vectors]] = {"als": als}
    if importlib.util.find_spec("torch_geometric"):
        methods["lightgcn"] = lightgcn
    else:
        print("lightgcn: left out, torch-geometric is not installed")
    for name, train in methods.items():
        started = time.perf_counter()
        runs = [train(past, seed) for seed in range(arguments.seeds)]
        seconds = (time.perf_counter() - started) / arguments.seeds
        recall = np.mean([recall_at_20(run, past, held_back) for run in runs])
        print(f"{name}: {seconds:.1f} s, recall@20 {recall:.4f}")
        for num_groups in arguments.num_groups:
            groups = [
                KMeans(num_groups, n_init=10, random_state=seed).fit_predict(normalize(users))
                for seed, (users, _) in enumerate(runs)
            ]
            named = [Groups(keys, labels.astype(np.int64), num_groups, name) for labels in groups]
            shown = f"  k={num_groups}: adjusted Rand index {stability(named):.3f}"
            if alike is not None:
                shown += f", texts inside groups {np.mean([alike(labels) for labels in groups]):.3f} times as alike"
            print(shown)
    for num_copies in arguments.copies:
        many = copied(past, num_copies)
        for name, train in methods.items():
            started = time.perf_counter()
            if name == "lightgcn":
                lightgcn(many, 0, num_epochs=1)
            else:
                train(many, 0)
            seconds = time.perf_counter() - started
            what = "one epoch" if name == "lightgcn" else "in all"
            print(f"{many.shape[0]} users, {many.nnz} ratings: {name} {seconds:.1f} s, {what}", flush=True)


def copied(past: Any, num_copies: int, share: float = 0.8) -> Any:
    """The users so many times, each time with a share of their ratings."""
    random = np.random.default_rng(0)
    parts = []
    for _ in range(num_copies):
        part = past.tocoo(copy=True)
        kept = random.random(part.nnz) < share
        part.row, part.col, part.data = part.row[kept], part.col[kept], part.data[kept]
        parts.append(part)
    return vstack(parts).tocsr()


def als(past: Any, seed: int) -> Vectors:
    """The product's own vectors."""
    items = item_vectors(past, seed)
    return user_vectors(items, past), items


def lightgcn(past: Any, seed: int, num_epochs: int = NUM_EPOCHS) -> Vectors:
    """torch-geometric's LightGCN, 32 dimensions, 3 layers, BPR loss."""
    from torch_geometric.nn import LightGCN

    torch.manual_seed(seed)
    num_users, num_items = past.shape
    rated = past.tocoo()
    users, items = torch.from_numpy(rated.row).long(), torch.from_numpy(rated.col).long() + num_users
    edges = torch.cat([torch.stack([users, items]), torch.stack([items, users])], 1)
    network = LightGCN(num_users + num_items, NUM_FACTORS, NUM_LAYERS)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(num_epochs):
        for places in torch.randperm(len(users)).split(BATCH):
            others = torch.randint(num_users, num_users + num_items, (len(places),))
            positive = torch.stack([users[places], items[places]])
            pairs = torch.cat([positive, torch.stack([users[places], others])], 1)
            liked, drawn = network(edges, pairs).chunk(2)
            loss = network.recommendation_loss(liked, drawn, node_id=pairs.unique(), lambda_reg=1e-4)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        vectors = network.get_embedding(edges).numpy()
    return vectors[:num_users], vectors[num_users:]


def recall_at_20(vectors: Vectors, past: Any, held_back: Any) -> float:
    """Mean over users of the share of held-back items among the 20 best that are not in the past."""
    scores = vectors[0] @ vectors[1].T
    scores[past.nonzero()] = -np.inf
    best = np.argpartition(-scores, 20, axis=1)[:, :20]
    hits = [
        np.isin(best[row], wanted.indices).sum() / min(20, wanted.nnz)
        for row, wanted in enumerate(held_back)
        if wanted.nnz
    ]
    return float(np.mean(hits))


def _joined(*parts: Ratings) -> list[NDArray[Any]]:
    names = ("user_ids", "item_ids", "stars", "timestamps")
    return [np.concatenate([getattr(part, name) for part in parts]) for name in names]


def _likeness(corpus: Path, keys: NDArray[np.int64]) -> Callable[[NDArray[Any]], float]:
    rows = read_corpus(corpus)
    texts = {int(row["id"]): row["text"] for row in rows if int(row["id"]) <= LAST_USER_WITH_TEXT}
    with_text = np.flatnonzero(np.isin(keys, list(texts)))
    table = TfidfVectorizer(ngram_range=(3, 5), binary=True).fit_transform(
        [texts[key] for key in keys[with_text].tolist()]
    )
    alike = (table @ table.T).toarray()
    np.fill_diagonal(alike, np.nan)

    def ratio(labels: NDArray[Any]) -> float:
        groups = labels[with_text]
        same = groups[:, None] == groups[None]
        return float(np.nanmean(alike[same]) / np.nanmean(alike[~same]))

    return ratio


if __name__ == "__main__":
    main()
