"""Prethread with a queue: the main thread accepts, a pool of threads serves.

    +------------------------------ the only process ------------------------------+
    |  main thread                                   +--> thread 1: one client,    |
    |  accept --> [ queue, lock, condition ] --------+--> thread 2      both ways  |
    |     ^       one wait, one wake each            +--> thread N      by poll    |
    |     `---------'                                                              |
    +------------------------------------------------------------------------------+

UNP 30.12, with 26.8's condition variable: a thread sleeps until there is something in the queue, and
the lock makes looking and sleeping one step, or a wake-up could fall in between and be lost.

Differs from `prethread`: accept is the main thread's alone, and a client changes hands once more.
Good when: something must be decided about a connection before anybody serves it.
Breaks when: clients stay: the queue here is short, then main waits, and the listener's queue takes over.
"""

from __future__ import annotations

import socket
import threading
from collections import deque

from models._pump import serve_client
from models._scoreboard import IDLE
from models._server import Server


class Queue:
    """Clients on their way from the main thread to the pool, at most `size`. None: the end."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._clients: deque[socket.socket | None] = deque()
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._emptied = threading.Condition(lock)

    def put(self, client: socket.socket | None) -> None:
        with self._emptied:
            while client and len(self._clients) >= self._size:
                self._emptied.wait()
            self._clients.append(client)
            self._filled.notify()

    def get(self) -> socket.socket | None:
        # fig: wait for a client
        with self._filled:
            while not self._clients:
                self._filled.wait()
            self._emptied.notify()
            return self._clients.popleft()
        # end fig


def serve(server: Server) -> None:
    size = server.service.workers.most
    queue = Queue(size)
    threads = [threading.Thread(target=work, args=(server, queue), daemon=True) for _ in range(size)]
    for thread in threads:
        thread.start()
    slot = server.scoreboard.take()
    slot.own("tunnel: prethread-queue")
    # fig: accept loop
    while accepted := server.accept(slot):
        queue.put(accepted)
    # end fig
    for _ in threads:
        queue.put(None)
    for thread in threads:
        thread.join()


def work(server: Server, queue: Queue) -> None:
    slot = server.scoreboard.take()
    slot.own()
    while accepted := queue.get():
        serve_client(server, slot, accepted)
        slot.enter(IDLE)
