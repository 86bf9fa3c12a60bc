from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from laser_recsys.datasets.catalogue import read_dataset
from laser_recsys.datasets.dataset import Dataset, DatasetError

# Lines as the archives have them.
ML_1M = {
    "movies.dat": "1::Toy Story (1995)::Animation|Children's|Comedy\n"
    "73::Misérables, Les (1995)::Drama|Musical\n"
    "260::Star Wars: Episode IV - A New Hope (1977)::Action|Adventure|Fantasy|Sci-Fi\n".encode("latin1"),
    "users.dat": b"1::F::1::10::48067\n2::M::56::16::70072\n",
    "ratings.dat": b"1::1::5::978824268\n1::260::4::978300760\n2::73::3::978299620\n",
}
ML_10M = {
    "movies.dat": "1::Toy Story (1995)::Adventure|Animation|Children|Comedy|Fantasy\n"
    "73::Misérables, Les (1995)::Drama|War\n8::Tom and Huck (1995)::(no genres listed)\n".encode(),
    "ratings.dat": b"1::1::5::838985046\n1::73::4.5::838983525\n9::8::0.5::838983392\n",
}
ML_25M = {
    "movies.csv": b"movieId,title,genres\n1,Toy Story (1995),Adventure|Animation\n"
    b'11,"American President, The (1995)",Comedy|Drama|Romance\n171749,Death Note: Desu noto,(no genres listed)\n',
    "ratings.csv": b"userId,movieId,rating,timestamp\n1,11,5.0,1147880044\n"
    b"1,1,3.5,1147868817\n2,171749,4.0,1577943613\n",
}
Read = Callable[..., Dataset]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(name: str, files: dict[str, bytes], **changed: bytes) -> Dataset:
        for file, data in {**files, **{key.replace("_", "."): value for key, value in changed.items()}}.items():
            (tmp_path / file).write_bytes(data)
        return read_dataset(name, tmp_path, tmp_path / "cache")

    return read


def test_ml_1m_is_read_with_latin_letters_colons_in_titles_and_coded_users(read: Read) -> None:
    dataset = read("ml-1m", ML_1M)
    assert dataset.items[73].title == "Misérables, Les"
    assert (dataset.items[260].title, dataset.items[260].year) == ("Star Wars: Episode IV - A New Hope", 1977)
    assert dataset.items[260].genres == ("Action", "Adventure", "Fantasy", "Sci-Fi")
    assert dataset.users[1].attributes == {"age": "under 18", "gender": "F", "occupation": "K-12 student"}
    own = dataset.ratings.of_user(1)
    assert (own.item_ids.tolist(), own.stars.tolist()) == ([260, 1], [4, 5])


def test_ml_10m_is_read_with_half_stars_and_no_users_file(read: Read) -> None:
    dataset = read("ml-10m", ML_10M)
    assert dataset.ratings.of_user(1).stars.tolist() == [4.5, 5]
    assert dataset.items[8].genres == ()
    assert sorted(dataset.users) == [1, 9] and dataset.users[9].attributes == {}


