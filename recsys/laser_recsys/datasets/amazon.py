"""Amazon-Books in the three published formats: ratings-only CSV with the metadata file of the same year.

Source: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon (2014), https://nijianmo.github.io/amazon (2018) and
https://amazon-reviews-2023.github.io. 2014's metadata are Python literals, the later ones JSON, one object a line.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from tqdm import tqdm

from laser_recsys.datasets.dataset import Dataset, DatasetError, Item, Ratings, User
from laser_recsys.datasets.tables import RatingColumns, numbers, open_binary, rating_columns

Fields = Mapping[str, Any]
_YEAR = re.compile(r"\b(1[5-9]\d\d|20\d\d)\b")
_TAG = re.compile(r"<[^>]*>")
_AUTHOR_PAGE = re.compile(r"Visit Amazon's (.*) Page")
# Some titles of 2018 are a script of the page they were read from, which asks for the time.
_SCRIPT = "getTime"


@dataclass(frozen=True, slots=True)
class Edition:
    """How one year's files are written.

    Attributes:
        ratings: columns of the ratings-only CSV.
        parse: one line of the metadata to its fields.
        key: the metadata's field with the item's id.
        categories: the item's categories, the most general first, out of its fields.
        creator, year: out of its fields.
    """

    ratings: RatingColumns
    parse: Callable[[str], Any]
    key: str
    categories: Callable[[Fields], list[str]]
    creator: Callable[[Fields], str]
    year: Callable[[Fields], int | None]


def _year_in(text: object) -> int | None:
    match = _YEAR.search(str(text or ""))
    return int(match[1]) if match else None


def _author_2018(fields: Fields) -> str:
    """In part the words of the link to the author's page."""
    brand = str(fields.get("brand") or "")
    page = _AUTHOR_PAGE.fullmatch(brand.strip())
    return page[1] if page else brand


def _author_2023(fields: Fields) -> str:
    author = fields.get("author")
    return str((author.get("name") if isinstance(author, dict) else None) or fields.get("store") or "")


EDITIONS: Mapping[str, Edition] = {
    "2014": Edition(
        RatingColumns(("user", "item", "stars", "time"), ","),
        ast.literal_eval,
        "asin",
        # A book may stand below other departments too.
        lambda fields: [
            str(name) for path in fields.get("categories") or [] if path[:1] == ["Books"] for name in path
        ],
        lambda fields: str(fields.get("brand") or ""),
        lambda fields: None,
    ),
    "2018": Edition(
        RatingColumns(("item", "user", "stars", "time"), ","),
        json.loads,
        "asin",
        lambda fields: [str(name) for name in fields.get("category") or []],
        _author_2018,
        lambda fields: None,
    ),
    "2023": Edition(
        RatingColumns(
            ("user", "item", "stars", "time"), ",",
            header=("user_id", "parent_asin", "rating", "timestamp"), time_unit_s=0.001,
        ),
        json.loads,
        "parent_asin",
        lambda fields: [str(name) for name in fields.get("categories") or []],
        _author_2023,
        lambda fields: _year_in((fields.get("details") or {}).get("Publisher")),
    ),
}  # fmt: skip


def read_amazon_books(ratings_path: Path, metadata_path: Path, year: str, min_ratings: int = 5) -> Dataset:
    """Reads one year's Amazon-Books. Items without a title in the metadata are left out, as nothing can be asked of
    them.

    Args:
        ratings_path: ratings-only CSV, may be gzipped.
        metadata_path: one object a line, may be gzipped.
        year: "2014", "2018" or "2023".
        min_ratings: only the k-core is kept: every user and item has at least so many ratings.

    Raises:
        DatasetError: a file is malformed, or nothing is left.
    """
    edition = EDITIONS[year]
    table = rating_columns(ratings_path, edition.ratings, pyarrow.string()).combine_chunks()
    users, items = (table[column].combine_chunks().dictionary_encode() for column in ("user", "item"))
    every = Ratings.sort(
        users.indices.to_numpy().astype(np.int64),
        items.indices.to_numpy().astype(np.int64),
        table["stars"].to_numpy(),
        numbers(table, "time"),
    )
    ratings = every.newest().core(min_ratings)
    wanted = {items.dictionary[number].as_py(): number for number in np.unique(ratings.item_ids).tolist()}
    books = {wanted[item.id]: item for item in _books(metadata_path, edition, wanted)}
    titled = np.isin(ratings.item_ids, np.fromiter(books, np.int64, len(books)))
    ratings = ratings.take(titled).core(min_ratings)
    if not len(ratings):
        raise DatasetError(
            f"{ratings_path.name} and {metadata_path.name} have no {min_ratings}-core in common: are both of {year}, "
            "or is --min-ratings too high?"
        )
    left = np.unique(ratings.item_ids).tolist()
    named = {number: User(users.dictionary[number].as_py(), {}) for number in np.unique(ratings.user_ids).tolist()}
    return Dataset(f"amazon-books-{year}", "book", {number: books[number] for number in left}, named, ratings)


def _books(path: Path, edition: Edition, wanted: Mapping[str, int]) -> Iterator[Item]:
    for line, fields in _objects(path, edition.parse):
        item_id = fields.get(edition.key)
        if item_id is None:
            raise DatasetError(f"{path.name}, line {line}: no field {edition.key!r}; fields are {sorted(fields)}")
        title = _clean(fields.get("title"))
        if _SCRIPT in title:
            title = ""
        if item_id in wanted and title:
            description = fields.get("description") or ""
            yield Item(
                id=item_id,
                title=title,
                year=edition.year(fields),
                genres=_genres(edition.categories(fields)),
                creator=_clean(edition.creator(fields)),
                description=_clean(" ".join(description) if isinstance(description, list) else description),
            )


def _objects(path: Path, parse: Callable[[str], Any]) -> Iterator[tuple[int, Fields]]:
    with open_binary(path) as file, tqdm(desc=path.name, unit="item", leave=False) as bar:
        for number, data in enumerate(file, start=1):
            try:
                fields = parse(data.decode("utf8"))
            except (ValueError, SyntaxError) as error:
                raise DatasetError(f"{path.name}, line {number}: {data[:80]!r} is no object: {error}") from None
            if not isinstance(fields, dict):
                raise DatasetError(f"{path.name}, line {number}: {data[:80]!r} must be an object")
            yield number, fields
            bar.update()


def _genres(categories: list[str]) -> tuple[str, ...]:
    """The categories below "Books", each once."""
    cleaned = dict.fromkeys(_clean(name) for name in categories)
    return tuple(name for name in cleaned if name and name != "Books")


def _clean(text: object) -> str:
    """One line without markup."""
    return " ".join(html.unescape(_TAG.sub(" ", str(text or ""))).split())
