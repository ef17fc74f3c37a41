"""One sample: a fresh server, warmed up, measured once, stopped.

    start --> settle --> warm up --> settle --> READ --> load --> settle --> READ --> stop
                          thrown away             `------ the figures -------'

An order to the generator is made in one place, `orders_of`, whoever is measured. Bulk and ping-pong
keep their connection open across both readings, so that neither its start nor its end is in the
figures. Connections are all in: the second reading waits until the server has reaped the children
that served them, or their CPU would be counted nowhere. A pool may grow and shrink by itself
meanwhile, so its size is not waited for. Who of a pool served how many is asked of its scoreboard,
last of all.

CPU is the control group's account where the server can have one (cgroup.py), the clocks in /proc
otherwise (tree.py); both are kept.

Rules: whatever goes wrong with a server makes its sample invalid, with the reason, and not the run.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from compare import beside, servers, tree
from compare.bench import ANSWER, Bench, LoadFailed, Spent
from compare.client import Connection, Endpoint, Failed
from compare.interrupt import Interrupt
from compare.load import SHORT as ONE_REQUEST
from compare.plan import (
    BULKS,
    CHILDREN,
    CLIENTS,
    CROWD,
    LOAD_CONNECTIONS,
    MIXED_CONNECTIONS,
    SCENARIOS,
    SHOCK,
    UNP,
    Planned,
)
from compare.schema import Sample, Settings, Worker
from compare.servers import AEAD, BARE_FORK, BASELINE, DIRECT, PEER, RELAY, ROWS, Row, Server, ServerFailed
from compare.validity import why_invalid, why_limited
from tunnel.config import LOCAL, SERVE

KILLED_BY_SIGTERM = f"exit code {-signal.SIGTERM:d}"  # of other people's servers no more is expected
HELD = 10  # connections that the memory scenario opens
MIXED_RATE = 500.0  # small requests a second beside bulk streams
BOOKS_BYTES = 4000  # that UNP 30's client asks for
FIGURES = (
    *("wall", "count", "bytes", "offered", "achieved", "late", "in_flight", "connections", "failures"),
    "waited",
    *("p99_alone", "p99_beside", "fairness", "stream", "streams"),
)
# Each connection is gone when it is over: children that served them are waited for.
SHORT = ("connections", "connections-concurrent", "shock", UNP)


class Reading(NamedTuple):
    """The clocks of everybody at one moment."""

    server: tree.Usage
    activity: tree.Activity
    cgroup: float | None
    generator: float
    target: float
    machine: float


class Orders(NamedTuple):
    """What the generator is asked: to warm up, if at all, and to measure."""

    warm: dict[str, Any] | None
    measure: dict[str, Any]


def take(planned: Planned, settings: Settings, bench: Bench, interrupt: Interrupt) -> Sample:
    """Takes one sample. Raises Interrupted, BenchFailed."""
    sample = Sample(planned.row, planned.scenario, planned.round, point=planned.point)
    try:
        if planned.row == AEAD:
            sample.figures = take_aead(planned.scenario, settings, bench)
        elif planned.row == BARE_FORK:
            take_bare_fork(sample, settings, bench, interrupt)
        elif planned.row == DIRECT:
            take_direct(sample, settings, bench)
        else:
            take_server(sample, settings, bench, interrupt)
    except (LoadFailed, ServerFailed) as failure:
        sample.invalid = str(failure)
    except ProcessLookupError:
        sample.invalid = "the server ended by itself"
    return sample


def take_aead(scenario: str, settings: Settings, bench: Bench) -> dict[str, float]:
    """Sealing and opening, and as `cpu` the one of them that bytes of that scenario need at that end."""
    found = bench.order("aead", method=settings.method, duration=settings.duration / 2)
    opens = (scenario == "bulk-up") == (settings.end == SERVE)
    return {**found, "cpu": found["opening_ns" if opens else "sealing_ns"] / 1e9}


def speech(row: Row, settings: Settings, service: bool = False) -> dict[str, Any]:
    """How the generator speaks to that row: sealed, plain, or SOCKS5.

    What leads to the target without the tunnel is spoken to as the target itself is.
    """
    plain = {"method": None, "password": None}
    sealed = {"method": settings.method, "password": servers.PASSWORD}
    if settings.end == LOCAL:
        return sealed if row.kind == BASELINE else plain | {"socks": True}
    return plain if service or row.name == DIRECT else sealed


def take_direct(sample: Sample, settings: Settings, bench: Bench) -> None:
    how = speech(ROWS[DIRECT], settings)
    bench.order("open", port=bench.target_port, target=bench.target_port, **how)
    orders = orders_of(sample, settings)
    if orders.warm:
        orders.measure["rate"] = bench.order(**orders.warm)["rate"]
    answer = bench.order(**orders.measure)
    bench.order("close")
    keep(sample, answer)
    sample.invalid = why_invalid(sample.figures, sample.service_us or sample.latency_us, 0.0)


def take_bare_fork(sample: Sample, settings: Settings, bench: Bench, interrupt: Interrupt) -> None:
    """forks.py: one connection makes it begin, and it ends by itself."""
    row, place = ROWS[BARE_FORK], bench.address
    with servers.start(row, settings.method, bench.cores.server, interrupt, address=place) as server:
        tree.settle(interrupt, server.pid)
        try:
            with socket.create_connection((place, server.port)):
                deadline = time.monotonic() + ANSWER
                while not server.ended() and time.monotonic() < deadline:
                    interrupt.wait(None, servers.LOOKS)
            sample.figures = json.loads(server.log()[-1])
        except (ConnectionError, ValueError, IndexError):
            raise ServerFailed(f"{row.name} forked nothing: {server.last_words()}") from None


def take_server(sample: Sample, settings: Settings, bench: Bench, interrupt: Interrupt) -> None:
    row, method = ROWS[sample.row], settings.method
    workers: int | None = None
    service: tuple[str, ...] = ()
    if sample.scenario == "children":
        workers = CHILDREN
    if row.name == RELAY:
        service = ("--service", "relay", "--target", f"{bench.address}:{bench.target_port}")
    elif sample.scenario == UNP:
        service = ("--service", "bytes")
        workers = None if sample.point is None else int(sample.point)
    with servers.start(
        row,
        method,
        bench.cores.server,
        interrupt,
        workers=workers,
        service=service,
        address=bench.address,
        leads_to=bench.target_port if settings.end == LOCAL else None,
    ) as server:
        place = {"port": server.port, "target": bench.target_port, "fin": row.fin}
        how = place | speech(row, settings, bool(service))
        if sample.scenario == "start":
            sample.figures["start"] = first_reply({"host": bench.address, **how}) - server.began
        tree.settle(interrupt, server.pid)
        bench.order("open", **how)
        try:
            if sample.scenario == "memory":
                take_memory(sample, settings, bench, interrupt, server)
            elif sample.scenario == "start":
                take_start(sample, bench, interrupt, server)
            elif sample.scenario == "idle":
                take_idle(sample, bench, interrupt, server)
            else:
                take_load(sample, settings, bench, interrupt, server)
            bench.order("close")
        except LoadFailed as failure:
            ended = f"; the server has ended: {server.last_words()}" if server.ended() else ""
            raise LoadFailed(f"{failure}{ended}") from None
        sample.notes += [f"the server logged: {line}" for line in server.log() if is_complaint(line)][:3]
        complaint = server.stop()
        if complaint and not (row.kind == PEER and complaint == KILLED_BY_SIGTERM):
            sample.notes.append(f"the server's end: {complaint}")


def is_complaint(line: str) -> bool:
    return " warning " in line or " error " in line or " ERROR: " in line


def orders_of(sample: Sample, settings: Settings) -> Orders:
    """Those of a sample's scenario; those of the book and the shock start cold."""
    scenario, point = sample.scenario, sample.point
    duration = settings.duration * SCENARIOS[scenario].part
    seed = settings.seed + sample.round
    crowd = max(CLIENTS, min(CROWD, int(CROWD * duration)))
    if scenario == "children":
        return Orders(None, {"do": "crowd", "count": crowd, "clients": CLIENTS})
    if scenario == UNP:
        return Orders(None, {"do": "crowd", "count": crowd, "clients": CLIENTS, "lines": BOOKS_BYTES})
    if scenario == "shock":
        return Orders(None, {"do": "crowd", "count": SHOCK, "clients": SHOCK, "lenient": True})
    what: dict[str, Any] = {"scenario": scenario}
    if scenario == "mixed":
        what |= {"scenario": "load", "point": MIXED_RATE, "connections": MIXED_CONNECTIONS}
    elif scenario == "load":
        what |= {"connections": LOAD_CONNECTIONS, "seed": seed}
    elif scenario == "connections-concurrent":
        what |= {"connections": CLIENTS}
    if point is not None:
        what["point"] = point
    warm = {"do": "warm", "seconds_each": window(duration), **what}
    measure = {"do": "measure", "duration": duration, "rate": 0.0, **what}
    if scenario == "mixed":
        measure = {
            "duration": duration,
            "rate": MIXED_RATE,
            "connections": MIXED_CONNECTIONS,
            "bulks": BULKS,
            "seed": seed,
        }
    return Orders(warm, measure)


