"""The plots of the HTML report: Vega-Lite specifications, drawn to SVG here and now, without a browser.

    Analysis --> Plot: a sentence, a table, and a drawing for each of two widths
                                               `-- vl-convert --> SVG with CSS variables for colours

Colours are written as `var(--...)` and `currentColor` and reach the SVG as such, so that the page's
style sheet decides, for light and dark alike. The palette is Okabe and Ito's, which colour-blind
readers can tell apart; where lines cross, the shape of the points tells them apart as well.

Rules: vl-convert is large, so it is imported when the first plot is drawn. A plot says nothing that
its table does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from compare.analysis import HEADLINES, METRICS, Analysis, names
from compare.report import (
    BOOK,
    NAMED,
    NOTHING,
    Table,
    between,
    by_evenness,
    by_rank,
    cell,
    clients_per_child,
    fairness,
    number,
)
from compare.servers import AEAD, DIRECT, LIBEV
from compare.stats import percentile

NARROW, WIDE = 318, 920  # pixels that a drawing takes
LABELS = 116  # pixels of row names beside a drawing
LINE, CLOSE, MANY = 30, 22, 9  # pixels of a row; where there are more rows than MANY
SERIES = 8  # colours in the style sheet: --series-1 and on
BEST = 6  # models with a colour of their own, where all would be too many
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
PARTS = (0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999)

Spec = dict[str, Any]


class Plot(NamedTuple):
    """A drawing with its sentence and its numbers. `spec` takes the width, and True on a phone."""

    key: str
    title: str
    sentence: str
    table: Table
    spec: Callable[[int, bool], Spec]


CONFIG: Spec = {
    "background": "transparent",
    "padding": {"left": 12, "right": 16, "top": 4, "bottom": 4},  # the reader's font may be wider than ours
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "gridColor": "var(--grid)",
        "domainColor": "var(--grid)",
        "tickColor": "var(--grid)",
        "labelLimit": 120,
    },
    "legend": {
        "labelColor": "currentColor",
        "labelFontSize": 12,
        "title": None,
        "orient": "top",
        "symbolSize": 90,
        "columnPadding": 26,
    },
    "title": {"color": "currentColor", "fontSize": 13, "anchor": "start", "fontWeight": 600},
    "text": {"color": "currentColor", "fontSize": 11},
}


def draw(plot: Plot, width: int, narrow: bool) -> str:
    """The SVG of a plot."""
    import vl_convert  # noqa: PLC0415 - 84 MB that only the report needs

    svg: str = vl_convert.vegalite_to_svg({"config": CONFIG, **plot.spec(width, narrow)})
    words = plot.sentence.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(r"<svg\b", f'<svg role="img" aria-label="{words}"', svg, count=1)


def plots(analysis: Analysis) -> list[Plot]:
    """Those that the result has figures for."""
    made = (
        bulk(analysis),
        connections(analysis),
        children(analysis),
        latency(analysis),
        memory(analysis),
        drift(analysis),
    )
    return [plot for plot in made if plot]


def colours(rows: Sequence[str]) -> list[str]:
    """Models in their order, at most SERIES of them; what is not ours is ink."""
    ink = {LIBEV: "currentColor", DIRECT: "var(--quiet)"}
    ours = [row for row in rows if row not in ink]
    return [ink.get(row) or f"var(--series-{ours.index(row) % SERIES + 1})" for row in rows]


def height(rows: int) -> int:
    """Of a drawing with a line for each row."""
    return rows * (LINE if rows <= MANY else CLOSE)


def values(rows: Sequence[Spec]) -> Spec:
    return {"values": list(rows)}


def rows_axis(order: Sequence[str], labels: bool = True) -> Spec:
    axis = {"title": None, "ticks": False, "domain": False, "labelPadding": 6, "labels": labels}
    return {"field": "row", "type": "nominal", "sort": list(order), "axis": axis}


def decades(steps: Sequence[int]) -> list[int]:
    """Ticks of a logarithmic axis: Vega's own are too many for a phone."""
    return [step * 10**power for power in range(7) for step in steps]


