"""How the report draws: Vega-Lite specifications, made into SVG here and now, without a browser.

    panels   lines of many rows, small multiples: a panel for each family, all others pale behind it
    rows     a line for each row: bars or dots, with the figure beside it
    draw     vl-convert --> svg.slim --> SVG with CSS variables for colours

Colours are written as `var(--...)` and `currentColor` and reach the SVG as such, so that the page's
style sheet decides, for light and dark alike. The palette is Okabe and Ito's, which colour-blind
readers can tell apart; lines differ in the shape of their points and bear their names as well.

A row that is far off would press all others into one line: beyond FAR times the median of the others it
is left out of the drawing, which says so, and its table keeps it.

Rules: vl-convert is large, so it is imported when the first plot is drawn. A mark that stands for a
row says so in its description, which svg.py makes the element's `data-row`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from compare.analysis import names
from compare.report import svg
from compare.report.parts import NAMED, Drawing, Spec
from compare.servers import AEAD, AGAIN, DIRECT, LIBEV

NARROW, WIDE = 318, 1020  # pixels that a drawing takes
LABELS = 134  # pixels of row names beside a drawing
LINE, CLOSE, MANY = 30, 22, 9  # pixels of a row; where there are more rows than MANY
FAR = 20  # times the median of the others: off the scale
OTHERS_LEAST = 3  # that have a median worth the name
FEW = 6  # rows that one panel has room for
AXIS, NAMES = 46, 108  # pixels left and right of a panel
PANEL = 150  # pixels of its height
SPREAD = 8  # times the lowest, from which on dots have a logarithmic axis
ROOM = 74  # pixels of a figure beside its dot
APART = 13  # pixels between two names beside a panel
SERIES = 8  # colours in the style sheet: --series-1 and on
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "wedge")

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "One client, or one each": ("iterative", "fork", "thread", "sigio"),
    "Children that wait": ("prefork", "prefork-fcntl", "prefork-mutex", "prefork-fdpass"),
    "Threads that wait": ("prethread", "prethread-queue"),
    "A loop of our own": ("select", "poll", "epoll", "trampoline"),
    "Loops in children": ("prefork-epoll", "prefork-reuseport"),
    "Somebody else's loop": ("asyncio", "uvloop", "tornado"),
}
OTHERS = "Peers and baselines"

CONFIG: Spec = {
    "background": "transparent",
    "padding": {"left": 14, "right": 14, "top": 4, "bottom": 4},  # the reader's font may be wider than ours
    "font": svg.FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "gridColor": "var(--grid)",
        "domainColor": "var(--grid)",
        "tickColor": "var(--grid)",
        "labelLimit": 150,
        "labelSeparation": 8,
        "labelOverlap": True,
    },
    "legend": {
        "labelColor": "currentColor",
        "labelFontSize": 12,
        "title": None,
        "orient": "top",
        "symbolSize": 90,
        "columnPadding": 26,
    },
    "title": {
        "color": "currentColor",
        "fontSize": 13,
        "anchor": "start",
        "fontWeight": 600,
        "subtitleColor": "var(--soft)",
        "subtitleFontSize": 12,
        "subtitlePadding": 4,
    },
    "text": {"color": "currentColor", "fontSize": 12},
}


def draw(drawing: Drawing, width: int, narrow: bool, labelled_by: str) -> str:
    """The SVG of a drawing; `labelled_by`: ids of the elements that say what it shows."""
    import vl_convert  # noqa: PLC0415 - 84 MB that only the report needs

    drawn: str = vl_convert.vegalite_to_svg({"config": CONFIG, **drawing(width, narrow)})
    return svg.slim(drawn, labelled_by)


def colours(rows: Sequence[str]) -> list[str]:
    """Rows in their order, at most SERIES of them; what is not ours is ink."""
    ink = {LIBEV: "currentColor", DIRECT: "var(--quiet)", AEAD: "var(--quiet)"}
    ours = [row for row in rows if row not in ink]
    return [ink.get(row) or f"var(--series-{ours.index(row) % SERIES + 1})" for row in rows]


def height(rows: int) -> int:
    """Of a drawing with a line for each row."""
    return rows * (LINE if rows <= MANY else CLOSE)


def values(rows: Iterable[Spec]) -> Spec:
    return {"values": list(rows)}


def rows_axis(order: Sequence[str], labels: bool = True) -> Spec:
    axis = {
        "title": None,
        "ticks": False,
        "domain": False,
        "labelPadding": 6,
        "labels": labels,
        "labelColor": "currentColor",
        "labelOverlap": False,
    }
    return {"field": "row", "type": "nominal", "sort": list(order), "axis": axis}


def decades(low: float, high: float, steps: Sequence[int] = (1,)) -> list[float]:
    """Ticks of a logarithmic axis: Vega's own are too many for a phone."""
    ticks = [step * 10.0**power for power in range(-6, 10) for step in steps]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def far_off(found: Mapping[str, Sequence[tuple[float, float]]], too_low: bool = False) -> list[str]:
    """The rows that are FAR times the median of the others, or more, at each of their points (x, y).

    One that is so at some of them has a bend, which is what a drawing is for.

    too_low: as far below it, too, which only an axis of logarithms suffers from.
    """
    at: dict[float, dict[str, float]] = {}
    for row, points in found.items():
        for x, y in points:
            at.setdefault(x, {})[row] = y
    off = []
    for row, points in found.items():
        times = []
        for x, y in points:
            others = [value for other, value in at[x].items() if other != row]
            if len(others) >= OTHERS_LEAST and y > 0 and (middle := median(others)) > 0:
                times.append(y / middle)
        if times and (min(times) > FAR or (too_low and max(times) < 1 / FAR)):
            off.append(row)
    return off


