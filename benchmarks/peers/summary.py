"""Medians and ratios over the runs of all cells, and how they are written as text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers.cell import MODES, Cell, Run

# Ours over theirs, in one workload at one concurrency.
RATIOS = (
    ("laser-plain", "vllm-plain"),
    ("laser-strict", "vllm-suffix"),
    ("laser-relaxed", "vllm-suffix"),
    ("laser-relaxed", "laser-plain"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A cell's runs together.

    Attributes:
        tokens_per_s: of each run, in the order measured.
        tokens_per_step, draft_tokens_per_step: ours only.
        accepted_shares: ours only: of the accepted nodes, which share only the sequence's own text spoke for, which the
            pool and which its ancestors.
        outside_forward: ours only: share of the steps' time that is not the forward.
        stolen_share: the largest of its runs.
        num_equal: of `num_prompts` outputs, those that equal the same engine's plain output at the same concurrency; of
            its runs the fewest.
    """

    cell: Cell
    version: str
    num_prompts: int
    num_documents: int
    tokens_per_s: tuple[float, ...]
    tokens_per_step: float | None
    draft_tokens_per_step: float | None
    accepted_shares: tuple[float, float, float] | None
    outside_forward: float | None
    stolen_share: float
    num_equal: int | None

    @property
    def median(self) -> float:
        """Output tokens per second of the median run."""
        return statistics.median(self.tokens_per_s)


@dataclass(frozen=True, slots=True)
class Ratio:
    """One median over another; of a cell whose concurrency is None the best over all concurrencies."""

    workload: str
    concurrency: int | None
    ours: str
    theirs: str
    value: float


def summarise(runs: Sequence[Run]) -> tuple[list[Row], list[Ratio]]:
    """Rows in the order of workload, concurrency and mode, and the ratios of those that have both sides.

    Where both were run at several concurrencies, also the best of relaxed over the best of any mode of vLLM.
    """
    by_cell: dict[Cell, list[Run]] = {}
    for run in runs:
        by_cell.setdefault(run.cell, []).append(run)
    order = sorted(by_cell, key=lambda cell: (cell.workload, cell.concurrency, MODES.index(cell.mode)))
    rows = [_row(by_cell[cell], _plain_of(by_cell, cell)) for cell in order]
    medians = {row.cell: row.median for row in rows}
    ratios = [
        Ratio(workload, concurrency, ours, theirs, medians[mine] / medians[other])
        for workload, concurrency in dict.fromkeys((cell.workload, cell.concurrency) for cell in order)
        for ours, theirs in RATIOS
        for mine, other in [(Cell(workload, ours, concurrency), Cell(workload, theirs, concurrency))]
        if mine in medians and other in medians
    ]
    return rows, ratios + _best_ratios(rows)


def _best_ratios(rows: Sequence[Row]) -> list[Ratio]:
    ratios = []
    for workload in dict.fromkeys(row.cell.workload for row in rows):
        mine = {row.cell.concurrency: row.median for row in rows
                if (row.cell.workload, row.cell.mode) == (workload, "laser-relaxed")}  # fmt: skip
        theirs = [row for row in rows if row.cell.workload == workload and row.cell.mode.startswith("vllm")]
        both = mine.keys() & {row.cell.concurrency for row in theirs}
        if len(both) > 1:
            best = max((row for row in theirs if row.cell.concurrency in both), key=lambda row: row.median)
            named = f"{best.cell.mode} at {best.cell.concurrency}"
            ratios.append(Ratio(workload, None, "laser-relaxed", named, max(mine[each] for each in both) / best.median))
    return ratios


def text_table(rows: Sequence[Row], ratios: Sequence[Ratio], rooflines: Mapping[Cell, float] | None = None) -> str:
    """The table, the ratios and, where they are given, the shares of the rooflines (tokens/s) as lines of text."""
    heading = f"{'prompts':>12}{'at once':>9}{'mode':>16}{'tokens/s':>10}{'runs':>26}{'tokens/step':>13}{'drafted':>9}"
    lines = [f"{heading}{'own/pool/ancestors':>20}{'stolen':>8}{'= plain':>10}"]
    for row in rows:
        runs = " ".join(f"{value:.0f}" for value in row.tokens_per_s)
        per_step = f"{row.tokens_per_step:.2f}" if row.tokens_per_step is not None else "-"
        drafted = f"{row.draft_tokens_per_step:.1f}" if row.draft_tokens_per_step is not None else "-"
        shares = "/".join(f"{share:.0%}" for share in row.accepted_shares) if row.accepted_shares else "-"
        equal = f"{row.num_equal}/{row.num_prompts}" if row.num_equal is not None else "-"
        lines.append(
            f"{row.cell.workload:>8}{row.num_prompts:>4}{row.cell.concurrency:>9}{row.cell.mode:>16}"
            f"{row.median:>10.1f}{runs:>26}{per_step:>13}{drafted:>9}{shares:>20}{row.stolen_share:>8.1%}{equal:>10}"
        )
    lines += ["", *(f"{r.workload:>8} {at(r):<7} {r.ours} / {r.theirs}: {r.value:.2f}" for r in ratios)]
    shares = {row.cell: row.median / rooflines[row.cell] for row in rows if rooflines and row.cell in rooflines}
    lines += [
        f"{cell.workload:>8} at {cell.concurrency:<4} {cell.mode}: {share:.0%} of a roofline of {rooflines[cell]:.0f}"
        for cell, share in shares.items()
        if rooflines
    ]
    return "\n".join(lines) + "\n"


def at(ratio: Ratio) -> str:
    """Its concurrency, in words."""
    return "best" if ratio.concurrency is None else f"at {ratio.concurrency}"


def _plain_of(by_cell: dict[Cell, list[Run]], cell: Cell) -> Run | None:
    engine = cell.mode.partition("-")[0]
    runs = by_cell.get(Cell(cell.workload, f"{engine}-plain", cell.concurrency))
    return runs[0] if runs else None


def _row(runs: list[Run], plain: Run | None) -> Row:
    first = runs[0]
    num_steps = sum(run.stats.get("num_steps", 0.0) for run in runs)
    num_drafted = sum(run.stats.get("num_draft_tokens", 0.0) for run in runs)
    phases = {
        phase: sum(run.stats.get(f"laser_step_phase_seconds_total/{phase}", 0.0) for run in runs)
        for phase in ("drafts", "forward", "host")
    }
    accepted = {
        name.partition("/")[2]: sum(run.stats.get(name, 0.0) for run in runs)
        for name in sorted(set[str]().union(*(run.stats for run in runs)))
        if name.startswith("laser_accepted_tokens_total/")
    }
    own, pool, total = accepted.get("own_text", 0.0), accepted.get("pool", 0.0), sum(accepted.values())
    num_equal = None
    if plain is not None and plain.num_prompts == first.num_prompts:
        num_equal = min(
            sum(mine == theirs for mine, theirs in zip(run.outputs, plain.outputs, strict=True)) for run in runs
        )
    return Row(
        first.cell, first.version, first.num_prompts, first.num_documents,
        tuple(run.tokens_per_s for run in runs),
        sum(run.num_tokens for run in runs) / num_steps if num_steps else None,
        num_drafted / num_steps if num_steps else None,
        (own / total, pool / total, (total - own - pool) / total) if total else None,
        1 - phases["forward"] / sum(phases.values()) if any(phases.values()) else None,
        max(run.stolen_share for run in runs),
        num_equal,
    )  # fmt: skip
