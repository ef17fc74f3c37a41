"""Tornado: TCPServer, IOStream, and a coroutine for each direction.

                     +------------------------- IOLoop, the only thread -------------------------+
    client ==> [ listener ] --> TCPServer.handle_stream --> request, dial                        |
                     |              accepted.read_into --> flow --> dialled.write, awaited       |
                     |              dialled.read_into --> flow --> accepted.write, awaited       |
                     +---------------------------------------------------------------------------+
    with --workers N: N of these processes under our master, the listener shared

Tornado's loop and streams, after UNP: code of the shape of the blocking models, where `await` stands
for a system call that would block. The body is `_streams.py`.

Differs from `asyncio`: streams instead of protocols. Who reads waits for the bytes, who writes waits
until they are sent, and that alone is the backpressure. `fork_processes` is not used: its parent knows
no signal, no heartbeat and no reload, and gives up after a hundred deaths, where our master does not.
Good when: there is a Tornado already, and the traffic is small.
Breaks when: connections are idle by the thousand: each has a read in progress, and lends it a buffer.
And an IOStream closes its socket at a FIN: `Stream` below must tell it that a byte has come.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.tcpserver import TCPServer

from models._house import House
from models._master import Pool
from models._scoreboard import Slot
from models._server import OUT_OF_RESOURCES, RESOURCE_PAUSE, Server
from models._streams import Client
from tunnel.connection import in_full


class Tunnel(TCPServer):
    """Admits every client that comes to the house."""

    def __init__(self, house: House) -> None:
        super().__init__()
        self.house = house

    def open(self) -> None:
        self.add_sockets([Listener(listener, self.house) for listener in self.house.server.listeners])

    # fig: accept
    def handle_stream(self, stream: IOStream, address: Any) -> None:  # noqa: ARG002
        self.house.admit(Client(self.house, stream.socket))
        if self.house.server.stop.requested:
            self.stop()

    # end fig


class Listener(socket.socket):
    """A duplicate of a listener. TCPServer has no words for errors of accept, and tries again at once."""

    def __init__(self, original: socket.socket, house: House) -> None:
        duplicate = original.dup()
        super().__init__(duplicate.family, duplicate.type, duplicate.proto, duplicate.detach())
        self.setblocking(False)
        self._house = house

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            accepted = in_full(self._house.server.accept.take(self))
        except BlockingIOError:
            raise
        except OSError as error:
            self._house.server.accept.survive(error)
            if error.errno in OUT_OF_RESOURCES:
                IOLoop.current().update_handler(self, 0)
                IOLoop.current().call_later(RESOURCE_PAUSE, self._again)
            raise BlockingIOError from None
        return accepted, None  # nobody asks for the address

    def _again(self) -> None:
        if self.fileno() >= 0:
            IOLoop.current().update_handler(self, IOLoop.READ)


def serve(server: Server) -> None:
    # What Tornado says of streams is said in our own log, by whoever knows their client.
    logging.getLogger("tornado.general").disabled = True
    if server.service.workers == (1, 1):
        slot = server.scoreboard.take()
        slot.own("tunnel: tornado")
        work(server, slot)
    else:
        Pool(server, work).run()


def work(server: Server, slot: Slot) -> None:
    # fig: loop
    asyncio.run(serve_all(server, slot))
    # end fig


async def serve_all(server: Server, slot: Slot) -> None:
    house = House(server, slot)
    tunnel = Tunnel(house)
    await house.run(tunnel.open, tunnel.stop)
