"""From nothing to the CTR table: every step of the pipeline on all users and items, timed, with real servers.

    python -m benchmarks.ctr_proof --output proof                        # relaxed texts, DIN over 5 seeds
    python -m benchmarks.ctr_proof --output proof --rows plain relaxed --decide relaxed   # beside plain texts
    python -m benchmarks.ctr_proof --output proof --rows relaxed --generations 3
    python -m benchmarks.ctr_proof --output proof --rows plain plain-8 strict relaxed loose --concurrency 32 \
        --networks autoint din dcnv2 deepfm --decide relaxed --shuffled      # the full table

Rows: plain, strict, relaxed (2, 0.1), loose (3, 0.05), and plain-8, plain texts of batches of 8 (the noise floor). Each
row has a retriever with pools of its own, which its texts fill while they come (but for plain ones); a further
generation is drafted from the texts of the one before and replaces them. The commands can be run again and go on; steps
that were done take no time then. Prints a JSON line per step, one per set of texts (columns as in text_quality.py,
beside the first set), and the table of `laser-recsys evaluate`; with --decide also its verdict.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks._servers import servers, verifier_options
from benchmarks.text_quality import describe
from laser_recsys.processes import command_path

ROWS = {
    "plain": ["--acceptance", "plain"],
    "plain-8": ["--acceptance", "plain", "--concurrency", "8"],
    "strict": ["--acceptance", "strict"],
    "relaxed": ["--acceptance", "relaxed"],
    "loose": ["--acceptance", "relaxed", "--top-k", "3", "--min-prob", "0.05"],
}


def step(name: str, *arguments: object) -> None:
    """One `laser-recsys` command, timed.

    Raises:
        SystemExit: it failed.
    """
    started = time.perf_counter()
    status = subprocess.run([command_path("laser-recsys"), *map(str, arguments)], check=False).returncode
    if status:
        raise SystemExit(f"{name} ended with status {status}")
    print(json.dumps({"step": name, "seconds": round(time.perf_counter() - started, 1)}), flush=True)


def read_texts(path: Path) -> dict[Any, dict[str, Any]]:
    """The texts of a job by kind and id, with what `text_quality.describe` wants to know."""
    columns = ["id", "kind", "token_ids", "finish_reason", "num_steps", "num_relaxed_tokens"]
    return {(row["kind"], row["id"]): row for row in pq.read_table(path, columns=columns).to_pylist()}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="everything goes here")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["relaxed"], help="default: relaxed")
    parser.add_argument("--generations", type=int, default=0, metavar="N", help="of every drafted row (default: 0)")
    parser.add_argument("--framework", default="kar", help="default: %(default)s")
    parser.add_argument("--kinds", nargs="+", choices=("user", "item"), default=["user", "item"], help="default: both")
    parser.add_argument("--max-new-tokens", type=int, default=192, help="default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--networks", nargs="+", default=["din"], help="default: din")
    parser.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--decide", metavar="ROW", help="on the first network; see laser-recsys evaluate")
    parser.add_argument("--shuffled", action="store_true", help="add the control of shuffled texts")
    arguments = parser.parse_args()
    started = time.perf_counter()
    output: Path = arguments.output
    data, model, prompts = output / "data", output / "model", output / "prompts.parquet"
    step("model", "model", "--output", model)
    step("prepare", "prepare", "--output", data)
    step("group", "group", "--data", data)
    step("prompts", "prompts", "--data", data, "--framework", arguments.framework, "--model", model, "--kinds",
         *arguments.kinds, "--max-new-tokens", arguments.max_new_tokens, "--output", prompts)  # fmt: skip
    made: dict[str, Path] = {}
    reference: dict[Any, dict[str, Any]] = {}
    of_verifier = (*verifier_options(arguments.concurrency), "--max-model-len", "1024")
    for row in arguments.rows:
        logs = output / "servers" / row
        logs.mkdir(parents=True, exist_ok=True)
        with servers(model, logs / "pools", logs, *of_verifier) as (_, verifier):
            for generation in range(1 + (0 if row.startswith("plain") else arguments.generations)):
                name = row if generation == 0 else f"{row}-{generation}"
                made[name] = output / name / "knowledge.parquet"
                step(name, "generate", "--prompts", prompts, "--verifier", verifier, "--output", output / name,
                     "--concurrency", arguments.concurrency, "--max-new-tokens", arguments.max_new_tokens,
                     *ROWS[row])  # fmt: skip
                texts = read_texts(made[name])
                reference = reference or texts
                print(json.dumps(describe(name, texts, reference)), flush=True)
    options = ["--decide", arguments.decide] if arguments.decide else []
    options += ["--shuffled"] if arguments.shuffled else []
    step("evaluate", "evaluate", "--data", data, "--networks", *arguments.networks, "--seeds", arguments.seeds,
         "--output", output / "evaluation", *options, "--knowledge",
         *(f"{name}={path}" for name, path in made.items()))  # fmt: skip
    print(json.dumps({"step": "all", "seconds": round(time.perf_counter() - started, 1)}), flush=True)


if __name__ == "__main__":
    main()