def told_apart(field: str, domain: Sequence[str], colours: Sequence[str], columns: int) -> Spec:
    """The encodings that give each name of `field` its colour and its shape, with one legend."""
    shapes = [SHAPES[index % len(SHAPES)] for index in range(len(domain))]
    common: Spec = {"field": field, "type": "nominal", "legend": {"columns": columns}}
    return {
        "color": common | {"scale": {"domain": list(domain), "range": list(colours)}},
        "shape": common | {"scale": {"domain": list(domain), "range": shapes}},
    }


def bulk(analysis: Analysis) -> Plot | None:
    """CPU-s/GB, user and system stacked, libev and AEAD as lines."""
    panels = [
        (name, title)
        for name, title in (("up", "up: opens records"), ("down", "down: seals records"))
        if analysis.estimates.get(f"{name}_cpu")
    ]
    found = {
        row: [e.value for p, _ in panels if (e := analysis.estimate(f"{p}_cpu", row))]
        for row in analysis.servers
    }
    order = sorted((row for row in found if found[row]), key=lambda row: sum(found[row]) / len(found[row]))
    if not order:
        return None
    most = max(value for row in order for value in found[row])

    def panel(name: str, title: str, width: int, labels: bool) -> Spec:
        scale = {"domain": [0, most * 1.15], "nice": False}
        x = {"type": "quantitative", "scale": scale, "axis": {"title": "CPU seconds per GB", "tickCount": 5}}
        y = rows_axis(order, labels)
        bars, totals = [], []
        for row in order:
            total, user, system = (
                analysis.estimate(f"{name}_{part}", row) for part in ("cpu", "user", "system")
            )
            if total and user and system:
                share = user.value / (user.value + system.value)  # so that the two add up to the median
                bars.append({"row": row, "part": "user", "value": total.value * share})
                bars.append({"row": row, "part": "system", "value": total.value * (1 - share)})
                totals.append({"row": row, "value": total.value, "text": number(total.value, 2)})
        parts = {"domain": ["user", "system"], "range": ["var(--user)", "var(--system)"]}
        layers: list[Spec] = [
            {
                "data": values(bars),
                "mark": {"type": "bar", "height": 14},
                "encoding": {
                    "y": y,
                    "x": x | {"field": "value", "stack": "zero"},
                    "color": {"field": "part", "scale": parts},
                    "order": {"field": "part", "sort": "descending"},
                },
            },
            {
                "data": values(totals),
                "mark": {"type": "text", "align": "left", "dx": 4},
                "encoding": {"y": y, "x": x | {"field": "value"}, "text": {"field": "text"}},
            },
        ]
        for row, dash, label in ((LIBEV, [1, 0], "libev"), (AEAD, [4, 3], "AEAD alone")):
            if found := analysis.estimate(f"{name}_cpu", row):
                here = {"data": values([{"at": found.value}])}
                at = x | {"field": "at"}
                line = {"type": "rule", "strokeDash": dash, "color": "var(--mark)", "strokeWidth": 1.5}
                text = {"type": "text", "align": "center", "y": -7, "color": "var(--mark)"}
                layers.append(here | {"mark": line, "encoding": {"x": at}})
                layers.append(here | {"mark": text, "encoding": {"x": at, "text": {"value": label}}})
        return {
            "title": {"text": title, "offset": 18},
            "width": width,
            "height": height(len(order)),
            "layer": layers,
        }

    def spec(width: int, narrow: bool) -> Spec:
        if narrow:
            return {"vconcat": [panel(*p, width - LABELS, True) for p in panels]}
        each = (width - LABELS) // len(panels) - 12
        return {"hconcat": [panel(*p, each, not index) for index, p in enumerate(panels)], "spacing": 24}

    keys = [f"{p}_{part}" for p, _ in panels for part in ("cpu", "user", "system")]
    headers = ["", *(f"{key.split('_')[0]}, {METRICS[key].title.split()[0]}" for key in keys)]
    rows = [
        [row, *(cell(analysis, key, row) for key in keys)] for row in [*order, AEAD] if row in analysis.names
    ]
    firsts = []
    for p, _ in panels:
        first = analysis.best(f"{p}_cpu")
        best = [row for row in order if row in first]
        figures = [e.value for row in best if (e := analysis.estimate(f"{p}_cpu", row))]
        if figures:
            firsts.append(f"{between(figures, 2)} CPU seconds {p} ({names(best, NAMED)})")
    sentence = f"The least that a gigabyte costs: {' and '.join(firsts)}."
    if LIBEV in order:
        sentence += " The solid line is shadowsocks-libev, the dashed one sealing or opening alone."
    return Plot("bulk", "What a gigabyte costs", sentence, Table("", headers, rows), spec)


