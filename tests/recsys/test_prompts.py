from __future__ import annotations

import pytest

from laser_recsys.movielens import MovieLens, read_ml_100k, split_by_time
from laser_recsys.prompts import kar_user_prompt
from tests.recsys.conftest import INTER, WriteWheel


def test_the_prompt_shows_the_past_oldest_first_with_stars_and_nothing_held_back(dataset: MovieLens) -> None:
    prompt = kar_user_prompt(1, split_by_time(dataset.ratings).past, dataset.movies)
    assert (prompt.id, prompt.kind, prompt.framework) == ("1", "user", "kar")
    assert (
        '"Hunt for Red October, The", 5 stars, "Toy Story", 1 star, "GoldenEye", 5 stars, '
        '"Land Before Time III: The Time of the Great Giving", 1 star;'
    ) in prompt.text
    assert "unkonwn" not in prompt.text


def test_only_the_last_fifteen_ratings_are_shown(write_wheel: WriteWheel) -> None:
    inter = INTER + "7\t2\t4\t1\n" + "".join(f"7\t1\t3\t{time}\n" for time in range(2, 17))
    dataset = read_ml_100k(write_wheel(inter=inter))
    text = kar_user_prompt(7, dataset.ratings, dataset.movies).text
    assert text.count('"Toy Story", 3 stars') == 15
    assert "GoldenEye" not in text


def test_half_stars_are_shown_as_such(write_wheel: WriteWheel) -> None:
    dataset = read_ml_100k(write_wheel(inter=INTER + "7\t2\t3.5\t1\n"))
    assert '"GoldenEye", 3.5 stars;' in kar_user_prompt(7, dataset.ratings, dataset.movies).text


def test_a_user_without_a_past_is_an_error(dataset: MovieLens) -> None:
    with pytest.raises(ValueError, match="user 99 has no ratings"):
        kar_user_prompt(99, dataset.ratings, dataset.movies)
