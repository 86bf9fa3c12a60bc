"""A retriever and a verifier as real processes, and pools filled with recorded outputs, for the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laser_client.pools import Document, PoolClient
from laser_protocol.channel import Endpoint
from laser_recsys.processes import retriever_process, verifier_process

# For benchmarks that give several settings the same prompts: else only the first of them would compute their prefill.
EACH_PREFILLS = "--no-prefix-reuse"


@contextmanager
def servers(model: str | Path, pools: Path, logs: Path, *verifier_options: str) -> Iterator[tuple[str, str]]:
    """Addresses of a retriever and a verifier, healthy.

    Args:
        model: directory or name.
        pools: the retriever's folder.
        logs: folder that takes retriever.log and verifier.log.
        verifier_options: of `laser-verifier serve`.

    Raises:
        ServerFailed: one ended or did not start.
    """
    with retriever_process(pools, logs / "retriever.log") as first:
        first.wait_until_healthy(60)
        with verifier_process(model, logs / "verifier.log", *verifier_options, retriever=first.address) as second:
            second.wait_until_healthy(300)
            yield first.address, second.address


def verifier_options(
    concurrency: int, dtype: str = "auto", nodes: int = 32, draft_policy: str = "value"
) -> tuple[str, ...]:
    """Options of `laser-verifier serve` for what most benchmarks let one choose."""
    return (
        "--max-sequences", str(concurrency), "--dtype", dtype, "--max-draft-nodes", str(nodes),
        "--draft-policy", draft_policy,
    )  # fmt: skip


def fill_pool(retriever: str, pool_id: str, documents: list[dict[str, Any]], fingerprint: str) -> None:
    """Adds the outputs of corpus lines to a pool and returns when they are drafted from."""
    made = [Document.make(str(document["id"]), document["output_token_ids"]) for document in documents]
    with PoolClient(Endpoint.make(retriever)) as pools:
        assert sum(pools.add(pool_id, fingerprint, made)) == len(made)
    time.sleep(3.0)  # readers look for new documents every two seconds
