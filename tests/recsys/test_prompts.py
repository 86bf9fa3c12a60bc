from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laser_recsys.datasets.dataset import Dataset, Ratings, split
from laser_recsys.datasets.movielens import read_ml_100k
from laser_recsys.frameworks.prompts import PromptWriter
from laser_recsys.frameworks.template import load_framework
from laser_recsys.tokens import PromptTokenizer
from tests.recsys.conftest import INTER, WriteWheel
from tests.verifier.tiny import tiny_tokenizer


def kar(dataset: Dataset, past: Ratings | None = None) -> PromptWriter:
    return PromptWriter(load_framework("kar"), dataset, dataset.ratings if past is None else past)


def test_the_prompt_shows_the_past_oldest_first_with_stars_and_nothing_held_back(dataset: Dataset) -> None:
    prompt = kar(dataset, split(dataset.ratings).seen).user(1)
    assert (prompt.id, prompt.kind, prompt.framework) == ("1", "user", "kar")
    assert (
        '"Hunt for Red October, The", 5 stars, "Toy Story", 1 star, "GoldenEye", 5 stars, '
        '"Land Before Time III: The Time of the Great Giving", 1 star;'
    ) in prompt.text
    assert "unkonwn" not in prompt.text


def test_only_the_last_fifteen_ratings_are_shown(dataset: Dataset) -> None:
    items = np.array([2] + 15 * [1], np.int64)
    stars = np.array([4] + 15 * [3], np.float32)
    past = Ratings.sort(np.full(16, 7, np.int64), items, stars, np.arange(16, dtype=np.int64))
    text = kar(dataset, past).user(7).text
    assert text.count('"Toy Story", 3 stars') == 15
    assert "GoldenEye" not in text


def test_half_stars_are_shown_as_such(write_wheel: WriteWheel) -> None:
    dataset = read_ml_100k(write_wheel(inter=INTER + "7\t2\t3.5\t1\n"))
    assert '"GoldenEye", 3.5 stars;' in kar(dataset).user(7).text


def test_a_user_without_a_past_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="user 99 has no ratings"):
        kar(dataset).user(99)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "system is given, but the model has no chat template to hold it: take another framework or model"),
        ("{{ raise_exception('no such role') }}", r"system is refused by the model's chat template \(no such role\)"),
    ],
)
def test_a_system_turn_that_a_verifier_would_refuse_is_not_measured(
    tmp_path: Path, template: str | None, message: str
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        PromptTokenizer(str(tmp_path)).count(["w1 w2"], "w3")
