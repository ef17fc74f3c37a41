"""UNP chapter 30 beside the book: clients of each child, process-control CPU, pools that grow.

    unp        5,000 connections, 10 at a time     CPU above iterative     figure 30.1
    children   the same, pools of 15               clients per child       figure 30.2

Facts of W. R. Stevens, B. Fenner, A. M. Rudoff, UNIX Network Programming, vol. 1, 3rd ed.; machines of
its day are beside ours for the order of the designs and not for their speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from compare import unp
from compare.analysis import Analysis, names
from compare.plan import CHILDREN, CLIENTS
from compare.report.draw import LABELS, Dot, dots, height, rows_axis, values
from compare.report.parts import (
    NAMED,
    NOTHING,
    Drawing,
    Missing,
    Section,
    Spec,
    Table,
    between,
    not_measured,
    number,
)
from compare.stats import evenness

EVEN, UNEVEN = 0.99, 0.9  # Jain's index: as even as chance makes it; nobody would call it even
BOOK = {  # figure 30.2: clients of each of 15 children, 5,000 in all
    "row 2,\nBSD/OS": (333, 340, 335, 335, 332, 331, 333, 333, 332, 331, 334, 333, 334, 332, 332),
    "row 5,\nSolaris": (1006, 950, 720, 582, 485, 457, 385, 250, 105, 32, 14, 9, 4, 1, 0),
    "row 5,\nDigital Unix": (718, 647, 589, 554, 526, 501, 447, 389, 314, 208, 62, 18, 14, 12, 1),
}
SWITCHES, FAULTS = "ctx_voluntary", "faults_minor"
HERD = 0.1  # of the children that a pool has more, woken for each connection: then it is a herd
SYSTEMS = ("Solaris", "Digital Unix", "BSD/OS", "3rd ed.")


def pools(analysis: Analysis) -> dict[str, list[int]]:
    """Clients of each child, busiest first, of the rows that have a pool: medians over rounds."""
    found = {
        row: analysis.clients_per_child(row) or list(map(round, unp.clients_per_child(analysis.result, row)))
        for row in analysis.servers
    }
    return {row: counts for row, counts in found.items() if any(counts)}


def by_evenness(analysis: Analysis) -> dict[str, list[int]]:
    """The most even row first."""
    return dict(sorted(pools(analysis).items(), key=lambda item: -evenness(item[1])))


def fairness(analysis: Analysis) -> str | None:
    """Who shares clients evenly among children, in words."""
    found = by_evenness(analysis)
    if not found:
        return None
    grades: dict[str, list[str]] = {"evenly": [], "not quite evenly": [], "unevenly": []}
    for row, counts in found.items():
        index = evenness(counts)
        grade = "evenly" if index >= EVEN else "not quite evenly" if index >= UNEVEN else "unevenly"
        grades[grade].append(row)
    parts = []
    for grade, rows in grades.items():
        if rows:
            most, least = ([100 * found[row][end] / sum(found[row]) for row in rows] for end in (0, -1))
            parts.append(
                f"{grade} by {names(rows, NAMED)} (the busiest child served {between(most, 1)}% of them, "
                f"the idlest {between(least, 1)}%)"
            )
    children = max(map(len, found.values()))
    return f"Clients are shared among {children} children: {'; '.join(parts)}. Even is {100 / children:.1f}%."


def clients_per_child(analysis: Analysis) -> Table | None:
    """Figure 30.2, beside the book's own."""
    found = by_evenness(analysis)
    if not found:
        return None
    columns: dict[str, Sequence[int]] = {row.replace("-", "-\n", 1): counts for row, counts in found.items()}
    columns |= {f"UNP {name}": sorted(counts, reverse=True) for name, counts in BOOK.items()}
    rows = [
        [str(child + 1), *(number(c[child], 0) if child < len(c) else NOTHING for c in columns.values())]
        for child in range(max(map(len, columns.values())))
    ]
    rows.append(["in all", *(number(sum(counts), 0) for counts in columns.values())])
    rows.append(["evenness", *(number(evenness(counts), 3) for counts in columns.values())])
    note = "Connections that each child served, the busiest first; medians over rounds. "
    note += f"{CLIENTS} clients at once. Evenness: Jain's index, 1 when all are alike, "
    note += f"{1 / CHILDREN:.3f} when one child of {CHILDREN} serves all. "
    note += "UNP: figure 30.2, its counts in the same order; row 2 is prefork, row 5 prefork-fdpass."
    return Table("Clients per child", ["child", *columns], rows, note)


