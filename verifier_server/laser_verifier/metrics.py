"""Prometheus metrics of a verifier: vLLM's names where it has the metric (vllm/v1/metrics/loggers.py and
vllm/v1/spec_decode/metrics.py of 0.32), `laser_` for what only drafting from retrievers has.

Every verifier has a registry of its own; nothing is registered globally.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from laser_protocol.tree import MAX_SOURCE
from laser_verifier.engine import Engine
from laser_verifier.learning import LearnCounters
from laser_verifier.observer import StepRecord
from laser_verifier.remote_drafts import ShardState
from laser_verifier.sequence import FinishReason, GenerationStats
from laser_verifier.tree_inbox import DraftCounters

# vLLM's buckets of request latencies, and one below them for machines where a request takes less.
_LATENCY_S = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0)
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0)
_PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
_ACCEPTED = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_MODEL = "model_name"
# As in DraftTree.sources: the sequence's own text, its pool, the pool's ancestors from the nearest on.
_SOURCES = ("own_text", "pool", *(f"ancestor_{n}" for n in range(1, MAX_SOURCE)), "unknown")


class VerifierMetrics:
    """The engine's Observer that counts for Prometheus.

    Args:
        model_name: label of all metrics that are vLLM's. max_draft_nodes: positions that a draft may have.
    """

    def __init__(self, model_name: str, max_draft_nodes: int) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self._max_draft_nodes = max_draft_nodes
        self._add_request_metrics()
        self._add_speculation_metrics()
        self._add_step_metrics()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        metric = Histogram(name, text, (_MODEL,), buckets=tuple(buckets), registry=self.registry)
        return metric.labels(self._model_name)

    def _of_model(self, name: str, text: str) -> Counter:
        return self._counter(name, text, _MODEL).labels(self._model_name)

    def _add_request_metrics(self) -> None:
        self._prompt_tokens = self._of_model("vllm:prompt_tokens", "Prompt tokens, prefilled or reused.")
        self._prefix_queries = self._of_model("vllm:prefix_cache_queries", "Prompt tokens looked up for reuse.")
        self._prefix_hits = self._of_model("vllm:prefix_cache_hits", "Prompt tokens reused.")
        self._generation_tokens = self._of_model("vllm:generation_tokens", "Emitted tokens.")
        self._success = self._counter("vllm:request_success", "Finished requests.", _MODEL, "finished_reason")
        self._ended = self._counter("laser_requests_ended", "Requests that did not finish.", "reason")
        seconds = _LATENCY_S
        self._e2e = self._histogram("vllm:e2e_request_latency_seconds", "From arrival to end.", seconds)
        self._queue = self._histogram("vllm:request_queue_time_seconds", "Waiting for a slot.", seconds)
        self._prefill = self._histogram("vllm:request_prefill_time_seconds", "From slot to first token.", seconds)
        self._decode = self._histogram("vllm:request_decode_time_seconds", "From first token to end.", seconds)
        self._inference = self._histogram("vllm:request_inference_time_seconds", "From slot to end.", seconds)
        self._first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From arrival to first token.", _FIRST_TOKEN_S
        )
        self._per_token = self._histogram(
            "vllm:request_time_per_output_token_seconds", "Decode time per token after the first.", _PER_TOKEN_S
        )
        self._num_prompt = self._histogram("vllm:request_prompt_tokens", "Prompt tokens per request.", _TOKENS)
        self._num_generated = self._histogram("vllm:request_generation_tokens", "Emitted tokens per request.", _TOKENS)

    def _add_speculation_metrics(self) -> None:
        self._drafts = self._of_model("vllm:spec_decode_num_drafts", "Verified trees with at least one node.")
        self._draft_tokens = self._of_model("vllm:spec_decode_num_draft_tokens", "Verified nodes.")
        self._accepted_tokens = self._of_model("vllm:spec_decode_num_accepted_tokens", "Accepted nodes.")
        by_position = self._counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "Accepted nodes by depth - 1.", _MODEL, "position"
        )
        self._accepted_at = [by_position.labels(self._model_name, str(i)) for i in range(self._max_draft_nodes)]
        nodes = self._counter("laser_draft_nodes", "Verified nodes by what spoke for them.", "source")
        accepted = self._counter("laser_accepted_tokens", "Accepted nodes by what spoke for them.", "source")
        self._nodes_of, self._accepted_of = ([by.labels(source) for source in _SOURCES] for by in (nodes, accepted))
        self._offered = self._counter("laser_draft_offered_nodes", "Nodes of the trees that came in time.")
        self._expected = self._counter("laser_draft_expected_tokens", "Tokens that the verified nodes were to emit.")
        self._relaxed = self._counter("laser_relaxed_tokens", "Emitted tokens that were not the argmax.")
        self._dropped = self._counter("laser_draft_dropped_trees", "Trees that were not used.", "reason")
        self._lengths = Histogram(
            "laser_accepted_length", "Accepted nodes per tree.", buckets=_ACCEPTED, registry=self.registry
        )
        self._price = Gauge(
            "laser_draft_price", "Probability below which a node did not pay, last step.", registry=self.registry
        )
        self._gain = Gauge(
            "laser_draft_gain", "Worth of the last step with drafting over without.", registry=self.registry
        )

    def _add_step_metrics(self) -> None:
        self._step_tokens = self._histogram(
            "vllm:iteration_tokens_total", "Tokens of a step: prefilled and emitted.", _STEP_TOKENS
        )
        self._step_s = Histogram("laser_step_seconds", "Length of a step.", buckets=_STEP_S, registry=self.registry)
        phases = self._counter("laser_step_phase_seconds", "Time of steps by phase.", "phase")
        self._draft_s, self._forward_s, self._host_s = (phases.labels(name) for name in ("drafts", "forward", "host"))

    # Observer, from the engine thread.

    def step(self, record: StepRecord) -> None:
        """See Observer."""
        num_prompt_tokens = record.num_prompt_tokens + record.num_reused_tokens
        self._prompt_tokens.inc(num_prompt_tokens)
        self._prefix_queries.inc(num_prompt_tokens)
        self._prefix_hits.inc(record.num_reused_tokens)
        self._generation_tokens.inc(record.num_output_tokens)
        self._step_tokens.observe(record.num_prompt_tokens + record.num_output_tokens)
        self._draft_s.inc(record.draft_s)
        self._forward_s.inc(record.forward_s)
        self._host_s.inc(record.host_s)
        self._step_s.observe(record.draft_s + record.forward_s + record.host_s)
        self._offered.inc(record.num_offered_nodes)
        self._price.set(record.price)
        self._gain.set(record.gain)
        if not record.accepted_lengths:
            return
        self._drafts.inc(len(record.accepted_lengths))
        self._draft_tokens.inc(record.num_nodes)
        self._expected.inc(record.expected_tokens)
        self._accepted_tokens.inc(sum(record.accepted_lengths))
        self._relaxed.inc(record.num_relaxed_tokens)
        for counters, counts in (
            (self._nodes_of, record.nodes_by_source),
            (self._accepted_of, record.accepted_by_source),
        ):
            for counter, count in zip(counters, counts, strict=True):
                counter.inc(count)
        for accepted_length in record.accepted_lengths:
            self._lengths.observe(accepted_length)
        for position in range(max(record.accepted_lengths)):
            self._accepted_at[position].inc(sum(length > position for length in record.accepted_lengths))

    def finished(self, reason: FinishReason, stats: GenerationStats) -> None:
        """See Observer."""
        queue_s, prefill_s, decode_s = stats.queue_ms / 1e3, stats.prefill_ms / 1e3, stats.decode_ms / 1e3
        self._success.labels(self._model_name, reason.value).inc()
        self._e2e.observe(queue_s + prefill_s + decode_s)
        self._queue.observe(queue_s)
        self._prefill.observe(prefill_s)
        self._decode.observe(decode_s)
        self._inference.observe(prefill_s + decode_s)
        self._first_token.observe(queue_s + prefill_s)
        if stats.num_output_tokens > 1:
            self._per_token.observe(decode_s / (stats.num_output_tokens - 1))
        self._num_prompt.observe(stats.num_prompt_tokens)
        self._num_generated.observe(stats.num_output_tokens)

    def ended(self, reason: str) -> None:
        """See Observer."""
        self._ended.labels(reason).inc()

    def dropped_tree(self, reason: str) -> None:
        """See Observer."""
        self._dropped.labels(reason).inc()

    # What is read when somebody asks.

    def watch_engine(self, engine: Engine) -> None:
        """Adds what the engine knows at any time."""

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            metric = Gauge(name, text, (_MODEL,), registry=self.registry)
            metric.labels(self._model_name).set_function(value)

        gauge("vllm:num_requests_running", "Requests that hold a slot.", lambda: engine.num_running)
        gauge("vllm:num_requests_waiting", "Requests that wait for a slot.", lambda: engine.num_waiting)
        gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", lambda: engine.cache_usage)
        self.registry.register(_CostCollector(engine))

    def watch_drafts(self, shards: Callable[[], list[ShardState]], counters: DraftCounters) -> None:
        """Adds what the draft streams know."""
        self.registry.register(_ShardCollector(shards, counters))

    def watch_learning(self, counters: LearnCounters) -> None:
        """Adds what became of outputs that were to join pools."""
        self.registry.register(_LearnCollector(counters))


class _CostCollector(Collector):
    """What a forward is thought to cost at present."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("laser_forward_cost_seconds", "Forward over so many tokens.", labels=["num_tokens"])
        learned = self._engine.policy.cost
        if learned is not None:
            now = learned.now
            for size, seconds in zip(now.sizes.tolist(), now.seconds.tolist(), strict=True):
                family.add_metric([str(size)], seconds)
        yield family


