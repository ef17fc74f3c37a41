"""The goals for speed: what each is, and whether a result meets it. And the run that measures them.

    Result of servers --Analysis--+--> GOALS: a row of ours, and what it is measured by --> Finding
    Result of clients --Analysis--'                  a ratio, or a figure, with its interval    |
                                                     yes or no, and whether noise could turn it |
    terminal, Markdown, or between the markers of a file <--------------------------------------'

A goal names a metric of analysis.py, a limit, and two sides: ours, and another row or sum of rows of the
same run. Each side is its values, one a round; their ratio and its interval are stats.ratio's, the noise
floor is the metric's own in that run. The *best model* is the one with the lowest median among all that
were measured; a goal for every model is shown by the worst of them.

Rules: by the median a goal is met or not; it is so surely only if the limit lies outside the interval and
further from the median than the noise floor. What was not measured is said to be so, and is not met.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from compare.analysis import METRICS, Analysis, Metric
from compare.plan import LOCAL_ONES, QUICK, SCENARIOS
from compare.report.parts import Table, interval, models, number
from compare.report.text import framed
from compare.schema import Settings
from compare.servers import AEAD, BARE_FORK, LIBEV, PEER, RELAY, ROWS
from compare.stats import Estimate, estimate, ratio
from tunnel.config import DEFAULT_MODEL, LOCAL, SERVE

GO, RUST = "go", "rust"
PEERS = (LIBEV, GO, RUST)  # those that goals name
POOL = "prefork"  # whose idle workers are looked at
RATE, IDLE, IDLE_OF_THREADS = 2000.0, 5000.0, 1000.0  # points of load and idle
YES, NO, UNKNOWN = "yes", "no", "not measured"
NOISE = ", within the noise"

# The run. The best model is looked for among all of them where a goal is about bytes or connections; in an
# open loop these stand for their families.
ROUNDS, LOCAL_ROUNDS, DURATION = 5, 4, 0.4
IN_OPEN_LOOP = ("prefork", "thread", "prethread", "epoll", "select", "poll", "uvloop", "prefork-epoll")


def settings(end: str, models_here: Sequence[str], method: str, seed: int, length: Length) -> Settings:
    """What is measured at that end: all models where each may be the best, and few where few are asked."""
    rounds = length.rounds
    if end == LOCAL:
        kept = [name for name in LOCAL_ONES if name != "ping-pong"]
        return Settings(kept, min(rounds, LOCAL_ROUNDS), length.duration, seed, method, end=LOCAL)
    here = set(models_here)
    return Settings(
        [*(name for name in QUICK if name != "memory"), "load", "mixed", "idle", "start"],
        rounds,
        length.duration,
        seed,
        method,
        most={"load": rounds, "mixed": min(rounds, 3), "idle": min(rounds, 2), "start": min(rounds, 3)},
        points={"load": [RATE], "idle": [IDLE_OF_THREADS, IDLE]},
        rows={
            "load": [*(name for name in IN_OPEN_LOOP if name in here), *PEERS],
            "mixed": list(models_here),
            "idle": [name for name in ("thread", "epoll", "uvloop") if name in here],
            "start": [name for name in dict.fromkeys((DEFAULT_MODEL, POOL)) if name in here],
        },
    )


class Length(NamedTuple):
    """Of a run."""

    rounds: int = ROUNDS
    duration: float = DURATION


class Side(NamedTuple):
    """One side of a comparison: what it is, and its value in each round."""

    name: str
    values: list[float]


Pick = Callable[[Analysis], list[Side]]  # none where nothing was measured


class Goal(NamedTuple):
    """At most `limit` times the other side; of `limit` in the metric's unit where there is none."""

    title: str
    metric: Metric
    ours: Pick  # of several sides all must meet it
    limit: float
    beside: Pick | None = None
    point: float | None = None
    end: str = SERVE

    @property
    def said(self) -> str:
        return f"{self.limit:g} x" if self.beside else f"{number(self.limit, 0)} {self.metric.unit}"


class Finding(NamedTuple):
    """What a result says of a goal."""

    goal: Goal
    met: str  # YES or NO, perhaps with NOISE; UNKNOWN
    ours: Side | None = None
    beside: Side | None = None
    figure: Estimate | None = None  # the ratio, or the value
    note: str = ""


# Sides


def row(name: str, metric: Metric, point: float | None = None) -> Pick:
    def pick(analysis: Analysis) -> list[Side]:
        values = analysis.values(metric, name, point)
        return [Side(name, values)] if values else []

    return pick


def every_model(metric: Metric, point: float | None = None) -> Pick:
    return lambda analysis: [side for name in models(analysis) for side in row(name, metric, point)(analysis)]


def lowest(pick: Pick) -> Pick:
    """Of several the one with the lowest median."""

    def best(analysis: Analysis) -> list[Side]:
        return sorted(pick(analysis), key=lambda side: median(side.values))[:1]

    return best


