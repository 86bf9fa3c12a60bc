"""A process that forks writers of a pool for a test to kill: they start at once, with all that is loaded here.

Each line of standard input is the number of the first document that a new writer adds. Standard output gets `pid N`,
the number of every document that the writer saw acknowledged, and `dead STATUS` once it is dead.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np

from laser_retriever.config import RetrieverConfig
from laser_retriever.pool import Pool

POOL = "p/q"


def tokens_of(number: int) -> list[int]:
    """What the document of this number holds, so that a wrong token shows."""
    chance = random.Random(number)
    return [chance.randrange(50_000) for _ in range(chance.randrange(1, 200))]


def write_until_killed(directory: Path, number: int) -> None:
    """Adds documents from `number` on; seals and compacts now and then."""
    config = RetrieverConfig(pools=directory, max_segments=3, seal_tokens=2000, unlink_after_s=0)
    pool = Pool(POOL, config, lambda: "child:1")
    while True:
        pool.writer.add("f", [(str(number), np.array(tokens_of(number), np.int32))])
        say(str(number))
        number += 1
        if number % 7 == 0:
            pool.refresh()
            pool.upkeep()
        if number % 31 == 0:
            pool.writer.compact()


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def main(directory: Path) -> None:
    Pool("warm", RetrieverConfig(pools=directory)).refresh()  # loads the kernels, so that the children need not
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                write_until_killed(directory, int(line))
            finally:
                os._exit(1)
        say(f"pid {child}")
        say(f"dead {os.waitpid(child, 0)[1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