@pytest.mark.parametrize("name", ["ml-25m", "ml-32m"])
def test_ml_25m_and_32m_are_read_with_quoted_titles(read: Read, name: str) -> None:
    dataset = read(name, ML_25M)
    assert dataset.name == name
    assert (dataset.items[11].title, dataset.items[11].year) == ("American President, The", 1995)
    assert (dataset.items[171749].title, dataset.items[171749].year) == ("Death Note: Desu noto", None)
    assert dataset.ratings.of_user(1).item_ids.tolist() == [1, 11]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ratings_dat": b"1::1::5\n"}, r"ratings.dat, line 1: .* must have the columns"),
        ({"ratings_dat": b"1::1::5::9\n1::one::5::9\n"}, "ratings.dat, line 2: item is 'one', must be a number"),
        ({"ratings_dat": b"1::1::many::9\n"}, "ratings.dat, line 1: stars is 'many', must be a number"),
        ({"ratings_dat": b"1::1::5::9\n1::1::nan::9\n"}, "ratings.dat, line 2: stars is nan, must be from 0.0 to 5.0"),
        ({"ratings_dat": b"1::1::7::9\n"}, "ratings.dat, line 1: stars is 7, must be from 0.0 to 5.0"),
        ({"ratings_dat": b"1::1::5::inf\n"}, "ratings.dat, line 1: time is inf, must be a number of seconds"),
        ({"ratings_dat": b"1::1::5::9\n1::\xff::5::9\n"}, "ratings.dat, line 2: byte 0xff is not UTF8"),
        (
            {"movies_dat": "1::A (1995)::Drama\n2::\u00c9 (1995)::War\n".encode()},
            "movies.dat, line 2: the file is UTF-8",
        ),
        ({"ratings_dat": b"1::99::5::9\n"}, "the ratings name item 99, which the items lack"),
        ({"ratings_dat": b"7::1::5::9\n"}, "the ratings name user 7, which the users lack"),
        (
            {"users_dat": ML_1M["users.dat"] + b"1::M::25::1::10023\n"},
            "users.dat, line 3: user 1 stands on line 1 alre",
        ),
        ({"users_dat": b"1::F::1::99::48067\n"}, "users.dat, line 1: occupation is 99, must be 0 to 20"),
        ({"users_dat": b"1::F::1::10\n"}, "users.dat, line 1: 4 columns, must be 5"),
        ({"movies_dat": b"1::A (1995)::Drama\n1::B (1995)::War\n"}, "movies.dat, line 2: movie 1 stands on line 1 al"),
        ({"movies_dat": b"x::A (1995)::Drama\n"}, "movies.dat, line 1: MovieID is 'x', must be a whole number"),
    ],
)
def test_bad_lines_of_ml_1m_are_named_with_field_value_and_what_is_right(
    read: Read, changed: dict[str, bytes], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read("ml-1m", ML_1M, **changed)


def test_latin_letters_that_end_lines_elsewhere_do_not_here(read: Read) -> None:
    data = "1::Toy\u0085Story (1995)::Comedy\n".encode("latin1")
    assert "Toy" in read("ml-1m", ML_1M, movies_dat=data, ratings_dat=b"1::1::5::9\n").items[1].title


def test_a_file_in_another_encoding_is_named_with_line_and_byte(read: Read) -> None:
    data = "1::Toy Story (1995)::Comedy\n73::Misérables, Les (1995)::Drama\n".encode("latin1")
    with pytest.raises(DatasetError, match=r"movies.dat, line 2: byte 0xe9 is not UTF8; .*iconv -t utf8"):
        read("ml-10m", ML_10M, movies_dat=data)


def test_missing_and_swapped_columns_are_named(read: Read) -> None:
    with pytest.raises(DatasetError, match=r"ratings.csv has columns .* lacks \['timestamp'\]"):
        read("ml-25m", ML_25M, ratings_csv=b"userId,movieId,rating\n1,1,5.0\n")
    with pytest.raises(DatasetError, match=r"ratings.csv has columns .* must be .* in this order"):
        read("ml-25m", ML_25M, ratings_csv=b"movieId,userId,rating,timestamp\n1,1,5.0,9\n")


@pytest.mark.parametrize("name", ["ml-1m", "ml-10m", "ml-25m", "ml-32m"])
def test_missing_files_are_named_with_where_to_get_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"not shipped .* download https://grouplens.org.*--source DIR"):
        read_dataset(name, None, tmp_path)
    with pytest.raises(DatasetError, match=r"holds no ratings\.\w+, which .* needs: download https://grouplens.org"):
        read_dataset(name, tmp_path, tmp_path)


def test_an_unknown_dataset_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="dataset is 'ml-2m', must be one of ml-100k, ml-1m"):
        read_dataset("ml-2m", None, tmp_path)