def off_the_scale(rows: Sequence[str]) -> Spec:
    """The line above a drawing that says whom it leaves out."""
    if not rows:
        return {}
    said = f"Off the scale: {names(rows, NAMED)}; see the numbers."
    style = {"fontWeight": "normal", "fontSize": 12, "color": "var(--soft)", "offset": 12}
    return {"title": {"text": said, "anchor": "start", **style}}


def told_apart(field: str, domain: Sequence[str], colours: Sequence[str], columns: int) -> Spec:
    """The encodings that give each name of `field` its colour and its shape, with one legend."""
    shapes = [SHAPES[index % len(SHAPES)] for index in range(len(domain))]
    common: Spec = {"field": field, "type": "nominal", "legend": {"columns": columns}}
    return {
        "color": common | {"scale": {"domain": list(domain), "range": list(colours)}},
        "shape": common | {"scale": {"domain": list(domain), "range": shapes}},
    }


# Rows


class Dot(NamedTuple):
    """A figure and its interval."""

    value: float
    low: float
    high: float
    text: str


def dots(found: Mapping[str, Dot], title: str, everybody: bool = False) -> Drawing:
    """A dot a row with its interval as a bar and its figure beside it. Rows in the mapping's order.

    everybody: that one is far off is what the drawing is about.
    """
    off = [] if everybody else far_off({row: [(0.0, dot.value)] for row, dot in found.items()})
    found = {row: dot for row, dot in found.items() if row not in off}
    order = list(found)
    data = [{"row": row, **dot._asdict()} for row, dot in found.items()]
    lowest, highest = min(dot.low for dot in found.values()), max(dot.high for dot in found.values())
    log = lowest > 0 and highest / lowest > SPREAD

    def spec(width: int, narrow: bool) -> Spec:
        inner = width - LABELS
        axis: Spec = {"title": title + (" (log scale)" if log else ""), "tickCount": 4 if narrow else 8}
        axis["titleAnchor"] = "end" if narrow else "middle"
        room = ROOM / (inner - ROOM)  # for the figures, beyond the longest bar
        if log:
            low = lowest * 0.9
            high = highest * (highest / low) ** room
            axis |= {"values": decades(low, high, (1, 3) if narrow else (1, 2, 5)), "format": ",~r"}
        else:
            low = lowest - 0.04 * (highest - lowest or highest or 1)
            high = highest + (highest - low or 1) * room
        scale: Spec = {"type": "log" if log else "linear", "domain": [low, high], "nice": False}
        x: Spec = {"field": "value", "type": "quantitative", "scale": scale, "axis": axis}
        who = {"description": {"field": "row"}}
        ink = {"color": "var(--user)"}
        return {
            **off_the_scale(off),
            "width": inner,
            "height": height(len(order)),
            "data": values(data),
            "encoding": {"y": rows_axis(order)},
            "layer": [
                {
                    "mark": {"type": "rule", "strokeWidth": 5, "opacity": 0.45, **ink},
                    "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, **who},
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1, **ink},
                    "encoding": {"x": x, **who},
                },
                {
                    "mark": {"type": "text", "align": "left", "dx": 9},
                    "encoding": {"x": x | {"field": "high"}, "text": {"field": "text"}, **who},
                },
            ],
        }

    return spec


