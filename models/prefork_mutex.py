"""Prefork-mutex: a mutex in shared memory, and only the child that holds it is in accept.

                               +-- worker 1: in accept, holds the mutex --+
    client ==> [ listener ] -> |  then serves, and lets the next one in   |
                               +------------------------------------------+
         [ shared memory ] --> +-- worker 2: waits for the mutex ---------+
                         `---> +-- worker N: waits for the mutex ---------+
                                       ^
                    master ------------'  starts, replaces and ends them; more when none is idle

UNP 30.8.

Differs from `prefork-fcntl`: the lock is memory that all map, not a file that the kernel keeps for
them, so taking it while it is free costs no system call.
Good when: the kernel wakes a herd. Linux does not, so here it shows what the lock itself costs.
Breaks when: nothing that `prefork` survives. The mutex is robust: one whose holder was killed goes to
the next, with a note. One whose holder is stopped keeps the others out until the heartbeat finds it.
"""

from __future__ import annotations

from functools import partial

from models._master import Pool
from models._mutex import RobustMutex
from models._pump import serve_client
from models._scoreboard import LOCK, Slot
from models._server import Server


def serve(server: Server) -> None:
    Pool(server, partial(work, RobustMutex())).run()


def work(lock: RobustMutex, server: Server, slot: Slot) -> None:
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
