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
from types import FrameType

from models._master import reap_one, run_child
from models._pump import describe, rehearse, serve_client
from models._server import Server
from tunnel.drain import Drain
from tunnel.log import log


def serve(server: Server) -> None:
    rehearse(server)
    gc.freeze()  # a collection in a child would write to, and so copy, every page with an object
    children = server.stop.children

    def reap(_number: int, _frame: FrameType | None) -> None:
        # fig: SIGCHLD handler
        while pid := reap_one()[0]:
            children.symmetric_difference_update((pid,))
        # end fig

    signal.signal(signal.SIGCHLD, reap)
    # fig: accept loop
    while accepted := server.accept():
        try:
            pid = os.fork()
        except OSError as error:
            log.error(f"client dropped: cannot fork: {describe(error)}")
            accepted.close()
            continue
        if pid == 0:
            run_child(lambda: serve_in_child(server, accepted))
        # The child may have been reaped already: whoever of the two comes second removes the pid.
        children.symmetric_difference_update((pid,))
        accepted.close()
    # end fig
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    while children:
        children.discard(os.wait()[0])


def serve_in_child(server: Server, accepted: socket.socket) -> None:
    for listener in server.listeners:
        listener.close()
    server = server._replace(drain=Drain(in_thread=False))
    serve_client(server, accepted)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a drain need not be finished, a transfer must
    server.drain.finish()
