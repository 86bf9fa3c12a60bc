"""report.html: one self-contained page (no script, no network) that shows what a demo run measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from laser_recsys.charts import Bar, bar_chart, line_chart
from laser_recsys.demo import table
from laser_recsys.demo.replay import ReplayPoint
from laser_recsys.demo.table import BatchNoise
from laser_recsys.measurement import Summary, common_prefix_len
from laser_recsys.page import render_template, write_page


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out user's texts, by mode name, in the order of the modes; the first is plain decoding's."""

    user_id: str
    group: int
    prompt: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """All that a demo run measured.

    Attributes:
        model: name of the target model.
        dtype: what it computed in.
        num_warm_up: users whose texts filled the pools.
        max_new_tokens: output limit in tokens.
        concurrency: prompts open at a time.
        summaries: plain decoding first.
        noise: plain at concurrency 1 beside plain at `concurrency`; None if not measured.
        replay: tokens_per_step over the number of documents.
        samples: some held-out users' texts.
        facts: (what, value) of the run and its machine.
        phases: (what, seconds), in the order run.
    """

    model: str
    dtype: str
    num_warm_up: int
    max_new_tokens: int
    concurrency: int
    summaries: tuple[Summary, ...]
    noise: BatchNoise | None
    replay: tuple[ReplayPoint, ...]
    samples: tuple[Sample, ...]
    facts: tuple[tuple[str, str], ...]
    phases: tuple[tuple[str, float], ...]


def write_report(path: Path, result: DemoResult) -> None:
    """Writes the page; the file appears complete or not at all."""
    write_page(path, render(result))


def render(result: DemoResult) -> str:
    """The page as HTML."""
    return render_template(
        "demo.html.j2",
        result=result,
        headings=table.HEADINGS,
        rows=table.cells(result.summaries, result.noise),
        plain=result.summaries[0],
        fastest=max(result.summaries, key=lambda summary: summary.speedup),
        speedup_chart=bar_chart(
            "Speed-up over drafting off", [Bar(s.name, s.speedup, f"{s.speedup:.2f}x") for s in result.summaries]
        ),
        tokens_per_step_chart=bar_chart(
            "tokens_per_step", [Bar(s.name, s.tokens_per_step, f"{s.tokens_per_step:.2f}") for s in result.summaries]
        ),
        replay_chart=line_chart(
            "tokens_per_step over documents in the pool",
            [(point.num_documents, point.tokens_per_step) for point in result.replay],
            "documents in the pool",
        ),
        samples=[_shown(sample) for sample in result.samples],
        total_seconds=sum(seconds for _, seconds in result.phases),
    )


@dataclass(frozen=True, slots=True)
class _ShownText:
    """A text cut where it first differs from plain decoding's."""

    name: str
    same: str
    different: str


@dataclass(frozen=True, slots=True)
class _ShownSample:
    sample: Sample
    texts: Sequence[_ShownText]


def _shown(sample: Sample) -> _ShownSample:
    plain = sample.texts[0][1]
    shown = []
    for name, text in sample.texts:
        # By words, so that no word is cut in two.
        num_words = common_prefix_len(plain.split(" "), text.split(" "))
        cut = sum(len(word) + 1 for word in text.split(" ")[:num_words])
        shown.append(_ShownText(name, text[:cut], text[cut:]))
    return _ShownSample(sample, shown)
