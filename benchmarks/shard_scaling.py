"""Whether shards add up: work per draft at 1, 2 and 4 shards, how evenly pools spread, latency of one shard under load.

    python -m benchmarks.shard_scaling --corpus corpus_user.jsonl

work    --pools pools over one directory, N retriever processes, one draft stream to each pool's shard, as
        `laser_verifier.shards` chooses, replaying 8 recorded outputs at once; counted are trees that are not empty and
        the CPU seconds of the retriever processes. 1, 2 and 4 shards stand beside each other and work one after the
        other, in rounds, since a machine is quicker in one minute than in another. Under three loads: as many pools for
        each shard, a step of each every --period-ms, as shards are added where load grows; all pools at that pace,
        however many shards, so that each of many is idle for longer between its messages and its memory colder; and
        flat out, all pools stepping without pause.
spread  300 pools (names drawn from a seed) with the same number of sequences each, opened in turn; max/mean of the
        shards' open sequences, as the verifier chooses (rendezvous with bounded loads) and by rendezvous alone. No
        process.
load    one shard pinned to one core, this process to another. --streams verifiers step at a fixed pace of their own,
        with random phases; a step that comes while the one before still runs waits, and its time counts from when it
        was due. The pace is set to shares of the capacity, which is measured first: trees per second when all step
        without pause.

Prints one JSON line for each measurement and a table of each kind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import psutil
import uvloop
from tqdm import tqdm

from benchmarks._draft_stream import Verifier, fill, retriever, until_serving
from benchmarks._spliced import Recorded, read_recorded, splice
from laser_verifier.shards import choose_shard, rendezvous_order

# Shards that have just begun to serve still build their pools' ancestors.
SETTLE_S = 3.0
NUM_ROUNDS = 8
PER_SHARD, IN_ALL, FLAT_OUT = "the same a shard", "the same in all", "flat out"
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


class Shards:
    """Retrievers of one number, and a draft stream to each pool's shard.

    Args:
        servers: address and process of each.
        pools: that are replayed, each by a verifier of its own.
        test: what is replayed.
    """

    def __init__(self, servers: Sequence[tuple[str, psutil.Process]], pools: Sequence[str], test: Sequence[Recorded]):
        self._processes = [process for _, process in servers]
        self._addresses = [address for address, _ in servers]
        self.pools, self._test = pools, test
        self._verifiers: list[Verifier] = []
        self._done: dict[str, list[float]] = {}  # CPU seconds, drafts and seconds, by load
        self._num_sequences: dict[str, int] = {}

    async def connect(self, stack: contextlib.AsyncExitStack) -> None:
        """Opens the streams, which the stack closes."""
        self._num_sequences = {f"shard-{i}": 0 for i in range(len(self._addresses))}
        channels = {}
        for name, address in zip(self._num_sequences, self._addresses, strict=True):
            await until_serving(address)
            channels[name] = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        for pool in self.pools:
            name = choose_shard(pool, self._num_sequences)
            assert name is not None
            self._num_sequences[name] += 8
            self._verifiers.append(Verifier(channels[name], self._test, 8, 32, pool))
            await self._verifiers[-1].shake_hands()
            stack.callback(self._verifiers[-1].close)

    async def work(self, load: str, num_pools: int, period_s: float, seconds: float) -> None:
        """Steps of the first so many pools for so long; a period of 0 is without pause."""
        before, verifiers = self._now(), self._verifiers[:num_pools]
        if period_s:
            await at_pace(verifiers, num_pools / period_s, seconds)
        else:
            await capacity(verifiers, seconds)
        done = self._done.setdefault(load, [0.0, 0.0, 0.0])
        for place, (then, now) in enumerate(zip(before, self._now(), strict=True)):
            done[place] += now - then

    def _now(self) -> tuple[float, int, float]:
        cpu_s = sum(sum(process.cpu_times()[:2]) for process in self._processes)
        num_drafts = sum(verifier.num_trees - verifier.num_empty for verifier in self._verifiers)
        return cpu_s, num_drafts, time.perf_counter()

    @property
    def num_shards(self) -> int:
        """How many there are."""
        return len(self._addresses)

    def result(self, load: str) -> dict[str, Any]:
        """A row of the table."""
        cpu_s, num_drafts, seconds = self._done[load]
        return {
            "what": "work",
            "load": load,
            "num_shards": self.num_shards,
            "drafts_per_cpu_s": round(num_drafts / cpu_s),
            "drafts_per_s": round(num_drafts / seconds),
        }


async def measure_work(all_shards: Sequence[Shards], period_s: float, seconds: float) -> list[dict[str, Any]]:
    """Replays on one number of shards after the other, again and again, so that all see the same hours of a machine."""
    async with contextlib.AsyncExitStack() as stack:
        for shards in all_shards:
            await shards.connect(stack)
        await asyncio.sleep(SETTLE_S)
        num_pools = len(all_shards[0].pools)
        most_shards = max(shards.num_shards for shards in all_shards)
        for shards in all_shards:
            await shards.work("warm up", num_pools, period_s, 1.0)
        for _ in tqdm(range(NUM_ROUNDS), desc="work", leave=False):
            for shards in all_shards:
                await shards.work(PER_SHARD, num_pools * shards.num_shards // most_shards, period_s, seconds / 2)
            for shards in all_shards:
                await shards.work(IN_ALL, num_pools, period_s, seconds / 2)
            for shards in all_shards:
                await shards.work(FLAT_OUT, num_pools, 0.0, seconds / 4)
        return [shards.result(load) for load in (PER_SHARD, IN_ALL, FLAT_OUT) for shards in all_shards]


def measure_spread(num_shards: int, num_pools: int, num_sequences: int) -> dict[str, Any]:
    """How unevenly sequences spread over shards."""
    names = [f"shard-{i}" for i in range(num_shards)]
    pools = [f"shop/user/{number}" for number in np.random.default_rng(0).choice(1_000_000, num_pools, replace=False)]
    loads = dict.fromkeys(names, 0)
    alone = dict.fromkeys(names, 0)
    for _ in range(num_sequences):
        for pool in pools:
            name = choose_shard(pool, loads)
            assert name is not None
            loads[name] += 1
            alone[rendezvous_order(pool, names)[0]] += 1
    mean = num_pools * num_sequences / num_shards
    return {
        "what": "spread",
        "num_shards": num_shards,
        "pools": num_pools,
        "max_over_mean": round(max(loads.values()) / mean, 3),
        "max_over_mean_unbounded": round(max(alone.values()) / mean, 3),
    }


async def capacity(verifiers: Sequence[Verifier], seconds: float) -> float:
    """Steps per second of all verifiers together, none pausing."""
    num_steps = 0
    until = time.perf_counter() + seconds

    async def run(verifier: Verifier) -> None:
        nonlocal num_steps
        while time.perf_counter() < until:
            await verifier.step()
            num_steps += 1

    await asyncio.gather(*(run(verifier) for verifier in verifiers))
    return num_steps / seconds


async def at_pace(verifiers: Sequence[Verifier], steps_per_s: float, seconds: float) -> list[float]:
    """Milliseconds from when each step was due to its trees."""
    period_s = len(verifiers) / steps_per_s
    phases = np.random.default_rng(0).random(len(verifiers)) * period_s
    started = time.perf_counter()
    times_ms: list[float] = []

    async def run(verifier: Verifier, phase_s: float) -> None:
        due = started + phase_s
        while due < started + seconds:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            await verifier.step()
            times_ms.append((time.perf_counter() - due) * 1e3)
            due += period_s

    await asyncio.gather(*(run(verifier, phase) for verifier, phase in zip(verifiers, phases, strict=True)))
    return times_ms


async def measure_load(
    address: str, test: Sequence[Recorded], num_streams: int, seconds: float
) -> list[dict[str, Any]]:
    """Latency of one shard at shares of its capacity."""
    await until_serving(address)
    results = []
    async with grpc.aio.insecure_channel(address) as channel:
        verifiers = [Verifier(channel, test, 8, 32) for _ in range(num_streams)]
        for verifier in verifiers:
            await verifier.shake_hands()
        await capacity(verifiers, 1.0)
        most = await capacity(verifiers, seconds)
        for share in tqdm(SHARES, desc="load", leave=False):
            times_ms = await at_pace(verifiers, share * most, seconds)
            p50, p99 = np.percentile(times_ms, [50, 99])
            results.append(
                {
                    "what": "load",
                    "share_of_capacity": share,
                    "steps_per_s": round(share * most, 1),
                    "ms_p50": round(float(p50), 2),
                    "ms_p99": round(float(p99), 2),
                }
            )
        for verifier in verifiers:
            verifier.close()
    return results


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="JSON lines of recorded outputs")
    parser.add_argument("--pools", type=int, default=12, metavar="N", help="pools of `work` (default: %(default)s)")
    parser.add_argument(
        "--pool-tokens", type=float, default=1e5, metavar="N", help="tokens of each of them (default: %(default)g)"
    )
    parser.add_argument(
        "--period-ms", type=float, default=60.0, metavar="MS", help="of a pool's steps in `work` (default: %(default)s)"
    )
    parser.add_argument(
        "--streams", type=int, default=4, metavar="N", help="verifiers of `load` (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=6.0, metavar="S", help="per measurement (default: %(default)s)"
    )
    arguments = parser.parse_args()
    recorded = read_recorded(arguments.corpus)
    test = recorded[-60:]
    outputs = [r.output for r in recorded[:-64]]
    results = [measure_spread(num_shards, 300, 4) for num_shards in (2, 4, 8)]
    pools = [f"bench-{i}/user/{i}" for i in range(arguments.pools)]
    with tempfile.TemporaryDirectory() as directory:
        for i, pool in enumerate(tqdm(pools, desc="pools", leave=False)):
            fill(Path(directory), splice(outputs, int(arguments.pool_tokens), seed=i), pool)
        with contextlib.ExitStack() as stack:
            all_shards = []
            for num_shards in (1, 2, 4):
                servers = []
                for i in range(num_shards):
                    options = ("--name", f"{num_shards}-{i}", "--threads", "1")
                    address, process = stack.enter_context(retriever(Path(directory), *options))
                    servers.append((address, psutil.Process(process.pid)))
                all_shards.append(Shards(servers, pools, test))
            results += uvloop.run(measure_work(all_shards, arguments.period_ms / 1e3, arguments.seconds))
    with tempfile.TemporaryDirectory() as directory:
        fill(Path(directory), splice(outputs, 1_000_000))
        cores = sorted(os.sched_getaffinity(0))
        with retriever(Path(directory), "--threads", "1") as (address, process):
            if len(cores) > 1:
                psutil.Process(process.pid).cpu_affinity(cores[:1])
                os.sched_setaffinity(0, cores[1:2])
            results += uvloop.run(measure_load(address, test, arguments.streams, arguments.seconds))
    for result in results:
        print(json.dumps(result), flush=True)
    for what in ("work", "spread", "load"):
        rows = [result for result in results if result["what"] == what]
        print("\n" + "  ".join(rows[0]))
        for row in rows:
            print("  ".join(str(value).rjust(len(name)) for name, value in row.items()))


if __name__ == "__main__":
    main()