def ask(
    bench: Bench, scenario: str, what: dict[str, Any], tick: Callable[[], None] | None
) -> tuple[dict[str, Any], Spent]:
    """The generator's answer, and what others spent to load the server beside it."""
    if scenario == "mixed":
        return beside.measure(bench, **what)
    return bench.order(tick=tick, **what), Spent(0.0, 0.0)


def take_load(sample: Sample, settings: Settings, bench: Bench, interrupt: Interrupt, server: Server) -> None:
    scenario, pool = sample.scenario, ROWS[sample.row].pool
    bulk = scenario.startswith("bulk")
    idle = tree.usage(server.pid)
    # A connection that stays open may have its own process; one that has ended may not.
    most = idle.processes if scenario in SHORT and not pool else None
    orders = orders_of(sample, settings)
    if orders.warm:
        rate = bench.order(**orders.warm)["rate"]
        if "rate" in orders.measure and scenario != "mixed":
            orders.measure["rate"] = rate
        tree.settle(interrupt, server.pid, at_most=most)
    peak = 0

    def look() -> None:
        nonlocal peak
        peak = max(peak, tree.pss(server.pid))

    before = read(bench, server)
    answer, others = ask(bench, scenario, orders.measure, look if bulk and sample.round == 1 else None)
    loaded = read(bench, server)
    settled = tree.settle(interrupt, server.pid, at_most=most)
    after, after_cgroup = settled.usage, server.cgroup_cpu()
    keep(sample, answer)
    wall = answer["wall"]
    spent = sample.figures["cpu_rusage"] = after.cpu - before.server.cpu
    if before.cgroup is not None and after_cgroup is not None:
        spent = sample.figures["cpu_cgroup"] = after_cgroup - before.cgroup
    ticks_user, ticks_system = after.user - before.server.user, after.system - before.server.system
    user = spent * ticks_user / (ticks_user + ticks_system) if ticks_user + ticks_system else spent / 2
    generator = loaded.generator - before.generator + others.generator
    target = loaded.target - before.target + others.target
    busy = loaded.machine - before.machine
    foreign = busy - (loaded.server.cpu - before.server.cpu) - generator - target
    sample.figures |= {
        "cpu": spent,
        "user": user,
        "system": spent - user,
        "generator_cpu": generator,
        "target_cpu": target,
        "foreign_cpu": max(0.0, foreign),
        "processes": after.processes,
    }
    if bulk or scenario == UNP:
        sample.figures |= switches_and_faults(before.activity, tree.activity(server.pid))
    if bulk and sample.round == 1:
        look()
        sample.figures["pss_peak"] = peak
        sample.series = [(seconds, rate) for seconds, rate in answer.get("series", ())]
    if not settled.quiet:
        sample.notes.append("the server was still busy when its CPU was read")
    used = load_side(bench, generator / wall, target / wall)
    sample.invalid = why_invalid(sample.figures, sample.service_us or sample.latency_us, used)
    waited = sample.figures.get("waited", 1.0)
    sample.limited = limit(bench, spent / wall, generator / wall, target / wall, waited)
    if pool and (scenario in ("children", UNP) or (scenario == "connections" and sample.round == 1)):
        sample.workers, served = clients_by_worker(server)
        if not sample.workers:
            sample.notes.append("its scoreboard could not be read: clients per child are unknown")
        elif scenario in ("children", UNP) and served != answer["count"]:
            sample.notes.append(f"its scoreboard counts {served} connections of {answer['count']}")


