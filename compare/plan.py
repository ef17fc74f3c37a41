"""Which samples a run takes, and in which order.

    round 1:  every (row, scenario, point) once, shuffled
    round 2:  every (row, scenario, point) once, shuffled differently      ... all from one seed

A scenario with an axis has a sample for each of its points, and a run of everything takes a few of
them. A scenario whose figures hardly move has fewer rounds. A round is a block: whatever drifts on the
machine from one round to the next hits every row alike, and within a round chance decides who goes
first. The same seed gives the same order.
"""

from __future__ import annotations

import random
import resource
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from compare.servers import AEAD, BARE_FORK, BASELINE, DIRECT, PEER, RELAY, Row

CHILDREN, CLIENTS, CROWD = 15, 10, 5000  # UNP 30.2's pool, clients at once, connections in all
HERD = (15, 30, 60, 120)  # sizes of a pool: does it cost to have many wait for the same listener?
LOAD_CONNECTIONS = 10  # that share an offered load
MIXED_CONNECTIONS, BULKS = 8, 4  # small requests', and streams for fairness
SHOCK = 1000  # connects at once
AS_POINT = 0  # as many clients at once as the point says
OPEN_FILES = 65_536  # descriptors that are asked for, where the hard limit allows as many
SPARE = 100  # descriptors that a server or the generator needs besides those of its clients
ALL_LOADS = (DIRECT, RELAY)
WITH_AEAD = (*ALL_LOADS, AEAD)


class Scenario(NamedTuple):
    """A load, and what is read off it."""

    name: str
    summary: str
    figures: str
    baselines: tuple[str, ...]  # rows without the tunnel that make sense here
    pools: bool = False  # for models with a pool of workers alone
    most: int | None = None  # rounds that are enough
    points: tuple[float, ...] = ()  # along its axis; each is a sample of its own
    few: tuple[float, ...] = ()  # those that a run of everything takes
    clients: int = 1  # at once: a design that cannot is left out
    part: float = 1.0  # of a sample's duration
    local: bool = (
        False  # clients of `tunnel local` can be loaded so: by the part of the generator that has SOCKS5
    )

    def has(self, row: Row) -> bool:
        """True if that row makes sense here."""
        if row.kind == BASELINE:
            return row.name in self.baselines
        if row.kind == PEER and self.name == UNP:
            return False  # no other server has the book's service
        return row.pool or not self.pools

    def points_of(self, row: Row, points: Sequence[float]) -> list[float | None]:
        """Those of `points` that this row can be asked for; [None] where the scenario has no axis."""
        if not self.has(row):
            return []
        if self.name == UNP:
            return [point for point in points if row.herd or point == CHILDREN] if row.pool else [None]
        most = min(MOST_OPEN, MOST_OPEN if row.clients is None else row.clients)
        if not self.points:
            return [None] if self.clients <= most else []
        return [point for point in points if (self.clients or point) <= most]


def most_files() -> int:
    """What `raise_file_limit` can reach."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)


def raise_file_limit() -> None:
    """For the generator and the target, who inherit it: `tunnel` raises its own, a shell gives 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < most_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_files(), hard))


