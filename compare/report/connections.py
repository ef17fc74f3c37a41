"""What a new connection costs, what an open one takes up, and what happens when all come at once.

connections, connections-concurrent    CPU us/connection, ranked, with intervals
idle, memory                           PSS over idle connections; idle, open, busy
shock                                  time to serve 1,000 connects at once, and failures
"""

from __future__ import annotations

from compare.analysis import METRICS, Analysis, names
from compare.report import curves
from compare.report.draw import LABELS, Axis, Dot, Line, decades, dots, height, panels, rows_axis, told_apart
from compare.report.draw import values as data_of
from compare.report.parts import (
    NAMED,
    Drawing,
    Missing,
    Section,
    Spec,
    Table,
    by_rank,
    cell,
    interval,
    not_measured,
    number,
)


def new_connections(analysis: Analysis) -> Section | Missing:
    title = "What a new connection costs"
    found = {r: e for r, e in analysis.estimates.get("connection_cpu", {}).items() if r in analysis.servers}
    if not found:
        return not_measured(title, "connections")
    order = sorted(found, key=lambda row: found[row].value)
    shown = {
        row: Dot(found[row].value, found[row].low, found[row].high, f"{number(found[row].value, 0)} us")
        for row in order
    }
    ranks = analysis.ranks.get("connection_cpu", {})
    keys = [key for key in ("connection_rate", "crowd_cpu", "crowd_rate") if analysis.estimates.get(key)]
    rows = [
        [row, str(ranks.get(row, "-")), interval(found[row], 0), *(cell(analysis, key, row) for key in keys)]
        for row in order
    ]
    where = {"connections": "one by one", "connections-concurrent": "10 at once"}
    headers = ["", "rank", "CPU us\none by one"]
    headers += [f"{METRICS[key].title}, {METRICS[key].unit}\n{where[METRICS[key].scenario]}" for key in keys]
    first, last = order[0], order[-1]
    sentence = f"A new connection costs {first} {number(found[first].value, 0)} us of CPU"
    if first != last:
        sentence += f" and {last} {number(found[last].value, 0)}; the bars are 95% intervals over rounds"
    drawing = dots(shown, "CPU us per connection")
    return Section("connections", title, f"{sentence}.", [Table(title, headers, rows)], drawing)


def idle_connections(analysis: Analysis) -> Section | Missing:
    title = "Memory against idle connections"
    found = curves.curves(analysis, "idle_held")
    if not any(row in found for row in analysis.servers):
        return not_measured(title, "idle")
    points = curves.points_of(found)
    every = [at.value for curve in found.values() for at in curve.values()]
    drawing = panels(
        [Line(row, [(point, at.value) for point, at in curve.items()]) for row, curve in found.items()],
        Axis("idle connections (log scale)", points, labels={p: f"{p:,.0f}" for p in points}),
        Axis("MB of PSS (log scale)", decades(min(every), max(every), (1, 3))),
    )
    ours = {row: curve for row, curve in found.items() if row in analysis.servers}
    most = max(point for curve in ours.values() for point in curve)
    holding = {row: curve[most].value for row, curve in ours.items() if most in curve}
    least, worst = min(holding, key=holding.__getitem__), max(holding, key=holding.__getitem__)
    sentence = f"{len(holding)} hold {most:,.0f} idle connections: {least} in {number(holding[least], 0)} MB"
    sentence += f", {worst} in {number(holding[worst], 0)} MB" if worst != least else ""
    note = "PSS of all processes: a page that processes share counts once."
    tables = [curves.table(analysis, "idle", found, "MB by idle connections", digits=1, note=note)]
    others = (("idle_each", "KB of each", 1), ("idle_first", "us to the first byte among them", 0))
    for key, said, digits in others:
        if values := curves.curves(analysis, key):
            tables.append(curves.table(analysis, "idle", values, said, digits=digits))
    return Section("idle", title, f"{sentence}.", tables, drawing)


