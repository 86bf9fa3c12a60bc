"""Settings of the retriever's tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A timing is a benchmark, never a test; the first example compiles kernels.
settings.register_profile("retriever", deadline=None)
settings.load_profile("retriever")


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A directory in memory where there is one, for tests that make and remove thousands of files."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as directory:
        yield Path(directory)
