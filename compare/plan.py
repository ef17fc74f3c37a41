"""Which samples a run takes, and in which order.

    round 1:  every (row, scenario) once, shuffled
    round 2:  every (row, scenario) once, shuffled differently      ... all from one seed

A round is a block: whatever drifts on the machine from one round to the next hits every row alike,
and within a round chance decides who goes first. The same seed gives the same order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from compare.servers import AEAD, BASELINE, DIRECT, Row


class Scenario(NamedTuple):
    """A load, and what is read off it."""

    name: str
    summary: str
    figures: str
    baselines: tuple[str, ...]  # rows without a server that make sense here


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
    )
}


class Planned(NamedTuple):
    """One sample to take."""

    row: str
    scenario: str
    round: int  # from 1


def make_plan(rows: Sequence[Row], scenarios: Sequence[str], rounds: int, seed: int) -> list[Planned]:
    """All samples of a run in their order."""
    chance = random.Random(seed)
    plan = []
    for number in range(1, rounds + 1):
        block = [
            Planned(row.name, scenario, number)
            for scenario in scenarios
            for row in rows
            if row.kind != BASELINE or row.name in SCENARIOS[scenario].baselines
        ]
        chance.shuffle(block)
        plan += block
    return plan
