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
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from models._master import MASTER_SIGNALS, Pool
from models._pump import serve_client
from models._scoreboard import ACCEPT, Slot
from models._server import OUT_OF_RESOURCES, RESOURCE_PAUSE, WAKES, Server
from tunnel.dial import seconds as timeval

Callback = Callable[[], None]
GONE = (BrokenPipeError, ConnectionResetError)


def serve(server: Server) -> None:
    Dispatcher(server).run()


class Dispatcher(Pool):
    """The master of a pool, which also accepts."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._signals: deque[int] = deque()
        self._clients: deque[socket.socket] = deque()  # accepted, and not passed on yet
        self._channels: dict[int, socket.socket] = {}  # by pid, oldest first
        self._free: set[int] = set()  # pids
        self._accept_after = 0.0  # monotonic
        self._poller = select.poll()
        self._callbacks: dict[int, Callback] = {server.stop.fileno(): server.stop.clear_wakeup}
        self._poller.register(server.stop.fileno(), select.POLLIN)
        for listener in server.listeners:
            listener.setblocking(False)
            self._callbacks[listener.fileno()] = partial(self._accept, listener)
        for number in MASTER_SIGNALS:
            signal.signal(number, lambda number, _frame: self._signals.append(number))

    def start(self) -> int | None:
        mine, theirs = socket.socketpair()
        with theirs:
            self.work = partial(work, channel=theirs, others=(mine, *self._channels.values()))
            pid = super().start()
        if pid is not None:
            self._channels[pid] = mine
            self._callbacks[mine.fileno()] = partial(self._hear, pid)
            self._poller.register(mine, select.POLLIN)
        return pid

    def wait(self, seconds: float) -> int | None:
        until = time.monotonic() + seconds
        while not self._signals and (now := time.monotonic()) < until:
            self._watch_listeners(now)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, MASTER_SIGNALS)
            ready = self._poller.poll((until - now) * 1000)
            signal.pthread_sigmask(signal.SIG_BLOCK, MASTER_SIGNALS)
            for fd, _ in ready:
                self._callbacks[fd]()
            self._pass_on()
        return self._signals.popleft() if self._signals else None

    def _watch_listeners(self, now: float) -> None:
        """Clients wait in the queue while no child is free: that is the backpressure."""
        accepts = self._free and not self._clients and not self.stopping and now >= self._accept_after
        for listener in self.server.listeners:
            if accepts:
                self._poller.register(listener, select.POLLIN)
            else:
                with contextlib.suppress(KeyError):
                    self._poller.unregister(listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            self._clients.append(listener.accept()[0])
            self.server.accept.taken()
        except BlockingIOError:
            return
        except OSError as error:
            self.server.accept.survive(error)
            if error.errno in OUT_OF_RESOURCES:
                self._accept_after = time.monotonic() + RESOURCE_PAUSE

    def _hear(self, pid: int) -> None:
        """A child is free, or has ended."""
        channel = self._channels[pid]
        try:
            word = channel.recv(1)
        except ConnectionResetError:
            word = b""
        if word:
            self._free.add(pid)
        else:
            self._free.discard(pid)
            self._poller.unregister(channel)
            del self._channels[pid], self._callbacks[channel.fileno()]
            channel.close()

    def _pass_on(self) -> None:
        # fig: pass to the oldest that is free
        for pid, channel in self._channels.items():
            if self._clients and pid in self._free:
                self._free.discard(pid)
                with contextlib.suppress(*GONE):
                    socket.send_fds(channel, [b"\0"], [self._clients[0].fileno()])
                    self._clients.popleft().close()
        # end fig


def work(server: Server, slot: Slot, channel: socket.socket, others: Iterable[socket.socket]) -> None:
    for other in others:
        other.close()
    server.stop.close_listeners()
    server.stop.close = partial(channel.shutdown, socket.SHUT_RD)  # what was passed before is still read
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(WAKES))
    # fig: accept loop
    while accepted := receive(server, slot, channel):
        serve_client(server, slot, accepted)
    # end fig


def receive(server: Server, slot: Slot, channel: socket.socket) -> socket.socket | None:
    """The next client, once the master has been told that this child is free."""
    slot.enter(ACCEPT)
    if server.stop.asked() or server.accept.left == 0:
        return None
    with contextlib.suppress(*GONE):
        channel.send(b"\0")
    while True:
        try:
            _, fds, _, _ = socket.recv_fds(channel, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            slot.beat()
        else:
            server.accept.taken()
            return socket.socket(fileno=fds[0]) if fds else None  # None: the channel has ended
