"""Do relaxed texts read as well as plain ones, and how far do texts differ between batch sizes?

    python -m benchmarks.text_quality --corpus corpus_user.jsonl --texts texts.jsonl --runs plain@8 plain@1 strict@8 \
        relaxed:2:0.1@8 relaxed:2:0.3@8 relaxed:3:0.05@8

A run is `plain`, `strict` or `relaxed:TOP_K:MIN_PROB`, then `@` and how many prompts run at once. Two real server
processes; the outputs of `--pool-ids` are the pool. Every finished text is appended to `--texts`, and what stands there
is not generated again, so that a long measurement can be taken in parts. The report compares every run to the first:

    self-overlap  share of a text's 8-grams of tokens that stood in it before
    looping       share of texts whose last 64 tokens repeat 8-grams of the text by more than half
    distinct      distinct 4-grams of all texts over all their 4-grams
    by EOS        texts that ended by themselves; equal: texts equal to the first run's
    before diff   share of tokens before the first difference to the first run's text
    alike         mean cosine of a text's sentence embedding with that of the first run's text, which for two different
                  documents' texts of the first run is `others_alike` on average (--no-embeddings: neither)
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks._corpus import parse_ids, read_corpus
from benchmarks._servers import EACH_PREFILLS, fill_pool, servers, verifier_options
from laser_client import LaserClient, Relaxed, Strict
from laser_protocol.acceptance import Acceptance
from laser_recsys.cache import default_cache_dir
from laser_recsys.ctr.encoder import encode_cached
from laser_recsys.example_model import prepare_example_model
from laser_recsys.measurement import common_prefix_len

POOL = "bench/text-quality"
GRAM = 8
TAIL = 64


@dataclass(frozen=True, slots=True)
class Run:
    """One way to generate all texts.

    Attributes:
        name: as given. acceptance: None for plain. concurrency: prompts at once.
    """

    name: str
    acceptance: Acceptance | None
    concurrency: int

    @staticmethod
    def parse(name: str) -> Run:
        """From `plain@8`, `strict@8` or `relaxed:2:0.1@8`."""
        kind, _, concurrency = name.partition("@")
        mode, *settings = kind.split(":")
        if mode in ("plain", "strict") and not settings:
            acceptance: Acceptance | None = Strict() if mode == "strict" else None
        elif mode == "relaxed" and len(settings) == 2:
            acceptance = Relaxed(top_k=int(settings[0]), min_prob=float(settings[1]))
        else:
            raise argparse.ArgumentTypeError(f"run {name!r}: must be plain@N, strict@N or relaxed:TOP_K:MIN_PROB@N")
        return Run(name, acceptance, int(concurrency or 8))


def grams(tokens: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """All runs of `size` neighbouring tokens."""
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def repeats(tokens: Sequence[int]) -> list[bool]:
    """For every 8-gram of a text, whether it stood in it before."""
    seen: set[tuple[int, ...]] = set()
    repeated: list[bool] = []
    for gram in grams(tokens, GRAM):
        repeated.append(gram in seen)
        seen.add(gram)
    return repeated


def describe(run: str, texts: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The row of one run. Both by document id; only those that both have are compared."""
    outputs = {i: text["token_ids"] for i, text in texts.items()}
    marks = {i: repeats(tokens) for i, tokens in outputs.items()}
    both = [i for i in outputs if i in reference]
    all_grams = [gram for tokens in outputs.values() for gram in grams(tokens, 4)]
    shared = sum(common_prefix_len(outputs[i], reference[i]["token_ids"]) for i in both)
    return {
        "run": run,
        "texts": len(outputs),
        "tokens": round(float(np.mean([len(tokens) for tokens in outputs.values()])), 1),
        "self_overlap": round(sum(map(sum, marks.values())) / max(sum(map(len, marks.values())), 1), 3),
        "looping": round(float(np.mean([sum(mark[-TAIL:]) > TAIL / 2 for mark in marks.values()])), 3),
        "distinct": round(len(set(all_grams)) / max(len(all_grams), 1), 3),
        "by_eos": sum(text["finish_reason"] == "stop" for text in texts.values()),
        "equal": sum(outputs[i] == reference[i]["token_ids"] for i in both),
        "before_diff": round(shared / sum(len(reference[i]["token_ids"]) for i in both), 3) if both else None,
        "relaxed": round(sum(t["num_relaxed_tokens"] for t in texts.values()) / sum(map(len, outputs.values())), 4),
        "tokens_per_step": round(sum(map(len, outputs.values())) / sum(t["num_steps"] for t in texts.values()), 2),
    }


