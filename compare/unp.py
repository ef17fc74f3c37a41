"""UNP chapter 30's experiment: the book's tables, and the same columns from a run of `unp` beside them.

    client: 5,000 connections, at most 10 at once     "4000\\n" -->     server: tunnel serve --service bytes
    it closes first, so TIME_WAIT is its own         <-- 4,000 bytes

    process control   CPU seconds, user + system, the server's children included, less the iterative server's
    clients           how many of the 5,000 each child of a pool of 15 served
    herd              the same CPU for pools of 15 to 120
    each              context switches and page faults of a connection: why it costs what it costs

Figures of the book: W. R. Stevens, B. Fenner, A. M. Rudoff, UNIX Network Programming, vol. 1, 3rd ed.,
figures 30.1 and 30.2 and section 30.6, on machines of 1998: compare the order of rows, not seconds.

Rules: a run with fewer connections is scaled to 5,000. Rows without a valid `iterative` have no column
of ours: nothing to subtract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

from compare.plan import CHILDREN, CROWD, HERD, UNP
from compare.schema import Result, Sample

BASELINE = "iterative"


class Book(NamedTuple):
    """A row of figure 30.1: seconds above the iterative server's. None: not measured there."""

    row: int
    solaris: float | None
    digital_unix: float | None
    bsdos: float | None
    third: float | None  # which column the English third edition prints was not confirmed


BOOK = {
    "iterative": Book(0, 0.0, 0.0, 0.0, 0.0),
    "fork": Book(1, 504.2, 168.9, 29.6, 20.90),
    "prefork": Book(2, None, 6.2, 1.8, 1.80),
    "prefork-fcntl": Book(3, 25.2, 10.0, 2.7, 2.07),
    "prefork-mutex": Book(4, 21.5, None, None, 1.75),
    "prefork-fdpass": Book(5, 36.7, 10.9, 6.1, 2.58),
    "thread": Book(6, 18.7, 4.7, None, 0.99),
    "prethread": Book(7, 8.6, 3.5, None, 1.93),
    "prethread-queue": Book(8, 14.5, 5.0, None, 2.05),
}
BOOKS_CLIENTS = {  # of each of 15 children, on BSD/OS where it was measured there, else on Solaris
    "prefork": (333, 340, 335, 335, 332, 331, 333, 333, 332, 331, 334, 333, 334, 332, 332),
    "prefork-fdpass": (1006, 950, 720, 582, 485, 457, 385, 250, 105, 32, 14, 9, 4, 1, 0),
}
BOOKS_HERD = {  # BSD/OS, CPU seconds for pools of 15, 30, ... 120
    "prefork": (1.8, 3.5, 5.5, 6.9, 8.7, 10.9, 12.0, 13.5),
    "prefork-fcntl": (2.7, 5.6, 8.7, 11.2, 13.7, 15.5, 17.6, 19.2),
}
STEP = 15  # between two pools of the book's herd


class Line(NamedTuple):
    """A row of figure 30.1, the book's columns and ours."""

    name: str
    book: Book | None
    cpu: float | None  # CPU seconds for 5,000 connections
    above: float | None  # less the iterative server's
    fewest: float | None  # clients of a child
    most: float | None


def process_control(result: Result) -> list[Line]:
    """The book's rows in its order, then those that it does not have."""
    names = [row.name for row in result.rows if samples(result, row.name)]
    ordered = [name for name in BOOK if name in names] + [name for name in names if name not in BOOK]
    baseline = cpu(result, BASELINE)
    lines = []
    for name in ordered:
        spent = cpu(result, name, CHILDREN)
        above = spent - baseline if spent is not None and baseline is not None else None
        clients = clients_per_child(result, name)
        ends = (min(clients), max(clients)) if clients else (None, None)
        lines.append(Line(name, BOOK.get(name), spent, above, *ends))
    return lines


def herd(result: Result) -> dict[str, list[tuple[int, float | None, float | None]]]:
    """By model: (pool, the book's CPU seconds, ours above iterative)."""
    baseline = cpu(result, BASELINE)
    found: dict[str, list[tuple[int, float | None, float | None]]] = {}
    for row in result.rows:
        pools = sorted({int(sample.point) for sample in samples(result, row.name) if sample.point})
        if len(pools) < 2:
            continue
        found[row.name] = []
        for pool in pools:
            spent = cpu(result, row.name, pool)
            ours = spent - baseline if spent is not None and baseline is not None else None
            found[row.name].append((pool, books_herd(row.name, pool), ours))
    return found


def books_herd(name: str, pool: int) -> float | None:
    return BOOKS_HERD[name][pool // STEP - 1] if name in BOOKS_HERD and pool in HERD else None


def clients_per_child(result: Result, name: str) -> list[float]:
    """Of each child of a pool of 15, the busiest first, scaled to 5,000: medians over rounds."""
    rounds = []
    for sample in samples(result, name, CHILDREN):
        served = sorted((worker.connections for worker in sample.workers), reverse=True)
        if served:
            rounds.append([each * CROWD / sample.figures["count"] for each in served])
    return [median(same) for same in zip(*rounds, strict=False)]


def cpu(result: Result, name: str, pool: float | None = None) -> float | None:
    """CPU seconds for 5,000 connections, the median over rounds."""
    spent = [
        sample.figures["cpu"] * CROWD / sample.figures["count"] for sample in samples(result, name, pool)
    ]
    return median(spent) if spent else None


def each(result: Result, name: str, figure: str, pool: float = CHILDREN) -> float | None:
    """A figure for each connection, the median over rounds."""
    found = [
        sample.figures[figure] / sample.figures["count"]
        for sample in samples(result, name, pool)
        if figure in sample.figures
    ]
    return median(found) if found else None


def in_order(above: Mapping[str, float]) -> tuple[int, int]:
    """Of all pairs of the book's designs, how many stand in the order of its last column; and all."""
    theirs = {name: book.third for name, book in BOOK.items() if book.third is not None and name in above}
    pairs = list(combinations(theirs, 2))
    alike = [one for one, other in pairs if (theirs[one] < theirs[other]) == (above[one] < above[other])]
    return len(alike), len(pairs)


def samples(result: Result, name: str, pool: float | None = None) -> list[Sample]:
    """The valid ones of a row; of that size, where it has a pool."""
    return [
        sample
        for sample in result.samples
        if sample.scenario == UNP
        and sample.row == name
        and not sample.invalid
        and (pool is None or sample.point is None or sample.point == pool)
    ]


def heads() -> Sequence[str]:
    return (
        "row",
        "model",
        "Solaris",
        "Digital Unix",
        "BSD/OS",
        "3rd ed.",
        "CPU s",
        "above iterative",
        "clients per child",
    )


def cells(result: Result) -> list[list[str]]:
    """Figure 30.1 and ours, as text; "-" where there is no figure."""
    return [
        [
            "-" if line.book is None else str(line.book.row),
            line.name,
            *(number(value, 1) for value in (line.book[1:4] if line.book else (None,) * 3)),
            number(line.book.third if line.book else None, 2),
            number(line.cpu, 3),
            number(line.above, 3),
            "-" if line.most is None else f"{line.fewest:.0f} to {line.most:.0f}",
        ]
        for line in process_control(result)
    ]


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
