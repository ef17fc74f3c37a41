"""A whole run that never happened: every scenario, every point, every figure, from one seed.

    CHARACTERS --> what a server is like      cost of a byte, of a connection, of a request; workers
        |
        v          with noise and drift       the same seed makes the same result
    full_result() --> Result: all models, peers, baselines; invalid, limited and missing samples

It is near enough to what a two-core machine gives that a report of it looks like one of a real run,
and odd where a report must not stumble: `sigio` did not start, `iterative` does not keep up, one
model has no samples of `mixed`, one point is the generator's and not the server's.
"""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

from compare.schema import Result, RowInfo, Sample, Settings, Worker
from compare.servers import BASELINE, MODEL, PEER, TWICE
from models import MODELS

AGAIN = "prefork-epoll (again)"
FAILED = "sigio"
ROUNDS = 5
BULK = ("bulk-up", "bulk-down", "bulk-both")
SIZES = (64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
LOADS = (1000, 2000, 4000, 6000, 8000, 10000, 12000, 14000)
BUSY = (1, 10, 100, 1000)
IDLE = (100, 1000, 5000, 10000)
POOLS = (15, 30, 60, 120)
SCENARIOS = (
    *BULK,
    *("sizes", "connections", "connections-concurrent", "ping-pong", "load", "concurrency", "idle"),
    *("mixed", "unp", "shock", "start", "memory", "children"),
)
WITHOUT_DIRECT = ("memory", "idle", "children", "unp", "shock", "start")
HAS_POINTS = {"sizes": SIZES, "load": LOADS, "concurrency": BUSY, "idle": IDLE, "unp": POOLS}
BASELINES: dict[str, tuple[str, ...]] = {
    "direct": tuple(name for name in SCENARIOS if name not in WITHOUT_DIRECT),
    "relay": SCENARIOS[:8],
    "aead": BULK[:2],
    "bare-fork": ("connections",),
}
ENVIRONMENT: dict[str, Any] = {
    "started": "2026-01-02T03:04:05Z",
    "command": ["compare", "run", "--rounds", "5", "--out", "a b"],
    "kernel": "Linux 6.12.0",
    "machine": "x86_64",
    "cpu": "Some Processor <3 GHz>",
    "cpu_flags": ["aes", "vaes", "pclmulqdq"],
    "cpu_source": "rusage",
    "cores": 2,
    "governor": "unknown",
    "hypervisor": True,
    "pinned": {"server": [0], "generator": [1], "target": [1]},
    "load_average": [0.1, 0.2, 0.3],
    "python": "CPython 3.11.4",
    "cryptography": "50.0.2",
    "openssl_of_cryptography": "OpenSSL 4.0.0",
    "unp_tunnel": "0.1.0",
    "revision": "0123456789ab",
    "peers": {"libev": "3.3.5", "go": "0.1.5"},
    "sysctl": {"net.core.somaxconn": "4096"},
    "open_files": [1024, 524288],
}


class Character(NamedTuple):
    """What a server is like; seconds and bytes."""

    gigabyte: float  # CPU seconds
    connection: float  # CPU seconds
    request: float  # CPU seconds
    image: float  # PSS when idle
    each: float  # PSS of an open connection
    workers: int = 0
    alone: bool = False  # one client at once


CHARACTERS = {
    "iterative": Character(0.85, 260e-6, 75e-6, 17e6, 0, alone=True),
    "fork": Character(0.86, 1600e-6, 76e-6, 17e6, 2.6e6),
    "thread": Character(0.88, 330e-6, 82e-6, 17e6, 620e3),
    "prefork": Character(0.85, 270e-6, 75e-6, 21e6, 0, 15),
    "prefork-fcntl": Character(0.85, 292e-6, 75e-6, 21e6, 0, 15),
    "prefork-mutex": Character(0.86, 281e-6, 75e-6, 21.4e6, 0, 15),
    "prefork-fdpass": Character(0.86, 345e-6, 76e-6, 21.2e6, 0, 15),
    "prethread": Character(0.89, 302e-6, 88e-6, 18e6, 0, 15),
    "prethread-queue": Character(0.89, 315e-6, 88e-6, 18e6, 0, 15),
    "select": Character(0.97, 296e-6, 91e-6, 17e6, 66e3),
    "poll": Character(0.97, 290e-6, 90e-6, 17e6, 66e3),
    "epoll": Character(0.98, 300e-6, 92e-6, 18e6, 71e3),
    "prefork-epoll": Character(0.95, 285e-6, 84e-6, 27e6, 66e3, 2),
    "prefork-reuseport": Character(0.95, 283e-6, 84e-6, 27e6, 66e3, 2),
    "trampoline": Character(1.05, 360e-6, 98e-6, 17e6, 68e3),
    "asyncio": Character(1.22, 640e-6, 130e-6, 26e6, 140e3),
    "uvloop": Character(1.01, 480e-6, 99e-6, 31e6, 120e3),
    "tornado": Character(1.75, 1150e-6, 210e-6, 33e6, 170e3, 1),
    FAILED: Character(0.88, 340e-6, 82e-6, 17e6, 620e3),
    "libev": Character(1.68, 131e-6, 28e-6, 3e6, 21e3),
    "go": Character(1.45, 350e-6, 50e-6, 9e6, 48e3),
    AGAIN: Character(0.953, 284e-6, 84e-6, 27e6, 66e3, 2),
    "direct": Character(0.0, 0.0, 0.0, 0, 0),
    "relay": Character(0.55, 150e-6, 40e-6, 16e6, 60e3),
    "aead": Character(0.2, 0.0, 0.0, 0, 0),
    "bare-fork": Character(0.0, 700e-6, 0.0, 0, 0),
}


class Maker:
    """Samples of made-up servers, with noise."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.at = 0.0

    def noisy(self, value: float, part: float = 0.01) -> float:
        return value * self.chance.lognormvariate(0, part) * (1 + self.at / 200_000)

    def waits(self, middle: float, tail: float, many: int = 400) -> list[tuple[int, int]]:
        """Latencies, lognormal, and how often each."""
        found: dict[int, int] = {}
        for _ in range(many):
            value = round(1e6 * middle * self.chance.lognormvariate(0, tail))
            value = round(value, -1) if value > 1000 else value
            found[value] = found.get(value, 0) + self.chance.randint(1, 6)
        return sorted(found.items())

    def split(self, cpu: float) -> dict[str, float]:
        user = cpu * self.chance.uniform(0.4, 0.46)
        return {"cpu": cpu, "user": user, "system": cpu - user, "generator_cpu": 0.6, "target_cpu": 0.2}

    def sample(self, row: str, scenario: str, number: int, point: float | None) -> Sample:
        self.at += self.chance.uniform(0.8, 1.2)
        made = Sample(row, scenario, number, self.at, point=point)
        if row == FAILED:
            made.invalid = f"{row} did not start: OSError: no signals here"
            return made
        one = CHARACTERS[row]
        if row == "aead":
            made.figures = {"bytes": 1e9, "opening_ns": self.noisy(2e8), "sealing_ns": self.noisy(2.1e8)}
            return made
        kind = "bulk" if scenario in BULK else scenario.partition("-")[0]
        getattr(self, kind)(made, one, point or 0)
        made.figures["foreign_cpu"] = 0.02
        return made

    def sizes(self, made: Sample, one: Character, size: float) -> None:
        count = 4e5 / (1 + size / 4096)
        cost = count * (4e-6 + size * one.gigabyte / 1e9)
        wall = max(cost, count * (1.5e-6 + size * 1.2e-9)) * 1.05
        made.figures = {"count": count, "bytes": count * size, "wall": self.noisy(wall)}
        made.figures |= self.split(self.noisy(cost))

    def connections(self, made: Sample, one: Character, _: float) -> None:
        made.figures = {"count": 1000, "wall": self.noisy(0.3 + 1000 * one.connection)}
        made.figures |= self.split(self.noisy(1000 * one.connection))
        made.latency_us = self.waits(150e-6 + one.connection, 0.25)

    def ping(self, made: Sample, one: Character, _: float) -> None:
        made.figures = {"count": 5000, "wall": self.noisy(5000 * (40e-6 + one.request))}
        made.figures |= self.split(self.noisy(5000 * one.request))
        made.latency_us = self.waits(40e-6 + one.request, 0.2)

    def concurrency(self, made: Sample, one: Character, busy: float) -> None:
        moved = 1e9 / (0.3 + one.gigabyte * (1 + 0.08 * math.log10(busy)))
        made.figures = {"bytes": self.noisy(moved), "wall": 1.0, "count": 200, "cpu": self.noisy(0.95)}
        made.latency_us = self.waits(200e-6 * busy * (0.5 + one.gigabyte), 0.3, 100)
        if one.alone and busy > 1:
            made.invalid = "served 1 of the connections, expected all"

    def mixed(self, made: Sample, one: Character, _: float) -> None:
        alone, beside = self.noisy(150e-6 + one.request, 0.03), self.noisy(900e-6 + one.request, 0.06)
        made.figures = {"p99_alone": alone * 1e6, "p99_beside": beside * 1e6, "bytes": 4e8, "wall": 1.0}
        made.figures["fairness"] = min(1.0, self.noisy(0.97 if one.workers else 0.99, 0.01))
        made.latency_us = self.waits(beside / 2, 0.3)

    def unp(self, made: Sample, one: Character, pool: float) -> None:
        made.figures = {"count": 5000, "wall": self.noisy(2.5)}
        grown = 0.0005 * pool if one.workers else 0.0
        made.figures |= self.split(self.noisy(5000 * one.connection * 0.7 + grown))
        made.figures |= {
            "ctx_voluntary": 5000 * 2.0,
            "faults_minor": 5000 * (400 if made.row == "fork" else pool / 100),
        }
        made.workers = self.pool(int(pool)) if one.workers > 2 else []

    def shock(self, made: Sample, one: Character, _: float) -> None:
        wall = self.noisy(0.2 + 1000 * one.connection)
        made.figures = {"count": 1000, "failures": 12 if one.alone else 0, "wall": wall}
        made.latency_us = self.waits(0.1 + 500 * one.connection, 0.4)

    def memory(self, made: Sample, one: Character, _: float) -> None:
        idle = self.noisy(one.image)
        made.figures = {"pss_idle": idle, "pss_busy": self.noisy(one.image * 1.3)}
        if not one.alone:
            made.figures |= {"held": 10, "pss_open": idle + self.noisy(10 * max(one.each, 9e3))}

    def start(self, made: Sample, one: Character, _: float) -> None:
        made.figures = {"start": self.noisy(0.15)}
        if one.workers:
            made.figures["worker_private"] = self.noisy(1.8e6)

    def children(self, made: Sample, one: Character, _: float) -> None:
        made.figures = {"count": 5000, "wall": self.noisy(4.0)}
        made.figures |= self.split(self.noisy(5000 * one.connection))
        made.latency_us = self.waits(1e-3 + one.connection, 0.3)
        made.workers = self.pool(15, uneven=made.row == "prefork-fdpass")

    def bulk(self, made: Sample, one: Character, _: float) -> None:
        both = 2 if made.scenario == "bulk-both" else 1
        cost = one.gigabyte * (1.06 if made.scenario == "bulk-down" else 1.0)
        moved = 1e9 / max(cost, 0.45)
        made.figures = {"bytes": both * moved, "wall": both * 1.0, "count": 1}
        if one.gigabyte:
            made.figures |= self.split(self.noisy(both * moved / 1e9 * cost))
            megabytes = both * moved / 1e6
            made.figures |= {
                "ctx_voluntary": self.noisy(2.2 * megabytes, 0.1),
                "ctx_involuntary": self.noisy(0.1 * megabytes, 0.1),
                "faults_minor": self.noisy(40, 0.1),
                "faults_major": 0.0,
                "pss_peak": self.noisy(one.image * 1.25),
            }
        if made.round == 1:
            made.series = [(tenth / 10, self.noisy(moved / 1e6, 0.04)) for tenth in range(10)]
        if cost < 0.6:
            made.limited = "generator and target use their whole core"

    def load(self, made: Sample, one: Character, offered: float) -> None:
        cost = max(one.request, 20e-6)
        busy = min(offered * cost, 1.3)
        queue = cost * busy / (1 - busy) if busy < 0.97 else 0.05 * busy
        middle = 60e-6 + cost + queue
        achieved = min(offered, 0.98 / cost)
        made.figures = {
            "offered": offered,
            "achieved": self.noisy(achieved, 0.002),
            "count": achieved,
            "wall": 1.0,
        }
        made.figures |= {"late": 0.0004, "connections": 10, "in_flight": achieved * middle}
        made.figures |= self.split(self.noisy(achieved * cost))
        made.latency_us = self.waits(middle, 0.25 + 0.5 * min(busy, 1), 250)
        made.service_us = self.waits(60e-6 + cost, 0.25, 100)
        if one.alone:
            made.invalid = "9 of 10 connections were not served"
        elif offered >= 14000:
            made.invalid = f"the generator was late with {self.chance.uniform(5, 20):.1f}% of the requests"

    def idle(self, made: Sample, one: Character, held: float) -> None:
        most = {"select": 508, "poll": 1e6}.get(made.row, 120.0 if one.workers > 2 else 1e6)
        if one.alone or held > most:
            made.invalid = f"holds {most:.0f} connections, not {held:.0f}"
            return
        made.figures = {"held": held, "pss_idle": self.noisy(one.image)}
        made.figures |= {
            "pss": self.noisy(one.image + held * max(one.each, 9e3)),
            "stacks": held * 24e3 if made.row == "thread" else 0,
            "first_us": self.noisy(300),
        }

    def pool(self, size: int, uneven: bool = False) -> list[Worker]:
        weights = [self.chance.uniform(0.95, 1.05) / ((place + 1) if uneven else 1) for place in range(size)]
        return [Worker(round(5000 * weight / sum(weights)), 100, 1000) for weight in weights]


def kind_of(row: str) -> str:
    if row == AGAIN:
        return TWICE
    return BASELINE if row in BASELINES else PEER if row in ("libev", "go") else MODEL


def points_of(row: str, scenario: str) -> tuple[float | None, ...]:
    if scenario == "unp" and not CHARACTERS[row].workers:
        return (None,)
    return HAS_POINTS.get(scenario, (None,))


def makes_sense(row: str, scenario: str) -> bool:
    if row in BASELINES:
        return scenario in BASELINES[row]
    if scenario == "children":
        return CHARACTERS[row].workers > 2
    if row == AGAIN:
        return scenario not in ("unp", "shock")
    # Something is always missing; and who has one client at a time is never asked.
    return scenario != "mixed" or row not in ("trampoline", "iterative")


def full_result(rows: list[str] | None = None, rounds: int = ROUNDS, seed: int = 1) -> Result:
    """All of it, or of these rows alone."""
    rows = rows or list(CHARACTERS)
    maker = Maker(seed)
    samples = []
    for number in range(1, rounds + 1):
        block = [
            (row, scenario, point)
            for scenario in SCENARIOS
            for row in rows
            for point in points_of(row, scenario)
            if makes_sense(row, scenario)
        ]
        maker.chance.shuffle(block)
        samples += [maker.sample(row, scenario, number, point) for row, scenario, point in block]
    known = {model.name: (model.source, model.summary) for model in MODELS.values()}
    return Result(
        Settings(list(SCENARIOS), rounds, 1.0, seed, "aes-256-gcm"),
        dict(ENVIRONMENT),
        [RowInfo(row, kind_of(row), *known.get(row, ("-", f"what {row} is"))) for row in rows],
        samples,
        planned=len(samples),
        elapsed=maker.at,
        left_out={"rust": "ssserver is not on PATH"},
    )
