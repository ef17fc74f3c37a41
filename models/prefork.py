"""Prefork: a pool of children, each of them in accept.

                               +-- worker 1 -------------------------+
    client ==> [ listener ] -> |  accepted <== copy ==> dialled      |
                   |           +-------------------------------------+
                   +---------> +-- worker 2: blocked in accept ------+
                   +---------> +-- worker N: blocked in accept ------+
                                       ^
                    master ------------'  starts, replaces and ends them; more when none is idle

UNP 30.6. The kernel decides who gets the next connection: Linux wakes one waiter, the one that has
waited longest, so there is no thundering herd left, and the load is even.

Differs from `fork`: the forks happen before the clients come, and a child serves many of them.
Good when: connections are short and a crash must stay small.
Breaks when: there are more clients at once than workers; the others wait in the listener's queue.
"""

from __future__ import annotations

from models._master import Pool
from models._pump import serve_client
from models._scoreboard import Slot
from models._server import Server


def serve(server: Server) -> None:
    Pool(server, work).run()


def work(server: Server, slot: Slot) -> None:
    # fig: accept loop
    while accepted := server.accept(slot):
        serve_client(server, slot, accepted)
    # end fig
