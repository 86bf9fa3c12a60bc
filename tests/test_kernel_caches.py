"""Cached machine code of numba kernels: used while nothing has changed, made anew when anything they call has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import laser_retriever.kernel
import laser_verifier.cpu.typed
from laser_protocol.kernel_cache import renew_with_package

RETRIEVER = """
from {package}.suffix_array import _sort_suffixes, build_suffix_array
import numpy as np
build_suffix_array(np.arange(4, dtype=np.int32))
print(sum(_sort_suffixes.stats.cache_hits.values()))
"""
VERIFIER = """
from {package}.cpu.row_kernels import gate_float32
from {package}.cpu.typed import c_function
print(c_function(gate_float32)._cache_hits)
"""


@pytest.mark.parametrize(
    ("module", "depth", "package", "program"),
    [
        (laser_retriever.kernel, 0, "laser_retriever", RETRIEVER),
        (laser_verifier.cpu.typed, 1, "laser_verifier", VERIFIER),
    ],
)
def test_a_cached_kernel_is_renewed_when_a_module_beside_it_changes(
    tmp_path: Path, module: object, depth: int, package: str, program: str
) -> None:
    source = Path(str(module.__file__)).parents[depth]  # type: ignore[attr-defined]
    shutil.copytree(source, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    beside = {"laser_retriever": "matching.py", "laser_verifier": "cpu/linear_kernel.py"}[package]

    def cache_hits() -> int:
        path = os.pathsep.join([str(tmp_path), *sys.path])
        environment = {**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, "-c", program.format(package=package)]
        return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    assert cache_hits() == 0
    assert cache_hits() > 0
    (tmp_path / package / beside).write_text((tmp_path / package / beside).read_text() + "\n# changed\n")
    assert cache_hits() == 0


class Kept:
    """What `renew_with_package` looks at of a compiled kernel."""

    def __init__(self, directory: Path) -> None:
        self._cache_path, self._impl, self._cache = str(directory), self, self
        self.filename_base = "k"


def test_a_cache_that_was_cut_off_counts_as_empty_and_code_is_there_before_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: Any = Kept(tmp_path)
    renew_with_package(kept, tmp_path)
    cache = kept._cache_file
    cache.save("key", ("code", 1))
    assert cache.load("key") == ("code", 1)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            assert cache.load("key") is None
        cache.save("key", ("code", 1))
        assert cache.load("key") == ("code", 1)
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(cache, "_open_for_write", full)
    cache.save("other", ("code", 2))
    assert full.call_count == 1 and cache.load("other") is None, "the code could not be written, so it is not named"