STATES = {"pss_idle": "idle", "pss_open": "10 open", "pss_busy": "busy"}


def memory(analysis: Analysis) -> Section | Missing:
    title = "What a server takes up"
    ours = analysis.servers
    order = [row for row in by_rank(analysis) if row in ours and analysis.estimate("pss_idle", row)]
    if not order:
        return not_measured(title, "memory")
    takes = {row: e.value for row in order if (e := analysis.estimate("pss_each", row))}
    sentence = "A page that processes share counts once."
    if takes:
        least, most = min(takes, key=takes.__getitem__), max(takes, key=takes.__getitem__)
        highest, lowest = number(takes[most], 0), number(takes[least], 0)
        sentence = f"An open connection takes {highest} KB in {most} and {lowest} KB in {least}."
    rows = [[row, *(cell(analysis, key, row) for key in [*STATES, "pss_each"])] for row in order]
    headers = ["", *(f"{state}\nMB" for state in STATES.values()), "each\nKB"]
    return Section("memory", title, sentence, [Table(title, headers, rows)], states(analysis, order))


def states(analysis: Analysis, order: list[str]) -> Drawing:
    """PSS idle, with connections open, and busy, as three points a row."""
    data = [
        {"row": row, "when": when, "mb": found.value}
        for row in order
        for key, when in STATES.items()
        if (found := analysis.estimate(key, row))
    ]

    def spec(width: int, narrow: bool) -> Spec:
        when = list(STATES.values())
        axis = {"title": "MB of memory (PSS, all processes)", "tickCount": 6}
        x: Spec = {"field": "mb", "type": "quantitative", "axis": axis}
        inks = ["var(--series-5)", "var(--series-2)", "var(--series-1)"]
        apart = told_apart("when", when, inks, 2 if narrow else 3)
        who = {"description": {"field": "row"}}
        reach = {"x": x | {"aggregate": "min"}, "x2": {"field": "mb", "aggregate": "max"}}
        return {
            "width": width - LABELS,
            "height": height(len(order)),
            "data": data_of(data),
            "encoding": {"y": rows_axis(order)},
            "layer": [
                {"mark": {"type": "rule", "strokeWidth": 3, "color": "var(--grid)"}, "encoding": reach},
                {
                    "mark": {"type": "point", "filled": True, "size": 85, "opacity": 1},
                    "encoding": {"x": x, **apart, **who},
                },
            ],
        }

    return spec


def shock(analysis: Analysis) -> Section | Missing:
    title = "A thousand connects at once"
    found = {r: e for r, e in analysis.estimates.get("shock_wall", {}).items() if r in analysis.servers}
    if not found:
        return not_measured(title, "shock")
    failed = {row: e.value if (e := analysis.estimate("shock_failures", row)) else 0.0 for row in found}
    order = sorted(found, key=lambda row: (failed[row] > 0, found[row].value))
    shown = {}
    for row in order:
        text = f"{number(found[row].value, 0)} ms" + (f", {failed[row]:,.0f} failed" if failed[row] else "")
        shown[row] = Dot(found[row].value, found[row].low, found[row].high, text)
    whole = [row for row in order if not failed[row]]
    sentence = f"{len(whole)} of {len(order)} serve every connection"
    if whole:
        sentence += f", {whole[0]} within {shown[whole[0]].text}"
        sentence += f" and {whole[-1]} within {shown[whole[-1]].text}" if len(whole) > 1 else ""
    if len(whole) < len(order):
        sentence += f"; some fail with {names(order[len(whole) :], NAMED)}"
    keys = ("shock_wall", "shock_failures", "shock_p99")
    rows = [[row, interval(found[row], 0), *(cell(analysis, key, row) for key in keys[1:])] for row in order]
    headers = ["", "ms to\nserve all", "failures", "p99\nus"]
    return Section(
        "shock", title, f"{sentence}.", [Table(title, headers, rows)], dots(shown, "ms to serve all")
    )
