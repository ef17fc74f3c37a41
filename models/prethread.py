"""Prethread: a pool of threads, and a lock around accept.

    +------------------------------ the only process ------------------------------+
    |  main thread        thread 1: in accept, holds the lock                      |
    |  starts them,       thread 2: blocked in the lock    ... one client each,    |
    |  waits              thread N: blocked in the lock        both ways by poll   |
    +------------------------------------------------------------------------------+

UNP 30.11. The pool of `prefork`, in one address space: a lock between threads is a few instructions,
where one between processes is a file, or memory that all of them share.

Differs from `prefork`: threads instead of children, so nothing is copied and nothing is isolated.
Good when: clients are many and short, and memory is scarce.
Breaks when: there are more clients at once than threads; the others wait in the listener's queue. And
they all share one interpreter lock.
"""

from __future__ import annotations

import threading

from models._pump import serve_client
from models._scoreboard import LOCK
from models._server import Server


def serve(server: Server) -> None:
    lock = threading.Lock()
    size = server.service.workers.most
    threads = [threading.Thread(target=work, args=(server, lock), daemon=True) for _ in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def work(server: Server, lock: threading.Lock) -> None:
    slot = server.scoreboard.take()
    slot.own()
    # fig: accept loop
    while True:
        slot.enter(LOCK)
        with lock:
            accepted = server.accept(slot)
        if not accepted:
            break
        serve_client(server, slot, accepted)
    # end fig
