"""The real model behind real processes: kill -9 of the retriever mid-run, float32, outputs unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from laser_client import LaserClient
from laser_client.pools import Document, PoolClient
from laser_protocol.channel import Endpoint
from tests.end_to_end.servers import kill, retriever, verifier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

POOL = "ml-100k/kar/user/0"
NUM_TOKENS = 64


def test_killing_the_retriever_mid_run_changes_no_strict_output(
    model_path: Path, prompts: list[tuple[int, ...]], tmp_path: Path
) -> None:
    warm_up, held_out = [list(p) for p in prompts[5:9]], [list(p) for p in prompts[:5]]
    with (
        retriever(tmp_path / "pools", tmp_path / "r.log") as shard,
        verifier(
            model_path, tmp_path / "v.log", "--retriever", shard.address, "--max-sequences", "4",
            "--draft-policy", "all",
        ) as server,
        LaserClient(server.address) as client,
    ):  # fmt: skip
        plain = client.generate(held_out, draft=False, max_new_tokens=NUM_TOKENS, timeout=600)
        texts = client.generate(warm_up, pool=POOL, max_new_tokens=NUM_TOKENS, timeout=600)
        fingerprint = client.model().tokenizer_fingerprint
        with PoolClient(Endpoint.make(shard.address)) as pools:
            documents = [Document.make(str(i), g.token_ids) for i, g in enumerate(texts)]
            assert sum(pools.add(POOL, fingerprint, documents)) == len(documents)
        streams = [client.stream(p, pool=POOL, max_new_tokens=NUM_TOKENS, timeout=600) for p in held_out]
        # A stream's call begins with its first chunk: now as many run as the server takes.
        running = [next(stream) for stream in streams[:4]]
        assert any(c.accepted_length for c in running) or any(c.accepted_length for c in streams[0])
        kill(shard)
        ended = [stream.finish() for stream in streams]
    assert [g.token_ids for g in ended] == [g.token_ids for g in plain]
    assert sum(g.stats.num_accepted_tokens for g in ended) > 0
