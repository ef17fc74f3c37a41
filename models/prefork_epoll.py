"""Prefork-epoll: one epoll loop for each child, one listener for all.

                             +-- worker 1 ---------------------------------------+
    clients ==> [ listener ] |  epoll --> listener, client, client, ...  its own |
                   |   |     +---------------------------------------------------+
                   |   `---> +-- worker N: epoll --> listener, client, ... ------+
                   |
                   `-- master: holds it open, starts, replaces and ends workers

UNP stops before this, but it is after UNP 30.6 and 6: the shape of nginx and lighttpd (server.max-worker).
As many workers as processors; each serves any number of clients.

Differs from `poll`: a loop for each processor. Differs from `prefork`: a child never waits for one client.
EPOLLEXCLUSIVE keeps a new client from waking every loop; the kernel wakes one that sleeps, or a few.
Good when: clients are many, some of them idle, and there is more than one processor.
Breaks when: the load is light, and evenness matters: the loop that went to sleep last is woken first. A
loop also takes whatever is there, so one may have long-lived clients that another would have time for.
"""

from __future__ import annotations

import select

from models._epoll import Epoll
from models._loop import Callback, Loop
from models._master import Pool
from models._scoreboard import Slot
from models._server import Server


def serve(server: Server) -> None:
    Pool(server, work).run()


def work(server: Server, slot: Slot) -> None:
    # fig: after the fork
    Loop(server, Shared(), slot).run()
    # end fig


class Shared(Epoll):
    """Watches listeners together with other processes, of which the kernel need not wake all."""

    def on_connection(self, fd: int, callback: Callback) -> None:
        self.flags = select.EPOLLEXCLUSIVE
        self.on_readable(fd, callback)
        self.flags = 0
