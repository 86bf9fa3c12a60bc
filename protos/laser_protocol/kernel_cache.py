"""What both servers' kernels need of numba's cache and it does not give: it is renewed whenever a module beside a
kernel's changes, and what a full disk or a kill has left of it counts as nothing. Needs numba."""

from __future__ import annotations

import functools
import itertools
import logging
from pathlib import Path
from typing import Any

from numba.core.caching import IndexDataCacheFile

logger = logging.getLogger(__name__)


def renew_with_package(compiled: Any, directory: Path) -> None:
    """Has a cached kernel compiled anew when any module in the directory has changed.

    numba asks for its own module only, but what it calls is compiled into it: columns of a table, say, that have become
    more. Reaches into numba, whose cache has no such setting.
    """
    cache = compiled._cache
    cache._cache_file = _CacheFile(cache._cache_path, cache._impl.filename_base, _stamp(directory))


class _CacheFile(IndexDataCacheFile):  # type: ignore[misc]
    """An index of a kernel's machine code by signature, and a file of code for each."""

    def load(self, key: Any) -> Any:
        """The code; None: there is none that can be read."""
        try:
            return super().load(key)
        except Exception as error:  # a file that was cut off may fail anyhow
            logger.warning("kernel.cache_damaged index=%s reason=%r", self._index_path, error)
            return None

    def save(self, key: Any, data: Any) -> None:
        """Writes the code, then the index: numba begins with the index, and a process that ends between the two leaves
        one of now that names the code of before."""
        try:
            overloads = self._load_index()
        except Exception:
            overloads = {}
        names = map(self._data_name, itertools.count(1))
        name = overloads.get(key) or next(name for name in names if name not in overloads.values())
        try:
            self._save_data(name, data)
            self._save_index({**overloads, key: name})
        except OSError as error:
            logger.warning("kernel.not_cached index=%s reason=%s", self._index_path, error.strerror)


@functools.cache
def _stamp(directory: Path) -> tuple[tuple[str, int, int], ...]:
    found = ((path.name, path.stat()) for path in sorted(directory.glob("*.py")))
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)
