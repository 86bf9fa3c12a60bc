"""Charts as inline SVG: horizontal bars, intervals, and a line over numbers. Colours come from the page's CSS: light
and dark.

By hand rather than by a plotting library: three shapes, no dependency, and text that stays text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH = 520.0
_CHARACTER_PX = 7.4  # of the 13 px labels, generously


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its label, its length, and how that is written at its end."""

    label: str
    value: float
    shown: str


def bar_chart(title: str, bars: Sequence[Bar]) -> Markup:
    """Horizontal bars from zero, one under the other, each with its value at its end.

    Args:
        title: for screen readers; the page shows its own heading.
        bars: from top to bottom.
    """
    row_height, bar_height = 44.0, 24.0
    left = max((len(bar.label) for bar in bars), default=0) * _CHARACTER_PX + 14
    right = max((len(bar.shown) for bar in bars), default=0) * _CHARACTER_PX + 14
    scale = (_WIDTH - left - right) / (max((bar.value for bar in bars), default=0.0) or 1.0)
    shapes = [
        Markup(
            '<text class="label" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>'
            '<rect class="bar bar-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="3"/>'
            '<text class="value" x="{:.1f}" y="{:.1f}">{}</text>'
        ).format(
            left - 10, middle + 4.5, bar.label,
            number, left, middle - bar_height / 2, bar.value * scale, bar_height,
            left + bar.value * scale + 8, middle + 4.5, bar.shown,
        )
        for number, bar in enumerate(bars)
        for middle in [row_height * (number + 0.5)]
    ]  # fmt: skip
    return _svg(title, row_height * len(bars), shapes)


@dataclass(frozen=True, slots=True)
class Interval:
    """One interval: its label, its middle and ends."""

    label: str
    low: float
    middle: float
    high: float


def interval_chart(title: str, intervals: Sequence[Interval], margin: float) -> Markup:
    """Intervals around zero, one under the other, over a band of `margin` to both sides of zero.

    Args:
        title: for screen readers; the page shows its own heading.
        intervals: from top to bottom.
        margin: half the width of the band, above 0.
    """
    row_height, bottom = 40.0, 34.0
    left = max((len(interval.label) for interval in intervals), default=0) * _CHARACTER_PX + 14
    reach = 1.15 * max([margin, *(abs(end) for each in intervals for end in (each.low, each.high))])
    middle_x, scale = (left + _WIDTH) / 2, (_WIDTH - left) / 2 / reach
    height = row_height * len(intervals)
    band = Markup(
        '<rect class="band" x="{:.1f}" y="0" width="{:.1f}" height="{:.1f}"/>'
        '<line class="zero" x1="{:.1f}" y1="0" x2="{:.1f}" y2="{:.1f}"/>'
    ).format(middle_x - margin * scale, 2 * margin * scale, height, middle_x, middle_x, height)
    template = Markup(
        '<text class="label" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>'
        '<line class="interval" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'
        '<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="5"/>'
    )
    shapes = [
        template.format(
            left - 10, y + 4.5, each.label,
            middle_x + each.low * scale, y, middle_x + each.high * scale, y,
            middle_x + each.middle * scale, y,
        )
        for number, each in enumerate(intervals)
        for y in [row_height * (number + 0.5)]
    ]  # fmt: skip
    tick = Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{:+g}</text>')
    ticks = [tick.format(middle_x + value * scale, height + 20, value) for value in (-margin, margin)]
    return _svg(title, height + bottom, [band, *shapes, *ticks])


def line_chart(title: str, points: Sequence[tuple[float, float]], x_title: str) -> Markup:
    """A line through points, from (0, 0) on both axes, with each point's y written at it.

    Args:
        title: for screen readers; the page shows its own heading.
        points: (x, y), x increasing, none negative.
        x_title: under the x axis.
    """
    height, left, right, top, bottom = 270.0, 40.0, 34.0, 26.0, 52.0
    max_x = max((x for x, _ in points), default=0.0) or 1.0
    step = nice_step(max((y for _, y in points), default=0.0) or 1.0)
    max_y = step * math.ceil(max((y for _, y in points), default=1.0) * 1.08 / step)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / max_x * (_WIDTH - left - right), height - bottom - y / max_y * (height - top - bottom)

    shapes = [_y_tick(step * number, *place(0, step * number)) for number in range(round(max_y / step) + 1)]
    placed = [(*place(x, y), x, y) for x, y in points]
    if placed:
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in placed)
        shapes.append(Markup('<polyline class="line" points="{}"/>').format(path))
    last_label_end = -math.inf
    for px, py, x, y in placed:
        shapes.append(
            Markup(
                '<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4.5"/>'
                '<text class="value" x="{:.1f}" y="{:.1f}" text-anchor="{}">{:.2f}</text>'
            ).format(px, py, px if x else px + 8, py - 12 if x else py + 20, "middle" if x else "start", y)
        )
        label = f"{x:g}"
        half_width = len(label) * _CHARACTER_PX / 2 + 3
        if px - half_width > last_label_end:
            template = Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>')
            shapes.append(template.format(px, height - bottom + 19, label))
            last_label_end = px + half_width
    template = Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>')
    shapes.append(template.format((left + _WIDTH - right) / 2, height - 10, x_title))
    return _svg(title, height, shapes)


def nice_step(top: float) -> float:
    """A tick distance of 1, 2 or 5 times a power of ten that gives 3 to 7 ticks up to `top`."""
    power = 10.0 ** math.floor(math.log10(top))
    return next(factor * power for factor in (0.2, 0.5, 1.0, 2.0) if top / (factor * power) <= 6.5)


def _y_tick(value: float, x: float, y: float) -> Markup:
    template = Markup(
        '<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'
        '<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{:g}</text>'
    )
    return template.format(x, y, _WIDTH - 20, y, x - 8, y + 4.5, value)


def _svg(title: str, height: float, shapes: Sequence[Markup]) -> Markup:
    template = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>')
    return template.format(_WIDTH, height, title, Markup("").join(shapes))
