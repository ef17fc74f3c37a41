"""Small requests, and the same beside a bulk stream: the scenario `mixed`.

    generator    | alone | beside | alone | beside | ...      TURNS times     small requests, open loop
    Background           | ====== |       | ====== | ...  | === |             one stream; at last several

Alone and beside take turns, and each is the sum of its turns: whatever else the machine does in between
hits both. The bytes come from two processes that the kernel lets run when nobody else wants their core
(bench.py), and the generator is first on its core where it may be (drive.py). So it is the server that small
requests wait for.

Rules: the stream flows before the first request is due, and until the last one is answered. One that got
next to no time has held up nobody: then there is no sample (validity.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from compare.bench import Background, Bench, Spent
from compare.stats import percentile

TURNS = 4
PARTS = 2 * TURNS + 1
LEAD = 0.02  # seconds for which the stream flows before requests come, and flows on
WARM = 0.05  # seconds of stream before anything is measured

Answer = dict[str, Any]


def measure(
    bench: Bench, *, duration: float, rate: float, connections: int, bulks: int, seed: int
) -> tuple[Answer, Spent]:
    """PARTS equal parts of `duration`; figures, and what the Background spent.

    Raises LoadFailed, BenchFailed, Interrupted.
    """
    part = duration / PARTS
    alone, beside, streams = [], [], []

    def small(turn: int) -> Answer:
        what: Answer = {"point": rate, "connections": connections, "seed": seed + turn, "first": True}
        return bench.order("measure", scenario="load", duration=part, rate=0.0, **what)

    with bench.background() as bulk:
        move(bulk, WARM, bulks)
        for turn in range(TURNS):
            alone.append(small(2 * turn))
            bulk.begin("bulk", duration=part + 2 * LEAD, connections=1)
            bench.pause(LEAD)
            beside.append(small(2 * turn + 1))
            streams.append(bulk.end())
        several = move(bulk, part, bulks)
        spent = bulk.cpu()
    together = joined(beside)
    return together | {
        "p99_alone": percentile(joined(alone)["latency_us"], 0.99),
        "p99_beside": percentile(together["latency_us"], 0.99),
        "late": max(joined(alone)["late"], together["late"]),
        "fairness": several["fairness"],
        "stream": moved(streams) / total(streams, "wall"),
        "streams": several["bytes"] / several["wall"],
        "bytes": moved(streams) + several["bytes"],
        "wall": total(alone, "wall") + total(streams, "wall") + several["wall"],
    }, spent


def move(bulk: Background, duration: float, connections: int) -> Answer:
    bulk.begin("bulk", duration=duration, connections=connections)
    return bulk.end()


def joined(turns: Sequence[Answer]) -> Answer:
    """One open loop with pauses: what was counted is added, what was a mean is weighted by time."""
    wall, count = total(turns, "wall"), sum(turn["count"] for turn in turns)
    return turns[0] | {
        "count": count,
        "achieved": count / wall,
        "late": sum(turn["late"] * turn["count"] for turn in turns) / max(1, count),
        **{name: sum(turn[name] * turn["wall"] for turn in turns) / wall for name in ("in_flight", "waited")},
        **{name: added([turn[name] for turn in turns]) for name in ("latency_us", "service_us")},
    }


def added(histograms: Sequence[Sequence[tuple[int, int]]]) -> list[tuple[int, int]]:
    """(microseconds, how often)"""
    counts: Counter[int] = Counter()
    for histogram in histograms:
        for value, count in histogram:
            counts[value] += count
    return sorted(counts.items())


def moved(streams: Sequence[Answer]) -> float:
    return total(streams, "bytes")


def total(turns: Sequence[Answer], name: str) -> float:
    return sum((turn[name] for turn in turns), 0.0)
