"""Prefork-fdpass: the parent accepts, and passes each connection to a child that is free.

    client ==> [ listener ] --> master: accept, choose, pass, close
                                  |  ^
                  SCM_RIGHTS      |  |  one byte: I am free
                                  v  |
                         a UNIX socket pair for each child
                      +-- worker 1: accepted <== copy ==> dialled --+
                      +-- worker 2: free ---------------------------+
                      +-- worker N: free ---------------------------+

UNP 30.9, and 15.7 for the passing. The master waits for its children, for clients and for signals at
once: so each signal also writes a byte to a descriptor. While it works, signals are blocked.

Differs from `prefork`: nobody competes for a client. The master chooses, and chooses the oldest child
that is free, so the load is as uneven as in the book, and the processor's cache stays warm.
Good when: somebody must decide who serves whom, or children must not have the listener.
Breaks when: connections are short and many. Each costs the master four system calls, and it is only one.
A client that was passed to a child which then dies is lost, although nobody had begun to serve it.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable
from functools import partial

from models._master import TICK
from models._passing import drop, hear_only, pass_on, receive
from models._pump import serve_client
from models._scoreboard import Slot
from models._server import Server
from models._watch import WatchfulPool


def serve(server: Server) -> None:
    Dispatcher(server).run()


class Dispatcher(WatchfulPool):
    """The master, which also accepts."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._clients: list[socket.socket] = []  # accepted, and not passed on yet
        self._channels: dict[int, socket.socket] = {}  # by pid, oldest first
        self._free: set[int] = set()  # pids
        for listener in server.listeners:
            listener.setblocking(False)

    def start(self) -> int | None:
        try:
            mine, theirs = socket.socketpair()
        except OSError as error:
            self.server.accept.survive(error, "cannot start a worker")
            self._start_after = time.monotonic() + TICK
            return None
        with theirs:
            self.work = partial(work, channel=theirs, others=(mine, *self._channels.values(), *self._clients))
            if pid := super().start():
                self._channels[pid] = mine
                self.watch(mine.fileno(), partial(self._hear, pid))
        return pid

    def prepare(self) -> None:
        """Passes on, and accepts only what can be passed on: that is the backpressure."""
        while self._clients and self._free and self._pass_on(self._clients[0]):
            self._clients.pop(0).close()
        for listener in self.server.listeners:
            if self._free and not self._clients and not self.stopping:
                self.watch(listener.fileno(), partial(self._accept, listener))
            else:
                self.unwatch(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        try:
            with contextlib.suppress(BlockingIOError):  # it has left already (UNP 16.6)
                self._clients.append(self.server.accept.take(listener))
                self.server.accept.taken()
        except OSError as error:
            self.server.accept.sit_out(error)

    def _pass_on(self, client: socket.socket) -> bool:
        """False: it waits for a child that is free."""
        # fig: pass to the oldest that is free
        failure = None
        for pid in [pid for pid in self._channels if pid in self._free]:
            try:
                pass_on(self.server.limits, client, self._channels[pid], pid)
            except (BrokenPipeError, ConnectionResetError):  # it is leaving: the next one, then
                self._forget(pid)
            except OSError as error:  # no fault of the child: it stays free
                failure = error
            else:
                self._free.discard(pid)
                return True
        # end fig
        if failure:
            drop(self.server.limits, client, failure)
        return failure is not None

    def _hear(self, pid: int) -> None:
        """A child is free, or has ended."""
        with contextlib.suppress(ConnectionError):
            if self._channels[pid].recv(1):
                self._free.add(pid)
                return
        self._forget(pid)

    def _forget(self, pid: int) -> None:
        self._free.discard(pid)
        self.unwatch(self._channels[pid].fileno())
        self._channels.pop(pid).close()


def work(server: Server, slot: Slot, channel: socket.socket, others: Iterable[socket.socket]) -> None:
    hear_only(channel, others, server)
    # fig: accept loop
    while accepted := receive(server, slot, channel):
        serve_client(server, slot, accepted)
    # end fig
