"""Which samples a run takes, and in which order.

    round 1:  every (row, scenario) once, shuffled
    round 2:  every (row, scenario) once, shuffled differently      ... all from one seed

A scenario whose figures hardly move has fewer rounds. A round is a block: whatever drifts on the
machine from one round to the next hits every row alike, and within a round chance decides who goes
first. The same seed gives the same order.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from compare.servers import AEAD, BASELINE, DIRECT, Row

CHILDREN, CLIENTS, CROWD = 15, 10, 5000  # UNP 30.2's pool, clients at once, connections in all


class Scenario(NamedTuple):
    """A load, and what is read off it."""

    name: str
    summary: str
    figures: str
    baselines: tuple[str, ...]  # rows without a server that make sense here
    pools: bool = False  # for models with a pool of workers alone
    most: int | None = None  # rounds that are enough

    def has(self, row: Row) -> bool:
        """True if that row makes sense here."""
        return row.name in self.baselines if row.kind == BASELINE else row.pool or not self.pools


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("bulk-up", "one stream from the client", "CPU-s/GB, MB/s", (DIRECT, AEAD)),
        Scenario("bulk-down", "one stream to the client", "CPU-s/GB, MB/s", (DIRECT, AEAD)),
        Scenario(
            "connections",
            "short connections, one after the other",
            "CPU us/connection, connections/s",
            (DIRECT,),
        ),
        Scenario(
            "ping-pong", "64 bytes each way on an open connection", "p50, p99, max, CPU us/request", (DIRECT,)
        ),
        Scenario("memory", "idle, with 10 connections open, and busy", "PSS of the process tree", ()),
        Scenario(
            "children",
            f"{CROWD:,} connections, {CLIENTS} at once, pools of {CHILDREN}",
            "clients per child (UNP 30.2)",
            (),
            pools=True,
            most=3,
        ),
    )
}
QUICK = ("bulk-up", "bulk-down", "connections", "ping-pong", "memory")  # scenarios of a first impression
QUICK_MOST = {"memory": 1}


class Planned(NamedTuple):
    """One sample to take."""

    row: str
    scenario: str
    round: int  # from 1


def make_plan(
    rows: Sequence[Row],
    scenarios: Sequence[str],
    rounds: int,
    seed: int,
    most: Mapping[str, int] | None = None,
) -> list[Planned]:
    """All samples of a run in their order; `most`: rounds that are enough, by scenario."""
    enough = {name: entry.most or rounds for name, entry in SCENARIOS.items()} | dict(most or {})
    chance = random.Random(seed)
    plan = []
    for number in range(1, rounds + 1):
        block = [
            Planned(row.name, scenario, number)
            for scenario in scenarios
            if number <= enough[scenario]
            for row in rows
            if SCENARIOS[scenario].has(row)
        ]
        chance.shuffle(block)
        plan += block
    return plan
