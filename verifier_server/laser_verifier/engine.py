"""The draft-and-verify loop: schedule, draft, run, verify, emit. The only place where it is written.

Sees retrievers as a DraftSource, the device as a ModelRunner, callers as sinks. One thread calls `step`; `submit` and
`cancel` may be called from any.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np

from laser_protocol.errors import EngineDead, LaserError, NotReady, Overloaded
from laser_protocol.tree import DraftTree, MalformedTree
from laser_verifier.batch import StepInput
from laser_verifier.config import EngineConfig
from laser_verifier.draft_budget import StepCost, choose_num_nodes
from laser_verifier.drafts import Advanced, DraftSource, Opened
from laser_verifier.runner import ModelRunner, Verdict
from laser_verifier.sequence import Admitted, DraftStatus, Emitted, Finished, Request, Sequence, Sink
from laser_verifier.text import TextStream

logger = logging.getLogger(__name__)

Learn = Callable[[str, str, Seq[int]], None]


@dataclass(slots=True)
class EngineCounters:
    """What the engine did since it started; read by tests and metrics."""

    num_steps: int = 0
    num_output_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_malformed_trees: int = 0
    num_stale_trees: int = 0


@dataclass(frozen=True, slots=True)
class _Queued:
    request: Request
    sink: Sink
    arrived_s: float


class Engine:
    """Continuous batching with draft trees.

    Args:
        runner: the device.
        tokenizer: fast transformers tokenizer, for text and stop strings.
        drafts: where trees come from.
        config: limits and policy.
        cost: seconds of a forward over M tokens; None only with draft_policy "all".
        learn: takes (pool, document id, output token ids) of finished requests that asked for it; must not block.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Any,
        drafts: DraftSource,
        config: EngineConfig,
        cost: StepCost | None = None,
        learn: Learn = lambda pool, document_id, token_ids: None,
    ) -> None:
        if cost is None and config.draft_policy != "all":
            raise ValueError(f"draft_policy is {config.draft_policy!r}, which needs the measured cost of a step")
        self._runner = runner
        self._tokenizer = tokenizer
        self._drafts = drafts
        self._config = config
        self._cost = cost
        self._learn = learn
        self._eos_token_ids = frozenset(runner.model.eos_token_ids)
        self._running: list[Sequence] = []
        self._free_slots = list(range(runner.num_slots))
        self._next_sequence_id = 1
        self._lock = threading.Lock()
        self._queue: deque[_Queued] = deque()
        self._cancelled: set[str] = set()
        self._closed: LaserError | None = None
        self._work = threading.Event()
        self.counters = EngineCounters()

    # From any thread.

    def submit(self, request: Request, sink: Sink) -> None:
        """Queues a request. Its sink gets events from the engine thread: the last is Finished or a LaserError.

        Raises:
            Overloaded: the queue is full. NotReady, EngineDead: no more requests are taken.
        """
        with self._lock:
            if self._closed is not None:
                raise type(self._closed)(str(self._closed))
            if len(self._queue) >= self._config.max_queue + len(self._free_slots):
                raise Overloaded(
                    f"{len(self._queue)} requests wait already, at most {self._config.max_queue} may", retry_after_s=1.0
                )
            self._queue.append(_Queued(request, sink, time.monotonic()))
        self._work.set()

    def cancel(self, request_id: str) -> None:
        """Ends a request without a further event: at once if it waits, at the next step if it runs."""
        with self._lock:
            waiting = next((entry for entry in self._queue if entry.request.request_id == request_id), None)
            if waiting is not None:
                self._queue.remove(waiting)
            else:
                self._cancelled.add(request_id)
        self._work.set()

    def num_ahead(self, request_id: str) -> int:
        """Requests that wait ahead of this one."""
        with self._lock:
            ids = [entry.request.request_id for entry in self._queue]
        return ids.index(request_id) if request_id in ids else 0

    # From the engine thread.

    @property
    def is_busy(self) -> bool:
        """Whether a request runs or waits."""
        return bool(self._running or self._queue)

    @property
    def cache_size_bytes(self) -> int:
        """Bytes of the KV cache."""
        return self._runner.cache_size_bytes

    def wait_for_work(self, timeout_s: float) -> None:
        """Returns at once if something runs or waits, else when something comes or the time is over."""
        if not self.is_busy:
            self._work.wait(timeout_s)
        self._work.clear()

    def step(self) -> None:
        """One forward over all running sequences. Does nothing if none runs or waits."""
        self._admit()
        scheduled = self._schedule()
        if not scheduled:
            return
        at_end = [sequence for sequence, num_tokens in scheduled if num_tokens == sequence.num_pending]
        trees = self._draft(at_end, sum(num_tokens for _, num_tokens in scheduled))
        inputs = [self._step_input(sequence, num_tokens, trees) for sequence, num_tokens in scheduled]
        verdicts = self._runner.run(inputs)
        self._emit([sequence for sequence, _ in scheduled], inputs, verdicts)

    def close(self, error: LaserError | None = None) -> None:
        """Ends every request with `error` and takes no more."""
        error = error or NotReady("the server is stopping")
        with self._lock:
            self._closed = error
            waiting, self._queue = list(self._queue), deque()
        for entry in waiting:
            entry.sink(error)
        for sequence in list(self._running):
            sequence.sink(error)
            self._release(sequence)

    def _admit(self) -> None:
        """Gives free slots to waiting requests, first come first served; frees the slots of cancelled ones."""
        with self._lock:
            cancelled, self._cancelled = self._cancelled, set()
        for sequence in [s for s in self._running if s.request.request_id in cancelled]:
            self._release(sequence)
        while self._free_slots and (entry := self._next_waiting()) is not None:
            self._start(entry)

    def _next_waiting(self) -> _Queued | None:
        with self._lock:
            return self._queue.popleft() if self._queue else None

    def _start(self, entry: _Queued) -> None:
        # The lowest slot: attention reads the range of slots in use, so it should stay short.
        slot_idx = min(self._free_slots)
        self._free_slots.remove(slot_idx)
        request = entry.request
        text = TextStream(self._tokenizer, request.stop)
        sequence = Sequence(
            request, entry.sink, text, self._next_sequence_id, slot_idx, entry.arrived_s, time.monotonic()
        )
        self._next_sequence_id = self._next_sequence_id % (2**31 - 1) + 1
        self._running.append(sequence)
        entry.sink(Admitted())
        if request.draft:
            prompt = sequence.token_ids[: sequence.num_tokens]
            budget = self._node_budget(sequence)
            self._drafts.open(Opened(sequence.sequence_id, request.pool, prompt, request.acceptance, budget))

    def _node_budget(self, sequence: Sequence) -> int:
        # The last token needs no draft: the bonus token is it.
        return self._config.max_draft_nodes if sequence.num_remaining > 1 else 0

    def _schedule(self) -> list[tuple[Sequence, int]]:
        """Who runs how many of its pending tokens: all that decode, then prompts in chunks up to the step's limit."""
        room = self._config.max_step_tokens
        scheduled: list[tuple[Sequence, int]] = []
        for sequence in sorted(self._running, key=lambda s: s.num_pending > 1):
            num_tokens = min(sequence.num_pending, room)
            if num_tokens > 0:
                scheduled.append((sequence, num_tokens))
                room -= num_tokens
        return scheduled

    def _draft(self, sequences: list[Sequence], num_verified_tokens: int) -> dict[int, DraftTree]:
        """The checked trees worth verifying, by sequence_id.

        Args:
            sequences: those that get tokens from this step.
            num_verified_tokens: tokens the step runs anyway, prefill included.
        """
        drafting = [s for s in sequences if s.request.draft and self._node_budget(s)]
        if not drafting:
            return {}
        plain_s = float(self._cost(np.asarray(len(sequences)))) if self._cost is not None else 1.0
        timeout_s = min(self._config.draft_wait_ms / 1e3, plain_s / 4)
        collected = self._drafts.collect({s.sequence_id: s.num_tokens for s in drafting}, timeout_s)
        trees: dict[int, DraftTree] = {}
        for sequence in drafting:
            tree = collected.get(sequence.sequence_id)
            if tree is not None and self._is_valid(sequence, tree):
                trees[sequence.sequence_id] = _up_to_depth(tree, sequence.num_remaining - 1)
        if self._config.draft_policy == "all" or self._cost is None:
            return trees
        probs = [tree.probs for tree in trees.values()]
        chosen = choose_num_nodes(probs, num_verified_tokens, len(sequences), self._cost)
        return {i: tree.prefix(n) for (i, tree), n in zip(trees.items(), chosen, strict=True)}

    def _is_valid(self, sequence: Sequence, tree: DraftTree) -> bool:
        if tree.position != sequence.num_tokens:
            self.counters.num_stale_trees += 1
            return False
        try:
            tree.check(self._config.max_draft_nodes, self._runner.model.vocab_size)
        except MalformedTree as error:
            self.counters.num_malformed_trees += 1
            logger.warning("draft.malformed sequence_id=%d error=%s", sequence.sequence_id, error)
            return False
        return True

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

    def _emit(self, sequences: list[Sequence], inputs: list[StepInput], verdicts: list[Verdict | None]) -> None:
        """Gives each sequence its tokens, tells the retriever what became of the trees, ends what is finished."""
        now_s = time.monotonic()
        self.counters.num_steps += 1
        advanced: list[Advanced] = []
        emitted: list[tuple[Sequence, Emitted]] = []
        for sequence, entry, verdict in zip(sequences, inputs, verdicts, strict=True):
            if verdict is None or entry.tree is None:
                sequence.num_cached += len(entry.token_ids)
                continue
            position = sequence.num_tokens
            kept = self._apply(sequence, entry.tree, verdict, now_s)
            emitted.append((sequence, kept))
            if sequence.request.draft and sequence.finish_reason is None:
                advanced.append(
                    Advanced(
                        sequence.sequence_id,
                        position,
                        np.asarray(kept.token_ids, np.int32),
                        len(entry.tree),
                        verdict.accepted_node_idx,
                        self._node_budget(sequence),
                    )
                )
        # Before anything else: the retriever drafts while we emit.
        if advanced:
            self._drafts.advance(advanced)
        for sequence, kept in emitted:
            sequence.sink(kept)
            if sequence.finish_reason is not None:
                self._finish(sequence)

    def _apply(self, sequence: Sequence, tree: DraftTree, verdict: Verdict, now_s: float) -> Emitted:
        """Appends accepted path and bonus token to the sequence and counts them."""
        path = [int(tree.token_ids[i]) for i in verdict.path]
        ends_in_eos = bool(path) and path[-1] in self._eos_token_ids
        kept = sequence.emit(path if ends_in_eos else [*path, verdict.bonus_token_id], self._eos_token_ids, now_s)
        # All but the last emitted token have their keys and values in line now.
        sequence.num_cached = sequence.num_tokens - 1
        accepted_length = min(len(path), len(kept))
        sequence.num_draft_tokens += len(tree)
        sequence.num_accepted_tokens += accepted_length
        sequence.num_relaxed_tokens += sum(verdict.relaxed[:accepted_length])
        self.counters.num_output_tokens += len(kept)
        self.counters.num_draft_tokens += len(tree)
        self.counters.num_accepted_tokens += accepted_length
        return Emitted(sequence.text.take(), tuple(kept), accepted_length)

    def _finish(self, sequence: Sequence) -> None:
        assert sequence.finish_reason is not None
        request = sequence.request
        status = self._drafts.status(sequence.sequence_id) if request.draft else DraftStatus.OFF
        stats = sequence.stats(time.monotonic(), status)
        text = sequence.text.finish(sequence.stopped_by_text)
        self._release(sequence)
        sequence.sink(Finished(sequence.finish_reason, text, stats))
        if request.learn:
            output = sequence.token_ids[sequence.num_prompt_tokens : sequence.num_tokens].tolist()
            self._learn(request.pool, request.document_id or request.request_id, output)

    def _release(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free_slots.append(sequence.slot_idx)
        if sequence.request.draft:
            self._drafts.close(sequence.sequence_id)


def _up_to_depth(tree: DraftTree, max_depth: int) -> DraftTree:
    """The longest prefix without a deeper node: deeper ones cannot be emitted, and would stand beyond the context."""
    too_deep = np.flatnonzero(tree.depths() > max_depth)
    return tree.prefix(int(too_deep[0])) if len(too_deep) else tree


def run_engine(engine: Engine, stopping: threading.Event, on_death: Callable[[], None] = lambda: None) -> None:
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
