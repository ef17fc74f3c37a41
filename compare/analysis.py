"""From raw samples to what a report says: metrics, intervals, noise, ranks.

    Sample.figures --Metric.of--> one number a sample --stats--> Estimate a row --> ranks
          `-- of a scenario with points: ------------> Estimate a row and point: `curves`
    the null row --> how far apart the same model comes out twice --> `floor`

Rules: a metric is a line of METRICS, and tables, plots and verdicts find it there. Invalid samples
are counted, shown and never used; a row with fewer than half of its samples valid has no rank; nor
has throughput that the generator held back, whose CPU figures stand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from compare.schema import Result, Sample
from compare.servers import AEAD, AGAIN, BASELINE, DIRECT, LIBEV, TWICE
from compare.stats import (
    CHANCE,
    SAME,
    Estimate,
    estimate,
    evenness,
    geometric_mean,
    noise_floor,
    percentile,
    ranks,
    verdict,
    verdict_of_pairs,
)

GB, MB = 1e9, 1e6


def per_gb(name: str) -> Callable[[Sample], float | None]:
    def of(sample: Sample) -> float | None:
        if sample.row == AEAD and "cpu" not in sample.figures:  # before 1.3 of the schema
            nanoseconds = sample.figures["opening_ns" if sample.scenario == "bulk-up" else "sealing_ns"]
            return nanoseconds / sample.figures["bytes"] if name == "cpu" else None
        return sample.figures[name] / sample.figures["bytes"] * GB if name in sample.figures else None

    return of


def per_count(name: str) -> Callable[[Sample], float | None]:
    """Microseconds for each connection or request."""
    return lambda sample: (
        sample.figures[name] / sample.figures["count"] * 1e6 if name in sample.figures else None
    )


def rate(name: str, unit: float) -> Callable[[Sample], float | None]:
    return lambda sample: (
        sample.figures[name] / sample.figures["wall"] / unit if "wall" in sample.figures else None
    )


def latency(part: float) -> Callable[[Sample], float | None]:
    return lambda sample: percentile(sample.latency_us, part) if sample.latency_us else None


def megabytes(name: str) -> Callable[[Sample], float | None]:
    return lambda sample: sample.figures[name] / MB if name in sample.figures else None


def per_connection_kb(sample: Sample) -> float | None:
    figures = sample.figures
    return (figures["pss_open"] - figures["pss_idle"]) / figures["held"] / 1e3 if "held" in figures else None


def idle_kb(sample: Sample) -> float | None:
    """Memory of an idle connection, of many."""
    figures = sample.figures
    if not figures.get("held") or "pss" not in figures:
        return None
    return (figures["pss"] - figures["pss_idle"]) / figures["held"] / 1e3


def beyond_stacks_kb(sample: Sample) -> float | None:
    """The same without the stacks of its threads."""
    each, figures = idle_kb(sample), sample.figures
    if each is None or "stacks" not in figures:
        return None
    return each - figures["stacks"] / figures["held"] / 1e3


def beside_alone(sample: Sample) -> float | None:
    """How many times as long small requests take beside a bulk stream, at the 99th percentile."""
    figures = sample.figures
    return figures["p99_beside"] / figures["p99_alone"] if figures.get("p99_alone") else None


def per_mb(*names: str) -> Callable[[Sample], float | None]:
    """How often for each megabyte, of all these together."""

    def of(sample: Sample) -> float | None:
        figures = sample.figures
        known = all(name in figures for name in names) and figures.get("bytes")
        return sum(figures[name] for name in names) / figures["bytes"] * MB if known else None

    return of


def faults_each(sample: Sample) -> float | None:
    """Page faults for each connection: what a fork costs."""
    figures = sample.figures
    if "faults_minor" not in figures:
        return None
    return (figures["faults_minor"] + figures["faults_major"]) / figures["count"]


def figure(name: str, unit: float = 1.0) -> Callable[[Sample], float | None]:
    return lambda sample: sample.figures[name] / unit if name in sample.figures else None


def service(part: float) -> Callable[[Sample], float | None]:
    return lambda sample: percentile(sample.service_us, part) if sample.service_us else None


def even(sample: Sample) -> float | None:
    return evenness(by_child(sample)) if sample.workers else None


def by_child(sample: Sample) -> list[int]:
    """Connections of each child, the busiest first."""
    return sorted((worker.connections for worker in sample.workers), reverse=True)


class Metric(NamedTuple):
    """A column: what it says and how it is got."""

    key: str
    scenario: str
    title: str
    unit: str
    of: Callable[[Sample], float | None]
    digits: int = 0
    more_is_better: bool = False
    throughput: bool = False  # means nothing where the generator is the limit
    headline: bool = False  # counts in the overall rank


METRICS = {
    metric.key: metric
    for metric in (
        Metric("up_cpu", "bulk-up", "CPU up", "CPU-s/GB", per_gb("cpu"), 3, headline=True),
        Metric("up_user", "bulk-up", "user", "CPU-s/GB", per_gb("user"), 3),
        Metric("up_system", "bulk-up", "system", "CPU-s/GB", per_gb("system"), 3),
        Metric("up_rate", "bulk-up", "rate up", "MB/s", rate("bytes", MB), 0, True, True),
        Metric("down_cpu", "bulk-down", "CPU down", "CPU-s/GB", per_gb("cpu"), 3, headline=True),
        Metric("down_user", "bulk-down", "user", "CPU-s/GB", per_gb("user"), 3),
        Metric("down_system", "bulk-down", "system", "CPU-s/GB", per_gb("system"), 3),
        Metric("down_rate", "bulk-down", "rate down", "MB/s", rate("bytes", MB), 0, True, True),
        Metric("connection_cpu", "connections", "CPU", "us/connection", per_count("cpu"), 0, headline=True),
        Metric("connection_rate", "connections", "rate", "connections/s", rate("count", 1), 0, True, True),
        Metric("connection_p50", "connections", "p50", "us", latency(0.5)),
        Metric("connection_p99", "connections", "p99", "us", latency(0.99)),
        Metric("ping_cpu", "ping-pong", "CPU", "us/request", per_count("cpu"), 1, headline=True),
        Metric("ping_p50", "ping-pong", "p50", "us", latency(0.5)),
        Metric("ping_p99", "ping-pong", "p99", "us", latency(0.99)),
        Metric("ping_max", "ping-pong", "max", "us", latency(1.0)),
        Metric("ping_rate", "ping-pong", "rate", "requests/s", rate("count", 1), 0, True, True),
        Metric("pss_idle", "memory", "idle", "MB PSS", megabytes("pss_idle"), 1),
        Metric("pss_open", "memory", "10 open", "MB PSS", megabytes("pss_open"), 1),
        Metric("pss_each", "memory", "each", "KB/connection", per_connection_kb),
        Metric("pss_busy", "memory", "busy", "MB PSS", megabytes("pss_busy"), 1),
        Metric("start_wall", "start", "first reply", "ms", figure("start", 1e-3)),
        Metric("worker_private", "start", "worker's own", "MB", megabytes("worker_private"), 2),
        Metric("children_even", "children", "evenness", "of 1", even, 3, True),
        Metric("children_cpu", "children", "CPU", "us/connection", per_count("cpu")),
        Metric("children_rate", "children", "rate", "connections/s", rate("count", 1), 0, True, True),
        Metric("children_p50", "children", "p50", "us", latency(0.5)),
        Metric("children_p99", "children", "p99", "us", latency(0.99)),
        Metric("both_cpu", "bulk-both", "CPU both", "CPU-s/GB", per_gb("cpu"), 3),
        Metric("both_user", "bulk-both", "user", "CPU-s/GB", per_gb("user"), 3),
        Metric("both_system", "bulk-both", "system", "CPU-s/GB", per_gb("system"), 3),
        Metric("both_rate", "bulk-both", "rate both", "MB/s", rate("bytes", MB), 0, True, True),
        *(
            metric
            for way in ("up", "down")
            for metric in (
                Metric(f"{way}_waits", f"bulk-{way}", "waits", "switches/MB", per_mb("ctx_voluntary"), 2),
                Metric(
                    f"{way}_preempted",
                    f"bulk-{way}",
                    "preempted",
                    "switches/MB",
                    per_mb("ctx_involuntary"),
                    2,
                ),
                Metric(f"{way}_peak", f"bulk-{way}", "peak", "MB PSS", megabytes("pss_peak"), 1),
            )
        ),
        Metric("connection_faults", "connections", "page faults", "1/connection", faults_each),
        Metric("sizes_rate", "sizes", "rate", "MB/s", rate("bytes", MB), 1, True, True),
        Metric("sizes_cpu", "sizes", "CPU", "CPU-s/GB", per_gb("cpu"), 3),
        Metric("crowd_cpu", "connections-concurrent", "CPU", "us/connection", per_count("cpu")),
        Metric(
            "crowd_rate", "connections-concurrent", "rate", "connections/s", rate("count", 1), 0, True, True
        ),
        Metric("crowd_p50", "connections-concurrent", "p50", "us", latency(0.5)),
        Metric("crowd_p99", "connections-concurrent", "p99", "us", latency(0.99)),
        Metric("load_p50", "load", "p50", "us", latency(0.5)),
        Metric("load_p99", "load", "p99", "us", latency(0.99)),
        Metric("load_p999", "load", "p99.9", "us", latency(0.999)),
        Metric("load_max", "load", "max", "us", latency(1.0)),
        Metric("load_service_p99", "load", "service p99", "us", service(0.99)),
        Metric("load_cpu", "load", "CPU", "us/request", per_count("cpu"), 1),
        Metric("load_achieved", "load", "achieved", "requests/s", figure("achieved"), 0, True, True),
        Metric("concurrency_rate", "concurrency", "rate", "MB/s", rate("bytes", MB), 0, True, True),
        Metric("concurrency_p99", "concurrency", "p99", "us", latency(0.99)),
        Metric("concurrency_cpu", "concurrency", "CPU", "CPU-s/GB", per_gb("cpu"), 3),
        Metric("idle_held", "idle", "held", "MB PSS", megabytes("pss"), 1),
        Metric("idle_each", "idle", "each", "KB/connection", idle_kb, 1),
        Metric("idle_beyond", "idle", "without stacks", "KB/connection", beyond_stacks_kb, 1),
        Metric("idle_first", "idle", "first byte", "us", figure("first_us")),
        Metric("mixed_alone", "mixed", "p99 alone", "us", figure("p99_alone")),
        Metric("mixed_beside", "mixed", "p99 beside", "us", figure("p99_beside")),
        Metric("mixed_times", "mixed", "beside / alone", "times", beside_alone, 2),
        Metric("mixed_rate", "mixed", "stream", "MB/s", megabytes("stream"), 0, True),
        Metric("mixed_fair", "mixed", "fairness", "of 1", figure("fairness"), 3, True),
        Metric("unp_cpu", "unp", "process control", "CPU-s", figure("cpu"), 3),
        Metric("shock_wall", "shock", "to serve all", "ms", figure("wall", 1e-3)),
        Metric("shock_failures", "shock", "failures", "connections", figure("failures")),
        Metric("shock_p99", "shock", "p99", "us", latency(0.99)),
    )
}
HEADLINES = tuple(metric for metric in METRICS.values() if metric.headline)


class Overall(NamedTuple):
    """The score behind the overall rank: the geometric mean of a row's CPU figures, 1 = the best's."""

    estimates: dict[str, Estimate]
    ranks: dict[str, int]
    floor: float = 0.0  # by which scores may differ without meaning anything


class Null(NamedTuple):
    """One figure of the model that was entered twice: the second entry as a multiple of the first."""

    ratio: float
    floor: float  # of all rows' scatter
    alike: bool  # False: further apart than chance explains, so the floor was raised to it


class Analysis:
    """Everything that a report asks of a result."""

    def __init__(self, result: Result) -> None:
        self.result = result
        self.kinds = {row.name: row.kind for row in result.rows}
        self.names = [row.name for row in result.rows]
        self.servers = [row.name for row in result.rows if row.kind not in (BASELINE, TWICE)]
        self.invalid = [sample for sample in result.samples if sample.invalid]
        self._by: dict[tuple[str, str, float | None], list[Sample]] = {}
        self._points: dict[str, set[float]] = {}
        for sample in result.samples:
            self._by.setdefault((sample.row, sample.scenario, sample.point), []).append(sample)
            if sample.point is not None:
                self._points.setdefault(sample.scenario, set()).add(sample.point)
        self.metrics = [metric for metric in METRICS.values() if metric.scenario in result.settings.scenarios]
        self.null_of = next(
            ((row.name.removesuffix(AGAIN), row.name) for row in result.rows if row.kind == TWICE), None
        )
        self.estimates = {metric.key: self._estimates(metric) for metric in self.metrics}
        self.curves = {
            metric.key: {point: self._estimates(metric, point) for point in self.points(metric.scenario)}
            for metric in self.metrics
        }
        self._scattered = [*self.servers, *(self.null_of or ())[1:]]  # rows whose scatter is known
        self._floors = {
            (metric.key, point): self.floor_of(metric, point)
            for metric in self.metrics
            for point in (None, *self.points(metric.scenario))
        }
        self.null = {metric.key: null for metric in self.metrics if (null := self._null(metric))}
        self.ranks = {metric.key: self._ranks(metric) for metric in self.metrics}
        self.overall = self._overall()

    def points(self, scenario: str) -> list[float]:
        """Where on its axis that scenario was measured; empty if it has no axis."""
        return sorted(self._points.get(scenario, ()))

    def valid(self, row: str, scenario: str, point: float | None = None) -> list[Sample]:
        """The samples that count: none where most of them do not."""
        samples = self._by.get((row, scenario, point), [])
        good = [sample for sample in samples if not sample.invalid]
        return good if 2 * len(good) > len(samples) else []

    def values(self, metric: Metric, row: str, point: float | None = None) -> list[float]:
        found = (metric.of(sample) for sample in self.valid(row, metric.scenario, point))
        return [value for value in found if value is not None]

    def estimate(self, key: str, row: str, point: float | None = None) -> Estimate | None:
        if point is None:
            return self.estimates.get(key, {}).get(row)
        return self.curves.get(key, {}).get(point, {}).get(row)

    def curve(self, key: str, row: str) -> list[tuple[float, Estimate]]:
        """A row's figures along its scenario's axis."""
        return [(point, found[row]) for point, found in self.curves.get(key, {}).items() if row in found]

    def floor(self, key: str, point: float | None = None) -> float:
        """The part of its value by which a figure may differ in this run without meaning anything."""
        return self._floors.get((key, point), 0.0)

    def apart(self, key: str, one: str, other: str, point: float | None = None) -> str:
        """What `other` is beside `one` in this figure: better, worse or no difference.

        Sharper than ranks, which must hold for all rows at once: two rows are compared round by round too.
        """
        mine, theirs, metric = self.estimate(key, one, point), self.estimate(key, other, point), METRICS[key]
        if mine is None or theirs is None:
            return SAME
        found = verdict(mine, theirs, metric.more_is_better, self.floor(key, point))
        if found != SAME:
            return found
        first, second = (self.by_round(metric, row, point) for row in (one, other))
        ratios = [second[number] / first[number] for number in sorted(first.keys() & second.keys())]
        pair = self._null_pair(metric, point)
        return verdict_of_pairs(ratios, metric.more_is_better, distance(*pair) if pair else 0.0)

    def limited(self, metric: Metric, row: str, point: float | None = None) -> str | None:
        """What held this throughput back in most samples, if it was not the server."""
        if not metric.throughput or row == DIRECT:
            return None
        return self.held_back(row, metric.scenario, point)

    def held_back(self, row: str, scenario: str, point: float | None = None) -> str | None:
        """What other than the server was the limit in most samples."""
        samples = self.valid(row, scenario, point)
        reasons = Counter(sample.limited for sample in samples if sample.limited)
        return reasons.most_common(1)[0][0] if 2 * reasons.total() > len(samples) else None

    def ratio_to_libev(self, key: str, row: str) -> float | None:
        mine, libev = self.estimate(key, row), self.estimate(key, LIBEV)
        return mine.value / libev.value if mine and libev and libev.value else None

    def pooled_latency(self, row: str, scenario: str, point: float | None = None) -> list[tuple[int, int]]:
        """All latencies of all rounds together."""
        pooled: Counter[int] = Counter()
        for sample in self.valid(row, scenario, point):
            pooled.update(dict(sample.latency_us))
        return sorted(pooled.items())

    def clients_per_child(self, row: str) -> list[int]:
        """Of each child of the scenario `children`, the busiest first: medians over rounds."""
        rounds = [by_child(sample) for sample in self.valid(row, "children") if sample.workers]
        return [round(median(same)) for same in zip(*rounds, strict=False)]

    def best(self, key: str) -> list[str]:
        """The rows that share the first rank, or the best value if there are no ranks."""
        shared = self.ranks.get(key)
        if shared:
            return [name for name, rank in shared.items() if rank == 1]
        found = {
            name: item.value for name, item in self.estimates.get(key, {}).items() if name in self.servers
        }
        return [min(found, key=found.__getitem__)] if found else []

    def _estimates(self, metric: Metric, point: float | None = None) -> dict[str, Estimate]:
        return {name: estimate(values) for name in self.names if (values := self.values(metric, name, point))}

    def floor_of(self, metric: Metric, point: float | None, chance: float = CHANCE) -> float:
        """What chance does to two equal rows, or did to the two that are equal."""
        floor = noise_floor((self.values(metric, name, point) for name in self._scattered), chance)
        pair = self._null_pair(metric, point)
        return max(floor, distance(*pair)) if pair else floor

    def _null_pair(self, metric: Metric, point: float | None) -> tuple[Estimate, Estimate] | None:
        """The same model's figure, twice."""
        if self.null_of is None:
            return None
        once, again = (self.estimate(metric.key, name, point) for name in self.null_of)
        return (once, again) if once and again and once.value > 0 and again.value > 0 else None

    def _null(self, metric: Metric) -> Null | None:
        pair = self._null_pair(metric, None)
        if not pair:
            return None
        floor = noise_floor(self.values(metric, name) for name in self._scattered)
        return Null(pair[1].value / pair[0].value, floor, verdict(*pair, floor=floor) == SAME)

    def _ranks(self, metric: Metric) -> dict[str, int]:
        rows = [name for name in self.servers if not self.limited(metric, name)]
        found = self.estimates[metric.key]
        named = {name: found[name] for name in rows if name in found}
        return ranks(named, metric.more_is_better, self.floor(metric.key))

    def _overall(self) -> Overall | None:
        """Rows by round: each round gives a score, from the headline figures that all rows have."""
        headlines = [metric for metric in HEADLINES if metric in self.metrics]
        if not headlines:
            return None
        scores: dict[str, list[float]] = {}
        for name in self.servers:
            rounds = [self.by_round(metric, name) for metric in headlines]
            shared = set.intersection(*(set(found) for found in rounds))
            if shared and all(self.valid(name, metric.scenario) for metric in headlines):
                scores[name] = [
                    geometric_mean([found[number] for found in rounds]) for number in sorted(shared)
                ]
        if not scores:
            return None
        best = min(median(values) for values in scores.values())
        estimates = {name: estimate([value / best for value in values]) for name, values in scores.items()}
        floor = noise_floor(scores.values())
        return Overall(estimates, ranks(estimates, floor=floor), floor)

    def by_round(self, metric: Metric, row: str, point: float | None = None) -> dict[int, float]:
        found = ((sample.round, metric.of(sample)) for sample in self.valid(row, metric.scenario, point))
        return {number: value for number, value in found if value}


def distance(one: Estimate, other: Estimate) -> float:
    """How far apart two values are, as a part of the smaller one."""
    return max(one.value / other.value, other.value / one.value) - 1


def names(rows: Sequence[str], most: int | None = None) -> str:
    """`a`, `a and b`, `a, b and c`; of more than `most` the first ones, and how many others."""
    if most is not None and len(rows) > most:
        rows = [*rows[: most - 1], f"{len(rows) - most + 1} others"]
    return " and ".join([", ".join(rows[:-1]), rows[-1]] if len(rows) > 1 else rows)
