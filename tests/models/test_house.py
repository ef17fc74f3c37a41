"""The house that asyncio, uvloop and tornado share: what it does with who comes, beside serving them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import cast

from models._house import House
from models._limits import Limits
from models._scoreboard import Scoreboard
from models._server import Accept, Server
from models._stop import Renewal, Stop
from tunnel.drain import Drain


class Guest:
    """Comes, and leaves."""

    async def run(self) -> None:
        pass

    def on_stop(self) -> None:
        pass


def test_whoever_is_admitted_ends_a_shortage_and_counts_for_max_requests() -> None:
    """Else a shortage is said once in a life."""

    async def admit_one() -> None:
        house = House(server, Scoreboard("asyncio", "relay").take())
        house.admit(Guest())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = Stop([listener], 1.0, Renewal(lambda: True, lambda: None))
        accept = Accept([listener], stop, Limits())
        server = cast("Server", SimpleNamespace(stop=stop, accept=accept))
        accept.left = 2
        accept.survive(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        assert accept._short
        asyncio.run(admit_one())
        assert not accept._short
        assert (accept.left, stop.requested) == (1, False)
        asyncio.run(admit_one())
        assert (accept.left, stop.requested) == (0, True)


class Probe(Guest):
    """Is drained until it is told to go."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self.sock = sock
        self.seconds = seconds
        self.gone = False

    def on_stop(self) -> None:
        self.gone = True


def test_beyond_the_cap_the_source_that_has_most_loses_who_is_next_to_the_end() -> None:
    """As in tunnel/drain.py, which has the sockets of all other models."""

    async def drain_all() -> list[bool]:
        house = House(server, Scoreboard("asyncio", "relay").take())
        with ExitStack() as drained:
            for probe in probes:
                drained.enter_context(house.draining(probe, probe.sock, time.monotonic() + probe.seconds))
        assert not house._drained
        return [probe.gone for probe in probes]

    server = cast("Server", SimpleNamespace(drain=Drain(capacity=4), stop=SimpleNamespace()))
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as sockets:
        probes = []
        for host, seconds in (("127.0.0.9", 1), ("127.0.0.1", 50), ("127.0.0.1", 30), ("127.0.0.1", 40)):
            near = socket.create_connection(listener.getsockname(), 5.0, (host, 0))
            probes.append(Probe(sockets.enter_context(listener.accept()[0]), seconds))
            sockets.enter_context(near)
        probes += [Probe(probes[1].sock, 60), Probe(probes[1].sock, 60)]
        assert asyncio.run(drain_all()) == [False, False, True, True, False, False]
    server.drain.close()
