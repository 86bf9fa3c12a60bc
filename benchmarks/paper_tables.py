"""The paper's main table on MovieLens-100k: speed-up by framework, users or items, kind of pool, refresh or cold case.

    python -m benchmarks.paper_tables --frameworks kar --kinds user --pool-size 96 --tests 16
    python -m benchmarks.paper_tables --frameworks kar --kinds user --pools global --pool-size 0 24 96 384   # a sweep
    python -m benchmarks.paper_tables --frameworks kar --kinds user --pools global --relaxed 2,0.3 2,0.1 3,0.05

Two real server processes. Per framework and kind: texts for the pools, then the tested prompts plainly and, drafted
from each kind of pool, strict and relaxed, the settings taking turns over small batches. Nothing is learned meanwhile.
`unparsed` counts answers that should be JSON and are not.
  cold      the pools hold texts of others: no text of the tested user or item
  refresh   users only: the pools also hold the tested users' own texts, written before their newest rating was known
  group     one pool for each group of `laser-recsys group`, the tested prompt's own
  random    the same with everyone's group drawn, the groups as large
  global    all pool texts
  none      the prompt and the output themselves
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks._servers import EACH_PREFILLS, servers, verifier_options
from laser_client import Generation, LaserClient
from laser_client.pools import Document, PoolClient
from laser_protocol.channel import Endpoint
from laser_recsys.cache import default_cache_dir
from laser_recsys.datasets.catalogue import read_dataset
from laser_recsys.datasets.dataset import Dataset, Ratings, split
from laser_recsys.example_model import prepare_example_model
from laser_recsys.frameworks.answers import parse_answer
from laser_recsys.frameworks.prompts import Prompt, PromptWriter
from laser_recsys.frameworks.template import load_framework
from laser_recsys.groups.groups import Groups
from laser_recsys.groups.methods import item_groups, user_groups
from laser_recsys.knowledge.rows import PLAIN, STRICT, Mode, relaxed_mode
from laser_recsys.measurement import Run, summarise

POOLS = ("none", "group", "random", "global")
READERS_LOOK_S = 3.0  # the retriever takes in new documents every two seconds


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of the table: the pool that each tested prompt is drafted from, and how it is decoded."""

    case: str
    pool: str
    pool_size: int
    mode: Mode
    pool_ids: tuple[str, ...]


class Bench:
    """One framework and kind on running servers.

    Args:
        client, pools: of the servers.
        arguments: of the command line.
        writer: prompts of the framework.
        kind: "user" or "item".
        groups: of all users or items.
    """

    def __init__(
        self,
        client: LaserClient,
        pools: PoolClient,
        arguments: argparse.Namespace,
        writer: PromptWriter,
        kind: str,
        groups: Groups,
    ) -> None:
        self._client = client
        self._pools = pools
        self._arguments = arguments
        self._writer = writer
        self._kind = kind
        self._groups = groups
        self._fingerprint = client.model().tokenizer_fingerprint
        # Without a '/', so without ancestors: a pool holds what is put there.
        self._root = f"paper-{writer.framework.name}-{kind}"
        num_others = len(groups.keys) - arguments.tests
        if max(arguments.pool_size) > num_others:
            raise SystemExit(
                f"--pool-size is {max(arguments.pool_size)}, must be at most the {num_others} other {kind}s"
            )
        keys = np.random.default_rng(arguments.seed).permutation(groups.keys).tolist()
        self._tests: list[int] = keys[: arguments.tests]
        self._others: list[int] = keys[arguments.tests : arguments.tests + max(arguments.pool_size)]
        drawn = np.random.default_rng(arguments.seed).permutation(groups.group_idx)
        self._random_groups = Groups(groups.keys, drawn, groups.num_groups, "drawn")

    def run(self) -> list[tuple[Cell | None, Run]]:
        """Fills the pools and measures; the first run is plain decoding."""
        texts = self._generate(self._others, self._writer, "pool texts")
        cases: dict[str, dict[int, Generation]] = {"cold": {}}
        if self._kind == "user":
            older = PromptWriter(self._writer.framework, self._writer.dataset, without_newest(self._writer.past))
            cases["refresh"] = self._generate(self._tests, older, "older texts")
        modes = [STRICT, *(relaxed_mode(top_k, p) for top_k, p in self._arguments.relaxed)]
        cells = [
            Cell(case, pool, size, mode, ids)
            for size in self._arguments.pool_size
            for case, own in cases.items()
            for pool in self._arguments.pools
            for ids in [self._fill(f"{case}-{size}", pool, dict(list(texts.items())[:size]) | own)]
            for mode in modes
            if pool != "none" or (case == "cold" and size == self._arguments.pool_size[0])
        ]
        time.sleep(READERS_LOOK_S)
        return self._measure(cells)

    def _fill(self, case: str, pool: str, documents: dict[int, Generation]) -> tuple[str, ...]:
        """Makes the pools of one kind; gives each tested prompt's."""
        groups = self._random_groups if pool == "random" else self._groups
        contents: dict[str, list[int]] = {}
        ids = []
        for key in self._tests:
            own = groups.of(key)
            name = f"{self._root}-{case}-{pool}" + ("" if pool == "global" else f"-{own}")
            if pool != "none":
                contents[name] = [other for other in documents if pool == "global" or groups.of(other) == own]
            ids.append(name)
        for name, found in contents.items():
            if found:
                made = [Document.make(str(key), documents[key].token_ids) for key in found]
                assert sum(self._pools.add(name, self._fingerprint, made)) == len(made)
        return tuple(ids)

    def _generate(self, keys: Sequence[int], writer: PromptWriter, what: str) -> dict[int, Generation]:
        if not keys:
            return {}
        prompts = [writer.write(self._kind, key) for key in keys]
        with tqdm(total=len(prompts), desc=f"{self._root}: {what}", leave=False) as bar:
            made = self._ask(prompts, STRICT, ["paper-none"] * len(prompts), lambda: bar.update())
        return dict(zip(keys, made, strict=True))

    def _measure(self, cells: Sequence[Cell]) -> list[tuple[Cell | None, Run]]:
        prompts = [self._writer.write(self._kind, key) for key in self._tests]
        settings: list[Cell | None] = [None, *cells]
        runs = [Run("plain" if cell is None else cell.mode.name, (), 0.0) for cell in settings]
        size = self._arguments.concurrency
        for number, start in enumerate(tqdm(range(0, len(prompts), size), desc=self._root, unit="batch")):
            for turn in range(len(settings)):
                which = (turn + number) % len(settings)
                cell = settings[which]
                ids = ["paper-none"] * len(prompts) if cell is None else list(cell.pool_ids)
                started = time.perf_counter()
                made = self._ask(
                    prompts[start : start + size], PLAIN if cell is None else cell.mode, ids[start : start + size]
                )
                runs[which] += Run(runs[which].name, tuple(made), time.perf_counter() - started)
        return list(zip(settings, runs, strict=True))

    def _ask(
        self, prompts: Sequence[Prompt], mode: Mode, pools: Sequence[str], on_done: Callable[[], object] = lambda: None
    ) -> list[Generation]:
        return self._client.generate(
            [prompt.text for prompt in prompts],
            pool=list(pools),
            system=prompts[0].system or None,
            acceptance=mode.acceptance,
            draft=mode.draft,
            max_new_tokens=self._arguments.max_new_tokens,
            timeout=600,
            on_progress=lambda index, outcome: on_done(),
        )