def children(analysis: Analysis) -> Section | Missing:
    title = "Who serves the clients"
    table, sentence = clients_per_child(analysis), fairness(analysis)
    if not table or not sentence:
        return not_measured(title, "children", "unp")
    sentence += " The dashed line is an even share; the last three lines are the book's."
    return Section("children", title, sentence, [table], shares(by_evenness(analysis)))


def shares(found: Mapping[str, Sequence[int]]) -> Drawing:
    """Clients of each child as ticks on a line a model, and the book's beside them."""
    even = 100 / max(map(len, found.values()))
    lines = {**found, **{f"UNP {name.replace(chr(10), ' ')}": counts for name, counts in BOOK.items()}}
    data = [
        {"row": row, "share": 100 * count / sum(counts)} for row, counts in lines.items() for count in counts
    ]
    labels = LABELS + 36

    def spec(width: int, narrow: bool) -> Spec:
        axis = {"title": "% of clients, a mark for each child", "tickCount": 4 if narrow else 8}
        x = {"type": "quantitative", "axis": axis}
        y = rows_axis(list(lines))
        y["axis"] |= {"labelLimit": labels}
        tick = {"type": "tick", "thickness": 2, "height": 14, "opacity": 0.6, "color": "var(--user)"}
        who = {"description": {"field": "row"}}
        return {
            "width": width - labels,
            "height": height(len(lines)),
            "encoding": {"y": y},
            "layer": [
                {
                    "data": values([{"at": even}]),
                    "mark": {"type": "rule", "color": "var(--mark)", "strokeDash": [4, 3]},
                    "encoding": {"x": x | {"field": "at"}, "y": None},
                },
                {"data": values(data), "mark": tick, "encoding": {"x": x | {"field": "share"}, **who}},
            ],
        }

    return spec


def evenness_of_all(analysis: Analysis) -> Section | Missing:
    """Jain's index among children, and among bulk streams at once."""
    title = "Fairness"
    among = {row: evenness(counts) for row, counts in by_evenness(analysis).items()}
    streams = {
        row: e.value for row in analysis.servers if (e := analysis.estimate("mixed_fair", row)) is not None
    }
    if not among and not streams:
        return not_measured(title, "children", "mixed")
    parts = []
    for index, who in ((among, "children"), (streams, "streams")):
        if index:
            best, worst = max(index, key=index.__getitem__), min(index, key=index.__getitem__)
            text = f"among {who}, {best} is the most even ({index[best]:.3f})"
            parts.append(text + (f" and {worst} the least ({index[worst]:.3f})" if worst != best else ""))
    lead = streams or among
    where = "streams at once" if streams else "children"
    order = sorted(lead, key=lead.__getitem__, reverse=True)
    shown = {row: Dot(lead[row], lead[row], lead[row], f"{lead[row]:.3f}") for row in order}
    if streams:
        for row in order:
            estimate = analysis.estimate("mixed_fair", row)
            assert estimate
            shown[row] = shown[row]._replace(low=estimate.low, high=estimate.high)
    rows = [
        [row, *(f"{index[row]:.3f}" if row in index else NOTHING for index in (among, streams))]
        for row in [*order, *(row for row in among if row not in lead)]
    ]
    sentence = f"Jain's index, 1 when all are alike: {'; '.join(parts)}."
    table = Table(title, ["", "among\nchildren", "among\nstreams"], rows)
    return Section("fairness", title, sentence, [table], dots(shown, f"Jain's index among {where}"))


def chapter_30(analysis: Analysis) -> Section | Missing:
    """Process-control CPU beside the book's four columns, and pools that grow."""
    title = "UNP chapter 30, then and now"
    lines = [line for line in unp.process_control(analysis.result) if line.cpu is not None]
    lines = [line for line in lines if line.name in analysis.servers]
    if not lines:
        return not_measured(title, "unp")
    rows = [
        [
            line.name,
            str(line.book.row) if line.book else NOTHING,
            *(seconds(value, 2) for value in (line.cpu, line.above)),
            *(rounded(unp.each(analysis.result, line.name, figure)) for figure in (SWITCHES, FAULTS)),
            *(seconds(value, 1) for value in (line.book[1:] if line.book else (None,) * len(SYSTEMS))),
        ]
        for line in lines
    ]
    table = Table(
        "Process-control CPU seconds of 5,000 connections",
        [
            *("", "row of\n30.1", "here\nin all", "here, above\niterative", "switches\neach", "faults\neach"),
            *(f"UNP\n{name}" for name in SYSTEMS),
        ],
        rows,
        "Each: of one connection, switches where the server had to wait, and page faults. Threads, children"
        " that ended took theirs along. The book's seconds, like ours above iterative, are above"
        f" those of its row 0. {CLIENTS} clients at once, pools of {CHILDREN}; iterative serves one after the"
        " other.",
    )
    above = {line.name: line.above for line in lines if line.above is not None and line.name != unp.BASELINE}
    drawing = None
    sentences = ["Without a valid sample of iterative there is nothing to be above."]
    if above:
        shown = {
            row: Dot(above[row], above[row], above[row], f"{above[row]:+.2f} s") for row in ordered(above)
        }
        drawing = dots(shown, "CPU seconds above iterative", everybody=True)
        sentences = [extremes(above), *beside_the_book(analysis, above), *whether_there_is_a_herd(analysis)]
    grown = herd(analysis)
    return Section("unp", title, " ".join(sentences), [table, *([grown] if grown else [])], drawing)


