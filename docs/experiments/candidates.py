"""Do `gevent` and `io_uring` earn a place among the models? Both beside six that have one.

    python docs/experiments/candidates.py [--rounds N] [--seconds S] [--only ROW,ROW] [SCENARIO ...]

    up, down      one stream                                          CPU per byte
    connection    short connections, one after the other              CPU each
    request       64 bytes each way on one open connection            CPU each
    burst         the same, on 100 open connections at once           CPU each
    idle          1,000 connections, each used once and then open     memory each

In each round every server is started, measured once and stopped, in an order left to chance. A figure is
a server's own, divided by that of `epoll` in the same round: the median of these ratios, and the 95%
interval of it. The load, the clocks and the statistics are those of compare/. Needs gevent and uring-api.

Rules: one load at a time, on loopback. Without gevent or uring-api their rows are left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

from tabulate import tabulate

import models
import tunnel.cli
from compare import sample, servers, tree
from compare.analysis import METRICS
from compare.bench import Bench, LoadFailed
from compare.client import Connection, Endpoint
from compare.exchange import CHUNK
from compare.interrupt import Interrupt, Interrupted
from compare.load import PING
from compare.peers import Listen
from compare.plan import Planned
from compare.schema import Settings
from compare.servers import PASSWORD, ROWS, Row, ServerFailed, row_of
from compare.stats import estimate
from models import Model
from tunnel.keys import DEFAULT_METHOD

BASE = "epoll"
BESIDE = ("thread", "poll", BASE, "trampoline", "asyncio", "uvloop")
BURST, IDLE = 100, 1000  # connections
WARM_BURSTS = 5
AS_TUNNEL = "tunnel"  # first argument of this program when it is a server


class Candidate(Model):
    """A line as the registry has it; the model itself lies beside this file."""

    __slots__ = ()

    def load(self) -> Callable[[Any], None]:
        module, _, name = self.source.partition(".")
        serve: Callable[[Any], None] = getattr(import_module(module), name)
        return serve


CANDIDATES = {
    model.name: model
    for model in (
        Candidate("gevent", "loop", "gevent_server.serve", "blocking code on greenlets", needs="gevent"),
        Candidate("io_uring", "loop", "io_uring_server.serve", "a buffer a recv", needs="uring_api"),
        Candidate(
            "io_uring-shared", "loop", "io_uring_server.serve_shared", "buffers shared", needs="uring_api"
        ),
    )
    if find_spec(str(model.needs))
}


class Taker(NamedTuple):
    """Takes one figure of one server. Raises LoadFailed, ServerFailed."""

    bench: Bench
    interrupt: Interrupt
    seconds: float

    def by_compare(self, row: Row, scenario: str, metric: str) -> float:
        settings = Settings([scenario], 1, self.seconds, 1, DEFAULT_METHOD)
        taken = sample.take(Planned(row.name, scenario, 1), settings, self.bench, self.interrupt)
        value = None if taken.invalid else METRICS[metric].of(taken)
        if value is None or taken.notes:
            raise ServerFailed(f"{row.name}, {scenario}: {taken.invalid or taken.notes}")
        return value

    def burst(self, row: Row) -> float:
        """CPU microseconds of a request, when as many come together as there are connections."""
        with self._start(row) as server:
            place = {"port": server.port, "target": self.bench.target_port}
            endpoint = Endpoint({**place, "method": DEFAULT_METHOD, "password": PASSWORD})
            connections = [Connection(endpoint) for _ in range(BURST)]
            bursts = WARM_BURSTS + max(1, int(50 * self.seconds))
            for number in range(bursts):
                if number == WARM_BURSTS:
                    before = tree.settle(self.interrupt, server.pid).usage.cpu
                for connection in connections:
                    connection._send(number, PING.up, PING.down, CHUNK)
                for connection in connections:
                    connection._receive(number, PING.down)
            spent = tree.settle(self.interrupt, server.pid).usage.cpu - before
            for connection in connections:
                connection.finish()
        return spent / (bursts - WARM_BURSTS) / BURST * 1e6

    def idle(self, row: Row) -> float:
        """Kilobytes of the server's own memory for each open connection."""
        with self._start(row) as server:
            port, target = server.port, self.bench.target_port
            self.bench.order("open", port=port, target=target, method=DEFAULT_METHOD, password=PASSWORD)
            before = tree.pss(server.pid)
            self.bench.order("hold", count=IDLE)
            tree.settle(self.interrupt, server.pid)
            after = tree.pss(server.pid)
            self.bench.order("close")
        return (after - before) / IDLE / 1e3

    def _start(self, row: Row) -> servers.Server:
        server = servers.start(row, DEFAULT_METHOD, self.bench.cores.server, self.interrupt)
        tree.settle(self.interrupt, server.pid)
        return server


