"""The draft-and-verify loop: schedule, draft, run, verify, emit. The only place where it is written.

Sees retrievers as a DraftSource, the device as a ModelRunner, callers as sinks. One thread calls `step`; `submit` and
`cancel` may be called from any.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from laser_protocol.errors import EngineDead, LaserError, NotReady, Overloaded
from laser_protocol.tree import DraftTree
from laser_verifier.batch import StepInput
from laser_verifier.config import EngineConfig
from laser_verifier.counters import EngineCounters
from laser_verifier.draft_policy import DraftPolicy
from laser_verifier.drafting import Drafting, StepDrafts
from laser_verifier.drafts import Advanced, DraftSource
from laser_verifier.observer import NoObserver, Observer, StepRecord, count_sources
from laser_verifier.prefix_cache import PrefixCache
from laser_verifier.runner import ModelRunner, Verdict
from laser_verifier.schedule import schedule
from laser_verifier.sequence import Admitted, DraftStatus, Emitted, Finished, FinishReason, Request, Sequence, Sink
from laser_verifier.step_cost import StepCost
from laser_verifier.text import TextStream
from laser_verifier.waiting import Waiting, WaitingQueue

logger = logging.getLogger(__name__)

T = TypeVar("T")
Learn = Callable[[str, str, Seq[int]], None]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one step gave a sequence: the tokens it keeps, the first `accepted_length` of them from its tree."""

    sequence: Sequence
    tree: DraftTree
    verdict: Verdict
    token_ids: tuple[int, ...]
    accepted_length: int


