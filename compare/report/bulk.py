"""What moving bytes costs, and how fast they move: by direction, by connections, by message size.

bulk-up, bulk-down    CPU-s/GB, user and system stacked; context switches per MB; MB/s over a sample
concurrency           MB/s over the number of busy connections
sizes                 MB/s over the size of a message
"""

from __future__ import annotations

from typing import NamedTuple

from compare.analysis import METRICS, Analysis, names
from compare.report import curves
from compare.report.draw import (
    LABELS,
    Axis,
    Dot,
    Line,
    decades,
    dots,
    far_off,
    height,
    off_the_scale,
    panels,
    rows_axis,
    values,
)
from compare.report.parts import (
    NAMED,
    NOTHING,
    Drawing,
    Missing,
    Section,
    Spec,
    Table,
    between,
    by_rank,
    cell,
    count,
    not_measured,
    number,
    size,
)
from compare.servers import AEAD, DIRECT, LIBEV, RELAY
from tunnel.config import LOCAL

REFERENCES = {LIBEV: ("libev", [1, 0]), RELAY: ("relay, no cipher", [6, 3]), AEAD: ("AEAD alone", [2, 2])}
WAYS = {"up": "up: opens records", "down": "down: seals records", "both": "both ways at once"}
OF_A_CLIENT = WAYS | {"up": "up: seals records", "down": "down: opens records"}
LETTER = 6.2  # pixels of one in the name of a reference, about


class Cost(NamedTuple):
    """CPU seconds of a gigabyte."""

    user: float
    system: float

    @property
    def total(self) -> float:
        return self.user + self.system


def cost(analysis: Analysis, way: str, row: str) -> Cost | None:
    total, user, system = (analysis.estimate(f"{way}_{part}", row) for part in ("cpu", "user", "system"))
    if not (total and user and system) or not user.value + system.value:
        return None
    share = user.value / (user.value + system.value)  # so that the two add up to the median
    return Cost(total.value * share, total.value * (1 - share))


def gigabyte(analysis: Analysis) -> Section | Missing:
    title = "What a gigabyte costs"
    costs = {
        way: {row: found for row in analysis.servers if (found := cost(analysis, way, row))} for way in WAYS
    }
    ways = [way for way in WAYS if costs[way]]
    if not ways:
        return not_measured(title, "bulk-up", "bulk-down")
    drawn = ways[:2]
    means = {
        row: sum(totals) / len(totals)
        for row in analysis.servers
        if (totals := [costs[way][row].total for way in drawn if row in costs[way]])
    }
    order = sorted(means, key=means.__getitem__)
    parts = ("cpu", "user", "system", "rate")
    keys = [f"{way}_{part}" for way in ways for part in parts if f"{way}_{part}" in analysis.estimates]
    rows = [
        [row, *(cell(analysis, key, row) for key in keys)]
        for row in [*order, *(row for row in by_rank(analysis) if row not in order)]
        if any(analysis.estimate(key, row) for key in keys)
    ]
    headers = ["", *(f"{METRICS[key].title}\n{METRICS[key].unit}" for key in keys)]
    for index, key in enumerate(keys, 1):  # user and system of which way
        headers[index] = f"{key.partition('_')[0]}, {key.partition('_')[2]}\n{METRICS[key].unit}"
    firsts = []
    for way in drawn:
        best = [row for row in order if row in analysis.best(f"{way}_cpu")]
        figures = [costs[way][row].total for row in best if row in costs[way]]
        if figures:
            firsts.append(f"{between(figures, 2)} CPU seconds {way} ({names(best, NAMED)})")
    sentence = f"The least that a gigabyte costs: {' and '.join(firsts)}."
    known = [row for row in REFERENCES if any(analysis.estimate(f"{way}_cpu", row) for way in drawn)]
    said = {LIBEV: "shadowsocks-libev", RELAY: "a relay without encryption", AEAD: "the cipher alone"}
    if known:
        sentence += f" Lines: {names([said[row] for row in known])}."
    drawing = stacked(analysis, {way: costs[way] for way in drawn}, order)
    return Section("bulk", title, sentence, [Table(title, headers, rows)], drawing)


