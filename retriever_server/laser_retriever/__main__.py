"""The `laser-retriever` command, also `python -m laser_retriever`."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Entry point, see `cli.main`. Looking for garbage while everything is imported would take a sixth of that time."""
    gc.disable()
    from laser_retriever.cli import main as command

    gc.freeze()
    gc.enable()
    return command()


if __name__ == "__main__":
    sys.exit(main())
