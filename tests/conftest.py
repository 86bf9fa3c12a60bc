from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exact-full",
        action="store_true",
        help="real-model exactness tests: 24 prompts x 128 tokens (make test-exact) instead of 9 x 40",
    )