def without_newest(past: Ratings) -> Ratings:
    """The ratings without the newest of every user; users with a single one keep it."""
    is_newest = np.append(past.user_ids[1:] != past.user_ids[:-1], True)
    is_first = np.append(True, past.user_ids[1:] != past.user_ids[:-1])
    return past.take(~is_newest | is_first)


def report(framework: str, kind: str, is_json: bool, measured: Sequence[tuple[Cell | None, Run]]) -> None:
    """One JSON line for each cell."""
    plain = measured[0][1]
    for cell, run in measured:
        summary = summarise(run, plain)
        row = {
            "framework": framework,
            "kind": kind,
            "case": cell.case if cell else "",
            "pool": cell.pool if cell else "",
            "pool_size": cell.pool_size if cell else 0,
            "mode": summary.name,
            "tokens_per_s": round(summary.tokens_per_second, 1),
            "speed_up": round(summary.speedup, 2),
            "tokens_per_step": round(summary.tokens_per_step, 2),
            "relaxed_share": round(summary.relaxed_share, 4),
            "texts": summary.num_outputs,
            "unparsed": sum(parse_answer(made.text) is None for made in run.generations) if is_json else 0,
        }
        print(json.dumps(row), flush=True)


def parse_relaxed(text: str) -> tuple[int, float]:
    """`2,0.1` as (top_k, min_prob)."""
    top_k, _, min_prob = text.partition(",")
    return int(top_k), float(min_prob)


def groups_of(kind: str, dataset: Dataset, past: Ratings) -> Groups:
    """What `laser-recsys group` makes by default."""
    return (
        user_groups("collaborative", dataset, past, 3, 0)[0] if kind == "user" else item_groups("genre", dataset, 9, 0)
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frameworks", nargs="+", default=["kar", "once", "trawl", "rlmrec"])
    parser.add_argument("--kinds", nargs="+", choices=("user", "item"), default=["user", "item"])
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=POOLS, help="default: all")
    parser.add_argument(
        "--pool-size", type=int, nargs="+", default=[96], metavar="N", help="texts of others; several: a sweep (96)"
    )  # fmt: skip
    parser.add_argument("--tests", type=int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--relaxed", type=parse_relaxed, nargs="+", default=[(2, 0.1)], metavar="K,P",
        help="top_k and min_prob; several: a sweep (default: 2,0.1)",
    )  # fmt: skip
    parser.add_argument("--model", default="", help="default: SmolLM2-135M-Instruct from its wheel")
    parser.add_argument("--nodes", type=int, default=32, help="draft nodes per step (default: %(default)s)")
    parser.add_argument("--draft-policy", choices=("value", "all"), default="value", help="default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--dtype", default="auto", help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, default=192, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of users and items (default: %(default)s)")
    arguments = parser.parse_args()
    cache = default_cache_dir()
    model = arguments.model or str(prepare_example_model(cache / "SmolLM2-135M-Instruct", cache))
    dataset = read_dataset("ml-100k", None, cache)
    past = split(dataset.ratings).seen
    options = verifier_options(arguments.concurrency, arguments.dtype, arguments.nodes, arguments.draft_policy)
    with (
        tempfile.TemporaryDirectory() as directory,
        servers(model, Path(directory), Path(directory), *options, EACH_PREFILLS) as (retriever, verifier),
        LaserClient(verifier, max_in_flight=arguments.concurrency) as client,
        PoolClient(Endpoint.make(retriever)) as pools,
    ):
        for framework in arguments.frameworks:
            for kind in arguments.kinds:
                writer = PromptWriter(load_framework(framework), dataset, past)
                bench = Bench(client, pools, arguments, writer, kind, groups_of(kind, dataset, past))
                is_json = writer.framework.template(kind).answer == "json"
                report(framework, kind, is_json, bench.run())


if __name__ == "__main__":
    main()
