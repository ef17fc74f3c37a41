"""How long a request takes: at one load that all are offered, over the load, and beside bulk.

    load: offered requests/s --+-- at one point: percentiles, on an axis of 1 / (1 - p)
                               `-- over the points: p99, the hockey stick
    mixed: small requests beside one bulk stream, and without it

Rules: latency counts from when a request was due, so a stall shows in every request that it held up.
Rows are compared at the same load: the highest one that nearly all of them keep up with.
"""

from __future__ import annotations

from typing import NamedTuple

from compare.analysis import Analysis
from compare.report import curves
from compare.report.draw import Axis, Dot, Line, decades, dots, panels
from compare.report.parts import (
    NOTHING,
    Missing,
    Section,
    Table,
    by_rank,
    cell,
    not_measured,
    number,
)
from compare.stats import percentile

PARTS = (0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999)
SHOWN = (0.5, 0.9, 0.99, 0.999, 0.9999)  # on the axis
KEEPS_UP = 0.95  # of the offered load
NEARLY_ALL = 0.9  # of the servers that have any valid point
KNEE = 3.0  # times the p99 at the lowest load: where a hockey stick bends


def kept_up(analysis: Analysis) -> curves.Curves:
    """The part of each offered load that was served."""
    return {
        row: {load: curves.At(at.value / load, at.limited) for load, at in curve.items()}
        for row, curve in curves.curves(analysis, "load_achieved").items()
    }


class Compared(NamedTuple):
    """Where rows are compared; `load` is None in a closed loop."""

    load: float | None
    rows: list[str]  # that have valid samples there

    @property
    def scenario(self) -> str:
        return "ping-pong" if self.load is None else "load"

    @property
    def p99(self) -> str:
        """The metric's key."""
        return "ping_p99" if self.load is None else "load_p99"


def equal_load(analysis: Analysis) -> Compared | None:
    """The highest load with which nearly all keep up; else the closed loop of ping-pong."""
    kept = {row: curve for row, curve in kept_up(analysis).items() if row in analysis.servers}
    good = [
        point
        for point in curves.points_of(kept)
        if sum(point in c and c[point].value >= KEEPS_UP for c in kept.values()) >= NEARLY_ALL * len(kept)
    ]
    compared = Compared(max(good, default=None), [])
    compared.rows.extend(
        row for row in by_rank(analysis) if analysis.valid(row, compared.scenario, compared.load)
    )
    return compared if compared.rows else None


def percentiles(analysis: Analysis) -> Section | Missing:
    title = "How long a small request takes"
    compared = equal_load(analysis)
    if not compared:
        return not_measured(title, "load", "ping-pong")
    found_at = {row: analysis.pooled_latency(row, compared.scenario, compared.load) for row in compared.rows}
    pooled = {row: counts for row, counts in found_at.items() if counts}
    if not pooled:
        return not_measured(title, "load", "ping-pong")
    known = {row: sum(times for _, times in counts) for row, counts in pooled.items()}
    parts = [part for part in PARTS if min(known.values()) * (1 - part) >= 5] or [0.5]  # else chance decides
    found = {row: {part: percentile(counts, part) for part in parts} for row, counts in pooled.items()}
    lines = [Line(row, [(1 / (1 - part), us) for part, us in at.items()]) for row, at in found.items()]
    highest = max(us for at in found.values() for us in at.values())
    lowest = min(us for at in found.values() for us in at.values())
    odds = {1 / (1 - part): f"{100 * part:g}%" for part in SHOWN if part <= parts[-1]}
    drawing = panels(
        lines,
        Axis("share of requests answered within", list(odds), labels=odds),
        Axis("us (log scale)", decades(lowest, highest, (1, 3))),
    )
    rows = [
        [row, f"{known[row]:,}", *(number(us, 0) for us in at.values()), number(pooled[row][-1][0], 0)]
        for row, at in found.items()
    ]
    table = Table(title, ["", "requests", *(f"p{100 * part:g}, us" for part in parts), "max, us"], rows)
    return Section("latency", title, how_fast(analysis, compared), [table], drawing)


