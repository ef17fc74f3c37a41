"""One sample: a fresh server, warmed up, measured once, stopped.

    start --> settle --> warm up --> settle --> READ --> load --> settle --> READ --> stop
                          thrown away             `------ the figures -------'

Bulk and ping-pong keep their connection open across both readings, so that neither its start nor
its end is in the figures. Connections are all in: the second reading waits until the server has
reaped the children that served them, or their CPU would be counted nowhere. A pool may grow and
shrink by itself meanwhile, so its size is not waited for. Who of a pool served how many is asked of
its scoreboard, last of all.

Rules: whatever goes wrong with a server makes its sample invalid, with the reason, and not the run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from compare import servers, tree
from compare.bench import Bench, LoadFailed
from compare.interrupt import Interrupt
from compare.plan import CHILDREN, CLIENTS, CROWD, Planned
from compare.schema import Sample, Settings, Worker
from compare.servers import AEAD, DIRECT, ROWS, Server, ServerFailed

SATURATED = 0.95  # of a core
HELD = 10  # connections that the memory scenario opens


class Reading(NamedTuple):
    """The clocks of everybody at one moment."""

    server: tree.Usage
    generator: float
    target: float
    machine: float


def take(planned: Planned, settings: Settings, bench: Bench, interrupt: Interrupt) -> Sample:
    """Takes one sample. Raises Interrupted, BenchFailed."""
    sample = Sample(planned.row, planned.scenario, planned.round)
    try:
        if planned.row == AEAD:
            sample.figures = take_aead(settings, bench)
        elif planned.row == DIRECT:
            take_direct(sample, settings, bench)
        else:
            take_server(sample, settings, bench, interrupt)
    except (LoadFailed, ServerFailed) as failure:
        sample.invalid = str(failure)
    except ProcessLookupError:
        sample.invalid = "the server ended by itself"
    return sample


def take_aead(settings: Settings, bench: Bench) -> dict[str, float]:
    return bench.order("aead", method=settings.method, duration=settings.duration / 2)


def take_direct(sample: Sample, settings: Settings, bench: Bench) -> None:
    bench.order("open", port=bench.target_port, target=bench.target_port, method=None, password=None)
    warm = bench.order("warm", scenario=sample.scenario, seconds_each=window(settings))
    answer = bench.order("measure", scenario=sample.scenario, duration=settings.duration, rate=warm["rate"])
    bench.order("close")
    keep(sample, answer)


def take_server(sample: Sample, settings: Settings, bench: Bench, interrupt: Interrupt) -> None:
    row = ROWS[sample.row]
    workers = CHILDREN if sample.scenario == "children" else None
    with servers.start(row, settings.method, bench.cores.server, interrupt, workers) as server:
        tree.settle(interrupt, server.pid)
        bench.order(
            "open",
            port=server.port,
            target=bench.target_port,
            method=settings.method,
            password=servers.PASSWORD,
        )
        try:
            if sample.scenario == "memory":
                take_memory(sample, settings, bench, interrupt, server)
            else:
                take_load(sample, settings, bench, interrupt, server)
            bench.order("close")
        except LoadFailed as failure:
            ended = f"; the server has ended: {server.last_words()}" if server.ended() else ""
            raise LoadFailed(f"{failure}{ended}") from None
        sample.notes += [f"the server logged: {line}" for line in server.log() if is_complaint(line)][:3]
        if complaint := server.stop():
            sample.notes.append(f"the server's end: {complaint}")


def is_complaint(line: str) -> bool:
    return " warning " in line or " error " in line or " ERROR: " in line


def take_load(sample: Sample, settings: Settings, bench: Bench, interrupt: Interrupt, server: Server) -> None:
    scenario, pool = sample.scenario, ROWS[sample.row].pool
    idle = tree.usage(server.pid)
    # A connection that stays open may have its own process; one that has ended may not.
    most = idle.processes if scenario == "connections" and not pool else None
    if scenario == "children":  # as in the book, from the first connection on
        size = max(CLIENTS, min(CROWD, int(CROWD * settings.duration)))
        order: dict[str, Any] = {"do": "crowd", "count": size, "clients": CLIENTS}
    else:
        warm = bench.order("warm", scenario=scenario, seconds_each=window(settings))
        tree.settle(interrupt, server.pid, at_most=most)
        order = {"do": "measure", "scenario": scenario, "duration": settings.duration, "rate": warm["rate"]}
    before = read(bench, server)
    answer = bench.order(**order)
    loaded = read(bench, server)
    settled = tree.settle(interrupt, server.pid, at_most=most)
    after = settled.usage
    keep(sample, answer)
    wall = answer["wall"]
    spent = after.cpu - before.server.cpu
    ticks_user, ticks_system = after.user - before.server.user, after.system - before.server.system
    user = spent * ticks_user / (ticks_user + ticks_system) if ticks_user + ticks_system else spent / 2
    generator, target = loaded.generator - before.generator, loaded.target - before.target
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
    if not settled.quiet:
        sample.notes.append("the server was still busy when its CPU was read")
    sample.limited = limit(bench, spent / wall, generator / wall, target / wall)
    if pool and (scenario == "children" or (scenario == "connections" and sample.round == 1)):
        sample.workers, served = clients_by_worker(server)
        if not sample.workers:
            sample.notes.append("its scoreboard could not be read: clients per child are unknown")
        elif scenario == "children" and served != answer["count"]:
            sample.notes.append(f"its scoreboard counts {served} connections of {answer['count']}")


def clients_by_worker(server: Server) -> tuple[list[Worker], int]:
    """The scoreboard's workers, and the connections of all, those of workers that have ended included."""
    board = server.scoreboard()
    if board is None:
        return [], 0
    slots = board["slots"]
    if any(slot["tid"] != server.pid for slot in slots):  # the first thread only accepts for the others
        slots = [slot for slot in slots if slot["tid"] != server.pid or slot["connections"]]
    return [Worker(slot["connections"], slot["up"], slot["down"]) for slot in slots], board["connections"]


def limit(bench: Bench, server: float, generator: float, target: float) -> str | None:
    """What held the throughput back, if it was not the server. Arguments: parts of a core."""
    if not bench.cores.apart:
        return "server and generator share one core"
    if server >= SATURATED:
        return None
    shared = bench.cores.generator == bench.cores.target
    most = generator + target if shared else max(generator, target)
    return "generator and target use their whole core" if most >= SATURATED else None


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
        warm = bench.order("warm", scenario=scenario, seconds_each=window(settings))
        bench.order("measure", look, scenario=scenario, duration=settings.duration / 2, rate=warm["rate"])
        look()
    figures["pss_busy"] = peak


def read(bench: Bench, server: Server) -> Reading:
    return Reading(
        tree.usage(server.pid),
        bench.generator.cpu(),
        bench.target.cpu(),
        tree.machine_busy(),
    )


def keep(sample: Sample, answer: dict[str, Any]) -> None:
    """The generator's figures into the sample."""
    sample.latency_us = [(value, count) for value, count in answer.get("latency_us", ())]
    sample.figures |= {name: answer[name] for name in ("wall", "count", "bytes") if name in answer}


def window(settings: Settings) -> float:
    """Seconds of one warm-up window."""
    return min(0.25, settings.duration / 5)