def stacked(analysis: Analysis, costs: dict[str, dict[str, Cost]], order: list[str]) -> Drawing:
    """A bar a row, user and system; what is no model of ours as a line across."""
    said = OF_A_CLIENT if analysis.result.settings.end == LOCAL else WAYS
    totals_of = {
        row: [(float(at), ways[row].total) for at, ways in enumerate(costs.values()) if row in ways]
        for row in order
    }
    off = far_off(totals_of)
    order = [row for row in order if row not in off]
    costs = {way: {row: each for row, each in rows.items() if row not in off} for way, rows in costs.items()}
    most = max(found.total for ways in costs.values() for found in ways.values())

    def bars(way: str, width: int, labels: bool) -> Spec:
        scale = {"domain": [0, most * 1.15], "nice": False}
        axis = {"title": "CPU seconds per GB", "tickCount": 5}
        x = {"type": "quantitative", "scale": scale, "axis": axis}
        y = rows_axis(order, labels)
        who = {"description": {"field": "row"}}
        pieces = [
            {"row": row, "part": part, "value": getattr(found, part)}
            for row, found in costs[way].items()
            for part in ("user", "system")
        ]
        totals = [
            {"row": row, "value": found.total, "text": number(found.total, 2)}
            for row, found in costs[way].items()
        ]
        parts = {"domain": ["user", "system"], "range": ["var(--user)", "var(--system)"]}
        layers: list[Spec] = [
            {
                "data": values(pieces),
                "mark": {"type": "bar", "height": 13},
                "encoding": {
                    "y": y,
                    "x": x | {"field": "value", "stack": "zero"},
                    "color": {"field": "part", "scale": parts},
                    "order": {"field": "part", "sort": "descending"},
                    **who,
                },
            },
            {
                "data": values(totals),
                "mark": {"type": "text", "align": "left", "dx": 4},
                "encoding": {"y": y, "x": x | {"field": "value"}, "text": {"field": "text"}, **who},
            },
        ]
        taken: set[tuple[int, int]] = set()  # (level, pixel) of the names above
        for row, (label, dash) in REFERENCES.items():
            found = analysis.estimate(f"{way}_cpu", row)
            if not found or found.value > most * 1.15:
                continue
            pixel = width * found.value / (most * 1.15)
            side = "left" if pixel < 60 else "right" if pixel > width - 60 else "center"
            long = round(LETTER * len(label))
            start = round(pixel - {"left": 0, "center": long / 2, "right": long}[side])
            covered = range(start - 4, start + long + 4)
            level = next(level for level in range(9) if not any((level, at) in taken for at in covered))
            taken |= {(level, at) for at in covered}
            here = {"data": values([{"at": found.value}])}
            at = x | {"field": "at"}
            line = {"type": "rule", "strokeDash": dash, "color": "var(--mark)", "strokeWidth": 1.5}
            text = {"type": "text", "align": side, "y": -8 - 13 * level, "color": "var(--mark)"}
            layers.append(here | {"mark": line, "encoding": {"x": at}})
            layers.append(here | {"mark": text, "encoding": {"x": at, "text": {"value": label}}})
        return {
            "title": {"text": said[way], "offset": 40},
            "width": width,
            "height": height(len(order)),
            "layer": layers,
        }

    def spec(width: int, narrow: bool) -> Spec:
        if narrow:
            return {**off_the_scale(off), "vconcat": [bars(way, width - LABELS, True) for way in costs]}
        each = (width - LABELS) // len(costs) - 12
        beside = [bars(way, each, not at) for at, way in enumerate(costs)]
        return {**off_the_scale(off), "hconcat": beside, "spacing": 24}

    return spec


def lines_of(found: curves.Curves) -> list[Line]:
    return [
        Line(row, [(point, at.value) for point, at in curve.items()])
        for row, curve in found.items()
        if row != DIRECT  # far above all others, and the generator's own limit
    ]


def concurrency(analysis: Analysis) -> Section | Missing:
    title = "Throughput against connections"
    found = curves.curves(analysis, "concurrency_rate")
    ours = {row: curve for row, curve in found.items() if row in analysis.servers}
    if not ours:
        return not_measured(title, "concurrency")
    points = curves.points_of(found)
    labels = {point: f"{point:,.0f}" for point in points}
    drawing = panels(
        lines_of(found),
        Axis("busy connections (log scale)", points, labels=labels),
        Axis("MB/s", [], log=False),
    )
    fewest, most = min(points), max(points)
    kept = {
        row: curve[most].value / curve[fewest].value
        for row, curve in ours.items()
        if most in curve and fewest in curve and most > fewest and curve[fewest].value
    }
    sentence = f"{sum(most in curve for curve in ours.values())} of {len(ours)} move bytes on "
    sentence += f"{count(int(most), 'connection')} at once"
    if kept:
        best, worst = max(kept, key=kept.__getitem__), min(kept, key=kept.__getitem__)
        sentence += f"; beside its throughput on {fewest:,.0f}, {best} has {kept[best]:.2f} times as much"
        sentence += f" and {worst} {kept[worst]:.2f} times" if worst != best else ""
    tables = [curves.table(analysis, "concurrency", found, "MB/s by busy connections")]
    if late := curves.curves(analysis, "concurrency_p99"):
        tables.append(curves.table(analysis, "concurrency", late, "p99 by busy connections, us"))
    return Section("concurrency", title, f"{sentence}.", tables, drawing)


