"""What Prometheus is told."""

from __future__ import annotations

import urllib.request
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import start_http_server
from prometheus_client.parser import text_string_to_metric_families
from test_service import FINGERPRINT, POOL, RunningServer, Stream, opening, until

from laser_protocol.errors import WriterElsewhere
from laser_protocol.serving import ListenConfig, serving_metrics
from laser_protocol.v1 import retriever_pb2


def values(text: str) -> dict[str, float]:
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def test_drafts_pools_and_events_are_told(tmp_path: Path) -> None:
    server = RunningServer(tmp_path)
    try:
        listen = ListenConfig("127.0.0.1:0", metrics_port=0)
        with serving_metrics(listen, partial(start_http_server, registry=server.metrics.registry)) as port:

            def read() -> dict[str, float]:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    return values(answer.read().decode())

            assert read()["laser_retriever_drafts_total"] == 0
            server.add({"a": [1, 2, 3], "b": [4]})
            until(lambda: len(server.pools.sources(POOL, FINGERPRINT)[1].table) > 0)
            stream = Stream(server)
            stream.ask(retriever_pb2.DraftRequest(opens=[opening(1, [9]), opening(2, [9], node_budget=0)]))
            told = read()
            assert told["laser_retriever_streams"] == 1
            assert told["laser_retriever_open_sequences"] == 2
            assert told["laser_retriever_drafts_total"] == 1
            assert told["laser_retriever_draft_nodes_total"] > 0
            assert told["laser_retriever_draft_seconds_count"] == 1
            assert told["laser_retriever_late_drafts_total"] == 0
            assert told["laser_retriever_pools"] == 1
            assert (told["laser_retriever_documents"], told["laser_retriever_tokens"]) == (2, 4)
            assert told["laser_retriever_segments"] == 0
            assert told["laser_retriever_log_bytes"] > 0
            assert told["laser_retriever_writable"] == 1
            assert told["laser_retriever_documents_acknowledged_total"] == 2
            for event in ("seals", "compactions", "documents_evicted", "storage_errors", "writer_conflicts"):
                assert told[f"laser_retriever_{event}_total"] == 0
            stream.end()
            server.stub.CompactPool(retriever_pb2.CompactPoolRequest(pool=POOL))
            until(lambda: read()["laser_retriever_segments"] == 1)
            assert read()["laser_retriever_compactions_total"] == 1
            until(lambda: read()["laser_retriever_open_sequences"] == 0)
    finally:
        server.stop()


def test_conflicts_over_a_pool_are_counted_where_they_are_answered(tmp_path: Path) -> None:
    server, other = RunningServer(tmp_path), RunningServer(tmp_path, "shard-b")
    try:
        server.add({"a": [1]})
        with pytest.raises(WriterElsewhere):
            other.pools.add_documents(POOL, FINGERPRINT, [])
        families = {family.name: family for family in other.metrics.registry.collect()}
        assert families["laser_retriever_writer_conflicts"].samples[0].value == 1
    finally:
        server.stop()
        other.stop()
