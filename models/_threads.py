"""Threads that serve clients: how they are started, what they survive, how they are waited for.

    ClientThreads   one for each client                     thread, sigio
    PoolThreads     a fixed number, started beforehand      prethread, prethread-queue

Rules: a slot of the scoreboard is taken by the one thread that starts the others, since looking for a
free one and taking it are two steps. A mistake of ours ends one client, never a pool's thread: nobody
would start another.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable

from models._bare_thread import BareThread
from models._pump import serve_client
from models._scoreboard import Slot
from models._server import Server
from tunnel.log import describe, log

PATIENT = sys.getswitchinterval()  # seconds
WAITS = 50_000  # a second, of all threads together


def switch_interval(clients: int) -> float:
    """How long a thread waits for the interpreter lock (seconds) before it wakes to insist, and again.

    If all are woken at once, by 5,000 connections that end, 10,000 threads wake 200 times a second each:
    then that is all that the processor does, and nobody is served for seconds. So the more threads, the
    longer the interval. They hardly need it: whoever has the lock gives it up with his next system call.
    """
    return max(PATIENT, 2 * clients / WAITS)  # two threads for each client


class ClientThreads:
    """A thread for each client."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._threads: set[BareThread] = set()

    def start(self, accepted: socket.socket) -> None:
        """Serves the client in a thread of its own; drops it if there can be none (pthread_create(3))."""
        # fig: a thread for a client
        slot = self._server.scoreboard.take()
        thread = BareThread()
        self._threads.add(thread)
        sys.setswitchinterval(switch_interval(len(self._threads)))
        try:
            thread.start(self._serve, thread, slot, accepted)
        except OSError as error:
            log.error(f"client dropped: {describe(error)}")
            self._leave(thread, slot)
            self._server.limits.claim(accepted.fileno()).leave()
            accepted.close()
        # end fig

    def join(self) -> None:
        """Waits until the last client has left."""
        for thread in list(self._threads):
            thread.join()

    def _serve(self, thread: BareThread, slot: Slot, accepted: socket.socket) -> None:
        slot.own()
        try:
            serve_client(self._server, slot, accepted)
        finally:
            self._leave(thread, slot)

    def _leave(self, thread: BareThread, slot: Slot) -> None:
        self._server.scoreboard.give_back(slot)
        self._threads.discard(thread)
        sys.setswitchinterval(switch_interval(len(self._threads)))


class PoolThreads:
    """As many threads as the pool has workers, or as many as there can be."""

    def __init__(self, server: Server, work: Callable[[Slot], None]) -> None:
        """Starts them. Raises OSError if there can be none at all."""
        self._work = work
        self.failure: BaseException | None = None  # what one of them could not live with
        self._threads: list[BareThread] = []
        size = server.service.workers.most
        for number in range(size):
            slot = server.scoreboard.take()
            thread = BareThread()
            try:
                thread.start(self._run, slot)
            except OSError as error:
                server.scoreboard.forget(slot)
                if not number:
                    raise
                log.warning(f"pool has {number} threads of {size}: {describe(error)}")
                break
            self._threads.append(thread)

    def interrupt(self) -> None:
        """Makes those return that block in a system call, once (EINTR); Python then calls again."""
        signal.signal(signal.SIGURG, lambda *_: None)  # ignored, it would interrupt nothing
        for thread in self._threads:
            if thread.runs():
                signal.pthread_kill(thread.ident, signal.SIGURG)

    def join(self) -> None:
        """Waits until all have ended. Raises `failure`."""
        for thread in self._threads:
            thread.join()
        if self.failure:
            raise self.failure

    def _run(self, slot: Slot) -> None:
        slot.own()
        try:
            self._work(slot)
        except BaseException as error:  # noqa: BLE001 - raised again by join
            self.failure = error


def serve_one_of_many(
    server: Server, slot: Slot, accepted: socket.socket, since: float | None = None
) -> None:
    """serve_client for a thread that serves others after this one."""
    try:
        serve_client(server, slot, accepted, since)
    except Exception:  # noqa: BLE001 - shown, as it would be by a thread that ends
        sys.excepthook(*sys.exc_info())
