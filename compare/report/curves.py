"""Figures along a scenario's axis: of each row, at each point.

    samples of one row and point --half or more valid--> median over rounds

Rules: a point counts as a row does elsewhere: only if most of its samples are valid. Points of the
generator's limit are kept and marked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

from compare.analysis import Analysis
from compare.report.parts import LIMITED, NOTHING, UNUSABLE, Table, by_rank, number
from compare.schema import Sample
from compare.stats import percentile

Measure = Callable[[Sample], float | None]


class At(NamedTuple):
    """What a row shows at a point."""

    value: float
    limited: bool


Curve = Mapping[float, At]  # by point
Curves = Mapping[str, Curve]  # by row


def samples_at(analysis: Analysis, scenario: str) -> dict[tuple[str, float], list[Sample]]:
    """The samples that count, by row and point."""
    return {
        (row, point): samples
        for row in analysis.names
        for point in analysis.points(scenario)
        if (samples := analysis.valid(row, scenario, point))
    }


def curves(analysis: Analysis, scenario: str, of: Measure) -> Curves:
    """Medians of a measure along the scenario's axis, rows by rank."""
    found: dict[str, dict[float, At]] = {}
    for (row, point), samples in samples_at(analysis, scenario).items():
        values = [value for sample in samples if (value := of(sample)) is not None]
        if values:
            limited = 2 * sum(bool(sample.limited) for sample in samples) > len(samples)
            found.setdefault(row, {})[point] = At(median(values), limited)
    return {row: dict(sorted(found[row].items())) for row in by_rank(analysis) if row in found}


def points_of(found: Curves) -> list[float]:
    return sorted({point for curve in found.values() for point in curve})


def p99(sample: Sample) -> float | None:
    return percentile(sample.latency_us, 0.99) if sample.latency_us else None


def pooled(samples: list[Sample], service: bool = False) -> list[tuple[int, int]]:
    """Latencies of several samples together."""
    together: Counter[int] = Counter()
    for sample in samples:
        for value, times in sample.service_us if service else sample.latency_us:
            together[value] += times
    return sorted(together.items())


def table(
    analysis: Analysis,
    scenario: str,
    found: Curves,
    title: str,
    *,
    say: Callable[[float], str] = "{:,.0f}".format,
    digits: int = 0,
    note: str = "",
) -> Table:
    """A row for each row, a column for each point that was tried."""
    tried = {(s.row, s.point) for s in analysis.result.samples if s.scenario == scenario}
    points = sorted({point for _, point in tried if point is not None})
    rows = []
    for row in by_rank(analysis):
        if not any((row, point) in tried for point in points):
            continue
        cells = []
        for point in points:
            at = found.get(row, {}).get(point)
            if at:
                cells.append(number(at.value, digits) + (LIMITED if at.limited else ""))
            else:
                cells.append(UNUSABLE if (row, point) in tried else NOTHING)
        rows.append([row, *cells])
    marks = [
        text
        for mark, text in ((LIMITED, "the server was not the limit"), (UNUSABLE, "too few valid samples"))
        if any(cell.endswith(mark) for cells in rows for cell in cells[1:])
        for text in [f"{mark} {text}."]
    ]
    return Table(title, ["", *map(say, points)], rows, " ".join([note, *marks]).strip())
