"""What a pool id may look like, and what its ancestors are. One rule for client, retriever and verifier."""

from __future__ import annotations

import re

from laser_protocol.errors import InvalidRequest

MAX_COMPONENTS = 8
# Names of files inside a pool's directory: what starts with `seg-` or `log`, and the writer's lock.
_COMPONENT = re.compile(r"(?!seg-|log|writer\.lock$)[a-z0-9][a-z0-9._-]{0,63}")


def check_pool_id(pool: str) -> str:
    """Returns the pool id unchanged if it is valid.

    Raises:
        InvalidRequest: not 1-8 components `[a-z0-9][a-z0-9._-]{0,63}` joined by '/', or one starts `seg-` or `log`, or
                is `writer.lock`.
    """
    components = pool.split("/")
    if len(components) <= MAX_COMPONENTS and all(_COMPONENT.fullmatch(component) for component in components):
        return pool
    raise InvalidRequest(
        f"pool is {pool[:80]!r}, must be 1-{MAX_COMPONENTS} components [a-z0-9][a-z0-9._-]{{0,63}} joined by '/', "
        "none starting with 'seg-' or 'log', none 'writer.lock'",
        field="pool",
    )


def ancestors(pool: str) -> tuple[str, ...]:
    """The pool's ancestors, nearest first: `a/b/c` gives `a/b`, `a`."""
    components = pool.split("/")
    return tuple("/".join(components[:n]) for n in range(len(components) - 1, 0, -1))
