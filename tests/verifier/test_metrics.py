"""What a verifier's metrics say, beside what its requests were told."""

from __future__ import annotations

import dataclasses
import urllib.error
import urllib.request
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, start_http_server

from laser_protocol.errors import Overloaded
from laser_protocol.serving import ListenConfig, serving_metrics
from laser_protocol.tree import DraftTree
from laser_verifier.drafts import NoDrafts
from laser_verifier.learning import NoPools
from laser_verifier.metrics import VerifierMetrics
from laser_verifier.remote_drafts import ShardState
from laser_verifier.sequence import FinishReason
from laser_verifier.tree_inbox import DraftCounters
from tests.oracles import plain_decoding
from tests.verifier.tiny import VOCAB_SIZE, TinyServer, tiny_model, tiny_network
from tests.verifier.trees import GoodDrafts, make_tree

PROMPT = (5, 6, 7)


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny_network("llama", seed=2)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(name, labels | ({"model_name": "tiny"} if name.startswith("vllm:") else {}))
    assert found is not None, name
    return found


def test_metrics_add_up_to_what_the_requests_were_told(network: Any) -> None:
    metrics = VerifierMetrics("tiny", 32)
    drafts = GoodDrafts(VOCAB_SIZE, {PROMPT: plain_decoding(network, PROMPT, 40)})
    server = TinyServer(tiny_model(network), drafts, observer=metrics)
    metrics.watch_engine(server.engine)
    outcomes = [server.submit(PROMPT, 30) for _ in range(6)]
    server.engine.step()
    registry = metrics.registry
    assert value(registry, "vllm:num_requests_running") == 4
    assert value(registry, "vllm:num_requests_waiting") == 2
    assert 0 < value(registry, "vllm:kv_cache_usage_perc") < 1
    server.run()
    stats = [outcome.finished.stats for outcome in outcomes]
    assert value(registry, "vllm:num_requests_running") == value(registry, "vllm:num_requests_waiting") == 0
    assert value(registry, "vllm:prompt_tokens_total") == sum(s.num_prompt_tokens for s in stats)
    assert value(registry, "vllm:generation_tokens_total") == sum(s.num_output_tokens for s in stats)
    assert value(registry, "vllm:request_success_total", finished_reason="length") == 6
    assert value(registry, "vllm:spec_decode_num_draft_tokens_total") == sum(s.num_draft_tokens for s in stats)
    accepted = value(registry, "vllm:spec_decode_num_accepted_tokens_total")
    assert accepted == sum(s.num_accepted_tokens for s in stats) > 0
    by_position = [
        value(registry, "vllm:spec_decode_num_accepted_tokens_per_pos_total", position=str(i)) for i in range(32)
    ]
    assert sum(by_position) == accepted and by_position == sorted(by_position, reverse=True)
    assert by_position[0] <= value(registry, "vllm:spec_decode_num_drafts_total")
    for name in ("queue", "prefill", "decode", "inference"):
        assert value(registry, f"vllm:request_{name}_time_seconds_count") == 6
    assert value(registry, "laser_accepted_length_sum") == accepted
    phases = [value(registry, "laser_step_phase_seconds_total", phase=p) for p in ("drafts", "forward", "host")]
    assert sum(phases) == pytest.approx(value(registry, "laser_step_seconds_sum"))


def test_accepted_tokens_are_counted_by_what_spoke_for_them(network: Any) -> None:
    class Told(GoodDrafts):
        def _tree(self, sequence_id: int, token_ids: list[int]) -> DraftTree | None:
            tree = super()._tree(sequence_id, token_ids)
            if tree is None or len(token_ids) % 2:
                return tree
            return dataclasses.replace(tree, sources=np.arange(len(tree), dtype=np.uint8) % 3)

    metrics = VerifierMetrics("tiny", 32)
    drafts = Told(VOCAB_SIZE, {PROMPT: plain_decoding(network, PROMPT, 60)})
    server = TinyServer(tiny_model(network), drafts, observer=metrics)
    server.submit(PROMPT, 50)
    server.run()
    for name, total in (("laser_draft_nodes", "draft"), ("laser_accepted_tokens", "accepted")):
        sources = ("own_text", "pool", "ancestor_1", "ancestor_7", "unknown")
        counts = [value(metrics.registry, f"{name}_total", source=source) for source in sources]
        assert sum(counts) == value(metrics.registry, f"vllm:spec_decode_num_{total}_tokens_total")
        assert counts[3] == 0 and counts[0] > 0


