"""A tiny MovieLens-100k in the exact format of the `recbole` wheel's files, and finished generations to measure."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from laser_client import Generation, GenerationStats
from laser_recsys.datasets.dataset import Dataset
from laser_recsys.datasets.movielens import read_ml_100k

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
1\tToy Story\t1995\tAnimation Children's Comedy
2\tGoldenEye\t1995\tAction Adventure Thriller
3\tHunt for Red October, The\t1990\tAction Thriller
4\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's
5\tunkonwn\tunkonwn\tunknown
"""
USER = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
MEMBERS = "recbole/dataset_example/ml-100k/ml-100k."

WriteWheel = Callable[..., Path]
MakeGeneration = Callable[..., Generation]


@pytest.fixture
def write_wheel(tmp_path: Path) -> WriteWheel:
    """Writes a `recbole` wheel: twelve users, of whom the odd ones love action and the even ones animation."""
    inter, user = INTER, USER
    for user_id in range(1, 13):
        user += f"{user_id}\t{20 + user_id}\tM\ttechnician\t85711\n"
        loves_action = user_id % 2
        for place, (item_id, is_action) in enumerate([(3, True), (1, False), (2, True), (4, False), (5, False)]):
            stars = 5 if is_action == bool(loves_action) else 1
            inter += f"{user_id}\t{item_id}\t{stars}\t{881250949 + 10 * place}\n"

    def write(inter: str = inter, item: str = ITEM, user: str = user) -> Path:
        path = tmp_path / "recbole-1.2.1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in (("inter", inter), ("item", item), ("user", user)):
                archive.writestr(MEMBERS + name, text)
        return path

    return write


@pytest.fixture
def dataset(write_wheel: WriteWheel) -> Dataset:
    return read_ml_100k(write_wheel())


@pytest.fixture
def make_generation() -> MakeGeneration:
    def make(
        token_ids: Sequence[int],
        num_steps: int | None = None,
        finish_reason: str = "length",
        num_relaxed_tokens: int = 0,
        text: str = "text",
    ) -> Generation:
        stats = GenerationStats(
            num_prompt_tokens=7,
            num_output_tokens=len(token_ids),
            num_steps=len(token_ids) if num_steps is None else num_steps,
            num_draft_tokens=0,
            num_accepted_tokens=0,
            num_relaxed_tokens=num_relaxed_tokens,
            queue_ms=0.0,
            prefill_ms=1.0,
            decode_ms=2.0,
            draft_status="ok",
        )
        reason = "stop" if finish_reason == "stop" else "length"
        return Generation(text, list(token_ids), reason, stats, "request")

    return make
