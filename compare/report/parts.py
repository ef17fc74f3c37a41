"""What a report is made of: sections, each with its words, its numbers and perhaps a drawing.

    Section -- title, sentence
            |- drawing   how it is drawn, for a width        draw.py: SVG
            `- tables    cells as text                       text.py: terminal, Markdown; page.py: HTML

Rules: a table is made once, as text; only its frame differs. A drawing says nothing that its tables do
not. Every figure that a reader might take for more than it is carries its mark: * the generator was
the limit, ! not enough valid samples, - not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from compare.analysis import METRICS, Analysis
from compare.servers import PEER
from compare.stats import Estimate

LIMITED, UNUSABLE, NOTHING = "*", "!", "-"
NAMED = 5  # rows in a sentence, at most

Spec = dict[str, Any]
Drawing = Callable[[int, bool], Spec]  # of a width in pixels; True on a phone


class Table(NamedTuple):
    """Cells as text; the first column is the row's name."""

    title: str
    headers: list[str]  # may have two lines
    rows: list[list[str]]
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()  # (row, column) of what shares the first rank
    bulky: bool = False  # too long for a terminal


class Section(NamedTuple):
    """A part of the report. The tables of one that is drawn are folded."""

    key: str
    title: str
    sentence: str
    tables: list[Table]
    drawing: Drawing | None = None


class Missing(NamedTuple):
    """A section that this result has no samples for, and what would give it some."""

    title: str
    why: str


def not_measured(title: str, *scenarios: str) -> Missing:
    return Missing(title, f"no valid sample of {' or '.join(scenarios)}")


def number(value: float, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.") else text  # -0 is no number to show


def interval(estimate: Estimate, digits: int) -> str:
    if estimate.rounds < 2:
        return number(estimate.value, digits)
    low, high = number(estimate.low, digits), number(estimate.high, digits)
    return f"{number(estimate.value, digits)} ({low} to {high})"


def between(values: Sequence[float], digits: int) -> str:
    """`0.61`, or `0.61 to 0.70`."""
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"


def count(many: int, thing: str) -> str:
    return f"{many:,} {thing}{'' if many == 1 else 's'}"


def size(count: float) -> str:
    """A size in bytes as people say it: `64`, `16K`, `1M`."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if count >= unit:
            return f"{count / unit:g}{name}"
    return f"{count:g}"


def models(analysis: Analysis) -> list[str]:
    return [row for row in analysis.servers if analysis.kinds[row] != PEER]


def by_rank(analysis: Analysis) -> list[str]:
    """Row names: servers by overall rank, then score; the one measured twice, and baselines, last."""
    overall = analysis.overall
    last = float("inf")

    def place(name: str) -> tuple[bool, float, float]:
        score = overall.estimates.get(name) if overall else None
        rank = overall.ranks.get(name, last) if overall else last
        return name not in analysis.servers, rank, score.value if score else last

    return sorted(analysis.names, key=place)


def cell(analysis: Analysis, key: str, row: str) -> str:
    """The median of that metric, with its mark."""
    metric = METRICS[key]
    estimate = analysis.estimate(key, row)
    if estimate is None:
        spoilt = any(s.row == row and s.scenario == metric.scenario for s in analysis.invalid)
        return UNUSABLE if spoilt else NOTHING
    return number(estimate.value, metric.digits) + (LIMITED if analysis.limited(metric, row) else "")
