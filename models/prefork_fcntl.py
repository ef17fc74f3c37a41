"""Prefork-fcntl: a file lock, and only the child that holds it is in accept.

                               +-- worker 1: in accept, holds the lock --+
    client ==> [ listener ] -> |  then serves, and lets the next one in  |
                               +-----------------------------------------+
             [ lock file ] --> +-- worker 2: blocked in fcntl -----------+
                         `---> +-- worker N: blocked in fcntl -----------+
                                       ^
                    master ------------'  starts, replaces and ends them; more when none is idle

UNP 30.7. Where accept must not be called by many at once (System V's was a library over streams), or
where each connection would wake them all, a lock lets one in.

Differs from `prefork`: a lock around accept.
Good when: the kernel wakes a herd. Linux does not, so here it shows what the lock itself costs.
Breaks when: nothing that `prefork` survives. A POSIX record lock goes with the process that holds it,
so a holder that is killed lets the next one in; one that is stopped keeps all the others out until the
heartbeat finds it.
"""

from __future__ import annotations

from functools import partial

from models._filelock import FileLock
from models._master import Pool
from models._pump import serve_client
from models._scoreboard import LOCK, Slot
from models._server import Server


def serve(server: Server) -> None:
    Pool(server, partial(work, FileLock())).run()


def work(lock: FileLock, server: Server, slot: Slot) -> None:
    def keep_waiting() -> bool:
        slot.beat()
        return not server.stop.asked()

    # fig: accept loop
    while True:
        slot.enter(LOCK)
        if not lock.acquire(keep_waiting):
            break
        accepted = server.accept(slot)
        lock.release()
        if not accepted:
            break
        serve_client(server, slot, accepted)
    # end fig
