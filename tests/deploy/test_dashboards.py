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

from laser_verifier.metrics import VerifierMetrics
from laser_verifier.remote_drafts import DraftCounters, ShardState
from laser_verifier.step_cost import LearnedCost, StepCost

DEPLOY = Path(__file__).parents[2] / "deploy"
_METRIC = re.compile(r"(?:vllm:|laser_)[a-z_0-9]+")


def names(registry: CollectorRegistry) -> set[str]:
    """What a scrape may hold, histograms' parts included; counters end in _total."""
    found: set[str] = set()
    for family in registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found.update(family.name + suffix for suffix in suffixes)
    return found


@pytest.fixture(scope="module")
def known() -> set[str]:
    metrics = VerifierMetrics("tiny", 8)
    cost = StepCost(np.asarray([1, 2]), np.asarray([1.0, 2.0]))
    policy = SimpleNamespace(cost=LearnedCost(cost))
    engine = SimpleNamespace(num_running=0, num_waiting=0, cache_usage=0.0, policy=policy)
    metrics.watch_engine(cast(Any, engine))
    metrics.watch_drafts(lambda: [ShardState("a", True, 0)], DraftCounters())
    return names(metrics.registry)


def test_the_dashboard_asks_for_metrics_that_a_verifier_has(known: set[str]) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "laser.json").read_text(encoding="utf8"))
    asked = {
        name for panel in dashboard["panels"] for target in panel["targets"] for name in _METRIC.findall(target["expr"])
    }
    assert len(asked) > 20 and asked <= known, asked - known


def test_the_alerts_ask_for_metrics_that_a_verifier_has(known: set[str]) -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf8"))["groups"][0]["rules"]
    asked = {name for rule in rules for name in _METRIC.findall(rule["expr"])}
    assert asked and asked <= known, asked - known
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf8"))
    assert {job["job_name"] for job in config["scrape_configs"]} == {"laser-verifier", "laser-retriever"}