def every_peer(metric: Metric, point: float | None = None) -> Pick:
    return lambda analysis: [
        side
        for name in analysis.servers
        if analysis.kinds[name] == PEER
        for side in row(name, metric, point)(analysis)
    ]


def floor(metric: Metric) -> Pick:
    """What no tunnel in Python can be below: two copies, and the cipher, of the same rounds."""

    def pick(analysis: Analysis) -> list[Side]:
        copies, ciphers = (analysis.by_round(metric, name) for name in (RELAY, AEAD))
        values = [copies[number] + ciphers[number] for number in sorted(copies.keys() & ciphers.keys())]
        return [Side(f"{RELAY} + {AEAD}", values)] if values else []

    return pick


# Goals


def of_bytes(end: str) -> list[Goal]:
    found = []
    for way in ("up", "down"):
        metric = METRICS[f"{way}_cpu"]
        every = every_model(metric)
        best, title = lowest(every), f"bulk {way}, best model beside"
        for peer, limit in ((LIBEV, 0.5), (GO, 0.6), (RUST, 0.85)):
            found.append(Goal(f"{title} {peer}", metric, best, limit, row(peer, metric), end=end))
        found.append(Goal(f"{title} the floor", metric, best, 1.12, floor(metric), end=end))
        title = f"bulk {way}, every model beside {LIBEV}"
        found.append(Goal(title, metric, every, 0.7, row(LIBEV, metric), end=end))
    return found


def of_connections(end: str) -> list[Goal]:
    metric = METRICS["connection_cpu"]
    best, title = lowest(every_model(metric)), "new connection, best model beside"
    return [
        Goal(f"{title} {peer}", metric, best, limit, row(peer, metric), end=end)
        for peer, limit in ((LIBEV, 1.5), (GO, 0.6))
    ]


def of_designs() -> list[Goal]:
    metric = METRICS["connection_cpu"]
    fork, thread = row("fork", metric), row("thread", metric)
    return [
        Goal("new connection, fork", metric, fork, 1800),
        Goal("new connection, fork beside a bare fork", metric, fork, 2.5, row(BARE_FORK, metric)),
        Goal("new connection, thread", metric, thread, 500),
    ]


def of_requests() -> list[Goal]:
    cpu, tail, times = METRICS["ping_cpu"], METRICS["load_p99"], METRICS["mixed_times"]
    best, at_rate = lowest(every_model(cpu)), f"p99 at {RATE:,.0f} requests/s"
    quickest, peer = lowest(every_model(tail, RATE)), lowest(every_peer(tail, RATE))
    return [
        *(
            Goal(f"small request, best model beside {peer}", cpu, best, limit, row(peer, cpu))
            for peer, limit in ((LIBEV, 2), (GO, 1.1))
        ),
        Goal(f"{at_rate}, best model beside the best peer", tail, quickest, 1.3, peer, RATE),
        Goal("p99 beside one bulk stream, every model", times, every_model(times), 2),
    ]


def of_memory() -> list[Goal]:
    each, beyond = METRICS["idle_each"], METRICS["idle_beyond"]
    worker, start = METRICS["worker_private"], METRICS["start_wall"]
    of_loops = [
        Goal(f"idle connection of {IDLE:,.0f}, {name}", each, row(name, each, IDLE), 12, point=IDLE)
        for name in ("epoll", "uvloop")
    ]
    threads = row("thread", beyond, IDLE_OF_THREADS)
    title = f"idle connection of {IDLE_OF_THREADS:,.0f}, thread, beyond its stacks"
    return [
        *of_loops,
        Goal(title, beyond, threads, 20, point=IDLE_OF_THREADS),
        Goal(f"an idle worker's own memory, {POOL}", worker, row(POOL, worker), 3),
        Goal(f"start of tunnel serve ({DEFAULT_MODEL})", start, row(DEFAULT_MODEL, start), 250),
    ]


GOALS = (
    *of_bytes(SERVE),
    *of_connections(SERVE),
    *of_designs(),
    *of_requests(),
    *of_memory(),
    *of_bytes(LOCAL),
    *of_connections(LOCAL),
)


# Findings


def found(analyses: Mapping[str, Analysis]) -> list[Finding]:
    """Of the goals of those ends that were measured."""
    return [finding(goal, analyses[goal.end]) for goal in GOALS if goal.end in analyses]


def finding(goal: Goal, analysis: Analysis) -> Finding:
    sides = goal.ours(analysis)
    beside = goal.beside(analysis) if goal.beside else []
    if not sides:
        return Finding(goal, UNKNOWN, note=f"no valid sample of {goal.metric.scenario} of ours")
    if goal.beside and not beside:
        return Finding(goal, UNKNOWN, sides[0], note="what it is beside was not measured")
    figures = {side.name: figure(side, beside) for side in sides}
    worst = max(sides, key=lambda side: figures[side.name].value)
    shown = figures[worst.name]
    met = verdict(shown, goal.limit, analysis.floor(goal.metric.key, goal.point))
    return Finding(goal, met, worst, next(iter(beside), None), shown, among(goal, figures, analysis))


