"""result.json: everything that a run measured, raw, so that a report can be made again later.

    Result
    |-- schema        {"name": ..., "version": "MAJOR.MINOR"}
    |-- settings      what was asked for                      |-- complete   False: cut short
    |-- environment   the machine and the software            |-- rows       what was compared
    `-- samples       one for each (row, scenario, round), in the order in which they were taken

Rules: what is derived (rates, percentiles, ranks) is not stored but computed from this. A reader
takes any file of its own major version: a minor version only adds, and what is unknown is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from tunnel.config import SERVE

NAME = "unp-tunnel compare"
MAJOR, MINOR = 1, 3
# 1.1: workers of a sample, rounds by scenario, what was left out
# 1.2: points of a scenario, service times, time series
# 1.3: the end that was measured, the rows of a scenario


class SchemaError(Exception):
    """A file that is no result, or one of another major version."""


@dataclass
class Settings:
    scenarios: list[str]
    rounds: int
    duration: float  # seconds of load in one sample
    seed: int
    method: str
    most: dict[str, int] = field(default_factory=dict)  # rounds of a scenario, where fewer are enough
    points: dict[str, list[float]] = field(default_factory=dict)  # of a scenario, where not all
    end: str = SERVE  # or LOCAL: the models are clients, and so are the peers
    rows: dict[str, list[str]] = field(default_factory=dict)  # of a scenario, where not all take part


@dataclass
class RowInfo:
    name: str
    kind: str
    source: str
    summary: str


@dataclass
class Worker:
    """A slot of the server's scoreboard after the load: a child or thread of its pool."""

    connections: int
    up: int  # bytes
    down: int


@dataclass
class Sample:
    """One fresh server, one scenario. Times in seconds, memory in bytes."""

    row: str
    scenario: str
    round: int
    at: float = 0.0  # seconds from the run's start
    invalid: str | None = None  # why it does not count
    limited: str | None = None  # what other than the server held the throughput back
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    latency_us: list[tuple[int, int]] = field(default_factory=list)  # (microseconds, how often)
    point: float | None = None  # where on the scenario's axis: a size, a rate, a number of connections
    service_us: list[tuple[int, int]] = field(default_factory=list)  # from the real send, not the intended
    series: list[tuple[float, float]] = field(default_factory=list)  # (seconds, value), along the load
    workers: list[Worker] = field(default_factory=list)  # of a pool, in the scoreboard's order


@dataclass
class Result:
    settings: Settings
    environment: dict[str, Any]
    rows: list[RowInfo]
    samples: list[Sample] = field(default_factory=list)
    planned: int = 0  # samples that a whole run has
    elapsed: float = 0.0  # seconds
    stopped: str | None = None  # why samples are missing
    left_out: dict[str, str] = field(default_factory=dict)  # model or scenario: why

    @property
    def complete(self) -> bool:
        return len(self.samples) >= self.planned

    def left_out_because(self) -> dict[str, list[str]]:
        """Each reason, and what it kept out."""
        found: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            found.setdefault(reason, []).append(name)
        return found


Made = TypeVar("Made", Settings, RowInfo, Sample, Worker)


def _make(kind: type[Made], values: Mapping[str, Any]) -> Made:
    known = {entry.name for entry in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in known})


def dump(result: Result) -> str:
    """The text of result.json: indented, but a sample a line."""
    content = asdict(result)
    samples = ",\n".join(f"  {json.dumps(sample)}" for sample in content.pop("samples"))
    head = {
        "schema": {"name": NAME, "version": f"{MAJOR}.{MINOR}"},
        "complete": result.complete,
        **content,
    }
    return f'{json.dumps(head, indent=1)[:-2]},\n "samples": [\n{samples}\n ]\n}}\n'


def load(text: str) -> Result:
    """The Result of a result.json. Raises SchemaError."""
    try:
        content = json.loads(text)
        schema = content["schema"]
        name, major = schema["name"], int(schema["version"].partition(".")[0])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SchemaError("not a result of compare: expected the result.json of a run") from None
    if name != NAME or major != MAJOR:
        raise SchemaError(f"schema {name} {schema['version']}: expected {NAME} {MAJOR}.x")
    try:
        samples = [_make(Sample, values) for values in content["samples"]]
        for sample, values in zip(samples, content["samples"], strict=True):
            sample.latency_us = [(value, count) for value, count in sample.latency_us]
            sample.service_us = [(value, count) for value, count in sample.service_us]
            sample.series = [(at, value) for at, value in sample.series]
            sample.workers = [_make(Worker, worker) for worker in values.get("workers", ())]
        return Result(
            settings=_make(Settings, content["settings"]),
            environment=dict(content["environment"]),
            rows=[_make(RowInfo, values) for values in content["rows"]],
            samples=samples,
            planned=int(content["planned"]),
            elapsed=float(content["elapsed"]),
            stopped=content.get("stopped"),
            left_out=dict(content.get("left_out", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(f"damaged result: {error}") from None