# Panels


class Line(NamedTuple):
    """A row along an axis."""

    row: str
    points: list[tuple[float, float]]


class Axis(NamedTuple):
    """What an axis of a panel says. `labels`: text for each tick, if it is not the number."""

    title: str
    ticks: list[float]
    log: bool = True
    labels: Mapping[float, str] | None = None
    most: float | None = None  # where it ends, whatever lies beyond

    def spec(self, domain: tuple[float, float]) -> Spec:
        axis: Spec = {"title": self.title, "format": ",~r", "labelFlush": False}
        axis |= {"values": self.ticks} if self.ticks else {"tickCount": 4}
        if self.labels:
            cases = " : ".join(
                f"datum.value < {tick * 1.01} ? '{text}'" for tick, text in sorted(self.labels.items())
            )
            axis["labelExpr"] = f"{cases} : ''"
        kind = "log" if self.log else "linear"
        scale = {"type": kind, "domain": list(domain), "nice": False}
        return {"type": "quantitative", "scale": scale, "axis": axis}


Reach = tuple[Axis, tuple[float, float]]  # from where to where


def family_of(row: str) -> str:
    row = row.removesuffix(AGAIN)
    return next((family for family, rows in FAMILIES.items() if row in rows), OTHERS)


def shared_out(rows: Sequence[str]) -> dict[str, list[str]]:
    """The rows by family, in the families' order; few rows need no families."""
    if len(rows) <= FEW:
        return {"": list(rows)}
    found = {family: [row for row in rows if family_of(row) == family] for family in (*FAMILIES, OTHERS)}
    return {family: members for family, members in found.items() if members}


def panels(lines: Sequence[Line], x: Axis, y: Axis) -> Drawing:
    """Small multiples: every line is in every panel, but only its family's has colour and names.

    Of a single point on the axis: dots.
    """
    lines = [line for line in lines if line.points and not line.row.endswith(AGAIN)]
    if len({at for line in lines for at, _ in line.points}) == 1:  # no line without a second point
        found = {line.row: line.points[0][1] for line in sorted(lines, key=lambda line: line.points[0][1])}
        shown = {row: Dot(value, value, value, f"{value:,.4g}") for row, value in found.items()}
        return dots(shown, y.title.removesuffix(" (log scale)"))
    off = far_off({line.row: line.points for line in lines}, too_low=y.log)
    lines = [line for line in lines if line.row not in off]
    families = shared_out([line.row for line in lines])
    wide_x, wide_y = (
        domain(x, [p[0] for line in lines for p in line.points]),
        domain(y, [p[1] for line in lines for p in line.points]),
    )

    def spec(width: int, narrow: bool) -> Spec:
        across = 1 if narrow or len(families) == 1 else 2
        inner = width // across - AXIS - NAMES - 14
        tall = PANEL if len(families) > 1 else 2 * PANEL
        drawn = [
            panel(lines, members, family, ((x, wide_x), (y, wide_y)), (inner, tall))
            for family, members in families.items()
        ]
        own = {"scale": {"color": "independent", "shape": "independent"}}
        return {**off_the_scale(off), "concat": drawn, "columns": across, "spacing": 22, "resolve": own}

    return spec


