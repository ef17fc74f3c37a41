"""Prethread-queue: the main thread accepts, a pool of threads serves.

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
Who waits in it uses up the time for the handshake, which counts from accept.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from functools import partial
from typing import NamedTuple

from models._scoreboard import IDLE, Slot
from models._server import Server
from models._threads import PoolThreads, serve_one_of_many


class Waiting(NamedTuple):
    client: socket.socket
    since: float  # monotonic seconds


class Queue:
    """Clients on their way from the main thread to the pool, at most `size`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._closed = False
        self._clients: deque[Waiting] = deque()
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._emptied = threading.Condition(lock)

    def put(self, client: socket.socket) -> None:
        waiting = Waiting(client, time.monotonic())
        with self._emptied:
            while len(self._clients) >= self._size:
                self._emptied.wait()
            self._clients.append(waiting)
            self._filled.notify()

    def get(self) -> Waiting | None:
        """The next client; None once the queue is closed and empty."""
        # fig: wait for a client
        with self._filled:
            while not self._clients and not self._closed:
                self._filled.wait()
            if not self._clients:
                return None
            self._emptied.notify()
            return self._clients.popleft()
        # end fig

    def close(self) -> None:
        with self._filled:
            self._closed = True
            self._filled.notify_all()


def serve(server: Server) -> None:
    queue = Queue(server.service.workers.most)
    pool = PoolThreads(server, partial(work, server, queue))
    slot = server.scoreboard.take()
    slot.own("tunnel: prethread-queue")
    # fig: accept loop
    while accepted := server.accept(slot):
        queue.put(accepted)
    # end fig
    queue.close()
    pool.join()


def work(server: Server, queue: Queue, slot: Slot) -> None:
    while waiting := queue.get():
        serve_one_of_many(server, slot, *waiting)
        slot.enter(IDLE)
