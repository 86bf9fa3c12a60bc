"""Holds who may import whom, who touches the stubs, and who reads argv and the environment."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "laser_protocol": ROOT / "protos",
    "laser_client": ROOT / "client",
    "laser_retriever": ROOT / "retriever_server",
    "laser_verifier": ROOT / "verifier_server",
    "laser_recsys": ROOT / "recsys",
}
MAY_IMPORT = {
    "laser_protocol": set(),
    "laser_client": {"laser_protocol"},
    "laser_retriever": {"laser_protocol"},
    "laser_verifier": {"laser_protocol"},
    "laser_recsys": {"laser_protocol", "laser_client", "laser_retriever", "laser_verifier"},
}
# In the servers only these touch the generated stubs: the service with its messages, and the adapters to a remote
# service with what they send.
STUB_FILES = {
    "laser_retriever": {"service.py", "draft_messages.py"},
    "laser_verifier": {"service.py", "shard_stream.py", "remote_pools.py", "outbox.py"},
}


def modules(package: str) -> list[Path]:
    files = sorted((PACKAGES[package] / package).rglob("*.py"))
    return [path for path in files if not path.stem.endswith(("_pb2", "_pb2_grpc"))]


def every_module() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in modules(package):
            yield package, path


def imported_names(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Every import, wherever it stands, as a dotted name: `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node, f"{node.module or ''}.{alias.name}"


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf8"), str(path))


CASES = [pytest.param(package, path, id=str(path.relative_to(PACKAGES[package]))) for package, path in every_module()]


@pytest.mark.parametrize(("package", "path"), CASES)
def test_imports_run_one_way(package, path):
    for node, name in imported_names(parse(path)):
        top = name.split(".")[0]
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"line {node.lineno}: relative import"
        if top in PACKAGES and top != package:
            assert top in MAY_IMPORT[package], f"line {node.lineno}: {package} must not import {name}"


@pytest.mark.parametrize(("package", "path"), CASES)
def test_in_the_servers_only_the_service_and_the_remote_adapters_touch_the_stubs(package, path):
    allowed = STUB_FILES.get(package)
    if allowed is None or path.name in allowed:
        return
    touching = [
        f"line {node.lineno}: {name}"
        for node, name in imported_names(parse(path))
        if any(part.endswith(("_pb2", "_pb2_grpc")) for part in name.split("."))
    ]
    assert touching == [], f"only {sorted(allowed)} may touch the stubs"


@pytest.mark.parametrize(("package", "path"), CASES)
def test_only_cli_reads_argv_and_the_environment(package, path):
    if path.name == "cli.py":
        return
    reading = {"sys.argv", "os.environ", "os.environb", "os.getenv"}
    tree = parse(path)
    found = [f"line {node.lineno}: {ast.unparse(node)}" for node in ast.walk(tree) if dotted(node) in reading]
    found += [f"line {node.lineno}: {name}" for node, name in imported_names(tree) if name in reading]
    assert found == []


@pytest.mark.parametrize(("package", "path"), CASES)
def test_nothing_is_imported_for_type_checkers_only(package, path):
    assert "TYPE_CHECKING" not in {name.split(".")[-1] for _, name in imported_names(parse(path))}
    assert "typing.TYPE_CHECKING" not in {dotted(node) for node in ast.walk(parse(path))}


def dotted(node: ast.AST) -> str:
    """`a.b` of an attribute access on a plain name, else empty."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return ""


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("laser_client", ("numpy", "torch", "transformers", "numba", "pyarrow", "tqdm")),
        ("laser_retriever", ("torch", "transformers")),
    ],
)
def test_a_package_loads_without_what_it_does_not_need(package, forbidden):
    names = [
        ".".join(path.relative_to(PACKAGES[package]).with_suffix("").parts).removesuffix(".__init__")
        for path in modules(package)
    ]
    if package == "laser_client":
        names = [package]  # its command has a progress bar, the library has none
    elif names == [package]:
        pytest.skip(f"{package} has no modules yet")
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        f"print([name for name in {forbidden!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