class _ShardCollector(Collector):
    """Shards and their streams."""

    def __init__(self, shards: Callable[[], list[ShardState]], counters: DraftCounters) -> None:
        self._shards = shards
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        connected = GaugeMetricFamily("laser_shard_connected", "1 while its stream stands.", labels=["shard"])
        num_open = GaugeMetricFamily("laser_shard_open_sequences", "Sequences drafted by it.", labels=["shard"])
        for shard in self._shards():
            connected.add_metric([shard.name], float(shard.connected))
            num_open.add_metric([shard.name], shard.num_open)
        yield from (connected, num_open)
        for name, text, value in (
            ("laser_draft_trees", "Trees received.", self._counters.num_trees),
            ("laser_draft_missing_trees", "Trees that a shard did not send in time.", self._counters.num_missing),
            ("laser_draft_late_trees", "Trees of sequences that had ended or moved.", self._counters.num_late),
            ("laser_draft_unreadable_trees", "Trees that could not be read.", self._counters.num_malformed),
            ("laser_draft_failovers", "Sequences moved off a lost shard.", self._counters.num_failovers),
            ("laser_draft_faults", "Sequences that a shard gave up.", self._counters.num_faults),
        ):
            yield CounterMetricFamily(name, text, value=value)


class _LearnCollector(Collector):
    """Outputs on their way to pools."""

    def __init__(self, counters: LearnCounters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily("laser_learned_outputs", "Outputs that joined a pool.", self._counters.num_learned)
        yield CounterMetricFamily(
            "laser_learn_dropped_outputs", "Outputs that were to join a pool and did not.", self._counters.num_dropped
        )