def ordered(above: Mapping[str, float]) -> list[str]:
    return sorted(above, key=above.__getitem__)


def extremes(above: Mapping[str, float]) -> str:
    first, *_, last = [*ordered(above), ordered(above)[-1]]
    text = f"Above the iterative server, {first} spends the least on controlling processes"
    text += f" ({seconds(above[first], 2)} s for 5,000 connections)"
    return f"{text} and {last} the most ({seconds(above[last], 2)} s)." if first != last else f"{text}."


def beside_the_book(analysis: Analysis, above: Mapping[str, float]) -> Iterator[str]:
    """Where this machine agrees with the book and where it does not, and what was measured of the reason."""
    alike, pairs = unp.in_order(above)
    if pairs:
        yield f"Of {pairs} pairs of the book's designs {alike} stand in the order of its third edition."
    if {"fork", "prefork"} <= set(above):
        fork, prefork = (unp.each(analysis.result, name, FAULTS) for name in ("fork", "prefork"))
        verb = "agrees" if above["fork"] == max(above.values()) else "does not agree"
        why = f": a connection makes {rounded(fork)} page faults in it, {rounded(prefork)} in prefork"
        yield f"That fork costs the most {verb} with the book{why if fork and prefork else ''}."
    if {"thread", "prefork"} <= set(above):
        verb = "agrees" if above["thread"] < above["prefork"] else "does not agree"
        cost = f"{seconds(above['thread'], 2)} s against {seconds(above['prefork'], 2)} s"
        yield f"That a thread for each client is cheaper than a preforked child {verb}: {cost}."


def whether_there_is_a_herd(analysis: Analysis) -> Iterator[str]:
    """A herd is woken: its context switches grow with the pool. Page faults are each child's own start."""
    sizes = [pool for pool, *_ in unp.herd(analysis.result).get("prefork", ())]
    if len(sizes) < 2:
        return
    few, many = sizes[0], sizes[-1]
    before, after = (unp.each(analysis.result, "prefork", SWITCHES, pool) for pool in (few, many))
    faults = [rounded(unp.each(analysis.result, "prefork", FAULTS, pool)) for pool in (few, many)]
    if before and after:
        woken = "a" if after - before > HERD * (many - few) else "no"
        yield (
            f"From {few} to {many} children of prefork there is {woken} thundering herd:"
            f" {rounded(before)} and {rounded(after)} context switches for each connection;"
            f" {faults[0]} and {faults[1]} page faults, since each child copies its pages once."
        )


def rounded(value: float | None) -> str:
    return NOTHING if value is None else number(value, 0 if value >= 10 else 2)


def seconds(value: float | None, digits: int) -> str:
    return NOTHING if value is None else number(value, digits if abs(value) >= 3 else 2)


def herd(analysis: Analysis) -> Table | None:
    """CPU above iterative as the pool grows: the thundering herd, or its absence."""
    found = {row: line for row, line in unp.herd(analysis.result).items() if row in analysis.servers}
    if not found:
        return None
    sizes = sorted({pool for line in found.values() for pool, _, _ in line})
    rows = []
    for row, line in found.items():
        ours = {pool: spent for pool, _, spent in line}
        rows.append([row, *(seconds(ours.get(pool), 2) for pool in sizes)])
        for figure, what in ((SWITCHES, "switches each"), (FAULTS, "faults each")):
            each = [unp.each(analysis.result, row, figure, pool) for pool in sizes]
            if any(each):
                rows.append([f"{row}, {what}", *map(rounded, each)])
    for row, theirs in unp.BOOKS_HERD.items():
        known = {unp.STEP * place: spent for place, spent in enumerate(theirs, 1)}
        rows.append([f"UNP {row}, BSD/OS", *(seconds(known.get(pool), 1) for pool in sizes)])
    note = "Seconds above iterative; of one connection, context switches and page faults. A herd costs more "
    note += "with every child that is woken for nothing, and shows as switches."
    return Table("CPU seconds by size of the pool", ["", *map(str, sizes)], rows, note)
