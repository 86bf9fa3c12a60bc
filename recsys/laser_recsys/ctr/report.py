"""The evaluation as a table for the terminal, and as a self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from laser_recsys.charts import Bar, Interval, bar_chart, interval_chart
from laser_recsys.ctr.evaluation import NO_KNOWLEDGE, Row
from laser_recsys.ctr.statistics import MARGIN, Comparison
from laser_recsys.page import render_template, write_page

HEADINGS = (
    "network", "knowledge", "seeds", "AUC", "AUC difference [95 %]", "verdict", "equivalence p", "seeds needed",
    "LogLoss", "LogLoss difference [95 %]",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _NetworkSection:
    name: str
    rows: list[tuple[str, ...]]
    auc_chart: Markup
    difference_chart: Markup


def cells(row: Row, reference: str) -> tuple[str, ...]:
    """A row as text, in the order of `HEADINGS`; of a single seed nothing is compared."""
    auc, log_loss = ([getattr(run, name) for run in row.runs] for name in ("auc", "log_loss"))
    first = (row.network, row.knowledge, str(len(row.runs)), _spread(auc))
    if row.auc is None or row.log_loss is None:
        compared_with = "reference" if row.knowledge == reference else "one seed"
        return (*first, compared_with, "", "", "", _spread(log_loss), "")
    compared = row.auc
    return (
        *first,
        _difference(compared),
        f"{compared.verdict} (named beforehand)" if row.is_decided else compared.verdict,
        f"{compared.equivalence_p:.3f}",
        str(compared.num_needed),
        _spread(log_loss),
        _difference(row.log_loss),
    )


def text_table(reference: str, rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    lines = [HEADINGS, *(cells(row, reference) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    shown.insert(1, "-" * max(map(len, shown)))
    return "\n".join(shown)


def write_report(
    path: Path, dataset: str, counts: str, reference: str, rows: Sequence[Row], facts: Sequence[tuple[str, str]]
) -> None:
    """Writes the page; the file appears complete or not at all."""
    networks = list(dict.fromkeys(row.network for row in rows))
    sections = [_section(network, reference, [row for row in rows if row.network == network]) for network in networks]
    write_page(
        path,
        render_template(
            "evaluation.html.j2",
            headline=headline(reference, rows),
            dataset=dataset,
            counts=counts,
            reference=reference,
            margin=MARGIN,
            networks=sections,
            facts=facts,
        ),
    )


def headline(reference: str, rows: Sequence[Row]) -> str:
    """What the first network says of the reference against no knowledge."""
    row = next((row for row in rows if row.knowledge == NO_KNOWLEDGE and row.auc is not None), None)
    if row is None or row.auc is None:
        return f'Click prediction, compared with "{reference}"'
    gain, low, high = -row.auc.mean, -row.auc.high, -row.auc.low
    return f'Knowledge "{reference}" changes AUC by {gain:+.4f} [{low:+.4f}, {high:+.4f}] in {row.network}'


def _section(network: str, reference: str, rows: Sequence[Row]) -> _NetworkSection:
    means = [float(np.mean([run.auc for run in row.runs])) for row in rows]
    bars = [Bar(row.knowledge, max(mean - 0.5, 0.0), f"{mean:.4f}") for row, mean in zip(rows, means, strict=True)]
    intervals = [
        Interval(row.knowledge, row.auc.low, row.auc.mean, row.auc.high) for row in rows if row.auc is not None
    ]
    return _NetworkSection(
        name=network,
        rows=[cells(row, reference)[1:] for row in rows],
        auc_chart=bar_chart(f"AUC of {network}", bars),
        difference_chart=interval_chart(f"AUC differences of {network}", intervals, MARGIN),
    )


def _spread(values: Sequence[float]) -> str:
    spread = f" ({np.std(values, ddof=1):.4f})" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _difference(compared: Comparison) -> str:
    return f"{compared.mean:+.5f} [{compared.low:+.5f}, {compared.high:+.5f}]"