class Scenario(NamedTuple):
    unit: str
    take: Callable[[Taker, Row], float]


SCENARIOS = {
    "up": Scenario("CPU-s/GB", lambda taker, row: taker.by_compare(row, "bulk-up", "up_cpu")),
    "down": Scenario("CPU-s/GB", lambda taker, row: taker.by_compare(row, "bulk-down", "down_cpu")),
    "connection": Scenario(
        "CPU us", lambda taker, row: taker.by_compare(row, "connections", "connection_cpu")
    ),
    "request": Scenario("CPU us", lambda taker, row: taker.by_compare(row, "ping-pong", "ping_cpu")),
    "burst": Scenario("CPU us", Taker.burst),
    "idle": Scenario("KB", Taker.idle),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures gevent and io_uring beside existing models.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of load in one sample")
    parser.add_argument("--only", help="these rows and no others, with commas")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else [*BESIDE, *CANDIDATES]
    scenarios = arguments.scenarios or list(SCENARIOS)
    ROWS.update({name: row_of(model) for name, model in CANDIDATES.items()})
    of_compare = servers.command

    def command(row: Row, listen: Listen) -> list[str]:
        program = of_compare(row, listen)
        if row.name in CANDIDATES:  # the installed command does not know them
            program[1 : program.index("serve")] = [os.path.abspath(__file__), AS_TUNNEL]
        return program

    servers.command = command
    interrupt = Interrupt()
    interrupt.install()
    figures: dict[tuple[str, str], list[float]] = {}
    chance = random.Random(1)
    with Bench(interrupt) as bench:
        os.sched_setaffinity(0, bench.cores.generator)  # the bursts are sent from here
        taker = Taker(bench, interrupt, arguments.seconds)
        for _ in range(arguments.rounds):
            for scenario in scenarios:
                for name in chance.sample(names, len(names)):
                    try:
                        value = SCENARIOS[scenario].take(taker, ROWS[name])
                    except (LoadFailed, ServerFailed) as failure:
                        sys.exit(f"candidates: {name}, {scenario}: {failure}")
                    except Interrupted:
                        sys.exit("candidates: interrupted")
                    figures.setdefault((name, scenario), []).append(value)
    show(names, scenarios, figures)


def show(names: list[str], scenarios: list[str], figures: dict[tuple[str, str], list[float]]) -> None:
    """A table of ratios, and below it what they are ratios to."""
    packages = ("gevent", "uring-api", "uvloop", "cryptography")
    known = [f"{name} {version(name)}" for name in packages if find_spec(name.replace("-", "_"))]
    linux = platform.release().partition("-")[0]
    print(f"Python {platform.python_version()}, Linux {linux}, {', '.join(known)}")
    rows = [[name, *(ratio(figures, name, scenario) for scenario in scenarios)] for name in names]
    medians = [f"{estimate(figures[BASE, one]).value:.3g} {SCENARIOS[one].unit}" for one in scenarios]
    print(tabulate([*rows, [f"{BASE} itself", *medians]], ["server", *scenarios], "github"))


def ratio(figures: dict[tuple[str, str], list[float]], name: str, scenario: str) -> str:
    if name == BASE:
        return "1"
    pairs = zip(figures[name, scenario], figures[BASE, scenario], strict=True)
    value, low, high, _ = estimate([one / base for one, base in pairs])
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    if sys.argv[1:2] == [AS_TUNNEL]:
        models.MODELS.update(CANDIDATES)
        sys.exit(tunnel.cli.main(sys.argv[2:]))
    main()
