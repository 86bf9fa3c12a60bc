from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from laser_recsys.datasets.catalogue import read_dataset
from laser_recsys.datasets.dataset import Dataset, DatasetError

USERS = ["AH2L9G3DQHHAJ", "A2IIIDRK3PRRZY", "A1TADCM7YWPQ8M"]
BOOKS = ["0000000116", "0000013714", "000171287X"]
# Every user rated every book: a 3-core. One more user and one more book have a single rating.
RATINGS = [(user, book, 3.0 + number % 3, 1019865600 + number) for number, (user, book) in enumerate(
    (user, book) for user in USERS for book in BOOKS
)] + [("AWLFVCT9128JV", BOOKS[0], 1.0, 1286668800), (USERS[0], "0000031887", 1.0, 1297468800)]  # fmt: skip
# Lines as each year's metadata have them: Python literals, then JSON.
META = {
    "2014": lambda book: str(
        {
            "asin": book, "title": f"Book {book} &amp; more", "categories": [["Books", "Mystery"]],
            "description": "It's <b>old</b>.",
        }
    ),
    "2018": lambda book: json.dumps(
        {
            "category": ["Books", "Mystery", "Crime"], "description": ["Of 2018.", ""],
            "title": f"Book {book} &amp; more", "brand": "Visit Amazon's A. Writer Page", "rank": "1 in Books",
            "asin": book,
        }
    ),
    "2023": lambda book: json.dumps(
        {
            "main_category": "Books", "title": f"Book {book} &amp; more", "description": ["Of 2023."],
            "store": "B (Author)", "categories": ["Books", "Mystery"],
            "details": {"Publisher": "Some House (January 3, 2012)"}, "parent_asin": book,
            "author": {"name": "A. Writer"},
        }
    ),
}  # fmt: skip


def write(folder: Path, year: str, meta: list[str] | None = None, ratings: str | None = None) -> None:
    if ratings is None:
        lines = {
            "2014": [f"{user},{book},{stars},{time}" for user, book, stars, time in RATINGS],
            "2018": [f"{book},{user},{stars},{time}" for user, book, stars, time in RATINGS],
            "2023": ["user_id,parent_asin,rating,timestamp"]
            + [f"{user},{book},{stars},{time * 1000 + 7}" for user, book, stars, time in RATINGS],
        }[year]
        ratings = "\n".join(lines) + "\n"
    (folder / ("ratings_Books.csv" if year == "2014" else "Books.csv")).write_text(ratings)
    meta = [META[year](book) for book in [*BOOKS, "0000031887"]] if meta is None else meta
    name = "meta_Books.jsonl.gz" if year == "2023" else "meta_Books.json.gz"
    with gzip.open(folder / name, "wt", encoding="utf8") as file:
        file.write("\n".join(meta) + "\n")


def read(folder: Path, year: str, min_ratings: int = 3) -> Dataset:
    return read_dataset(f"amazon-books-{year}", folder, folder, min_ratings)


@pytest.mark.parametrize("year", ["2014", "2018", "2023"])
def test_each_years_files_give_the_same_core_with_clean_titles(year: str, tmp_path: Path) -> None:
    write(tmp_path, year)
    dataset = read(tmp_path, year)
    assert (dataset.name, dataset.noun) == (f"amazon-books-{year}", "book")
    assert sorted(user.id for user in dataset.users.values()) == sorted(USERS)
    assert sorted(item.id for item in dataset.items.values()) == sorted(BOOKS)
    assert {item.title for item in dataset.items.values()} == {f"Book {book} & more" for book in BOOKS}
    assert all(item.genres[0] == "Mystery" for item in dataset.items.values())
    first = next(key for key, user in dataset.users.items() if user.id == USERS[0])
    own = dataset.ratings.of_user(first)
    assert [dataset.items[item].id for item in own.item_ids.tolist()] == BOOKS
    assert own.timestamps.tolist() == [1019865600, 1019865601, 1019865602]
    assert own.stars.tolist() == [3, 4, 5]


