"""How fast the generator itself is: without that, no rate near it means anything.

    generator ==sealed==> null server (null.py)              what it does when no server holds it up
    generator ==sealed==> each model ==> target              the fastest of them, beside it

The ceiling is work done for each second of the generator's own CPU: the rate at which its core would
be full. Where target and generator share a core (two cores in all), the target's CPU comes on top:
`with target` is the ceiling that a model meets here.

Rules: one sample each; this is about orders of magnitude, and no ranks come from it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tabulate import tabulate

from compare.bench import Bench
from compare.interrupt import Interrupt
from compare.plan import SCENARIOS, Planned
from compare.sample import load_side, take
from compare.schema import Sample, Settings
from compare.servers import NULL, ROWS

LOADS: tuple[tuple[str, float | None], ...] = (
    ("bulk-up", None),
    ("bulk-down", None),
    ("bulk-both", None),
    ("sizes", 64),
    ("sizes", 16_384),
    ("connections", None),
    ("connections-concurrent", None),
    ("ping-pong", None),
    ("load", 8000),
    ("concurrency", 10),
    ("concurrency", 100),
    ("mixed", None),
    ("shock", None),
)
CONTENDERS = ("thread", "prefork", "epoll", "uvloop")  # one of them is the fastest in each
BY_COUNT = ("sizes", "connections", "connections-concurrent", "ping-pong", "load", "shock")


class Line(NamedTuple):
    """One load. Rates in MB/s or in messages, connections or requests a second."""

    scenario: str
    point: float | None
    unit: str
    null: float | None  # rate against the null server
    busy: float | None  # part of its core that the generator used for it
    ceiling: float | None
    fastest: str | None
    rate: float | None  # of the fastest
    with_target: float | None  # ceiling, the target's CPU counted as well

    @property
    def part(self) -> float | None:
        """Of the ceiling that it met, what the fastest model reached."""
        return self.rate / self.with_target if self.rate and self.with_target else None


def ceilings(
    models: Sequence[str],
    settings: Settings,
    bench: Bench,
    interrupt: Interrupt,
    loads: Sequence[tuple[str, float | None]] = LOADS,
) -> Iterator[Line]:
    """A line for each load, as it is measured. Raises Interrupted, BenchFailed."""
    for scenario, point in loads:
        able = [name for name in models if point in SCENARIOS[scenario].points_of(ROWS[name], (point or 0,))]
        null, *others = [
            take(Planned(row, scenario, 1, point), settings, bench, interrupt) for row in (NULL, *able)
        ]
        valid = [sample for sample in others if "cpu" in sample.figures]
        best = max(valid, key=rate, default=None)
        measured = "wall" in null.figures
        yield Line(
            scenario,
            point,
            f"{unit(scenario)}/s",
            rate(null) if measured else None,
            null.figures["generator_cpu"] / null.figures["wall"] if measured else None,
            amount(null) / null.figures["generator_cpu"] if measured else None,
            best.row if best else None,
            rate(best) if best else None,
            amount(best) / cpu_of_load(best, bench) if best else None,
        )


def print_ceilings(models: Sequence[str], settings: Settings, interrupt: Interrupt) -> None:
    """`compare ceiling`: the table on standard output, how far it is on a terminal's standard error.

    Raises Interrupted, BenchFailed.
    """
    lines: list[Line] = []
    terminal = sys.stderr.isatty()
    with Bench(interrupt) as bench:
        for line in ceilings(models, settings, bench, interrupt):
            lines.append(line)
            if terminal:
                print(f"\r\033[K{len(lines)}/{len(LOADS)}", end="", file=sys.stderr, flush=True)
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(table(lines))


def unit(scenario: str) -> str:
    names = {"sizes": "messages", "ping-pong": "requests", "load": "requests"}
    return names.get(scenario, "connections") if scenario in BY_COUNT else "MB"


def amount(sample: Sample) -> float:
    """Work done in the unit of its scenario."""
    return sample.figures["count"] if sample.scenario in BY_COUNT else sample.figures["bytes"] / 1e6


def rate(sample: Sample) -> float:
    return amount(sample) / sample.figures["wall"]


def cpu_of_load(sample: Sample, bench: Bench) -> float:
    """CPU seconds of the generator, and of the target where it has the same core."""
    return load_side(bench, sample.figures["generator_cpu"], sample.figures["target_cpu"])


def table(lines: Sequence[Line]) -> str:
    """As text, for a terminal."""
    heads = [
        "scenario",
        "point",
        "unit",
        "null server",
        "generator busy",
        "ceiling",
        "with target",
        "fastest",
        "its rate",
        "of ceiling",
    ]
    rows = [
        [
            line.scenario,
            "" if line.point is None else f"{line.point:,.0f}",
            line.unit,
            number(line.null),
            percent(line.busy),
            number(line.ceiling),
            number(line.with_target),
            line.fastest or "-",
            number(line.rate),
            percent(line.part),
        ]
        for line in lines
    ]
    aligned = ["left", "right", "left", *["right"] * 4, "left", "right", "right"]
    return tabulate(rows, heads, tablefmt="simple", colalign=aligned, disable_numparse=True)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
