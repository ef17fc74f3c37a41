"""A rehearsal: made-up clients are served before the first fork.

    a child of a moment: client ==> [ this process: serve, as ever ] ==> target: the same child

Whatever happens only once in a process (symbols bound, ciphers looked up, bytecode specialised) writes
to memory, and each page written to after a fork is a page copied. Done here, it is done once for all
children (docs/performance.md says what it saves).

Rules: the path is the real one, object for object and system call for system call; the first time of
whatever is left out would be every child's. Nobody outside hears of it: loopback is all that is dialled.
Where there is no loopback there is no rehearsal.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from models._pump import serve_client
from models._scoreboard import Slot
from models._server import Rehearsal, Server, Timeouts
from tunnel.address import Address
from tunnel.connection import accept_from, seconds
from tunnel.log import describe, log

REHEARSALS = 10  # CPython 3.11 specialises bytecode at the eighth run
PATIENCE = 1.0  # seconds for a step that takes microseconds


def rehearse(server: Server, serve: Callable[[Server, Slot, socket.socket], None] = serve_client) -> None:
    """Before the first fork. `serve` is what will be done for each connection."""
    service, listeners, slot = server.service, server.listeners, server.scoreboard.take()
    stage = None
    try:
        with loopback() as front, loopback() as back:
            # The server itself, and no copy of it: bytecode is specialised for one layout of an object.
            dial = service.rehearsal.dial(Address(*back.getsockname()))
            # Another user of the machine may find the port: he holds up the start for no longer than this.
            patience = Timeouts(*[PATIENCE] * 3)
            server.service = stage = service._replace(
                dial=dial, timeouts=patience, copy=service.copy or "poll"
            )
            pid = os.fork()
            if pid == 0:
                play(service.rehearsal, front, back, service.new_session().dials)
            try:
                for _ in range(REHEARSALS):
                    with front.dup() as listener:
                        server.listeners = [listener]
                        accepted = accept_from(front)
                        serve(server, slot, accepted)
            finally:
                os.waitpid(pid, 0)
    except OSError as error:
        log.debug(f"no rehearsal: {describe(error)}")
    finally:
        if server.service is stage:  # no reload has come in between
            server.service = service
        server.listeners = listeners
        server.scoreboard.forget(slot)


def loopback() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds(PATIENCE))
    return listener


def play(words: Rehearsal, front: socket.socket, back: socket.socket, dials: bool) -> None:
    """The clients and their targets, one pair after the other, in a child."""
    try:
        for _ in range(REHEARSALS):
            with socket.create_connection(front.getsockname(), PATIENCE) as client:
                client.sendall(words.client(Address(*back.getsockname())))
                client.shutdown(socket.SHUT_WR)
                if dials:
                    target, _ = back.accept()
                    target.sendall(words.target())
                    target.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass
    finally:
        os._exit(os.EX_OK)
