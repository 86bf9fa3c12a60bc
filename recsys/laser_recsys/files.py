"""Files that appear complete or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """A path beside `target` to build it at, removed at the end whatever was left there. Publish by renaming it.

    Args:
        target: the final path; its parent is made if missing. The yielded path does not exist yet.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent, ignore_cleanup_errors=True) as made:
        yield Path(made) / target.name
