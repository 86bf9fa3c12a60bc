"""What a measured run says: rates as sum / sum, agreement with plain decoding, and how the texts read.

Pure functions over generations. Knows nothing of servers, files or reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laser_client import Generation

REPETITION_N = 8


@dataclass(frozen=True, slots=True)
class Run:
    """Generations of the same prompts in the same order, under one setting.

    Attributes:
        name: of the setting.
        generations: one per prompt.
        seconds: wall-clock time they took together.
    """

    name: str
    generations: tuple[Generation, ...]
    seconds: float

    def __add__(self, other: Run) -> Run:
        """The two runs as one: further prompts under the same setting."""
        return Run(self.name, self.generations + other.generations, self.seconds + other.seconds)

    @property
    def num_tokens(self) -> int:
        """Output tokens of all."""
        return sum(generation.stats.num_output_tokens for generation in self.generations)

    @property
    def tokens_per_second(self) -> float:
        """Output tokens per second of wall-clock time, prompts' processing included; 0 for no time."""
        return _ratio(self.num_tokens, self.seconds)

    @property
    def num_steps(self) -> int:
        """Forwards that gave a sequence tokens, over all sequences."""
        return sum(generation.stats.num_steps for generation in self.generations)

    @property
    def tokens_per_step(self) -> float:
        """Output tokens / steps, sum / sum."""
        return _ratio(self.num_tokens, self.num_steps)

    @property
    def draft_tokens_per_step(self) -> float:
        """Draft nodes verified / steps, sum / sum."""
        return _ratio(sum(generation.stats.num_draft_tokens for generation in self.generations), self.num_steps)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far outputs equal a reference's.

    Attributes:
        num_outputs: how many pairs.
        num_identical: pairs equal to the last token.
        prefix_share: of the reference's tokens, those before the first difference, sum / sum.
    """

    num_outputs: int
    num_identical: int
    prefix_share: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of the result.

    Attributes:
        name: of the setting.
        num_outputs, num_tokens, seconds: what was run.
        tokens_per_second, tokens_per_step, draft_tokens_per_step: see `Run`.
        speedup: tokens_per_second over that of plain decoding.
        agreement: with plain decoding.
        relaxed_share: of the tokens, those that were not the argmax at their place.
        num_stops: outputs that end by the model's own EOS; the rest end by length.
        num_early_stops: those that stop although plain goes on, or stops later.
        num_missing_stops: those that go on although plain stops, or stop later.
        repetition_share: of the outputs' 8-grams, those that stood before in the same output.
    """

    name: str
    num_outputs: int
    num_tokens: int
    seconds: float
    tokens_per_second: float
    tokens_per_step: float
    draft_tokens_per_step: float
    speedup: float
    agreement: Agreement
    relaxed_share: float
    num_stops: int
    num_early_stops: int
    num_missing_stops: int
    repetition_share: float


def summarise(run: Run, plain: Run) -> Summary:
    """A run beside plain decoding of the same prompts."""
    ends = [(_end(ours), _end(theirs)) for ours, theirs in zip(run.generations, plain.generations, strict=True)]
    return Summary(
        name=run.name,
        num_outputs=len(run.generations),
        num_tokens=run.num_tokens,
        seconds=run.seconds,
        tokens_per_second=run.tokens_per_second,
        tokens_per_step=run.tokens_per_step,
        draft_tokens_per_step=run.draft_tokens_per_step,
        speedup=_ratio(run.tokens_per_second, plain.tokens_per_second),
        agreement=agreement(run.generations, plain.generations),
        relaxed_share=_ratio(sum(made.stats.num_relaxed_tokens for made in run.generations), run.num_tokens),
        num_stops=sum(made.finish_reason == "stop" for made in run.generations),
        num_early_stops=sum(ours < theirs for ours, theirs in ends),
        num_missing_stops=sum(ours > theirs for ours, theirs in ends),
        repetition_share=repetition_share([made.token_ids for made in run.generations]),
    )


def agreement(ours: Sequence[Generation], reference: Sequence[Generation]) -> Agreement:
    """How far the outputs equal the reference's, pair by pair."""
    pairs = [(mine.token_ids, theirs.token_ids) for mine, theirs in zip(ours, reference, strict=True)]
    return Agreement(
        num_outputs=len(pairs),
        num_identical=sum(mine == theirs for mine, theirs in pairs),
        prefix_share=_ratio(
            sum(common_prefix_len(mine, theirs) for mine, theirs in pairs), sum(len(theirs) for _, theirs in pairs)
        ),
    )


def common_prefix_len(a: Sequence[object], b: Sequence[object]) -> int:
    """How many elements stand before the first difference."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def repetition_share(outputs: Sequence[Sequence[int]], n: int = REPETITION_N) -> float:
    """Of all n-grams of tokens, the share that stood before in the same output; 0 where there is none."""
    num_ngrams = num_distinct = 0
    for output in outputs:
        ngrams = [tuple(output[start : start + n]) for start in range(len(output) - n + 1)]
        num_ngrams += len(ngrams)
        num_distinct += len(set(ngrams))
    return _ratio(num_ngrams - num_distinct, num_ngrams)


def _end(generation: Generation) -> float:
    """The length at which the model stopped by itself; infinite where it did not."""
    return len(generation.token_ids) if generation.finish_reason == "stop" else float("inf")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
