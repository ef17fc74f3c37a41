"""Iterative: one client after the other.

    clients   [ listener ]
       o ------> queue
       o ------> queue          +--------- the only process --------+
       o ======> accept ======> |  accepted <== copy ==> dialled    |
                                +-----------------------------------+

UNP 30.4. The baseline of chapter 30: no process control at all, so what another model costs above
this one is what its process control costs.

Differs from: nothing, everything else differs from this.
Good when: requests are short, or there is one client: then nothing is cheaper.
Breaks when: one client is slow. Everybody behind it waits in the listener's queue.
"""

from __future__ import annotations

from models._pump import serve_client
from models._server import Server


def serve(server: Server) -> None:
    slot = server.scoreboard.take()
    slot.own("tunnel: iterative")
    # fig: accept loop
    while accepted := server.accept(slot):
        serve_client(server, slot, accepted)
    # end fig
