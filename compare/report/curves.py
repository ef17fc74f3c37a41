"""Figures along a scenario's axis: of each row, at each point.

    Analysis.curve --> value and mark of each point --> lines of a panel, cells of a table

Rules: a point counts as a row does elsewhere: only if most of its samples are valid. Points of the
generator's limit are kept and marked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from compare.analysis import METRICS, Analysis
from compare.report.parts import LIMITED, NOTHING, UNUSABLE, Table, by_rank, number


class At(NamedTuple):
    """What a row shows at a point."""

    value: float
    limited: bool


Curve = Mapping[float, At]  # by point
Curves = Mapping[str, Curve]  # by row


def curves(analysis: Analysis, key: str) -> Curves:
    """A metric along its scenario's axis, rows by rank."""
    scenario = METRICS[key].scenario
    return {
        row: {
            point: At(found.value, analysis.held_back(row, scenario, point) is not None)
            for point, found in curve
        }
        for row in by_rank(analysis)
        if (curve := analysis.curve(key, row))
    }


def points_of(found: Curves) -> list[float]:
    return sorted({point for curve in found.values() for point in curve})


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
