"""`compare diff A B`: what has changed between two results, and what only seems to have.

    A --> Analysis --+--> each row, metric and point in both --> Change: ratio with interval, verdict
    B --> Analysis --'          |                                  `--> --fail-if: exit code 1
                                `--> warnings, where the two are not alike

Rules: the verdict is the one of ranks (stats.py): intervals apart, and medians further apart than the
noise floor of either run. Many figures are judged at once, and of a hundred some are always far off by
chance; so the floor here is one that all headline figures together stay below in 19 of 20 diffs of
equal results. A condition of --fail-if holds only for what is no noise, and `worse` is about headline
figures: CPU times, which survive a noisy machine.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from tabulate import tabulate

from compare.analysis import METRICS, Analysis, Metric
from compare.environment import unlike
from compare.schema import Result
from compare.servers import BASELINE
from compare.stats import BETTER, CONFIDENCE, SAME, WORSE, Estimate, ratio, verdict

CONDITION = re.compile(
    r"(?P<row>.+)\.(?P<metric>\w+)(?:@(?P<point>[\d.]+))?(?P<sign>[<>])(?P<percent>[+-]?[\d.]+)%"
)
EXPECTED = "expected worse, or ROW.METRIC>N% such as prefork.up_cpu>5%"
SIGNS: dict[str, Callable[[float, float], bool]] = {"<": operator.lt, ">": operator.gt}


class Place(NamedTuple):
    """Which figure, of whom, and where on its axis."""

    metric: Metric
    row: str
    point: float | None


class Change(NamedTuple):
    """One figure of one row, in A and in B."""

    metric: Metric
    row: str
    point: float | None
    before: Estimate
    after: Estimate
    ratio: Estimate  # B as a multiple of A
    verdict: str  # of B

    @property
    def percent(self) -> float:
        return 100 * (self.ratio.value - 1)

    @property
    def name(self) -> str:
        return f"{self.row}.{self.metric.key}" + (f"@{self.point:g}" if self.point is not None else "")


class Condition(NamedTuple):
    """When `compare diff` fails."""

    text: str
    name: str | None  # ROW.METRIC or ROW.METRIC@POINT; None: any
    sign: str = ">"
    percent: float = 0.0

    def holds(self, change: Change) -> bool:
        if self.name is None:
            return change.metric.headline and change.verdict == WORSE
        if change.name != self.name or change.verdict == SAME:
            return False
        return SIGNS[self.sign](change.percent, self.percent)


def condition(text: str) -> Condition:
    """Raises ValueError, with what was expected."""
    if text == WORSE:
        return Condition(text, None)
    match = CONDITION.fullmatch(text.replace(" ", ""))
    if not match:
        raise ValueError(f"{text!r}: {EXPECTED}")
    if match["metric"] not in METRICS:
        raise ValueError(f"{text!r}: no metric {match['metric']!r}: expected one of {','.join(METRICS)}")
    try:
        percent = float(match["percent"])
        point = f"@{float(match['point']):g}" if match["point"] else ""
    except ValueError:
        raise ValueError(f"{text!r}: {EXPECTED}") from None
    return Condition(text, f"{match['row']}.{match['metric']}{point}", match["sign"], percent)


def changes(before: Analysis, after: Analysis) -> list[Change]:
    """Of all that both have."""
    places = [
        Place(metric, row, point)
        for metric in after.metrics
        for row in after.names
        for point in (None, *after.points(metric.scenario))
        if measured(before, metric, row, point) and measured(after, metric, row, point)
    ]
    chance = 1 - (1 - CONFIDENCE) / max(1, sum(place.metric.headline for place in places))

    @cache
    def floor(metric: Metric, point: float | None) -> float:
        return max(analysis.floor_of(metric, point, chance) for analysis in (before, after))

    return [change(before, after, place, floor(place.metric, place.point)) for place in places]


def measured(analysis: Analysis, metric: Metric, row: str, point: float | None) -> bool:
    """True if that figure is there and says something about the server."""
    found = analysis.estimate(metric.key, row, point)
    return found is not None and found.low > 0 and not analysis.limited(metric, row, point)


def change(before: Analysis, after: Analysis, place: Place, floor: float) -> Change:
    metric, row, point = place
    old, new = (analysis.estimate(metric.key, row, point) for analysis in (before, after))
    assert old is not None
    assert new is not None
    times = ratio(before.values(metric, row, point), after.values(metric, row, point))
    return Change(metric, row, point, old, new, times, verdict(old, new, metric.more_is_better, floor))


def warnings(before: Result, after: Result, found_changes: Sequence[Change]) -> list[str]:
    """Why the two may differ by something other than the code."""
    found = unlike(before.environment, after.environment)
    for name in ("end", "method", "duration", "rounds"):
        one, other = getattr(before.settings, name), getattr(after.settings, name)
        if one != other:
            found.append(f"{name}: {one} and {other}")
    found = [f"not alike: {entry}" for entry in found]
    for name, result in (("A", before), ("B", after)):
        if not result.complete:
            found.append(f"{name} is partial: {len(result.samples)} of {result.planned} samples")
    old, new = ({row.name for row in result.rows} for result in (before, after))
    found += [
        f"only in {name}: {', '.join(sorted(rows))}"
        for name, rows in (("A", old - new), ("B", new - old))
        if rows
    ]
    baselines = {row.name for row in after.rows if row.kind == BASELINE}
    moved = [c.name for c in found_changes if c.row in baselines and c.verdict != SAME]
    if moved:
        found.append(f"the machine itself differs, since what has no server does: {', '.join(moved)}")
    return found


def unknown(conditions: Iterable[Condition], found: Sequence[Change]) -> str | None:
    """What is wrong with the first condition that can never hold, because there is no such figure."""
    known = {change.name for change in found}
    for wanted in conditions:
        if wanted.name is not None and wanted.name not in known:
            rows = ",".join(dict.fromkeys(change.row for change in found))
            keys = ",".join(dict.fromkeys(change.metric.key for change in found))
            return f"{wanted.text!r}: not in both results: they share the rows {rows} and the metrics {keys}"
    return None


def text(found: Sequence[Change], everything: bool) -> str:
    """Counts, and a table of what has changed, or of everything."""
    counts = Counter(change.verdict for change in found)
    head = ", ".join(f"{counts[name]} {name}" for name in (BETTER, WORSE, SAME))
    shown = [change for change in found if everything or change.verdict != SAME]
    if not shown:
        return head
    rows = [
        [
            change.name,
            number(change.before.value, change.metric),
            number(change.after.value, change.metric),
            change.metric.unit,
            f"{change.percent:+.1f}%",
            f"{100 * (change.ratio.low - 1):+.1f} to {100 * (change.ratio.high - 1):+.1f}%",
            change.verdict,
        ]
        for change in shown
    ]
    headers = ["", "A", "B", "unit", "change", "95% interval", "B is"]
    align = ("left", "right", "right", "left", "right", "right", "left")
    return f"{head}\n\n{tabulate(rows, headers, tablefmt='simple', disable_numparse=True, colalign=align)}"


def number(value: float, metric: Metric) -> str:
    return f"{value:,.{metric.digits}f}"


def as_json(found: Sequence[Change], warned: Sequence[str], failed: Sequence[str]) -> dict[str, Any]:
    return {
        "warnings": list(warned),
        "failed": list(failed),
        "changes": [
            {
                "row": change.row,
                "metric": change.metric.key,
                "point": change.point,
                "unit": change.metric.unit,
                "a": change.before._asdict(),
                "b": change.after._asdict(),
                "ratio": change.ratio._asdict(),
                "b_is": change.verdict,
            }
            for change in found
        ],
    }
