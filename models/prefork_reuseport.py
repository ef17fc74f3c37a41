"""Prefork-reuseport: one loop for each child, and a listener for each.

    clients ==> port --- hash --> [ listener 1 ] --> worker 1: epoll --> listener, client, client, ...
                          |
                          `-----> [ listener N ] --> worker N: epoll --> listener, client, client, ...
                                       ^
              master ------------------'  made all of them, and keeps them open

UNP stops before this, and it is after UNP 7.5, whose SO_REUSEPORT it is: since Linux 3.9 connections to one
port are spread over all its listeners, by a hash of both addresses. No queue has two readers.

Differs from `prefork-epoll`: a worker has its listeners to itself, so there is nobody to wake in vain.
Good when: connections are many and short: they are spread evenly, whoever sleeps and whoever works.
Breaks when: one worker is slow: clients hashed to it wait, although others are idle. (A child that served
one client at a time would let its next ones wait for as long as the first one stays.) And the number of
listeners is fixed: closing one drops what waits in its queue, so the master keeps them for the successors.
"""

from __future__ import annotations

from models._epoll import Epoll
from models._loop import Loop
from models._master import Pool
from models._scoreboard import Slot
from models._server import Server


def serve(server: Server) -> None:
    Pool(server, work, resizable=False).run()


def work(server: Server, slot: Slot) -> None:
    # fig: its own listener
    server.listeners = server.listeners[slot.seat :: server.service.workers.most]
    Loop(server, Epoll(), slot).run()
    # end fig
