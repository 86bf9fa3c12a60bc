"""From starting a retriever's process to health SERVING, with a large pool on disk; and of what the time consists.

    python -m benchmarks.retriever_restart --corpus corpus_user.jsonl

Writes a pool of --pool-tokens (spliced, see `_spliced.py`) in six segments and a log, starts `laser-retriever` once
to fill numba's cache and then --repeats times. A start is from creating the process to the first health answer
SERVING; `first_tree_s` is to the first tree that is drafted from the pool. Files are in the page cache, as after a
restart of the process. `imports_s` is the time a Python process takes to import the command as it does itself, and
end, `python_s` to do nothing. Prints one JSON line and a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import psutil
import uvloop
from tqdm import tqdm

from benchmarks._draft_stream import POOL, Verifier, fill, retriever, until_serving
from benchmarks._spliced import Recorded, read_recorded, splice

IMPORTS = "import gc; gc.disable(); import laser_retriever.cli"


def run_python(program: str) -> float:
    """Seconds that a Python process takes for a program."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - started


async def first_tree(address: str, test: list[Recorded]) -> None:
    """Until a sequence without anything of its own to repeat is drafted for: from the pool."""
    async with grpc.aio.insecure_channel(address) as channel:
        short = [Recorded(np.arange(1, dtype=np.int32), test[0].output)]
        while True:
            verifier = Verifier(channel, short, 1, 32)
            await verifier.shake_hands()
            await verifier.step()
            verifier.close()
            if verifier.num_nodes:
                return


def start(directory: Path, test: list[Recorded]) -> dict[str, float]:
    """One start."""
    started = time.perf_counter()
    with retriever(directory) as (address, process):
        uvloop.run(until_serving(address))
        serving_s = time.perf_counter() - started
        uvloop.run(first_tree(address, test))
        first_tree_s = time.perf_counter() - started
        rss = psutil.Process(process.pid).memory_info().rss
    return {"serving_s": serving_s, "first_tree_s": first_tree_s, "rss_mb": rss / 1e6}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="JSON lines of recorded outputs")
    parser.add_argument(
        "--pool-tokens", type=float, default=1e7, metavar="N", help="of the pool (default: %(default)g)"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="starts timed (default: %(default)s)")
    arguments = parser.parse_args()
    recorded = read_recorded(arguments.corpus)
    documents = splice([r.output for r in recorded[:-64]], int(arguments.pool_tokens))
    with tempfile.TemporaryDirectory() as directory:
        fill(Path(directory), documents)
        size_bytes = sum(file.stat().st_size for file in (Path(directory) / POOL).rglob("*") if file.is_file())
        starts = [
            start(Path(directory), recorded[-60:])
            for _ in tqdm(range(arguments.repeats + 1), desc="starts", leave=False)
        ][1:]
    measured = {name: round(float(np.median([one[name] for one in starts])), 3) for name in starts[0]}
    result: dict[str, Any] = {
        "pool_tokens": int(arguments.pool_tokens),
        "bytes_per_token_on_disk": round(size_bytes / sum(map(len, documents)), 2),
        **measured,
        "imports_s": round(float(np.median([run_python(IMPORTS) for _ in range(3)])), 3),
        "python_s": round(float(np.median([run_python("pass") for _ in range(3)])), 3),
    }
    print(json.dumps(result), flush=True)
    print("\n" + "  ".join(result))
    print("  ".join(str(value).rjust(len(name)) for name, value in result.items()))


if __name__ == "__main__":
    main()
