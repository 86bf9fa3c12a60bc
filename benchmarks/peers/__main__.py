"""LASER beside vLLM on the same prompts: `python -m benchmarks.peers --corpus FILE` or `make bench-peers`.

Every run is appended to OUTPUT/runs.jsonl and never run again, so a table of many hours is made by several commands,
each with some of the cells (`--cells laser-strict@8 vllm-suffix@8`) or a limit (`--minutes`). The table, its ratios and
a page with charts are written from all runs that are there: medians of whole runs, prefill included. LASER runs in
bfloat16; vLLM too, but on processors that have no instructions for it in float32, which is much faster for it there.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from benchmarks._corpus import parse_ids
from benchmarks._stolen import StolenTime
from benchmarks.peers.cell import MODES, Cell, append_run, check_same_work, missing, read_runs
from benchmarks.peers.engines import run_laser, run_vllm
from benchmarks.peers.environment import ensure_environment
from benchmarks.peers.page import write_page
from benchmarks.peers.roofline import roofline
from benchmarks.peers.summary import summarise, text_table
from benchmarks.peers.workload import Workload, read_workload
from laser_recsys.cache import default_cache_dir
from laser_recsys.example_model import EXAMPLE_MODEL_NAME, prepare_example_model

# At one sequence at a time a run of 64 prompts takes too long to be worth its information.
_FEW_PROMPTS, _MANY_PROMPTS = 48, 64
# Of a run during which the hypervisor took the processors away.
_ATTEMPTS = 3


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.peers", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines: id, prompt_token_ids, output_token_ids")
    parser.add_argument("--pool-ids", type=parse_ids, default="1-300", help="documents (default: %(default)s)")
    parser.add_argument("--test-ids", type=parse_ids, default="681-800", help="prompts from (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/peers"), help="default: %(default)s")
    parser.add_argument("--environment", type=Path, default=Path(".venv-peers"), help="vLLM's (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="default: SmolLM2-135M-Instruct from its wheel")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="default: all")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--cells", nargs="+", type=Cell.parse, help="MODE@CONCURRENCY instead of modes x concurrencies")
    parser.add_argument("--prompts", type=int, help=f"default: {_FEW_PROMPTS} at concurrency 1, else {_MANY_PROMPTS}")
    parser.add_argument("--half", choices=("all", "least"), default="all",
                        help="least: of the prompts those whose plain output repeats itself least")  # fmt: skip
    parser.add_argument("--max-new-tokens", type=int, default=192, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="of each cell (default: %(default)s)")
    parser.add_argument("--max-stolen", type=float, default=0.03, metavar="SHARE",
                        help="a run is repeated, up to twice, when the hypervisor took more of the processors' time "
                             "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--machine-tflops", type=float, metavar="T",
                        help="gemm_tflops of `benchmarks.forward`: also tell the share of the roofline")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many minutes")
    return parser.parse_args()


def select(arguments: argparse.Namespace, concurrency: int) -> Workload:
    """The workload of a concurrency."""
    num_prompts = arguments.prompts or (_FEW_PROMPTS if concurrency == 1 else _MANY_PROMPTS)
    test_ids = arguments.test_ids[:num_prompts]
    return read_workload(arguments.corpus, arguments.pool_ids, test_ids, arguments.half, arguments.max_new_tokens)


def main() -> None:
    """Runs what is missing, then writes table and page."""
    arguments = parse_arguments()
    started = time.monotonic()
    cells = arguments.cells or [
        (mode, concurrency) for concurrency in arguments.concurrency for mode in arguments.modes
    ]
    path = arguments.output / "runs.jsonl"
    done, wanted = read_runs(path), [Cell(arguments.half, *cell) for cell in cells]
    for cell in wanted:
        check_same_work(done, cell, len(select(arguments, cell.concurrency).prompts), arguments.max_new_tokens)
    plan = missing(wanted, arguments.runs, done)
    if any(cell.mode.startswith("vllm") for cell, _ in plan):
        ensure_environment(arguments.environment)
    cache = default_cache_dir()
    model = arguments.model or prepare_example_model(cache / EXAMPLE_MODEL_NAME, cache)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for cell, run_idx in plan:
        if time.monotonic() - started > 60 * arguments.minutes:
            break
        workload = select(arguments, cell.concurrency)
        for _ in range(_ATTEMPTS):
            stolen = StolenTime()
            if cell.mode.startswith("vllm"):
                log = arguments.output / "vllm.log"
                run = run_vllm(cell, run_idx, workload, model, arguments.environment, log)
            else:
                run = run_laser(cell, run_idx, workload, model, arguments.output)
            share = stolen.share()
            said = f"{run.tokens_per_s:.1f} tokens/s, {share:.1%} of the processors stolen"
            print(f"{cell.mode}@{cell.concurrency} run {run_idx}: {said}", flush=True)
            if share <= arguments.max_stolen:
                break
        append_run(path, dataclasses.replace(run, stolen_share=share))
    runs = read_runs(path)
    rows, ratios = summarise(runs)
    rooflines = {}
    if arguments.machine_tflops:
        for run in runs:
            prompts = select(arguments, run.cell.concurrency).prompts
            # Else it was run with other arguments.
            if run.cell.workload == arguments.half and len(prompts) == run.num_prompts:
                rooflines[run.cell] = roofline(model, prompts, run.num_tokens, arguments.machine_tflops * 1e12)
    table = text_table(rows, ratios, rooflines)
    (arguments.output / "table.txt").write_text(table, encoding="utf8")
    write_page(arguments.output / "peers.html", rows, ratios)
    print(table)


if __name__ == "__main__":
    main()
