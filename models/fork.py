"""Fork: one child for each client.

                                  +-- child --------------------------+
    client ==> [ listener ] -+--> |  accepted <== copy ==> dialled    | --> exit
                             |    +-----------------------------------+
              accept, fork  -+--> +-- child --------------------------+
              close accepted      |  accepted <== copy ==> dialled    | --> exit
                  ^               +-----------------------------------+
                  `------- SIGCHLD: waitpid until nobody is left -----'

UNP 30.5, with 5.9 and 5.10 for the children that have ended.

Differs from `iterative`: the copy runs in a child, the parent is back in accept at once.
Good when: clients must not be able to hurt one another; a crash costs one connection.
Breaks when: connections are many and short. A fork costs more than many of them are worth, and it
costs by what the parent has imported: the child copies page tables, then pages.
"""

from __future__ import annotations

import gc
import os
import signal
import socket

from models._master import FORKING, Children, run_child
from models._pump import serve_client
from models._rehearsal import rehearse
from models._scoreboard import Slot
from models._server import Server
from tunnel.log import describe, log


def serve(server: Server) -> None:
    # Made here, so that each child finds its own, empty.
    server.drain_anew(in_thread=False)
    rehearse(server, serve_in_child)
    gc.freeze()  # a collection in a child would write to, and so copy, every page with an object
    children = Children(server)
    signal.signal(signal.SIGCHLD, children.reap)
    own = server.scoreboard.take()
    own.own("tunnel: fork")
    # fig: accept loop
    while accepted := server.accept(own):
        slot = server.scoreboard.take()
        signal.pthread_sigmask(signal.SIG_BLOCK, FORKING)
        try:
            pid = os.fork()
        except OSError as error:
            log.error(f"client dropped: cannot fork: {describe(error)}")
            server.scoreboard.forget(slot)
            server.limits.claim(accepted.fileno()).leave()
        else:
            if pid == 0:
                run_child(serve_in_child, server, slot, accepted)
            server.limits.give(accepted.fileno(), pid)
            children.started(pid, slot)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORKING)
        accepted.close()
    # end fig
    children.wait()


def serve_in_child(server: Server, slot: Slot, accepted: socket.socket) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORKING)
    for listener in server.listeners:
        listener.close()
    slot.own()
    serve_client(server, slot, accepted)
    if len(server.drain):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a drain need not be finished, a transfer must
        if not server.stop.impatient:
            server.drain.finish()