def test_markup_authors_and_years_are_taken_where_the_format_has_them(tmp_path: Path) -> None:
    write(tmp_path, "2014")
    assert next(iter(read(tmp_path, "2014").items.values())).description == "It's old ."
    write(tmp_path, "2023")
    item = next(iter(read(tmp_path, "2023").items.values()))
    assert (item.creator, item.year, item.description) == ("A. Writer", 2012, "Of 2023.")


def test_categories_of_other_departments_are_no_genres_of_a_book(tmp_path: Path) -> None:
    both = [["Movies & TV", "Drama"], ["Books", "Mystery"]]
    write(tmp_path, "2014", [META["2014"](book).replace("[['Books', 'Mystery']]", str(both)) for book in BOOKS])
    assert {item.genres for item in read(tmp_path, "2014").items.values()} == {("Mystery",)}


def test_of_several_ratings_of_one_book_the_newest_counts(tmp_path: Path) -> None:
    write(tmp_path, "2014")
    path = tmp_path / "ratings_Books.csv"
    path.write_text(f"{USERS[0]},{BOOKS[1]},1.0,1400000000\n" + path.read_text())
    dataset = read(tmp_path, "2014")
    first = next(key for key, user in dataset.users.items() if user.id == USERS[0])
    assert dataset.ratings.of_user(first).stars.tolist() == [3, 5, 1]


@pytest.mark.parametrize("title", ["", "var aPageStart = (new Date()).getTime();"])
def test_a_book_without_title_is_left_out_and_so_are_those_who_then_rated_too_little(
    tmp_path: Path, title: str
) -> None:
    untitled = json.dumps({"asin": BOOKS[2], "title": title})
    write(tmp_path, "2018", [META["2018"](book) for book in BOOKS[:2]] + [untitled])
    assert {item.id for item in read(tmp_path, "2018", min_ratings=2).items.values()} == set(BOOKS[:2])
    with pytest.raises(DatasetError, match=r"have no 3-core in common: are both of 2018"):
        read(tmp_path, "2018", min_ratings=3)


@pytest.mark.parametrize(
    ("year", "meta", "ratings", "message"),
    [
        ("2018", ["{'asin': 'python'}"], None, "meta_Books.json.gz, line 1: .* is no object"),
        ("2023", ['{"asin": "1"}'], None, "meta_Books.jsonl.gz, line 1: no field 'parent_asin'; fields are"),
        ("2014", ["{'asin': '1', 'title':"], None, "meta_Books.json.gz, line 1: .* is no object"),
        ("2014", ["[1]"], None, "line 1: .* must be an object"),
        ("2014", None, "A,B,5.0\n", "ratings_Books.csv, line 1: .* must have the columns"),
        ("2023", None, "user_id,asin,rating,timestamp\nA,B,5.0,1\n", r"lacks \['parent_asin'\]"),
        ("2018", None, "A,B,good,1\n", "Books.csv, line 1: stars is 'good', must be a number"),
    ],
)
def test_malformed_files_are_named_with_line_and_field(
    year: str, meta: list[str] | None, ratings: str | None, message: str, tmp_path: Path
) -> None:
    write(tmp_path, year, meta, ratings)
    with pytest.raises(DatasetError, match=message):
        read(tmp_path, year)


@pytest.mark.parametrize("name", ["ratings_Books.csv.gz", "meta_Books.json.gz"])
def test_a_download_that_was_cut_off_is_named(name: str, tmp_path: Path) -> None:
    write(tmp_path, "2014", None, None)
    path, plain = tmp_path / name, tmp_path / name.removesuffix(".gz")
    if plain.exists():
        path.write_bytes(gzip.compress(plain.read_bytes() * 50))
        plain.unlink()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DatasetError, match=rf"{name} is cut off or damaged .*: download it again"):
        read(tmp_path, "2014")


def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"holds no Books\.csv or Books\.csv\.gz, which amazon-books-2023 needs: downl"
    ):
        read(tmp_path, "2023")
