"""Settings of the retriever's tests."""

from __future__ import annotations

from hypothesis import settings

# A timing is a benchmark, never a test; the first example compiles kernels.
settings.register_profile("retriever", deadline=None)
settings.load_profile("retriever")