def connections(analysis: Analysis) -> Plot | None:
    """CPU of a connection, ranked, with its interval. Dots, since the axis is logarithmic."""
    found = {r: e for r, e in analysis.estimates.get("connection_cpu", {}).items() if r in analysis.servers}
    if not found:
        return None
    order = sorted(found, key=lambda row: found[row].value)
    data = [
        {"row": row, "value": e.value, "low": e.low, "high": e.high, "text": f"{number(e.value, 0)} us"}
        for row, e in found.items()
    ]

    def spec(width: int, narrow: bool) -> Spec:
        lowest, highest = min(e.low for e in found.values()), max(e.high for e in found.values())
        scale = {"type": "log", "domain": [lowest * 0.8, highest * (2.4 if narrow else 1.4)], "nice": False}
        ticks = decades((1, 3) if narrow else (1, 2, 5))
        axis = {"title": "CPU us per connection (log scale)", "values": ticks, "format": ",~r"}
        x = {"field": "value", "type": "quantitative", "scale": scale, "axis": axis}
        return {
            "width": width - LABELS,
            "height": height(len(order)),
            "data": values(data),
            "encoding": {"y": rows_axis(order)},
            "layer": [
                {
                    "mark": {"type": "rule", "strokeWidth": 5, "opacity": 0.45, "color": "var(--user)"},
                    "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}},
                },
                {
                    "mark": {
                        "type": "point",
                        "filled": True,
                        "size": 90,
                        "opacity": 1,
                        "color": "var(--user)",
                    },
                    "encoding": {"x": x},
                },
                {
                    "mark": {"type": "text", "align": "left", "dx": 10},
                    "encoding": {"x": x | {"field": "high"}, "text": {"field": "text"}},
                },
            ],
        }

    rows = [[r, number(found[r].value, 0), number(found[r].low, 0), number(found[r].high, 0)] for r in order]
    first, last = order[0], order[-1]
    sentence = f"A new connection costs {first} {number(found[first].value, 0)} us of CPU"
    if first != last:
        sentence += f" and {last} {number(found[last].value, 0)}; the bars are 95% intervals over rounds"
    return Plot(
        "connections",
        "What a new connection costs",
        sentence + ".",
        Table("", ["", "us of CPU", "low", "high"], rows),
        spec,
    )


def children(analysis: Analysis) -> Plot | None:
    """Clients of each child as ticks on a line a model, and the book's beside them."""
    found: dict[str, Sequence[int]] = {**by_evenness(analysis)}
    table, sentence = clients_per_child(analysis), fairness(analysis)
    if not found or not table or not sentence:
        return None
    found |= {f"UNP {name.replace(chr(10), ' ')}": counts for name, counts in BOOK.items()}
    order = list(found)
    data = [
        {"row": row, "share": 100 * count / sum(counts)} for row, counts in found.items() for count in counts
    ]
    even = 100 / max(map(len, by_evenness(analysis).values()))

    def spec(width: int, narrow: bool) -> Spec:
        title = "% of clients, a mark for each child"
        axis = {"title": title, "tickCount": 4 if narrow else 8}
        x = {"type": "quantitative", "axis": axis}
        y = rows_axis(order)
        y["axis"] |= {"labelLimit": LABELS + 30}
        return {
            "width": width - LABELS - 30,
            "height": height(len(order)),
            "encoding": {"y": y},
            "layer": [
                {
                    "data": values([{"at": even}]),
                    "mark": {"type": "rule", "color": "var(--mark)", "strokeDash": [4, 3]},
                    "encoding": {"x": x | {"field": "at"}, "y": None},
                },
                {
                    "data": values(data),
                    "mark": {
                        "type": "tick",
                        "thickness": 2,
                        "height": 14,
                        "opacity": 0.6,
                        "color": "var(--user)",
                    },
                    "encoding": {"x": x | {"field": "share"}},
                },
            ],
        }

    sentence += " The dashed line is an even share; the last three lines are the book's."
    return Plot("children", "Who serves the clients", sentence, table, spec)


