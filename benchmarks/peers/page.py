"""peers.html: the table and one bar chart per concurrency on a self-contained page (no script, no network)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from benchmarks.peers.summary import Ratio, Row
from laser_recsys.charts import Bar, bar_chart
from laser_recsys.files import building


def write_page(path: Path, rows: Sequence[Row], ratios: Sequence[Ratio]) -> None:
    """Writes the page; the file appears complete or not at all."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf8")
    panels = [
        _panel(rows, ratios, workload, concurrency)
        for workload, concurrency in dict.fromkeys((row.cell.workload, row.cell.concurrency) for row in rows)
    ]
    best = [ratio for ratio in ratios if ratio.concurrency is None]
    with building(path) as built:
        built.write_text(environment.from_string(template).render(panels=panels, best=best), encoding="utf8")
        built.replace(path)


def _panel(rows: Sequence[Row], ratios: Sequence[Ratio], workload: str, concurrency: int) -> dict[str, object]:
    mine = [row for row in rows if (row.cell.workload, row.cell.concurrency) == (workload, concurrency)]
    title = f"{concurrency} at once, {mine[0].num_prompts} prompts"
    if workload == "least":
        title += ", the half that repeats itself least"
    bars = [Bar(row.cell.mode, row.median, f"{row.median:.0f}") for row in mine]
    return {
        "title": title,
        "chart": bar_chart(f"Output tokens per second, {title}", bars),
        "rows": mine,
        "ratios": [ratio for ratio in ratios if (ratio.workload, ratio.concurrency) == (workload, concurrency)],
    }
