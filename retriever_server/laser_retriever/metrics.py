"""What Prometheus is told: drafts as they are made, pools as they are when it asks."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from laser_retriever.drafter import Drafter
from laser_retriever.pools import Pools

_LATENCY_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.008, 0.0125, 0.02, 0.05, 0.1, 0.5, 1.0)


class RetrieverMetrics:
    """The metrics of one retriever, in a registry of its own.

    Args:
        pools: whose state and events are reported.
    """

    def __init__(self, pools: Pools) -> None:
        self.registry = CollectorRegistry()
        self.trees = Counter("laser_retriever_drafts", "Draft trees sent.", registry=self.registry)
        self.nodes = Counter("laser_retriever_draft_nodes", "Nodes of the trees sent.", registry=self.registry)
        self.late = Counter(
            "laser_retriever_late_drafts", "Draft trees sent empty because their message's deadline had passed.",
            registry=self.registry,
        )  # fmt: skip
        self.latency = Histogram(
            "laser_retriever_draft_seconds", "From a message's arrival until its trees are ready.",
            buckets=_LATENCY_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self.streams = Gauge("laser_retriever_streams", "Open draft streams.", registry=self.registry)
        self.sequences = Gauge("laser_retriever_open_sequences", "Open sequences.", registry=self.registry)
        self.registry.register(_PoolsCollector(pools))

    def open_stream(self) -> StreamMetrics:
        """Counts a draft stream as open until its `close`."""
        self.streams.inc()
        return StreamMetrics(self)


class StreamMetrics:
    """One draft stream's share of the metrics."""

    def __init__(self, metrics: RetrieverMetrics) -> None:
        self._metrics = metrics
        self._num_sequences = self._num_nodes = self._num_late = 0

    def answered(self, drafter: Drafter, num_trees: int, took_s: float) -> None:
        """Takes note of an answered message.

        Args:
            drafter: the stream's.
            num_trees: that it got.
            took_s: from its arrival on.
        """
        if num_trees:
            self._metrics.latency.observe(took_s)
            self._metrics.trees.inc(num_trees)
            self._metrics.nodes.inc(drafter.feedback.num_nodes - self._num_nodes)
            self._num_nodes = drafter.feedback.num_nodes
        if drafter.num_late > self._num_late:
            self._metrics.late.inc(drafter.num_late - self._num_late)
            self._num_late = drafter.num_late
        self._holds(len(drafter))

    def close(self) -> None:
        """The stream has ended, and its sequences with it."""
        self._holds(0)
        self._metrics.streams.dec()

    def _holds(self, num_sequences: int) -> None:
        if num_sequences == self._num_sequences:
            return
        self._metrics.sequences.inc(num_sequences - self._num_sequences)
        self._num_sequences = num_sequences


class _PoolsCollector(Collector):
    """Reads the pools when asked; a pool costs no label, for there may be any number."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def collect(self) -> Iterable[Metric]:
        snapshots = self._pools.snapshots()
        gauges = {
            "pools": ("Pools that exist.", len(snapshots)),
            "documents": ("Documents.", sum(s.num_documents for s in snapshots)),
            "tokens": ("Output tokens of documents.", sum(s.num_tokens for s in snapshots)),
            "dead_tokens": ("Tokens that go with the next compaction.", sum(s.num_dead_tokens for s in snapshots)),
            "segments": ("Segments.", sum(len(s.segments) for s in snapshots)),
            "log_bytes": ("Bytes of write-ahead logs.", sum(s.log_size_bytes for s in snapshots)),
            "pool_bytes": ("Bytes of segments and logs.", sum(s.size_bytes for s in snapshots)),
            "writable": ("1 while the pools can be written to, else 0.", int(self._pools.storage.writable)),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"laser_retriever_{name}", text, value)
        for event, number in self._pools.counters.read().items():
            text = event.value.replace("_", " ").capitalize() + "."
            yield CounterMetricFamily(f"laser_retriever_{event.value}", text, number)