def load_side(bench: Bench, generator: float, target: float) -> float:
    """CPU of the load on the core where it takes most: seconds, or parts of a core."""
    return generator + target if bench.cores.generator == bench.cores.target else max(generator, target)


def limit(bench: Bench, server: float, generator: float, target: float, waited: float = 1.0) -> str | None:
    """What held the throughput back, if it was not the server. Arguments: parts of a core."""
    return why_limited(bench.cores.apart, server, load_side(bench, generator, target), waited)


def switches_and_faults(before: tree.Activity, after: tree.Activity) -> dict[str, float]:
    """Between two readings. A thread that ended meanwhile took its switches along: never below 0."""
    spent = [max(0, now - then) for then, now in zip(before, after, strict=True)]
    return dict(zip(("ctx_voluntary", "ctx_involuntary", "faults_minor", "faults_major"), spent, strict=True))


def clients_by_worker(server: Server) -> tuple[list[Worker], int]:
    """The scoreboard's workers, and the connections of all, those of workers that have ended included."""
    board = server.scoreboard()
    if board is None:
        return [], 0
    slots = board["slots"]
    if any(slot["tid"] != server.pid for slot in slots):  # the first thread only accepts for the others
        slots = [slot for slot in slots if slot["tid"] != server.pid or slot["connections"]]
    return [Worker(slot["connections"], slot["up"], slot["down"]) for slot in slots], board["connections"]


