"""Cached machine code of numba kernels: used while nothing has changed, made anew when anything they call has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import laser_retriever.kernel
import laser_verifier.cpu.typed

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
