"""The frame of every loop: a poller, deadlines, listeners, and the clients between them.

    +--> which deadline is next? --> poller.wait --> callbacks of what is ready --> what is overdue --+
    `-------------------------------------------------------------------------------------------------'

    Poller       which descriptor has which callback; how to wait for them is the model's own
    Deadlines    what has waited too long (_deadlines.py)
    Loop         accepts clients, and hands each to an Opening (_relay.py)

Rules: no call here blocks but `wait`. What is watched are duplicates of the listeners: those themselves
turn into dead sockets at SIGTERM (_stop.py) while other processes may still hold them, and epoll would
go on reporting what could not be taken out any more.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from functools import partial

from models._deadlines import Clock, Deadlines
from models._relay import Opening, Relay
from models._resolver import OnFound, Resolver
from models._scoreboard import ACCEPT, RELAY, Slot
from models._server import ACCEPTS_AT_ONCE, OUT_OF_RESOURCES, RESOURCE_PAUSE, Server
from tunnel.address import Address
from tunnel.log import log, peer_name
from tunnel.session import FIRST_PAYLOAD_WAIT

Callback = Callable[[], None]
TICK = 1.0  # seconds between signs of life


class Poller:
    """Descriptors and what to call when they are ready. A model says how to wait."""

    limit = ""  # what to say of a descriptor that is not admitted

    def __init__(self) -> None:
        self.readers: dict[int, Callback] = {}
        self.writers: dict[int, Callback] = {}

    def admits(self, fd: int) -> bool:
        """False for a descriptor that this way of waiting cannot handle."""
        return fd >= 0

    def wait(self, seconds: float) -> None:
        """Waits at most so long, and calls what is ready."""
        raise NotImplementedError

    def on_readable(self, fd: int, callback: Callback | None) -> None:
        """Calls `callback` whenever `fd` is readable, or no longer."""
        if callback:
            self.readers[fd] = callback
        else:
            self.readers.pop(fd, None)
        self.changed(fd)

    def on_connection(self, fd: int, callback: Callback) -> None:
        """The same for a listener, which other processes may watch too."""
        self.on_readable(fd, callback)

    def on_writable(self, fd: int, callback: Callback | None) -> None:
        """Calls `callback` whenever `fd` is writable, or no longer."""
        if callback:
            self.writers[fd] = callback
        else:
            self.writers.pop(fd, None)
        self.changed(fd)

    def forget(self, fd: int) -> None:
        """No more of `fd`, which is about to be closed."""
        self.readers.pop(fd, None)
        self.writers.pop(fd, None)
        self.changed(fd)

    def changed(self, fd: int) -> None:
        """What `fd` is watched for may have changed; for those who must tell the kernel."""


class Loop:
    """Runs all clients of a server over a poller until the server is asked to stop."""

    def __init__(self, server: Server, poller: Poller, slot: Slot) -> None:
        self.server = server
        self.poller = poller
        self.slot = slot
        self.clients: set[Opening | Relay] = set()
        self.clock = clock = Clock()
        timeouts = server.service.timeouts
        self.handshakes = Deadlines(clock, timeouts.handshake, Opening.on_handshake_expired)
        self.connects = Deadlines(clock, server.service.dial.timeout, Opening.on_connect_expired)
        self.talks = Deadlines(clock, timeouts.idle, Opening.on_talk_expired)
        self.greetings = Deadlines(clock, FIRST_PAYLOAD_WAIT, Opening.on_patience_over)
        self.idle = Deadlines(clock, timeouts.idle, Relay.on_idle)
        self.half_closed = Deadlines(clock, timeouts.half_closed, Relay.on_half_closed_idle)
        self._pauses: Deadlines[Loop] = Deadlines(clock, RESOURCE_PAUSE, Loop._listen)
        self._ticks: Deadlines[Loop] = Deadlines(clock, TICK, Loop._tick)
        self._listeners: list[socket.socket] = []
        self._resolver = Resolver(server, self._watch)

    def run(self) -> None:
        """Returns once a stop was asked for and the last client has left."""
        self.slot.enter(ACCEPT)
        self._listeners = [listener.dup() for listener in self.server.listeners]
        self._listen()
        self.poller.on_readable(self.server.stop.fileno(), self._on_signal)
        self._tick()
        # fig: event loop
        while self.clients or self._listeners:
            try:
                self.poller.wait(self.clock.seconds_left())
            except OSError as error:
                self.server.accept.sit_out(error, "waiting pauses")
            self.clock.run()
        # end fig

    def resolve(self, target: Address, on_found: OnFound) -> None:
        """Answers by `on_found`: at once for a literal, else from the helper threads."""
        self._resolver.resolve(target, on_found)

    def _watch(self, fd: int, callback: Callback) -> None:
        """Raises OSError for a descriptor that cannot be watched."""
        if not self.poller.admits(fd):
            raise OSError(errno.EMFILE, self.poller.limit)
        self.poller.on_readable(fd, callback)

    def join(self, client: Opening | Relay) -> None:
        """A client that this loop serves from now on."""
        self.clients.add(client)

    def leave(self, client: Opening | Relay) -> None:
        self.clients.discard(client)
        if not self.clients:
            self.slot.enter(ACCEPT)

    def _tick(self) -> None:
        """Once a second: a sign of life, and a look whether the master is still there."""
        self._ticks.set(self)
        self.slot.beat()
        if self.server.stop.asked():
            self._stop()

    def _on_signal(self) -> None:
        """It may have asked for a stop; or a reload has brought other deadlines."""
        self.server.stop.clear_wakeup()
        if self.server.stop.requested:
            self._stop()
        timeouts = self.server.service.timeouts
        self.handshakes.length = timeouts.handshake
        self.talks.length = self.idle.length = timeouts.idle
        self.half_closed.length = timeouts.half_closed
        self.connects.length = self.server.service.dial.timeout

    def _listen(self) -> None:
        for listener in self._listeners:
            listener.setblocking(False)
            self.poller.on_connection(listener.fileno(), partial(self._accept, listener))

    def _pause(self) -> None:
        """Descriptors or memory have run out."""
        for listener in self._listeners:
            self.poller.on_readable(listener.fileno(), None)
        self._pauses.set(self)

    def _stop(self) -> None:
        """Accepts nobody any more; those who are there may stay as long as it makes sense."""
        if self._listeners:
            self._pauses.cancel(self)
            for listener in self._listeners:
                self.poller.forget(listener.fileno())
                listener.close()
            self._listeners = []
            self.server.stop.close_listeners()  # closed already, unless it is the master that has gone
        if self.server.stop.impatient:
            for client in list(self.clients):
                client.on_stop()

    def _accept(self, listener: socket.socket) -> None:
        """The listener is readable. It may be no longer: the client can have left (UNP 16.6)."""
        accept = self.server.accept
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                accepted = accept.take(listener)
            except BlockingIOError:
                return
            except OSError as error:
                accept.survive(error)
                if error.errno in OUT_OF_RESOURCES:
                    self._pause()
                    return
            else:
                accept.taken()
                self._admit(accepted)
                if accept.left == 0:
                    self.server.stop.retire()
                    self._stop()
                    return

    def _admit(self, accepted: socket.socket) -> None:
        if not self.poller.admits(accepted.fileno()):
            log.warning(f"client refused: {self.poller.limit}", peer_name(accepted))
            self.server.limits.claim(accepted.fileno()).leave()
            accepted.close()
            return
        self.slot.accepted(RELAY)
        Opening(self, accepted).start()
