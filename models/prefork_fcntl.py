"""Prefork with a file lock: only the child that holds it is in accept.

                               +-- worker 1: in accept, holds the lock --+
    client ==> [ listener ] -> |  then serves, and lets the next one in  |
                               +-----------------------------------------+
             [ lock file ] --> +-- worker 2: blocked in fcntl -----------+
                         `---> +-- worker N: blocked in fcntl -----------+
                                       ^
                    master ------------'  starts, replaces and ends them; more when none is idle

UNP 30.7. Where accept must not be called by many at once (System V's was a library over streams), or
where each connection would wake them all, a lock lets one in.

Differs from `prefork`: two lines around accept.
Good when: the kernel wakes a herd. Linux does not, so here it shows what the lock itself costs.
Breaks when: nothing that `prefork` survives. A POSIX record lock goes with the process that holds it,
so a holder that is killed lets the next one in; one that is stopped keeps all the others out until the
heartbeat finds it. (An flock on an inherited descriptor would exclude nobody: all share one.)
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from models._master import Pool
from models._pump import serve_client
from models._scoreboard import LOCK, Slot
from models._server import Server


def serve(server: Server) -> None:
    with tempfile.TemporaryFile() as lock_file:
        Pool(server, partial(work, lock_file.fileno())).run()


def work(lock: int, server: Server, slot: Slot) -> None:
    # fig: accept loop
    while True:
        with locked(lock, slot):
            accepted = server.accept(slot)
        if not accepted:
            break
        serve_client(server, slot, accepted)
    # end fig


@contextmanager
def locked(lock: int, slot: Slot) -> Iterator[None]:
    slot.enter(LOCK)
    fcntl.lockf(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(lock, fcntl.LOCK_UN)
