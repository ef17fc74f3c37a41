"""The tunnel's server on libuv's loop: listeners, signals, names, deadlines, and when to end.

    Listener --connection_cb--> Request --> Dialling --> Relay       one at a time is the client
    signals  --watcher--------> stop, or other deadlines
    names    --watcher--------> Dialling.on_found

Rules: what belongs to one client is in those files; here is what they share.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from models._deadlines import Deadlines
from models._resolver import Resolver
from models._scoreboard import ACCEPT, RELAY, Slot
from models._server import OUT_OF_RESOURCES, RESOURCE_PAUSE, Server
from models.epoll.core import Loop, Watcher
from models.epoll.dialling import Dialling
from models.epoll.linux import POLLIN
from models.epoll.relay import Relay
from models.epoll.request import Request
from models.epoll.stream import error_of
from models.epoll.tcp import Listener
from tunnel.session import FIRST_PAYLOAD_WAIT

Client = Request | Dialling | Relay
TICK = 1.0  # seconds between signs of life
TURNED_AWAY = (errno.EMFILE, errno.ENFILE)  # by emfile_trick


class EpollServer:
    """All clients of a server, until it is asked to stop and the last one has left."""

    def __init__(self, server: Server, slot: Slot) -> None:
        self.server = server
        self.slot = slot
        self.loop = Loop()
        self.clients: set[Client] = set()
        timers, timeouts = self.loop.timers, server.service.timeouts
        self.handshakes = Deadlines(timers, timeouts.handshake, Request.on_expired)
        self.connects = Deadlines(timers, server.service.dial.timeout, Dialling.on_expired)
        self.talks = Deadlines(timers, timeouts.idle, Request.on_expired)
        self.greetings = Deadlines(timers, FIRST_PAYLOAD_WAIT, Relay.on_patience_over)
        self.idle = Deadlines(timers, timeouts.idle, Relay.on_idle)
        self.half_closed = Deadlines(timers, timeouts.half_closed, Relay.on_half_closed_idle)
        self._pauses = Deadlines(timers, RESOURCE_PAUSE, Listener.listen)
        self._ticks: Deadlines[EpollServer] = Deadlines(timers, TICK, EpollServer.tick)
        take = server.accept.take
        self._listeners = [Listener(self.loop, sock, self.on_connection, take) for sock in server.listeners]
        self.resolver = Resolver(server, self.watch)

    def run(self) -> None:
        self.slot.enter(ACCEPT)
        self.watch(self.server.stop.fileno(), self.on_signal)
        for listener in self._listeners:
            listener.listen()
        self.tick()
        self.loop.run()

    def tick(self) -> None:
        """Once a second: a sign of life, and a look whether the master is still there."""
        self._ticks.set(self)
        self.slot.beat()
        if self.server.stop.asked():
            self.stop()

    def on_signal(self) -> None:
        """It may have asked for a stop; or a reload has brought other deadlines."""
        self.server.stop.clear_wakeup()
        if self.server.stop.requested:
            self.stop()
        timeouts = self.server.service.timeouts
        self.handshakes.length = timeouts.handshake
        self.talks.length = self.idle.length = timeouts.idle
        self.half_closed.length = timeouts.half_closed
        self.connects.length = self.server.service.dial.timeout

    def stop(self) -> None:
        """Accepts nobody any more; those who are there may stay as long as it makes sense."""
        for listener in self._listeners:
            self._pauses.cancel(listener)
            listener.close()
        if self._listeners:
            self._listeners = []
            self.server.stop.close_listeners()  # closed already, unless it is the master that has gone
            if self.server.stop.impatient:
                for client in list(self.clients):
                    client.on_stop()

    # fig: connection_cb
    def on_connection(self, listener: Listener, status: int) -> None:
        accept = self.server.accept
        if status == 0:
            accept.taken()
            self.slot.accepted(RELAY)
            Request(self, listener.accept()).start()
            if accept.left == 0:
                self.server.stop.retire()
                self.stop()
        elif -status in TURNED_AWAY and self.loop.emfile_fd >= 0:
            accept.survive(error_of(status), "clients are turned away")
        else:
            accept.survive(error_of(status))
            if -status in OUT_OF_RESOURCES:
                self.loop.io_stop(listener, POLLIN)
                self._pauses.set(listener)
        # end fig

    def leave(self, client: Client) -> None:
        self.clients.discard(client)
        if not self.clients:
            self.slot.enter(ACCEPT)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls back whenever `fd` is readable. It is no handle: the loop ends without it."""
        self.loop.io_start(Watcher(lambda _w, _events: callback(), fd), POLLIN)