def add_likeness(
    rows: list[dict[str, Any]], texts: dict[str, dict[int, dict[str, Any]]], reference: str, cache: Path
) -> None:
    """Adds the columns `alike` and `others_alike` to the rows of `describe`."""
    ids = sorted(texts[reference])
    vectors = {name: encode_cached([made[i]["text"] for i in ids if i in made], cache) for name, made in texts.items()}
    first = vectors[reference]
    among = first @ first.T
    others = (among.sum() - np.trace(among)) / (len(ids) * (len(ids) - 1)) if len(ids) > 1 else float("nan")
    for row in rows:
        both = [k for k, i in enumerate(ids) if i in texts[row["run"]]]
        alike = float(np.mean(np.sum(vectors[row["run"]] * first[both], axis=1)))
        row |= {"alike": round(alike, 3), "others_alike": round(float(others), 3)}


def generate(client: LaserClient, run: Run, documents: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Appends the texts of one run, batch by batch."""
    for start in tqdm(range(0, len(documents), run.concurrency), desc=run.name, unit="batch", disable=None):
        batch = documents[start : start + run.concurrency]
        generations = client.generate(
            [document["prompt_token_ids"] for document in batch],
            pool=POOL,
            acceptance=run.acceptance,
            draft=run.acceptance is not None,
            max_new_tokens=arguments.max_new_tokens,
            timeout=600,
        )
        with arguments.texts.open("a", encoding="utf8") as out:
            for document, generation in zip(batch, generations, strict=True):
                row = {
                    "run": run.name,
                    "id": document["id"],
                    "text": generation.text,
                    "token_ids": list(generation.token_ids),
                    "finish_reason": generation.finish_reason,
                    "num_steps": generation.stats.num_steps,
                    "num_relaxed_tokens": generation.stats.num_relaxed_tokens,
                }
                out.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_texts(path: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """The texts that exist, by run and document id."""
    texts: dict[str, dict[int, dict[str, Any]]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf8").splitlines():
            row = json.loads(line)
            texts.setdefault(row["run"], {})[row["id"]] = row
    return texts


def generate_missing(arguments: argparse.Namespace) -> None:
    """Starts the servers and generates what `--texts` does not hold."""
    corpus = read_corpus(arguments.corpus)
    existing = read_texts(arguments.texts)
    test = [document for document in corpus if document["id"] in arguments.test_ids]
    missing = [(run, [d for d in test if d["id"] not in existing.get(run.name, {})]) for run in arguments.runs]
    if not any(documents for _, documents in missing):
        return
    pool = [document for document in corpus if document["id"] in arguments.pool_ids]
    cache = default_cache_dir()
    model = arguments.model or str(prepare_example_model(cache / "SmolLM2-135M-Instruct", cache))
    options = verifier_options(
        max(run.concurrency for run in arguments.runs), arguments.dtype, arguments.nodes, arguments.draft_policy
    )
    with (
        tempfile.TemporaryDirectory() as directory,
        servers(model, Path(directory), Path(directory), *options, EACH_PREFILLS) as (retriever, verifier),
        LaserClient(verifier) as client,
    ):
        fill_pool(retriever, POOL, pool, client.model().tokenizer_fingerprint)
        for run, documents_of_run in missing:
            generate(client, run, documents_of_run, arguments)


def main() -> None:
    """Generates what is missing and prints JSON lines and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines: id, prompt_token_ids, output_token_ids")
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines, made or continued")
    parser.add_argument("--runs", type=Run.parse, nargs="+", required=True, help="the first is compared to")
    parser.add_argument("--pool-ids", type=parse_ids, default="1-736", help="default: %(default)s")
    parser.add_argument("--test-ids", type=parse_ids, default="741-800", help="default: %(default)s")
    parser.add_argument("--model", default="", help="default: SmolLM2-135M-Instruct from its wheel")
    parser.add_argument("--nodes", type=int, default=32, help="most draft nodes per step (default: %(default)s)")
    parser.add_argument("--draft-policy", choices=("value", "all"), default="value", help="default: %(default)s")
    parser.add_argument("--dtype", default="auto", help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, default=192, help="default: %(default)s")
    parser.add_argument("--no-embeddings", action="store_true", help="leave out how alike texts are")
    arguments = parser.parse_args()
    generate_missing(arguments)
    existing = read_texts(arguments.texts)
    texts = {run.name: existing[run.name] for run in arguments.runs}
    reference = arguments.runs[0].name
    rows = [describe(name, made, texts[reference]) for name, made in texts.items()]
    if not arguments.no_embeddings:
        add_likeness(rows, texts, reference, default_cache_dir())
    for row in rows:
        print(json.dumps(row))
    widths = [max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]]
    for line in [list(rows[0]), *(list(row.values()) for row in rows)]:
        print("  ".join(f"{value!s:>{width}}" for value, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    main()