def test_prompt_tokens_count_whole_and_those_reused_from_another_slot_as_hits(network: Any) -> None:
    metrics = VerifierMetrics("tiny", 32)
    server = TinyServer(tiny_model(network), NoDrafts(), max_sequences=1, observer=metrics)
    prompt = tuple(range(30))
    for _ in range(2):
        server.submit(prompt, 2)
        server.run()
    assert value(metrics.registry, "vllm:prompt_tokens_total") == 60
    assert value(metrics.registry, "vllm:prefix_cache_queries_total") == 60
    assert value(metrics.registry, "vllm:prefix_cache_hits_total") == server.engine.counters.num_reused_tokens == 29


def test_dropped_trees_and_requests_that_did_not_finish_are_counted_with_their_reason(network: Any) -> None:
    class Stale(GoodDrafts):
        def _tree(self, sequence_id: int, token_ids: list[int]) -> DraftTree:
            return make_tree(len(token_ids) + (1 if len(token_ids) % 2 else 0), [VOCAB_SIZE], [-1])

    metrics = VerifierMetrics("tiny", 32)
    server = TinyServer(tiny_model(network), Stale(VOCAB_SIZE, {}), max_sequences=1, max_queue=1, observer=metrics)
    server.submit(PROMPT, 10)
    server.submit(PROMPT, 10, request_id="second")
    with pytest.raises(Overloaded):
        server.submit(PROMPT, 10)
    for _ in range(12):
        server.engine.step()
    server.engine.cancel("second")
    server.submit(PROMPT, 10, request_id="third")
    server.engine.cancel("third")
    server.run()
    assert value(metrics.registry, "laser_requests_ended_total", reason="overloaded") == 1
    assert value(metrics.registry, "laser_requests_ended_total", reason="cancelled") == 2, "running, and waiting"
    assert value(metrics.registry, "laser_draft_dropped_trees_total", reason="stale") > 0
    assert value(metrics.registry, "laser_draft_dropped_trees_total", reason="malformed") > 0
    assert value(metrics.registry, "vllm:request_success_total", finished_reason=FinishReason.LENGTH.value) == 1


def test_every_shard_shows_its_sequences_and_two_verifiers_share_no_metric() -> None:
    first, second = VerifierMetrics("tiny", 8), VerifierMetrics("tiny", 8)
    counters = DraftCounters(num_trees=7)
    first.watch_drafts(lambda: [ShardState("a", True, 3), ShardState("1.2.3.4:50051", False, 0)], counters)
    assert value(first.registry, "laser_shard_open_sequences", shard="a") == 3
    assert value(first.registry, "laser_shard_connected", shard="1.2.3.4:50051") == 0
    assert value(first.registry, "laser_draft_trees_total") == 7
    assert second.registry.get_sample_value("laser_draft_trees_total") is None


def test_outputs_that_join_no_pool_are_counted_and_warned_of_once_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, pools = VerifierMetrics("tiny", 8), NoPools()
    metrics.watch_learning(pools.counters)
    times_s = iter((100.0, 100.1, 100.9, 101.0))
    monkeypatch.setattr("laser_verifier.throttle.time", SimpleNamespace(monotonic=lambda: next(times_s)))
    for _ in range(4):
        pools.learn("a/b", "x", [1, 2])
    assert value(metrics.registry, "laser_learn_dropped_outputs_total") == 4
    assert value(metrics.registry, "laser_learned_outputs_total") == 0
    assert [record.args[0] for record in caplog.records if record.args] == [1, 3]


def test_metrics_are_served_over_http_until_the_server_stops() -> None:
    listen = ListenConfig("127.0.0.1:0", metrics_port=0)
    start = partial(start_http_server, registry=VerifierMetrics("tiny", 8).registry)
    with serving_metrics(listen, start) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert b"vllm:spec_decode_num_drafts_total" in answer.read()
        taken = ListenConfig("127.0.0.1:0", metrics_port=port)
        refused = pytest.raises(OSError, match=f"cannot serve --metrics-port {port} on 127.0.0.1: ")
        with refused, serving_metrics(taken, start):
            pass
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_without_a_measured_cost_none_is_shown(network: Any) -> None:
    metrics = VerifierMetrics("tiny", 8)
    server = TinyServer(tiny_model(network), NoDrafts(), observer=metrics)
    metrics.watch_engine(server.engine)
    assert metrics.registry.get_sample_value("laser_forward_cost_seconds", {"num_tokens": "1"}) is None