def latency(analysis: Analysis) -> Plot | None:
    """Percentiles of the ping-pong, all rounds together, on an axis of 1 / (1 - p)."""
    pooled = {row: analysis.pooled_latency(row, "ping-pong") for row in [*by_rank(analysis)]}
    pooled = {row: counts for row, counts in pooled.items() if counts}
    if not pooled:
        return None
    known = {row: sum(count for _, count in counts) for row, counts in pooled.items()}
    parts = [part for part in PARTS if min(known.values()) * (1 - part) >= 5] or [0.5]  # else chance decides
    order = list(pooled)
    tail = {row: percentile(pooled[row], 0.99) for row in order if row in analysis.servers}
    ours = sorted((row for row in tail if row != LIBEV), key=tail.__getitem__)
    shown = [row for row in order if row in (*ours[:BEST], LIBEV, DIRECT)]
    data = [
        {"row": row, "odds": 1 / (1 - part), "us": percentile(counts, part)}
        for row, counts in pooled.items()
        for part in parts
    ]
    labels = " : ".join(
        f"datum.value < {1 / (1 - part) * 1.01} ? '{100 * part:g}%'"
        for part in (0.5, 0.9, 0.99, 0.999, 0.9999)
    )

    def spec(width: int, narrow: bool) -> Spec:
        ticks = [odds for odds in (2, 10, 100, 1000, 10000) if odds <= 1.01 / (1 - parts[-1])]
        x_axis = {
            "title": "share of requests answered within",
            "values": ticks,
            "labelExpr": f"{labels} : ''",
        }
        y_axis = {"title": "microseconds (log scale)", "values": decades((1, 3)), "format": ",~r"}
        x = {"field": "odds", "type": "quantitative", "scale": {"type": "log", "nice": False}, "axis": x_axis}
        y = {"field": "us", "type": "quantitative", "scale": {"type": "log", "nice": True}, "axis": y_axis}
        apart = told_apart("row", shown, colours(shown), 2 if narrow else 8)
        others = values([point for point in data if point["row"] not in shown])
        these = {"data": values([point for point in data if point["row"] in shown])}
        quiet = {"type": "line", "strokeWidth": 1, "color": "var(--quiet)", "opacity": 0.55}
        return {
            "width": width - 60,
            "height": 280 if narrow else 340,
            "encoding": {"x": x, "y": y},
            "layer": [
                {"data": others, "mark": quiet, "encoding": {"detail": {"field": "row"}}},
                these | {"mark": {"type": "line", "strokeWidth": 2}, "encoding": apart},
                these
                | {"mark": {"type": "point", "filled": True, "size": 55, "opacity": 1}, "encoding": apart},
            ],
        }

    rows = [
        [
            row,
            f"{known[row]:,}",
            *(number(percentile(pooled[row], part), 0) for part in parts),
            number(pooled[row][-1][0], 0),
        ]
        for row in order
    ]
    headers = ["", "requests", *(f"p{100 * part:g}" for part in parts), "max"]
    first = min(tail, key=tail.__getitem__) if tail else order[0]
    within = number(percentile(pooled[first], 0.99), 0)
    sentence = (
        f"99 of 100 small requests are answered within {within} us by {first}, the best at that; the next "
        "request is sent when the last one is answered, so a stall shows once only."
    )
    if len(shown) < len(order):
        sentence += f" In colour: the {BEST} models that are best at that; pale: the others."
    return Plot("latency", "How long a small request takes", sentence, Table("", headers, rows), spec)