def figure(side: Side, beside: Sequence[Side]) -> Estimate:
    return ratio(beside[0].values, side.values) if beside else estimate(side.values)


def verdict(found: Estimate, limit: float, noise: float) -> str:
    """By the median; and whether noise could turn it, which nobody knows after one round."""
    met = YES if found.value <= limit else NO
    beyond = not found.low <= limit <= found.high
    apart = max(found.value / limit, limit / found.value) - 1 if found.value > 0 else 0.0
    return met if found.rounds > 1 and beyond and apart > noise else met + NOISE


def among(goal: Goal, figures: Mapping[str, Estimate], analysis: Analysis) -> str:
    """Of a goal for every model: who does not meet it, and who has no figure, and why."""
    if len(figures) < 2:
        return ""
    missed = {name: found.value for name, found in figures.items() if found.value > goal.limit}
    said = [f"{name} {missed[name]:.2f}" for name in sorted(missed, key=missed.__getitem__)]
    parts = [f"{len(figures) - len(missed)} of {len(figures)} meet it; not {', '.join(said)}"] if said else []
    reasons: dict[str, list[str]] = {}
    for name in models(analysis):
        if name not in figures:
            reasons.setdefault(why_none(goal, name, analysis), []).append(name)
    parts += [f"without a figure: {', '.join(names)} ({reason})" for reason, names in reasons.items()]
    return "; ".join(parts)


def why_none(goal: Goal, name: str, analysis: Analysis) -> str:
    """Why a model has no figure: its design cannot be asked, or its samples do not count."""
    row, scenario = ROWS[name], goal.metric.scenario
    if not SCENARIOS[scenario].points_of(row, (goal.point or 0,)):
        return "one client at a time" if row.clients == 1 else f"{row.clients} clients at most"
    samples = [one for one in analysis.result.samples if (one.row, one.scenario) == (name, scenario)]
    invalid = Counter(one.invalid.partition(":")[0] for one in samples if one.invalid)
    if not invalid:
        return "not measured"
    return f"{invalid.most_common(1)[0][0]}: {invalid.total()} of {len(samples)} samples do not count"


# Words


def summary(findings: Sequence[Finding]) -> str:
    met = [one for one in findings if one.met.startswith(YES)]
    unknown = [one for one in findings if one.met == UNKNOWN]
    text = f"{len(met)} of {len(findings)} goals are met"
    if unsure := sum(one.met.endswith(NOISE) for one in met):
        text += f", {unsure} of them within the noise"
    return text + (f"; {len(unknown)} were not measured." if unknown else ".")


def table(findings: Sequence[Finding], end: str) -> Table:
    title = "Servers: tunnel serve" if end == SERVE else "Clients: tunnel local"
    rows = [cells(one) for one in findings if one.goal.end == end]
    notes = [f"{one.goal.title}: {one.note}." for one in findings if one.goal.end == end and one.note]
    headers = ["figure", "ours", "beside", "unit", "result", "goal", "met"]
    return Table(title, headers, rows, " ".join(dict.fromkeys(notes)))


def cells(one: Finding) -> list[str]:
    goal, metric = one.goal, one.goal.metric
    result = "-" if one.figure is None else interval(one.figure, 2 if goal.beside else metric.digits)
    return [
        goal.title,
        named(one.ours, metric),
        named(one.beside, metric),
        metric.unit,
        f"{result} x" if goal.beside and one.figure else result,
        f"at most {goal.said}",
        one.met,
    ]


def named(side: Side | None, metric: Metric) -> str:
    return f"{side.name} {number(median(side.values), metric.digits)}" if side else "-"


def conditions(analyses: Mapping[str, Analysis]) -> str:
    """Where and when, in a sentence: absolute figures are of this machine."""
    parts = []
    for end, analysis in analyses.items():
        env, had = analysis.result.environment, analysis.result.settings
        parts.append(
            f"{end}: {env.get('started', '?')}, revision {env.get('revision', '?')}, {had.rounds} rounds of"
            f" {had.duration:g} s, {had.method}, {env.get('cpu', '?')}, {env.get('cores', '?')} cores,"
            f" load average before it {env.get('load_average', ['?'])[0]}"
            + ("" if analysis.result.complete else "; partial")
        )
    return f"Measured {'; '.join(parts)}."


def text(analyses: Mapping[str, Analysis], style: str = "simple") -> str:
    """Summary, tables and conditions, for a terminal or as Markdown."""
    findings = found(analyses)
    parts = [summary(findings)]
    for end in analyses:
        made = table(findings, end)
        title = f"**{made.title}**" if style != "simple" else made.title
        parts += [title, framed(made, style), made.note]
    parts.append(conditions(analyses))
    return "\n\n".join(part for part in parts if part)
