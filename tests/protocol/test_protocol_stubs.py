"""The checked-in stubs are what the proto files give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")

PROTOS = Path(__file__).parents[2] / "protos"


def test_regenerated_stubs_equal_the_checked_in_ones(tmp_path):
    protos = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("laser_protocol/v1/*.proto"))
    services = [path for path in protos if path.endswith(("retriever.proto", "verifier.proto"))]
    # The plug-ins of mypy-protobuf lie beside the interpreter, which need not be on the PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for outputs, files in (
        ([f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"], protos),
        ([f"--grpc_python_out={tmp_path}", f"--mypy_grpc_out={tmp_path}"], services),
    ):
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, *files]
        done = subprocess.run(command, cwd=PROTOS, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*.py*"))
    checked_in = sorted(path.relative_to(PROTOS) for path in PROTOS.rglob("*_pb2*.py*") if path.suffix != ".pyc")
    assert made == checked_in
    different = [str(path) for path in made if (tmp_path / path).read_bytes() != (PROTOS / path).read_bytes()]
    assert different == []
