"""The comparison with vLLM: what is run in which order, and what becomes of the runs. No engine is started."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from benchmarks.peers import vllm_child
from benchmarks.peers.cell import Cell, Run, append_run, check_same_work, missing, read_runs
from benchmarks.peers.environment import environment_variables
from benchmarks.peers.page import write_page
from benchmarks.peers.roofline import roofline
from benchmarks.peers.summary import summarise, text_table
from benchmarks.peers.workload import read_workload


def run(mode: str, seconds: float, run_idx: int = 0, output: tuple[int, ...] = (1, 2, 3, 4)) -> Run:
    stats = {"num_steps": 2.0, "num_draft_tokens": 6.0} if mode.startswith("laser") else {}
    return Run(Cell("all", mode, 8), run_idx, "1", 2, 3, 4, seconds, (output, (5, 6, 7, 8)), stats)


def test_runs_alternate_and_those_that_are_there_are_not_run_again() -> None:
    cells = [Cell("all", mode, 8) for mode in ("vllm-plain", "laser-plain")]
    plan = missing(cells, 2, [run("laser-plain", 1.0)])
    assert [(cell.mode, run_idx) for cell, run_idx in plan] == [
        ("vllm-plain", 0),
        ("laser-plain", 1),
        ("vllm-plain", 1),
    ]


def test_runs_of_other_prompts_are_not_mixed_in() -> None:
    done = [run("vllm-plain", 1.0)]
    check_same_work(done, Cell("all", "vllm-plain", 8), num_prompts=2, max_new_tokens=4)
    check_same_work(done, Cell("all", "vllm-plain", 1), num_prompts=48, max_new_tokens=4)
    with pytest.raises(ValueError, match="vllm-plain@8 has runs of 2 prompts and 4 new tokens, asked for are 64 and 4"):
        check_same_work(done, Cell("all", "vllm-plain", 8), num_prompts=64, max_new_tokens=4)


def test_runs_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "results" / "runs.jsonl"
    assert read_runs(path) == []
    runs = [run("vllm-plain", 2.0), run("laser-strict", 1.0)]
    for one in runs:
        append_run(path, one)
    assert read_runs(path) == runs


def test_ratios_are_of_medians_over_whole_runs(tmp_path: Path) -> None:
    runs = [run("vllm-suffix", seconds, i) for i, seconds in enumerate((2.0, 4.0, 100.0))]
    runs += [run("laser-strict", 2.0), run("laser-plain", 8.0), run("laser-relaxed", 1.0, output=(9, 9, 9, 9))]
    rows, ratios = summarise(runs)
    assert {row.cell.mode: row.median for row in rows} == {
        "vllm-suffix": 2.0, "laser-plain": 1.0, "laser-strict": 4.0, "laser-relaxed": 8.0
    }  # fmt: skip
    assert [(ratio.ours, ratio.theirs, ratio.value) for ratio in ratios] == [
        ("laser-strict", "vllm-suffix", 2.0),
        ("laser-relaxed", "vllm-suffix", 4.0),
        ("laser-relaxed", "laser-plain", 8.0),
    ]
    equal = {row.cell.mode: row.num_equal for row in rows}
    assert equal == {"vllm-suffix": None, "laser-plain": 2, "laser-strict": 2, "laser-relaxed": 1}
    assert [row.tokens_per_step for row in rows if row.cell.mode == "laser-strict"] == [4.0]
    assert "laser-strict / vllm-suffix: 2.00" in text_table(rows, ratios)
    write_page(tmp_path / "peers.html", rows, ratios)
    page = (tmp_path / "peers.html").read_text(encoding="utf8")
    assert page.count("<svg") == 1 and "src=" not in page and "http" not in page.replace("http://www.w3.org", "")


def test_the_best_over_concurrencies_is_beside_the_best_mode_of_vllm(tmp_path: Path) -> None:
    at_one = [run("vllm-ngram", 2.0), run("vllm-suffix", 4.0), run("laser-relaxed", 4.0)]
    at_many = [dataclasses.replace(each, cell=Cell("all", each.cell.mode, 64), seconds=1.0) for each in at_one[1:]]
    rows, ratios = summarise([*at_one, *at_many])
    assert [(each.theirs, each.value) for each in ratios if each.concurrency is None] == [("vllm-suffix at 64", 1.0)]
    assert "best    laser-relaxed / vllm-suffix at 64: 1.00" in text_table(rows, ratios)
    write_page(tmp_path / "peers.html", rows, ratios)
    assert "The best over all" in (tmp_path / "peers.html").read_text(encoding="utf8")
    _, of_one = summarise(at_one)
    assert all(ratio.concurrency is not None for ratio in of_one)


def test_the_roofline_counts_what_prompts_and_outputs_need(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=10, hidden_size=4, intermediate_size=6, num_hidden_layers=2, num_attention_heads=1)
    config.save_pretrained(tmp_path)
    layers, head = 2 * (4 * 4 * 4 + 3 * 4 * 6), 10 * 4
    operations = 2 * (5 * (layers + head) + 7 * layers)
    reached = roofline(tmp_path, [[1] * 3, [1] * 4], 5, operations_per_s=operations)
    assert reached == pytest.approx(5.0)
    rows, ratios = summarise([run("laser-strict", 4.0)])
    assert "laser-strict: 40% of a roofline of 5" in text_table(rows, ratios, {rows[0].cell: reached})


def test_accepted_tokens_are_split_by_what_spoke_for_them(tmp_path: Path) -> None:
    counted = {f"laser_accepted_tokens_total/{name}": value for name, value in
               {"own_text": 1.0, "pool": 5.0, "ancestor_1": 1.0, "ancestor_2": 1.0}.items()}  # fmt: skip
    strict = dataclasses.replace(run("laser-strict", 1.0), stats=counted | {"num_steps": 4.0})
    rows, ratios = summarise([strict, run("laser-plain", 1.0)])
    assert [row.accepted_shares for row in rows] == [None, (0.125, 0.625, 0.25)]
    assert "12%/62%/25%" in text_table(rows, ratios)
    write_page(tmp_path / "peers.html", rows, ratios)
    assert "12 % / 62 % / 25 %" in (tmp_path / "peers.html").read_text(encoding="utf8")


def test_the_least_repeating_half_is_chosen_and_prompts_are_no_documents(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = [
        {"id": i, "prompt_token_ids": [i], "output_token_ids": [1] * 40 if i % 2 else list(range(40))}
        for i in range(1, 9)
    ]
    corpus.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf8")
    workload = read_workload(corpus, range(1, 3), range(3, 7), "least", 10)
    assert workload.prompts == ([4], [6])
    assert workload.warm_up == ([1], [2])
    with pytest.raises(ValueError, match="none in both"):
        read_workload(corpus, range(1, 4), range(3, 7), "all", 10)


def test_vllm_gets_neither_our_path_nor_our_thread_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "ours")
    variables = environment_variables(tmp_path)
    assert "PYTHONPATH" not in variables and variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert set(vllm_child.SPECULATION) == {"plain", "ngram", "suffix"}