def how_fast(analysis: Analysis, compared: Compared) -> str:
    found = {row: analysis.estimate(compared.p99, row, compared.load) for row in compared.rows}
    tail = {row: at for row, at in found.items() if at and row in analysis.servers}
    if not tail:
        return "Only baselines were measured."
    first = min(tail, key=lambda row: tail[row].value)
    within = tail[first]
    where = f"At {compared.load:,.0f} requests/s, offered to all alike," if compared.load else "Of all,"
    text = f"{where} {first} is the best at the tail: "
    text += f"99 of 100 requests are answered within {within.value:,.0f} us"
    if within.rounds > 1:
        text += f" ({within.low:,.0f} to {within.high:,.0f})"
    if compared.load:
        return (
            f"{text}. Latency counts from when a request was due, so that every request of a stall shows it."
        )
    return f"{text}. The next request is sent when the last one is answered, so a stall shows once only."


def hockey_stick(analysis: Analysis) -> Section | Missing:
    title = "Where the queue begins"
    found = curves.curves(analysis, "load_p99")
    ours = {row: curve for row, curve in found.items() if row in analysis.servers}
    if not ours:
        return not_measured(title, "load")
    points = curves.points_of(found)
    values = [at.value for curve in found.values() for at in curve.values()]
    drawing = panels(
        [Line(row, [(point, at.value) for point, at in curve.items()]) for row, curve in found.items()],
        Axis("requests/s offered", points if len(points) < 6 else points[::2], log=False),
        Axis("p99, us (log scale)", decades(min(values), max(values), (1, 3))),
    )
    bends = {row: bend(curve) for row, curve in ours.items() if len(curve) > 1}
    steady = [row for row, point in bends.items() if point is None]
    bent = {row: point for row, point in bends.items() if point is not None}
    parts = []
    if bent:
        soonest, latest = min(bent, key=bent.__getitem__), max(bent, key=bent.__getitem__)
        parts.append(
            f"The p99 is beyond {KNEE:g} times its lowest at {bent[soonest]:,.0f} requests/s with {soonest}"
            + (f" and at {bent[latest]:,.0f} with {latest}" if bent[latest] > bent[soonest] else "")
        )
    if steady:
        parts.append(f"{len(steady)} of {len(bends)} do not bend at any load that was offered")
    sentence = "; ".join(parts) or "One load was offered, which shows no bend"
    note = "p99 in us, from when the request was due; medians over rounds."
    table = curves.table(analysis, "load", found, title, say="{:,.0f}/s".format, note=note)
    percent = {
        row: {point: curves.At(100 * at.value, at.limited) for point, at in curve.items()}
        for row, curve in kept_up(analysis).items()
    }
    served = curves.table(analysis, "load", percent, "Of the offered load, % served", say="{:,.0f}/s".format)
    return Section("load", title, f"{sentence}.", [table, served], drawing)


def bend(curve: curves.Curve) -> float | None:
    """The first load at which the p99 is KNEE times its lowest."""
    lowest = min(at.value for at in curve.values())
    return next((point for point, at in curve.items() if at.value > KNEE * lowest), None)


def mixed(analysis: Analysis) -> Section | Missing:
    title = "Small requests beside a bulk stream"
    found = {
        row: beside
        for row in analysis.servers
        if (beside := analysis.estimate("mixed_beside", row)) and beside.value > 0
    }
    if not found:
        return not_measured(title, "mixed")
    order = sorted(found, key=lambda row: found[row].value)
    shown = {
        row: Dot(found[row].value, found[row].low, found[row].high, f"{found[row].value:,.0f} us")
        for row in order
    }
    keys = ("mixed_alone", "mixed_beside", "mixed_fair")
    rows = [
        [row, *(cell(analysis, key, row) for key in keys), times(analysis, row)]
        for row in [*order, *(row for row in by_rank(analysis) if row not in order)]
        if any(analysis.estimate(key, row) for key in keys)
    ]
    first, last = order[0], order[-1]
    sentence = (
        f"Beside a bulk stream, 99 of 100 small requests are answered within {shown[first].text} by {first}"
    )
    if first != last:
        sentence += f" and within {shown[last].text} by {last}"
    headers = ["", "p99 alone\nus", "p99 beside\nus", "fairness\nof 1", "times\nas long"]
    note = "Fairness: Jain's index over bulk streams at once, 1 when all move alike."
    return Section(
        "mixed",
        title,
        f"{sentence}.",
        [Table(title, headers, rows, note)],
        dots(shown, "p99 beside a bulk stream, us"),
    )


def times(analysis: Analysis, row: str) -> str:
    alone, beside = (analysis.estimate(key, row) for key in ("mixed_alone", "mixed_beside"))
    return f"{beside.value / alone.value:.1f}" if alone and beside and alone.value else NOTHING