UNP = "unp"
MOST_OPEN = (most_files() - SPARE) // 2  # two descriptors for each client
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("bulk-up", "one stream from the client", "CPU-s/GB, MB/s", WITH_AEAD, local=True),
        Scenario("bulk-down", "one stream to the client", "CPU-s/GB, MB/s", WITH_AEAD, local=True),
        Scenario(
            "bulk-both", "one connection, both ways at once", "CPU-s/GB, MB/s", ALL_LOADS, most=2, part=0.5
        ),
        Scenario(
            "sizes",
            "one stream up, in messages of 64 B to 1 MB",
            "MB/s and CPU-s/GB by size",
            (DIRECT,),
            most=2,
            points=(64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576),
            few=(64, 16_384),
            part=0.4,
        ),
        Scenario(
            "connections",
            "short connections, one after the other",
            "CPU us/connection, connections/s",
            (*ALL_LOADS, BARE_FORK),
            local=True,
        ),
        Scenario(
            "connections-concurrent",
            f"short connections, {CLIENTS} at once",
            "CPU us/connection, connections/s, p99",
            ALL_LOADS,
            most=2,
            part=0.5,
        ),
        Scenario(
            "ping-pong",
            "64 bytes each way on an open connection",
            "p50, p99, max, CPU us/request",
            ALL_LOADS,
            local=True,
        ),
        Scenario(
            "load",
            f"the same on {LOAD_CONNECTIONS} connections, at an offered rate (open loop)",
            "p50 to max from when each was due",
            ALL_LOADS,
            most=2,
            points=(500, 1000, 2000, 4000, 6000, 8000, 12_000),
            few=(1000, 4000),
            clients=LOAD_CONNECTIONS,
        ),
        Scenario(
            "concurrency",
            "16 KB replies on 1 to 1,000 busy connections",
            "MB/s, p99 by connections",
            ALL_LOADS,
            most=2,
            points=(1, 10, 100, 1000),
            few=(10, 100),
            clients=AS_POINT,
            part=0.5,
        ),
        Scenario(
            "idle",
            "100 to 10,000 idle connections",
            "KB/connection, first byte among them",
            (),
            most=1,
            points=(100, 1000, 5000, 10_000),
            few=(100,),
            clients=AS_POINT,
        ),
        Scenario(
            "mixed",
            "small requests beside bulk streams",
            "p99 alone and beside, fairness",
            (),
            most=1,
            clients=MIXED_CONNECTIONS + 1,
            part=5.0,  # in nine, at 500 requests/s: a p99 wants some hundreds of them
        ),
        Scenario("shock", f"{SHOCK:,} connects at once", "time to serve all, failures", (DIRECT,), most=1),
        Scenario(
            UNP,
            f"UNP 30: up to {CROWD:,} times 4,000 bytes, {CLIENTS} at once, no encryption",
            "CPU above iterative, clients per child",
            (),
            most=2,
            points=HERD,
            few=(CHILDREN, HERD[-1]),
            part=1.25,
        ),
        Scenario(
            "start",
            "from exec to a first client's reply; then an idle worker",
            "ms, MB of its own",
            (),
            most=1,
        ),
        Scenario("memory", "idle, with 10 connections open, and busy", "PSS of the process tree", (), most=2),
        Scenario(
            "children",
            f"up to {CROWD:,} connections, {CLIENTS} at once, pools of {CHILDREN}",
            "clients per child (UNP 30.2)",
            (),
            pools=True,
            most=2,
            part=0.3,
        ),
    )
}
FEW = {name: list(scenario.few) for name, scenario in SCENARIOS.items() if scenario.few}
ROUNDS, DURATION = 5, 0.8  # of a run, and seconds of load in a sample
QUICK_ROUNDS, QUICK_DURATION = 2, 0.2
QUICK = ("bulk-up", "bulk-down", "connections", "ping-pong", "memory")  # scenarios of a first impression
LOCAL_ONES = tuple(name for name, scenario in SCENARIOS.items() if scenario.local)
QUICK_MOST = {"memory": 1}


class Planned(NamedTuple):
    """One sample to take."""

    row: str
    scenario: str
    round: int  # from 1
    point: float | None = None  # on the scenario's axis


def make_plan(
    rows: Sequence[Row],
    scenarios: Sequence[str],
    rounds: int,
    seed: int,
    most: Mapping[str, int] | None = None,
    *,
    points: Mapping[str, Sequence[float]] | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
) -> list[Planned]:
    """All samples of a run in their order. By scenario, `most`: rounds that are enough; `points`; `only`:
    names of the rows that take part."""
    axes = {name: entry.points for name, entry in SCENARIOS.items()} | dict(points or {})
    enough = {name: entry.most or rounds for name, entry in SCENARIOS.items()} | dict(most or {})
    chance = random.Random(seed)
    plan = []
    for number in range(1, rounds + 1):
        block = [
            Planned(row.name, scenario, number, point)
            for scenario in scenarios
            if number <= enough[scenario]
            for row in rows
            if row.name in (only or {}).get(scenario, (row.name,))
            for point in SCENARIOS[scenario].points_of(row, axes[scenario])
        ]
        chance.shuffle(block)
        plan += block
    return plan