def sizes(analysis: Analysis) -> Section | Missing:
    title = "Throughput against message size"
    found = curves.curves(analysis, "sizes_rate")
    ours = {row: curve for row, curve in found.items() if row in analysis.servers}
    if not ours:
        return not_measured(title, "sizes")
    points = curves.points_of(found)
    lines = lines_of(found)
    every = [value for line in lines for _, value in line.points]
    drawing = panels(
        lines,
        Axis("bytes in a message (log scale)", points[::2], labels={p: size(p) for p in points[::2]}),
        Axis("MB/s (log scale)", decades(min(every), max(every), (1, 3))),
    )
    halves = {row: point for row, curve in ours.items() if (point := half_way(curve)) is not None}
    sentence = "MB/s of a stream that is sent in messages of one size"
    if halves:
        low, high = min(halves.values()), max(halves.values())
        where = size(low) if low == high else f"{size(low)} to {size(high)}"
        sentence = f"Half of the best throughput is reached with messages of {where} bytes"
        sentence += ": below, system calls cost more than bytes"
    table = curves.table(analysis, "sizes", found, "MB/s by size of a message in bytes", say=size, digits=1)
    return Section("sizes", title, f"{sentence}.", [table], drawing)


def half_way(curve: curves.Curve) -> float | None:
    """The smallest size that reaches half of the most."""
    most = max(at.value for at in curve.values())
    return min((point for point, at in curve.items() if at.value >= most / 2), default=None)


def switches(analysis: Analysis) -> Section | Missing:
    title = "Context switches per megabyte"
    keys = ("up_waits", "up_preempted", "down_waits", "down_preempted")
    lead = next((key for key in ("up_waits", "down_waits") if analysis.estimates.get(key)), None)
    if not lead:
        return not_measured(title, "bulk-up", "bulk-down")
    found = {row: e for row, e in analysis.estimates[lead].items() if row in analysis.servers}
    if not found:
        return not_measured(title, "bulk-up", "bulk-down")
    order = sorted(found, key=lambda row: found[row].value)
    way = lead.partition("_")[0]
    shown = {
        row: Dot(found[row].value, found[row].low, found[row].high, number(found[row].value, 2))
        for row in order
    }
    first, last = order[0], order[-1]
    sentence = f"For a megabyte {way}, {first} waits {shown[first].text} times"
    sentence += f" and {last} {shown[last].text} times" if first != last else ""
    sentence += ": how often a process gave up the processor because it had nothing to do"
    rows = [
        [row, *(cell(analysis, key, row) for key in keys)]
        for row in [*order, *(row for row in by_rank(analysis) if row not in order)]
        if any(analysis.estimate(key, row) for key in keys)
    ]
    headers = ["", "up\nwaits/MB", "up\npreempted/MB", "down\nwaits/MB", "down\npreempted/MB"]
    drawing = dots(shown, f"voluntary context switches per MB {way}")
    return Section("switches", title, f"{sentence}.", [Table(title, headers, rows)], drawing)


def series(analysis: Analysis) -> Section | Missing:
    """MB/s in each tenth of a second of one sample a row."""
    title = "One sample from start to end"
    scenario, found = next(
        (
            (scenario, found)
            for scenario in ("bulk-down", "bulk-up", "bulk-both")
            if (found := first_series(analysis, scenario))
        ),
        ("", {}),
    )
    ours = [row for row in found if row in analysis.servers]
    if not ours:
        return not_measured(title, "bulk-down")
    ticks = sorted({round(at, 1) for points in found.values() for at, _ in points})
    drawing = panels(
        [Line(row, points) for row, points in found.items()],
        Axis("seconds", ticks[:: max(1, len(ticks) // 4)], log=False),
        Axis("MB/s", [], log=False),
    )
    swings = {row: swing([value for _, value in found[row]]) for row in ours if len(found[row]) > 2}
    sentence = f"MB/s in each tenth of a second of {scenario}, round 1"
    if swings:
        calm, wild = min(swings, key=swings.__getitem__), max(swings, key=swings.__getitem__)
        sentence += f": {calm} holds stillest (within {number(swings[calm], 0)}% of its middle)"
        sentence += f", {wild} least ({number(swings[wild], 0)}%)" if wild != calm else ""
    rows = []
    for row, points in found.items():
        at = {round(second, 1): value for second, value in points}
        rows.append([row, *(number(at[tick], 0) if tick in at else NOTHING for tick in ticks)])
    table = Table(f"MB/s along one sample of {scenario}", ["", *(f"{tick:.1f} s" for tick in ticks)], rows)
    return Section("series", title, f"{sentence}.", [table], drawing)


def first_series(analysis: Analysis, scenario: str) -> dict[str, list[tuple[float, float]]]:
    """The first valid sample of each row that has a series."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in by_rank(analysis):
        for sample in analysis.valid(row, scenario):
            if len(sample.series) > 1 and row != DIRECT:
                found.setdefault(row, sample.series)
    return found


def swing(found: list[float]) -> float:
    """Per cent that the farthest value is off the middle one."""
    middle = sorted(found)[len(found) // 2]
    return 100 * max(abs(value - middle) for value in found) / middle if middle else 0.0
