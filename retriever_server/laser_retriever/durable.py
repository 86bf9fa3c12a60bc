"""File operations that survive power loss: what is written here is on stable storage when the call returns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def sync_directory(path: Path) -> None:
    """Makes the directory's entries (created, renamed, removed names) durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> None:
    """Creates a directory and its missing parents, each durable in the one above.

    Raises:
        NotADirectoryError, FileExistsError: a file stands in the way.
    """
    missing: list[Path] = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Writes a file and its content's durability; its name becomes durable with its directory."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file so that at every moment either the old or the new content stands there, whole."""
    temporary = path.with_name(path.name + ".tmp")
    write_file(temporary, data)
    temporary.rename(path)
    sync_directory(path.parent)


def json_bytes(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
