"""Dashboards and alerts ask for metrics that the servers have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml
from prometheus_client import CollectorRegistry

from laser_retriever.config import RetrieverConfig
from laser_retriever.metrics import RetrieverMetrics
from laser_retriever.pools import Pools
from laser_verifier.learning import LearnCounters
from laser_verifier.metrics import VerifierMetrics
from laser_verifier.remote_drafts import ShardState
from laser_verifier.step_cost import LearnedCost, StepCost
from laser_verifier.tree_inbox import DraftCounters

DEPLOY = Path(__file__).parents[2] / "deploy"
_METRIC = re.compile(r"(?:vllm:|laser_)[a-z_0-9]+")
# A number on either side of an operator with `on` or `ignoring`.
_MATCHES_NUMBER = re.compile(
    r"(?<![\w.])[\d.]+\s*[-+*/%^<>=!]+\s*(?:on|ignoring)\s*\("
    r"|\b(?:on|ignoring)\s*\([^)]*\)\s*(?:group_(?:left|right)\s*(?:\([^)]*\))?)?\s*[\d.]"
)


def names(registry: CollectorRegistry) -> set[str]:
    """What a scrape may hold, histograms' parts included; counters end in _total."""
    found: set[str] = set()
    for family in registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found.update(family.name + suffix for suffix in suffixes)
    return found


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The metrics of both servers."""
    pools = Pools(RetrieverConfig(pools=tmp_path_factory.mktemp("pools")), started=False)
    of_retriever = names(RetrieverMetrics(pools).registry)
    pools.close()
    metrics = VerifierMetrics("tiny", 8)
    cost = StepCost(np.asarray([1, 2]), np.asarray([1.0, 2.0]))
    policy = SimpleNamespace(cost=LearnedCost(cost))
    engine = SimpleNamespace(num_running=0, num_waiting=0, cache_usage=0.0, policy=policy)
    metrics.watch_engine(cast(Any, engine))
    metrics.watch_drafts(lambda: [ShardState("a", True, 0)], DraftCounters())
    metrics.watch_learning(LearnCounters())
    return names(metrics.registry) | of_retriever


def dashboard_expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "laser.json").read_text(encoding="utf8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def alert_expressions() -> list[str]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf8"))["groups"][0]["rules"]
    return [rule["expr"] for rule in rules]


def test_the_dashboard_asks_for_metrics_that_the_servers_have(known: set[str]) -> None:
    asked = {name for expression in dashboard_expressions() for name in _METRIC.findall(expression)}
    assert len(asked) > 20 and asked <= known, asked - known


def test_no_expression_matches_the_labels_of_a_number() -> None:
    """Prometheus refuses a whole rule file for one `1.5 * on (instance) ...`: only vectors have labels to match on."""
    assert _MATCHES_NUMBER.search("a > 1.5 * on (instance) b") and _MATCHES_NUMBER.search("a * on (instance) 1.5")
    assert not _MATCHES_NUMBER.search("a1 > on (instance) (1.5 * b)")
    for expression in [*dashboard_expressions(), *alert_expressions()]:
        assert not _MATCHES_NUMBER.search(expression), expression


def test_the_alerts_ask_for_metrics_that_the_servers_have(known: set[str]) -> None:
    asked = {name for expression in alert_expressions() for name in _METRIC.findall(expression)}
    assert asked and asked <= known, asked - known
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf8"))
    assert {job["job_name"] for job in config["scrape_configs"]} == {"laser-verifier", "laser-retriever"}