def memory(analysis: Analysis) -> Plot | None:
    """PSS idle, with connections open, and busy, as three points a row."""
    keys = {"pss_idle": "idle", "pss_open": "10 connections open", "pss_busy": "busy"}
    order = [row for row in by_rank(analysis) if analysis.estimate("pss_idle", row)]
    if not order:
        return None
    data = [
        {"row": row, "when": when, "mb": found.value}
        for row in order
        for key, when in keys.items()
        if (found := analysis.estimate(key, row))
    ]

    def spec(width: int, narrow: bool) -> Spec:
        when = list(keys.values())
        x = {
            "field": "mb",
            "type": "quantitative",
            "axis": {"title": "MB of memory (PSS, all processes)", "tickCount": 6},
        }
        apart = told_apart(
            "when", when, ["var(--system)", "var(--series-2)", "var(--user)"], 2 if narrow else 3
        )
        reach = {"x": x | {"aggregate": "min"}, "x2": {"field": "mb", "aggregate": "max"}}
        return {
            "width": width - LABELS,
            "height": height(len(order)),
            "data": values(data),
            "encoding": {"y": rows_axis(order)},
            "layer": [
                {"mark": {"type": "rule", "strokeWidth": 3, "color": "var(--grid)"}, "encoding": reach},
                {
                    "mark": {"type": "point", "filled": True, "size": 95, "opacity": 1},
                    "encoding": {"x": x, **apart},
                },
            ],
        }

    rows = [[row, *(cell(analysis, key, row) for key in [*keys, "pss_each"])] for row in order]
    each = {row: found.value for row in order if (found := analysis.estimate("pss_each", row))}
    sentence = "A page that processes share counts once."
    if each:
        least, most = min(each, key=each.__getitem__), max(each, key=each.__getitem__)
        highest, lowest = number(each[most], 0), number(each[least], 0)
        sentence = f"An open connection takes {highest} KB in {most} and {lowest} KB in {least}."
    headers = ["", *(f"{when}, MB" for when in keys.values()), "KB each"]
    return Plot("memory", "What it takes up", sentence, Table("", headers, rows), spec)


def drift(analysis: Analysis) -> Plot | None:
    """Every sample's CPU against its row's median, in the order in which they were taken."""
    data: list[Spec] = []
    cells = []
    for metric in (metric for metric in HEADLINES if metric in analysis.metrics):
        for row in analysis.servers:
            found = [(s, v) for s in analysis.valid(row, metric.scenario) if (v := metric.of(s))]
            if len(found) < 2:
                continue
            middle = median(value for _, value in found)
            for sample, value in found:
                off = 100 * (value / middle - 1)
                data.append({"scenario": metric.scenario, "at": sample.at, "off": off})
                cells.append(
                    (sample.at, [f"{sample.at:.1f}", row, metric.scenario, str(sample.round), f"{off:+.1f}"])
                )
    if not data:
        return None
    order = [metric.scenario for metric in HEADLINES if metric in analysis.metrics]

    def spec(width: int, narrow: bool) -> Spec:
        x = {"field": "at", "type": "quantitative", "axis": {"title": "seconds into the run", "tickCount": 6}}
        y = {
            "field": "off",
            "type": "quantitative",
            "axis": {"title": "% off the row's median", "tickCount": 6},
        }
        apart = told_apart("scenario", order, colours(order), 2 if narrow else 4)
        return {
            "width": width - 60,
            "height": 240,
            "layer": [
                {"mark": {"type": "rule", "color": "var(--mark)"}, "encoding": {"y": {"datum": 0}}},
                {
                    "data": values(data),
                    "mark": {"type": "point", "filled": True, "size": 45, "opacity": 0.85},
                    "encoding": {"x": x, "y": y, **apart},
                },
            ],
        }

    within = sum(abs(point["off"]) <= 5 for point in data)
    half = sorted(data, key=lambda point: point["at"])
    early, late = half[: len(half) // 2], half[len(half) // 2 :]
    shift = median(p["off"] for p in late) - median(p["off"] for p in early)
    sentence = (
        f"{100 * within / len(data):.0f}% of the samples lie within 5% of their row's median; from the first "
        f"half of the run to the second the CPU figures moved by {shift:+.1f}%."
    )
    rows = [row for _, row in sorted(cells, key=lambda entry: entry[0])]
    table = Table("", ["seconds", "row", "scenario", "round", "% off"], rows or [[NOTHING] * 5])
    return Plot("drift", "Whether the machine held still", sentence, table, spec)
