"""Routes through one program of ours and one of theirs, for every model and method.

front        near end            far end
ss-local     their SOCKS5        tunnel serve
ss-tunnel    their forwarder     tunnel serve
local        our SOCKS5          ss-server
forward      our forwarder       ss-server
control      their SOCKS5        ss-server        nothing of ours: what the peer itself can do
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from models import MODELS
from tests.harness import socks
from tests.harness.marks import SLOW, leave_out_slow
from tests.harness.process import Place, Program, Tunnel
from tests.harness.targets import PATIENCE, Target
from tests.harness.wire import KEY_SIZES, Credentials
from tests.interop.peers import PROGRAMS, Libev, require

P = TypeVar("P", bound=Program)
FRONTS = SS_LOCAL, SS_TUNNEL, LOCAL, FORWARD = "ss-local", "ss-tunnel", "local", "forward"
CONTROL = "control"
PASSWORD = "barfoo! and ünïcode"


class Case(NamedTuple):
    """What a route is made of."""

    model: str
    method: str
    front: str

    def __str__(self) -> str:
        return "-".join(self)


CASES = [
    *(Case(model, method, front) for model in MODELS for method in KEY_SIZES for front in FRONTS),
    Case("none", "aes-256-gcm", CONTROL),
]


class Route:
    """A way from a client to the target."""

    def __init__(self, directory: Path, case: Case, target: Target) -> None:
        self.case, self.target = case, target
        self.programs: list[Program] = []
        try:
            self._start(directory, case, target)
        except BaseException:
            self.close()
            raise

    def _start(self, directory: Path, case: Case, target: Target) -> None:
        secret = Credentials(case.method, PASSWORD)
        if case.front in (SS_LOCAL, SS_TUNNEL):
            server = Tunnel(directory, "serve", case.model, secret)
            place = self._run(server).place
        else:
            place = self._run(Libev(directory, "ss-server", secret)).place
        there = {"server": place.host, "server_port": place.port}
        self.fronts: dict[Place, Place] = {}  # of a forwarder: by its target
        self.proxy: Place | None = None
        if case.front in (SS_LOCAL, CONTROL):
            self.proxy = self._run(Libev(directory, "ss-local", secret, **there)).place
        elif case.front == LOCAL:
            self.proxy = self._run(Tunnel(directory, "local", case.model, secret, config=there)).place
        else:
            for end in (target.place, target.greeter):
                if case.front == SS_TUNNEL:
                    theirs = Libev(directory, "ss-tunnel", secret, tunnel_address=str(end), **there)
                    self.fronts[end] = self._run(theirs).place
                else:
                    words = ("--target", str(end))
                    ours = Tunnel(directory, "forward", case.model, secret, *words, config=there)
                    self.fronts[end] = self._run(ours).place

    def _run(self, program: P) -> P:
        self.programs.append(program)
        return program

    def connect(self, place: Place | None = None) -> socket.socket:
        """A connection to the target, or to its other port."""
        place = place or self.target.place
        if self.proxy:
            sock = socks.connect(self.proxy, place)
        else:
            sock = socket.create_connection(self.fronts[place])
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def close(self) -> None:
        for program in self.programs:
            program.kill()

    def stumbled(self) -> str:
        """The log of a program that shows a traceback, or nothing."""
        return "\n".join(program.log() for program in self.programs if "Traceback" in program.log())


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", SLOW)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out_slow(config, items)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each model meets each program by one method; `-m "slow or not slow"` runs all pairs of both."""
    if "case" not in metafunc.fixturenames:
        return
    models, methods = list(MODELS), list(KEY_SIZES)
    cases = []
    for case in CASES:
        quick = case.front == CONTROL or methods.index(case.method) == (
            models.index(case.model) + FRONTS.index(case.front)
        ) % len(methods)
        cases.append(pytest.param(case, marks=[] if quick else [pytest.mark.slow]))
    metafunc.parametrize("case", cases, ids=str, scope="session")


@pytest.fixture(scope="session")
def target() -> Iterator[Target]:
    with Target() as target:
        yield target


@pytest.fixture(scope="session")
def routes() -> Iterator[list[Route]]:
    """The one route that is up."""
    up: list[Route] = []
    yield up
    for route in up:
        route.close()


@pytest.fixture
def control(target: Target, tmp_path: Path) -> Iterator[Route]:
    """Their two programs, and nothing of ours."""
    require(*PROGRAMS)
    route = Route(tmp_path, Case("none", "aes-256-gcm", CONTROL), target)
    yield route
    route.close()


@pytest.fixture
def route(
    case: Case, target: Target, routes: list[Route], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Route]:
    require(*PROGRAMS)
    if routes and routes[0].case != case:
        routes.pop().close()
    if not routes:
        routes.append(Route(tmp_path_factory.mktemp("route"), case, target))
    route = routes[0]
    try:
        yield route
        assert not route.stumbled(), route.stumbled()
    except BaseException:
        routes.remove(route)
        route.close()
        raise
    finally:
        for program in route.programs:
            print(program.log())  # shown with a failure
