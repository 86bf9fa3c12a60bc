from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from laser_recsys.charts import Bar, bar_chart, line_chart, nice_step
from laser_recsys.demo.replay import ReplayPoint
from laser_recsys.demo.report import DemoResult, Sample, render, write_report
from laser_recsys.demo.table import BatchNoise, cells, text_table
from laser_recsys.measurement import Agreement, Summary

SUMMARIES = (
    Summary("plain", 16, 3072, 60.0, 51.2, 1.0, 3.2, 1.0, Agreement(16, 16, 1.0), 0.0, 2, 0, 0, 0.28),
    Summary("strict", 16, 3072, 20.0, 153.6, 6.31, 9.0, 3.0, Agreement(16, 11, 0.91), 0.0, 2, 0, 0, 0.27),
    Summary("relaxed (2, 0.1)", 16, 3000, 15.0, 200.0, 7.42, 9.5, 3.91, Agreement(16, 3, 0.4), 0.041, 3, 2, 1, 0.26),
)
RESULT = DemoResult(
    model="SmolLM2",
    dtype="bfloat16",
    num_warm_up=80,
    max_new_tokens=192,
    concurrency=4,
    summaries=SUMMARIES,
    noise=BatchNoise(4, Agreement(4, 2, 0.77), 38.0),
    replay=(ReplayPoint(0, 2.5), ReplayPoint(10, 4.9), ReplayPoint(40, 6.1), ReplayPoint(80, 6.6)),
    samples=(
        Sample(
            "601", 2, 'Given "A & B <1>"',
            (("plain", "likes old films"), ("strict", "likes old films"), ("relaxed (2, 0.1)", "likes new films")),
        ),
    ),
    facts=(("processor", "Some CPU, 2 cores"), ("versions", "torch 1.0")),
    phases=(("warm-up users", 120.04), ("replay", 2.5)),
)  # fmt: skip


class Loads(HTMLParser):
    """Collects every attribute that makes a browser load something."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str | None] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = render(RESULT)
    loads = Loads()
    loads.feed(page)
    assert loads.targets == []
    assert not {"script", "link", "iframe", "img"} & set(loads.tags)
    assert "url(" not in page and "@import" not in page and "http" not in page
    assert loads.tags.count("svg") == 3


def test_the_page_shows_what_was_measured() -> None:
    text = re.sub(r"<[^>]+>", " ", render(RESULT))
    for fact in (
        "3.9 times faster", "SmolLM2 in bfloat16", "16 held-out", "80 other users", "3.91x", "7.42", "6.31", "153.6",
        "11 of 16", "91%", "4.1%", "3 of 16 (2, 1)", "28 %", "14 of 16 texts end by length", "Some CPU, 2 cores",
        "120.0 s", "122.5 s", "2 of 4", "77%", "documents in the pool",
    ):  # fmt: skip
        assert fact in text, fact


def test_prompts_and_texts_are_escaped() -> None:
    assert "Given &#34;A &amp; B &lt;1&gt;&#34;" in render(RESULT)


def test_what_differs_from_plain_is_marked_from_the_first_differing_word_on() -> None:
    page = render(RESULT)
    assert "<div>likes <mark>new films</mark></div>" in page
    assert page.count("<mark>") == 1


def test_a_float32_run_says_nothing_of_rounding_and_a_single_replay_point_draws_no_line() -> None:
    page = render(dataclasses.replace(RESULT, dtype="float32", noise=None, replay=RESULT.replay[:1]))
    assert "rounding" not in page
    assert "polyline" not in page
    assert "one at a time" not in page


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", RESULT)
    assert (tmp_path / "report.html").read_text(encoding="utf8").rstrip().endswith("</html>")
    assert len(list(tmp_path.iterdir())) == 1


def test_the_terminal_table_is_aligned_and_starts_with_plain() -> None:
    lines = text_table(cells(SUMMARIES, RESULT.noise)).splitlines()
    assert len({line.rfind("tokens/s") + len("tokens/s") for line in lines[1:2]} | {lines[3].find("51.2") + 4}) == 1
    assert [line.split()[0] for line in lines[3:]] == ["plain", "strict", "relaxed", "plain,"]
    assert max(map(len, lines)) <= 140


def test_plain_is_not_compared_with_itself() -> None:
    assert cells(SUMMARIES, None)[0].count("-") == 2


def test_the_longest_bar_stays_inside_the_picture_with_its_value() -> None:
    chart = bar_chart("t", [Bar("a" * 20, 1.0, "1.00x"), Bar("b", 12.0, "12.00x")])
    rects = [tuple(map(float, pair)) for pair in re.findall(r'<rect[^>]* x="([\d.]+)"[^>]* width="([\d.]+)"', chart)]
    assert max(x + width for x, width in rects) <= 520 - 6 * 7.4
    assert min(x for x, _ in rects) >= 20 * 7.4


def test_every_point_of_a_line_lies_inside_the_picture() -> None:
    chart = line_chart("t", [(0, 0.4), (10, 3.0), (160, 9.99)], "x")
    for x, y in re.findall(r'<circle[^>]* cx="([\d.]+)" cy="([\d.]+)"', chart):
        assert 0 < float(x) < 520 and 20 < float(y) < 250


def test_a_chart_of_nothing_is_drawn_empty() -> None:
    assert "<rect" not in bar_chart("t", [])
    assert "<circle" not in line_chart("t", [], "x")


@pytest.mark.parametrize("top", [0.3, 1.0, 4.2, 7.0, 9.99, 12.0, 250.0])
def test_ticks_are_round_and_few(top: float) -> None:
    assert 2 <= top / nice_step(top) <= 6.5
