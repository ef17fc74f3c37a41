"""Prethread: a pool of threads, and a lock around accept.

    +------------------------------ the only process ------------------------------+
    |  main thread   -->  thread 1: in accept, holds the lock                      |
    |  starts them,  -->  thread 2: blocked in the lock    ... one client each,    |
    |  waits         -->  thread N: blocked in the lock        both ways by poll   |
    +------------------------------------------------------------------------------+

UNP 30.11. The pool of `prefork`, in one address space: a lock between threads is a few instructions,
where one between processes is a file, or memory that all of them share. A signal wakes the main thread
alone, so it is main that interrupts the thread in accept when the server stops.

Differs from `prefork`: threads instead of children, so nothing is copied and nothing is isolated.
Good when: clients are many and short, and memory is scarce.
Breaks when: there are more clients at once than threads; the others wait in the listener's queue. And
they all share one interpreter lock.
"""

from __future__ import annotations

import threading
from functools import partial

from models._scoreboard import LOCK, Slot
from models._server import Server
from models._threads import PoolThreads, serve_one_of_many


def serve(server: Server) -> None:
    pool = PoolThreads(server, partial(work, server, threading.Lock()))
    while not server.stop.requested and not pool.failure:
        server.wait_for_signal()
    pool.interrupt()
    pool.join()


def work(server: Server, lock: threading.Lock, slot: Slot) -> None:
    # fig: accept loop
    while True:
        slot.enter(LOCK)
        with lock:
            accepted = server.accept(slot)
        if not accepted:
            break
        serve_one_of_many(server, slot, accepted)
    # end fig
