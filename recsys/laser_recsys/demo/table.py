"""The demo's one table as text cells, for the terminal and the report alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laser_recsys.measurement import Agreement, Summary

# Two lines each.
HEADINGS = (
    ("", "mode"),
    ("", "tokens/s"),
    ("", "tokens_per_step"),
    ("drafted", "per step"),
    ("", "speed-up"),
    ("identical", "to plain"),
    ("same until", "1st difference"),
    ("relaxed", "tokens"),
    ("ends by EOS", "(early, missing)"),
    ("8-grams", "repeated"),
)


@dataclass(frozen=True, slots=True)
class BatchNoise:
    """Plain decoding at concurrency 1 beside the same prompts at the run's concurrency: what rounding alone changes."""

    concurrency: int
    agreement: Agreement
    tokens_per_second: float


def cells(summaries: Sequence[Summary], noise: BatchNoise | None) -> list[tuple[str, ...]]:
    """One row per setting, then one for plain at concurrency 1; the first summary is plain decoding itself."""
    rows: list[tuple[str, ...]] = [
        (
            summary.name,
            f"{summary.tokens_per_second:.1f}",
            f"{summary.tokens_per_step:.2f}",
            f"{summary.draft_tokens_per_step:.1f}",
            f"{summary.speedup:.2f}x",
            *(("-", "-") if number == 0 else _agreement(summary.agreement)),
            f"{summary.relaxed_share:.1%}",
            f"{summary.num_stops} of {summary.num_outputs} ({summary.num_early_stops}, {summary.num_missing_stops})",
            f"{summary.repetition_share:.0%}",
        )
        for number, summary in enumerate(summaries)
    ]
    if noise is not None:
        rate = f"{noise.tokens_per_second:.1f}"
        rows.append(("plain, one at a time", rate, "1.00", "0.0", "", *_agreement(noise.agreement), "", "", ""))
    return rows


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """The table for a terminal: headings of two lines, first column left, the others right."""
    lines = [[first for first, _ in HEADINGS], [second for _, second in HEADINGS], *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    rendered = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rendered.insert(2, "-" * max(map(len, rendered)))
    return "\n".join(rendered)


def _agreement(agreement: Agreement) -> tuple[str, str]:
    return f"{agreement.num_identical} of {agreement.num_outputs}", f"{agreement.prefix_share:.0%}"
