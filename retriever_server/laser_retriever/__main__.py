"""The `laser-retriever` command, also `python -m laser_retriever`."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Entry point, see `cli.main`.

    Nothing that is imported becomes garbage, and looking for some takes a sixth of the time: so the collector is off
    until `warmup.settle_garbage_collector`.
    """
    gc.disable()
    from laser_retriever.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