def take_memory(
    sample: Sample, settings: Settings, bench: Bench, interrupt: Interrupt, server: Server
) -> None:
    """PSS: idle, with connections open, and the highest while bulk flows both ways in turn."""
    clients = ROWS[sample.row].clients
    figures = sample.figures
    figures["pss_idle"] = tree.pss(server.pid)
    if clients is None or clients >= HELD:
        bench.order("hold", count=HELD)
        tree.settle(interrupt, server.pid)
        figures["pss_open"] = tree.pss(server.pid)
        figures["held"] = HELD
        bench.order("close")
    peak = 0

    def look() -> None:
        nonlocal peak
        peak = max(peak, tree.pss(server.pid))

    for scenario in ("bulk-up", "bulk-down"):
        warm = bench.order("warm", scenario=scenario, seconds_each=window(settings.duration))
        bench.order("measure", look, scenario=scenario, duration=settings.duration / 2, rate=warm["rate"])
        look()
    figures["pss_busy"] = peak


def first_reply(order: dict[str, Any]) -> float:
    """When the first client that a server has got its whole reply. Raises LoadFailed.

    This process is that client: the generator would first have to be told.
    """
    try:
        connection = Connection(Endpoint(order))
        try:
            connection.exchange(1, ONE_REQUEST.up, ONE_REQUEST.down)
            return time.monotonic()
        finally:
            connection.close()
    except Failed as failure:
        raise LoadFailed(str(failure)) from None


def take_start(sample: Sample, bench: Bench, interrupt: Interrupt, server: Server) -> None:
    """What the largest of a pool's processes, which have served and wait again, has for itself alone."""
    bench.order("first")
    tree.settle(interrupt, server.pid)
    if ROWS[sample.row].pool and (children := tree.descendants(server.pid)[1:]):
        sample.figures["worker_private"] = max(map(tree.private, children))


def take_idle(sample: Sample, bench: Bench, interrupt: Interrupt, server: Server) -> None:
    """PSS with many connections open, and how long a new one among them waits for its first byte."""
    assert sample.point is not None
    figures = sample.figures
    figures["pss_idle"], stacks_idle = tree.pss(server.pid), tree.stacks(server.pid)
    figures["held"] = bench.order("hold", count=int(sample.point))["held"]
    tree.settle(interrupt, server.pid)
    figures["pss"], stacks = tree.pss(server.pid), tree.stacks(server.pid)
    if stacks is not None and stacks_idle is not None:
        figures["stacks"] = stacks - stacks_idle
    answer = bench.order("first")
    figures["first_us"] = answer["first_us"]
    keep(sample, answer)


def read(bench: Bench, server: Server) -> Reading:
    return Reading(
        tree.usage(server.pid),
        tree.activity(server.pid),
        server.cgroup_cpu(),
        bench.generator.cpu(),
        bench.target.cpu(),
        tree.machine_busy(),
    )


def keep(sample: Sample, answer: dict[str, Any]) -> None:
    """The generator's figures into the sample."""
    sample.latency_us = [(value, count) for value, count in answer.get("latency_us", ())]
    sample.service_us = [(value, count) for value, count in answer.get("service_us", ())]
    sample.figures |= {name: answer[name] for name in FIGURES if name in answer}


def window(duration: float) -> float:
    """Seconds of one warm-up window, for a load of `duration` seconds."""
    return min(0.25, duration / 5)
