"""Prints what extras of this project need, one requirement a line, without the project itself.

    python deploy/requirements.py retriever verifier

The images install these in a layer of their own, so that a change of source does not install torch anew.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_OWN_EXTRAS = re.compile(r"laser-rec\[([^]]+)\]")


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The requirements of the project with these extras, sorted; extras that name extras of ours are followed."""
    project = tomllib.loads(pyproject.read_text(encoding="utf8"))["project"]
    found, seen, waiting = set(project["dependencies"]), set(), list(extras)
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in project["optional-dependencies"][extra]:
            own = _OWN_EXTRAS.fullmatch(requirement)
            if own is not None:
                waiting += own[1].split(",")
            else:
                found.add(requirement)
    return sorted(found)


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path(__file__).parents[1] / "pyproject.toml", sys.argv[1:])) + "\n")
