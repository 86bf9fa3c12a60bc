"""tokens_per_step and tokens/s of the real engine on recorded prompts, with other recorded outputs as the pool.

Two real server processes. The corpus is JSON lines with `id`, `prompt_token_ids` and `output_token_ids` of the model
served. Plain, strict and relaxed alternate over small batches of prompts, so that a machine's noise hits all alike.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks._corpus import parse_ids, read_corpus
from benchmarks._servers import EACH_PREFILLS, fill_pool, servers, verifier_options
from laser_client import Generation, LaserClient, Relaxed, Strict
from laser_protocol.acceptance import Acceptance
from laser_recsys.cache import default_cache_dir
from laser_recsys.example_model import prepare_example_model

POOL = "bench/held-out"
MODES: dict[str, Acceptance | None] = {"plain": None, "strict": Strict(), "relaxed": Relaxed(top_k=2, min_prob=0.1)}


@dataclass
class Totals:
    """Sums over one mode's prompts."""

    seconds: float = 0.0
    num_output_tokens: int = 0
    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_relaxed_tokens: int = 0
    num_stopped: int = 0

    def add(self, generations: list[Generation], seconds: float) -> None:
        """Adds a batch that took `seconds` of wall-clock, prefill included."""
        self.seconds += seconds
        for generation in generations:
            self.num_output_tokens += generation.stats.num_output_tokens
            self.num_steps += generation.stats.num_steps
            self.num_draft_tokens += generation.stats.num_draft_tokens
            self.num_accepted_tokens += generation.stats.num_accepted_tokens
            self.num_relaxed_tokens += generation.stats.num_relaxed_tokens
            self.num_stopped += generation.finish_reason == "stop"


def measure(client: LaserClient, documents: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Totals]:
    """All modes over all prompts, alternating batch by batch; which mode goes first rotates."""
    totals = {mode: Totals() for mode in arguments.modes}
    order = list(arguments.modes)
    batches = [documents[i : i + arguments.concurrency] for i in range(0, len(documents), arguments.concurrency)]
    for batch in tqdm(batches, unit="batch"):
        for mode in order:
            started = time.monotonic()
            generations = client.generate(
                [document["prompt_token_ids"] for document in batch],
                pool=POOL,
                acceptance=MODES[mode],
                draft=mode != "plain",
                max_new_tokens=arguments.max_new_tokens,
                timeout=600,
            )
            totals[mode].add(generations, time.monotonic() - started)
        order = order[1:] + order[:1]
    return totals


def main() -> None:
    """Runs the benchmark and prints JSON lines and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines: id, prompt_token_ids, output_token_ids")
    parser.add_argument("--pool-ids", type=parse_ids, default="1-736", help="default: %(default)s")
    parser.add_argument("--test-ids", type=parse_ids, default="741-800", help="default: %(default)s")
    parser.add_argument("--model", default="", help="default: SmolLM2-135M-Instruct from its wheel")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES), help="default: all three")
    parser.add_argument("--nodes", type=int, default=32, help="draft nodes per step (default: %(default)s)")
    parser.add_argument("--draft-policy", choices=("value", "all"), default="value", help="default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--dtype", default="auto", help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, default=192, help="default: %(default)s")
    arguments = parser.parse_args()
    corpus = read_corpus(arguments.corpus)
    pool = [document for document in corpus if document["id"] in arguments.pool_ids]
    test = [document for document in corpus if document["id"] in arguments.test_ids]
    cache = default_cache_dir()
    model = arguments.model or str(prepare_example_model(cache / "SmolLM2-135M-Instruct", cache))
    options = verifier_options(arguments.concurrency, arguments.dtype, arguments.nodes, arguments.draft_policy)
    with (
        tempfile.TemporaryDirectory() as directory,
        servers(model, Path(directory), Path(directory), *options, EACH_PREFILLS) as (retriever, verifier),
        LaserClient(verifier) as client,
    ):
        fill_pool(retriever, POOL, pool, client.model().tokenizer_fingerprint)
        client.generate(test[0]["prompt_token_ids"], pool=POOL, max_new_tokens=8, timeout=600)
        totals = measure(client, test, arguments)
        dtype = client.model().dtype
    report(totals, len(pool), len(test), dtype, arguments)


def report(totals: dict[str, Totals], num_pool: int, num_test: int, dtype: str, arguments: argparse.Namespace) -> None:
    """JSON lines, then the table."""
    plain_rate = totals["plain"].num_output_tokens / totals["plain"].seconds if "plain" in totals else float("nan")
    rows: list[str] = []
    for mode, total in totals.items():
        rate = total.num_output_tokens / total.seconds
        row = {
            "mode": mode,
            "tokens_per_s": round(rate, 1),
            "speed_up": round(rate / plain_rate, 2) if "plain" in totals else None,
            "tokens_per_step": round(total.num_output_tokens / total.num_steps, 3),
            "draft_nodes_per_step": round(total.num_draft_tokens / total.num_steps, 1),
            "relaxed_share": round(total.num_relaxed_tokens / total.num_output_tokens, 4),
            "ended_by_eos": total.num_stopped,
        }
        print(json.dumps({**row, "num_pool": num_pool, "num_test": num_test, "dtype": dtype,
                          "nodes": arguments.nodes, "policy": arguments.draft_policy,
                          "concurrency": arguments.concurrency}))  # fmt: skip
        rows.append("".join(f"{value!s:>22}" for value in row.values()))
    print("".join(f"{name:>22}" for name in row))
    print("\n".join(rows))
    print("The texts are repetitive, as a model of this size writes them, and almost all end by length.")


if __name__ == "__main__":
    main()