def domain(axis: Axis, found: Sequence[float]) -> tuple[float, float]:
    """A little more than all that is shown."""
    low, high = min(found), max(found)
    if axis.most is not None:
        high = min(high, axis.most)
    if axis.log:
        return low / 1.08, max(high, low * 2) * 1.08
    return 0.0, high * 1.05 or 1.0


def panel(
    lines: Sequence[Line],
    members: Sequence[str],
    title: str,
    axes: tuple[Reach, Reach],
    size: tuple[int, int],
) -> Spec:
    (x, y), (width, tall) = axes, size
    x_axis, y_axis = x[0].spec(x[1]), y[0].spec(y[1])
    y_axis["axis"]["title"] = None  # it stands above, where it is read without turning the head
    who = {"description": {"field": "row"}}
    at = {"x": x_axis | {"field": "x"}, "y": y_axis | {"field": "y"}, **who}
    ink = dict(zip(members, colours(members), strict=True))
    log_y = y[0].log

    def data(chosen: Iterable[Line]) -> Spec:
        return values(
            {"row": line.row, "x": at[0], "y": min(at[1], y[1][1])} for line in chosen for at in line.points
        )

    others = [line for line in lines if line.row not in ink]
    ours = [line for line in lines if line.row in ink]
    apart = told_apart("row", list(ink), list(ink.values()), 1)
    for channel in apart.values():
        channel["legend"] = None
    names = values({"row": row, "at": place} for row, place in beside(ours, y[1], tall, log_y).items())
    behind: list[Spec] = [
        {
            "data": data(others),
            "mark": {"type": "line", "strokeWidth": 1, "color": "var(--pale)"},
            "encoding": at | {"detail": {"field": "row"}},
        }
    ]
    return {
        "title": {"text": title, "subtitle": y[0].title, "offset": 8},
        "width": width,
        "height": tall,
        "layer": [
            *(behind if others else []),
            {
                "data": data(ours),
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": at | {"color": apart["color"]},
            },
            {
                "data": data(ours),
                "mark": {"type": "point", "filled": True, "size": 34, "opacity": 1},
                "encoding": at | apart,
            },
            {
                "data": names,
                "mark": {"type": "text", "align": "left", "baseline": "middle"},
                "encoding": {
                    "x": {"value": width + 8},
                    "y": {"field": "at", "type": "quantitative", "scale": None, "axis": None},
                    "text": {"field": "row"},
                    "color": apart["color"],
                    **who,
                },
            },
        ],
    }


def beside(lines: Sequence[Line], domain: tuple[float, float], tall: int, log: bool) -> dict[str, float]:
    """Where the name of each line stands, in pixels from the top: near its end, and not over another."""

    def height_of(value: float) -> float:
        low, high = domain
        value = min(max(value, low), high)
        part = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return tall * (1 - part)

    places = {line.row: height_of(line.points[-1][1]) for line in lines}
    order = sorted(places, key=places.__getitem__)
    previous = -APART / 2
    for row in order:
        previous = places[row] = max(places[row], previous + APART)
    beyond = previous - tall
    for index in range(len(order) - 1, -1, -1):  # pushed below the end: back up
        if beyond > 0:
            row = order[index]
            above = places[order[index - 1]] + APART if index else 0.0
            places[row] -= beyond
            beyond = max(0.0, above - places[row])
    return places
