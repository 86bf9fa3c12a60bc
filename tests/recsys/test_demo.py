from __future__ import annotations

import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laser_recsys.cli import main


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_leaves_table_parquet_and_report_and_no_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["demo", "--users", "12", "--max-new-tokens", "24", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    for word in ("tokens_per_step", "plain, one at a time", "relaxed (2, 0.1)", "by documents in the pool"):
        assert word in shown
    knowledge = pq.read_table(output / "knowledge.parquet").to_pylist()
    assert len({row["id"] for row in knowledge}) == len(knowledge) == 12
    held_out = pq.read_table(output / "held_out.parquet").to_pylist()
    assert len(held_out) == 3 * 2
    assert sum(row["num_steps"] for row in held_out if row["acceptance"] == "strict") < sum(
        row["num_steps"] for row in held_out if row["acceptance"] == "plain"
    )
    assert (output / "report.html").read_text(encoding="utf8").count("<svg") == 3
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(output) not in running


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_that_does_not_exist_is_an_error_with_the_verifiers_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--model", str(tmp_path / "nothing"), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "the verifier ended with status" in error
    assert str(tmp_path / "nothing") in error
