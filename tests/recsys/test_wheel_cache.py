from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from laser_recsys.cache import CacheError, WheelPin, fetch_wheel, publish_directory
from laser_recsys.files import building


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip takes wheels from, and no network."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return directory


def put_wheel(index: Path) -> WheelPin:
    path = index / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        archive.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
    return WheelPin("tiny-data", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_wheel_is_downloaded_once_and_found_in_the_cache_afterwards(index: Path, tmp_path: Path) -> None:
    pin = put_wheel(index)
    first = fetch_wheel(pin, tmp_path / "cache")
    (index / first.name).unlink()
    assert fetch_wheel(pin, tmp_path / "cache") == first
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny_data-1.0-py3-none-any.whl"]


def test_a_package_the_index_lacks_is_named_with_what_to_do(index: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"cannot download tiny-data==1\.0: No matching .*pip download --no-deps"):
        fetch_wheel(WheelPin("tiny-data", "1.0", "0" * 64), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_of_another_hash_is_refused_and_not_kept(index: Path, tmp_path: Path) -> None:
    pin = put_wheel(index)
    with pytest.raises(CacheError, match=r"has sha256 .* must be 000"):
        fetch_wheel(WheelPin(pin.name, pin.version, "0" * 64), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_was_half_built_is_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), building(tmp_path / "made") as partial:
        partial.mkdir()
        (partial / "file").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_another_process_published_first_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("theirs")
    with building(target) as built:
        built.mkdir()
        (built / "config.json").write_text("ours")
        publish_directory(built, target)
    assert (target / "config.json").read_text() == "theirs"


def test_publishing_over_a_file_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.write_text("a file")
    with building(target) as built:
        built.mkdir()
        with pytest.raises(CacheError, match="cannot publish"):
            publish_directory(built, target)
