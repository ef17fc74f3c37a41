"""The house that asyncio, uvloop and tornado share: what it does with who comes, beside serving them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from types import SimpleNamespace
from typing import cast

from models._house import House
from models._limits import Limits
from models._scoreboard import Scoreboard
from models._server import Accept, Server
from models._stop import Renewal, Stop


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