class Engine:
    """Continuous batching with draft trees.

    Args:
        runner: the device.
        tokenizer: fast transformers tokenizer, for text and stop strings.
        drafts: where trees come from.
        config: limits and policy.
        cost: seconds of a forward over M tokens; None only with draft_policy "all".
        learn: takes (pool, document id, output token ids) of finished requests that asked for it; must not block.
        observer: told of steps and ends.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Any,
        drafts: DraftSource,
        config: EngineConfig,
        cost: StepCost | None = None,
        learn: Learn = lambda pool, document_id, token_ids: None,
        observer: Observer | None = None,
    ) -> None:
        self.policy = DraftPolicy(config, cost)
        self.counters = EngineCounters()
        self._runner = runner
        self._tokenizer = tokenizer
        self._drafts = drafts
        self._config = config
        self._learn = learn
        self._observer: Observer = observer or NoObserver()
        vocab_size = runner.model.vocab_size
        self._drafting = Drafting(drafts, self.policy, vocab_size, self.counters, self._observer)
        self._eos_token_ids = frozenset(runner.model.eos_token_ids)
        self._running: list[Sequence] = []
        self._free_slots = list(range(runner.num_slots))
        self._prefixes = PrefixCache(runner.num_slots)
        # Slots whose prompts got no room in the last step.
        self._stalled: set[int] = set()
        self._num_reused_told = 0
        self._next_sequence_id = 1
        self._waiting = WaitingQueue(config.max_queue)
        self._work = threading.Event()
        # How long a request holds its slot, averaged over the last ones: what a refused caller is told to wait by.
        self._service_s = 1.0

    # From any thread.

    def submit(self, request: Request, sink: Sink) -> None:
        """Queues a request. Its sink gets events from the engine thread: the last is Finished or a LaserError.

        Raises:
            Overloaded: the queue is full. NotReady, EngineDead: no more requests are taken.
        """
        self.check_room(0)
        self._waiting.add(request, sink)
        self._work.set()

    def check_room(self, num_coming: int) -> None:
        """Refuses a request that the queue will have no room for once so many others have joined it.

        Raises:
            Overloaded: says when to come back.
        """
        retry_after_s = min(30.0, max(0.1, self._service_s / self._config.max_sequences))
        try:
            self._waiting.check_room(num_coming, len(self._free_slots), retry_after_s)
        except Overloaded:
            self._observer.ended("overloaded")
            raise

    def cancel(self, request_id: str) -> None:
        """Ends a request without a further event: at once if it waits, at the next step if it runs."""
        if self._waiting.cancel(request_id):
            self._observer.ended("cancelled")
        self._work.set()

    def num_ahead(self, request_id: str) -> int:
        """Requests that wait ahead of this one."""
        return self._waiting.num_ahead(request_id)

    # From the engine thread.

    @property
    def is_busy(self) -> bool:
        """Whether a request runs or waits."""
        return bool(self._running or len(self._waiting))

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def cache_usage(self) -> float:
        """Of the places in the KV cache, the share that holds keys and values, 0 to 1."""
        num_cached = sum(sequence.num_cached for sequence in list(self._running))
        return num_cached / (self._config.max_sequences * self._config.max_model_len)

    def wait_for_work(self, timeout_s: float) -> None:
        """Returns at once if something runs or waits, else when something comes or the time is over."""
        if not self.is_busy:
            self._work.wait(timeout_s)
        self._work.clear()

    def step(self) -> None:
        """One forward over all running sequences. Does nothing if none runs or waits."""
        started_s = time.perf_counter()
        self._admit()
        scheduled = self._schedule()
        if not scheduled:
            return
        drafts, draft_s = _timed(lambda: self._drafting.collect(scheduled))
        inputs = [self._step_input(sequence, num_tokens, drafts.trees) for sequence, num_tokens in scheduled]
        verdicts, forward_s = _timed(lambda: self._runner.run(inputs))
        outcomes = self._emit([sequence for sequence, _ in scheduled], inputs, verdicts)
        self._observe(inputs, outcomes, drafts, draft_s, forward_s, started_s)

    def close(self, error: LaserError | None = None) -> None:
        """Ends every request with `error` and takes no more."""
        error = error or NotReady("the server is stopping")
        for entry in self._waiting.close(error):
            entry.sink(error)
            self._observer.ended("error")
        for sequence in list(self._running):
            sequence.sink(error)
            self._release(sequence)
            self._observer.ended("error")

    def _admit(self) -> None:
        """Gives free slots to waiting requests, first come first served; frees the slots of cancelled ones."""
        cancelled = self._waiting.take_cancelled()
        for sequence in [s for s in self._running if s.request.request_id in cancelled]:
            self._release(sequence)
            self._observer.ended("cancelled")
        while self._free_slots and (entry := self._waiting.take()) is not None:
            self._start(entry)

    def _start(self, entry: Waiting) -> None:
        # The lowest slot: attention reads the range of slots in use, so it should stay short.
        slot_idx = min(self._free_slots)
        self._free_slots.remove(slot_idx)
        request = entry.request
        text = TextStream(self._tokenizer, request.stop)
        sequence = Sequence(
            request, entry.sink, text, self._next_sequence_id, slot_idx, request.arrived_s, time.monotonic()
        )
        self._next_sequence_id = self._next_sequence_id % (2**31 - 1) + 1
        self._running.append(sequence)
        entry.sink(Admitted())
        if request.draft:
            self._drafting.open(sequence)

    def _schedule(self) -> list[tuple[Sequence, int]]:
        cost = self.policy.cost.now if self.policy.cost is not None else None
        ready = self._reuse_prefixes()
        scheduled = schedule(ready, self._config, cost)
        self._stalled = {sequence.slot_idx for sequence in ready} - {sequence.slot_idx for sequence, _ in scheduled}
        return scheduled

    def _reuse_prefixes(self) -> list[Sequence]:
        """The running sequences without those whose prompt's beginning another computes just now.

        What a slot holds of a new prompt already is copied, not computed.
        """
        if not self._config.prefix_reuse:
            return self._running
        ready: list[Sequence] = []
        for i, sequence in enumerate(self._running):
            if sequence.num_cached == 0:
                # One that got no room brings nothing soon, and a shorter prompt gets room before it.
                ahead = {
                    other.slot_idx
                    for other in self._running[:i]
                    if other.slot_idx not in self._stalled or other.num_pending <= sequence.num_pending
                }
                shared = self._prefixes.find(sequence.prompt, ahead)
                if shared.is_coming:
                    continue
                if shared.num_tokens:
                    self._runner.copy_prefix(shared.slot_idx, sequence.slot_idx, shared.num_tokens)
                    sequence.num_cached = shared.num_tokens
                    self.counters.num_reused_tokens += shared.num_tokens
                self._prefixes.hold(sequence.slot_idx, sequence.prompt, sequence.num_cached)
            ready.append(sequence)
        return ready

    def _step_input(self, sequence: Sequence, num_tokens: int, trees: dict[int, DraftTree]) -> StepInput:
        request, start = sequence.request, sequence.num_cached
        tree = None
        if num_tokens == sequence.num_pending:
            tree = trees.get(sequence.sequence_id) or DraftTree.empty(sequence.num_tokens)
        return StepInput(
            slot_idx=sequence.slot_idx,
            num_cached=start,
            token_ids=sequence.token_ids[start : start + num_tokens],
            tree=tree,
            acceptance=request.acceptance,
            temperature=request.temperature,
            seed=request.seed,
            num_output=sequence.num_output_tokens,
            max_depth=sequence.num_remaining,
        )

    def _emit(
        self, sequences: list[Sequence], inputs: list[StepInput], verdicts: list[Verdict | None]
    ) -> list[_Outcome]:
        """Gives each sequence its tokens, tells the retriever what became of the trees, ends what is finished."""
        now_s = time.monotonic()
        advanced: list[Advanced] = []
        outcomes: list[_Outcome] = []
        for sequence, entry, verdict in zip(sequences, inputs, verdicts, strict=True):
            if verdict is None or entry.tree is None:
                sequence.num_cached += len(entry.token_ids)
                self._prefixes.hold(sequence.slot_idx, sequence.prompt, sequence.num_cached)
                continue
            position = sequence.num_tokens
            outcome = self._apply(sequence, entry.tree, verdict, now_s)
            outcomes.append(outcome)
            if sequence.request.draft and sequence.finish_reason is None:
                advanced.append(
                    Advanced(
                        sequence.sequence_id,
                        position,
                        np.asarray(outcome.token_ids, np.int32),
                        len(entry.tree),
                        verdict.accepted_node_idx,
                        self._drafting.ask(sequence),
                    )
                )
        # Before anything else: the retriever drafts while we make text and emit.
        if advanced:
            self._drafts.advance(advanced)
        for outcome in outcomes:
            sequence = outcome.sequence
            sequence.sink(Emitted(sequence.text.take(), outcome.token_ids, outcome.accepted_length))
            if sequence.finish_reason is not None:
                self._finish(sequence)
        return outcomes

    def _observe(
        self,
        inputs: list[StepInput],
        outcomes: list[_Outcome],
        drafts: StepDrafts,
        draft_s: float,
        forward_s: float,
        started_s: float,
    ) -> None:
        """Tells policy and observer of the step."""
        num_tokens = sum(entry.num_tokens for entry in inputs)
        num_prompt_tokens = sum(len(entry.token_ids) for entry in inputs if entry.num_output == 0)
        num_reused_tokens = self.counters.num_reused_tokens - self._num_reused_told
        self._num_reused_told = self.counters.num_reused_tokens
        self.policy.observe(num_tokens, forward_s, is_plain=num_prompt_tokens == 0)
        if drafts.num_asked:
            self.policy.observe_drafting(draft_s)
        self.policy.observe_trees([(outcome.tree, outcome.verdict.path) for outcome in outcomes])
        self.counters.num_steps += 1
        record = StepRecord(
            num_sequences=len(outcomes),
            num_prompt_tokens=num_prompt_tokens,
            num_reused_tokens=num_reused_tokens,
            num_offered_nodes=drafts.num_offered_nodes,
            num_nodes=sum(len(outcome.tree) for outcome in outcomes),
            expected_tokens=drafts.choice.expected_tokens,
            nodes_by_source=count_sources((outcome.tree, range(len(outcome.tree))) for outcome in outcomes),
            accepted_by_source=count_sources(
                (outcome.tree, outcome.verdict.path[: outcome.accepted_length]) for outcome in outcomes
            ),
            accepted_lengths=tuple(outcome.accepted_length for outcome in outcomes if len(outcome.tree)),
            num_relaxed_tokens=sum(sum(outcome.verdict.relaxed[: outcome.accepted_length]) for outcome in outcomes),
            num_output_tokens=sum(len(outcome.token_ids) for outcome in outcomes),
            price=drafts.choice.price,
            gain=drafts.choice.gain,
            draft_s=draft_s,
            forward_s=forward_s,
            host_s=time.perf_counter() - started_s - draft_s - forward_s,
        )
        self._observer.step(record)

    def _apply(self, sequence: Sequence, tree: DraftTree, verdict: Verdict, now_s: float) -> _Outcome:
        """Appends accepted path and bonus token to the sequence and counts them."""
        path = [int(tree.token_ids[i]) for i in verdict.path]
        ends_in_eos = bool(path) and path[-1] in self._eos_token_ids
        kept = sequence.emit(path if ends_in_eos else [*path, verdict.bonus_token_id], self._eos_token_ids, now_s)
        # All but the last emitted token have their keys and values in line now.
        sequence.num_cached = sequence.num_tokens - 1
        self._prefixes.hold(sequence.slot_idx, sequence.token_ids[: sequence.num_tokens], sequence.num_cached)
        accepted_length = min(len(path), len(kept))
        sequence.num_draft_tokens += len(tree)
        sequence.num_accepted_tokens += accepted_length
        sequence.num_relaxed_tokens += sum(verdict.relaxed[:accepted_length])
        self.counters.num_output_tokens += len(kept)
        self.counters.num_draft_tokens += len(tree)
        self.counters.num_accepted_tokens += accepted_length
        return _Outcome(sequence, tree, verdict, tuple(kept), accepted_length)

    def _finish(self, sequence: Sequence) -> None:
        assert sequence.finish_reason is not None
        request = sequence.request
        status = self._drafts.status(sequence.sequence_id) if request.draft else DraftStatus.OFF
        now_s = time.monotonic()
        stats = sequence.stats(now_s, status)
        self._service_s += 0.1 * (now_s - sequence.admitted_s - self._service_s)
        text = sequence.text.finish()
        reason = FinishReason.STOP if sequence.text.stopped else sequence.finish_reason
        self._release(sequence)
        sequence.sink(Finished(reason, text, stats))
        self._observer.finished(reason, stats)
        if request.learn:
            output = sequence.token_ids[sequence.num_prompt_tokens : sequence.num_tokens].tolist()
            self._learn(request.pool, request.document_id or request.request_id, output)

    def _release(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free_slots.append(sequence.slot_idx)
        if sequence.request.draft:
            self._drafts.close(sequence.sequence_id)


def _timed(action: Callable[[], T]) -> tuple[T, float]:
    """What the action gives, and the seconds it took."""
    started_s = time.perf_counter()
    return action(), time.perf_counter() - started_s


def run_engine(engine: Engine, stopping: threading.Event, on_death: Callable[[], object] = lambda: None) -> None:
    """The engine thread: steps until `stopping` is set, then ends what runs. A fault ends every request as EngineDead.

    Args:
        on_death: called after a fault, so that the server can turn unhealthy.
    """
    try:
        while not stopping.is_set():
            engine.wait_for_work(timeout_s=0.1)
            engine.step()
        engine.close()
    except Exception:
        logger.exception("engine.dead")
        engine.close(EngineDead("the engine ended after a fault; the server must be restarted"))
        on_death()
