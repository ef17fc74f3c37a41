"""The frame of every loop: a poller, deadlines, listeners, and the clients between them.

    +--> which deadline is next? --> poller.wait --> callbacks of what is ready --> what is overdue --+
    `-------------------------------------------------------------------------------------------------'

    Poller       which descriptor has which callback; how to wait for them is the model's own
    Deadlines    what has waited too long
    Loop         accepts clients, and hands each to an Opening (_relay.py)

Rules: no call here blocks but `wait`. All deadlines of one kind are equally long, so they expire in
the order in which they were set: a queue is all the timer there is, and it costs nothing while
nothing expires.
"""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from models._relay import Opening, Relay
from models._scoreboard import ACCEPT, RELAY, Slot
from models._server import OUT_OF_RESOURCES, RESOURCE_PAUSE, Server
from tunnel.address import Address
from tunnel.dial import Dial, SockAddr
from tunnel.log import log, peer_name
from tunnel.session import FIRST_PAYLOAD_WAIT

if TYPE_CHECKING:
    from models._resolver import Resolver

Callback = Callable[[], None]
Found = list[SockAddr] | OSError
Client = TypeVar("Client", Opening, Relay)
NOTHING_DUE = 1.0  # seconds; then it is time for a sign of life
ACCEPTS_AT_ONCE = 16  # then the clients that are there have their turn


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


class Deadlines(Generic[Client]):
    """Deadlines of one length (seconds): a queue in the order of expiry, one place for each client."""

    def __init__(self, length: float, expired: Callable[[Client], None]) -> None:
        self.length = length
        self._expired: Callable[[Client], None] = expired
        self._due: OrderedDict[Client, float] = OrderedDict()

    def set(self, client: Client) -> None:
        """Calls `expired(client)` after the time, unless it is cancelled or set again before."""
        self._due[client] = time.monotonic() + self.length
        self._due.move_to_end(client)

    def cancel(self, client: Client) -> None:
        self._due.pop(client, None)

    def seconds_left(self) -> float:
        """Until the first is due."""
        for due in self._due.values():
            return due - time.monotonic()
        return NOTHING_DUE

    def run(self) -> None:
        """Expires what is due."""
        now = time.monotonic()
        while self._due:
            client, due = next(iter(self._due.items()))
            if due > now:
                break
            del self._due[client]
            self._expired(client)


def addresses_of(dial: Dial, target: Address) -> Found:
    """`dial.addresses` with its error as a value, as a callback wants it."""
    try:
        return dial.addresses(target)
    except OSError as error:
        return error


class Loop:
    """Runs all clients of a server over a poller until the server is asked to stop."""

    def __init__(self, server: Server, poller: Poller, slot: Slot) -> None:
        self.server = server
        self.poller = poller
        self.slot = slot
        self.clients: set[Opening | Relay] = set()
        self.handshakes = Deadlines(server.service.timeouts.handshake, Opening.on_handshake_expired)
        self.connects = Deadlines(server.service.dial.timeout, Opening.on_connect_expired)
        self.talks = Deadlines(server.service.timeouts.idle, Opening.on_handshake_expired)
        self.greetings = Deadlines(FIRST_PAYLOAD_WAIT, Opening.on_patience_over)
        self.idle = Deadlines(server.service.timeouts.idle, Relay.on_idle)
        self._deadlines = (self.handshakes, self.talks, self.connects, self.greetings, self.idle)
        self._accepting = False
        self._accept_again = 0.0  # monotonic; after descriptors have run out
        self._resolver: Resolver | None = None

    def run(self) -> None:
        """Returns once a stop was asked for and the last client has left."""
        stop = self.server.stop
        self.slot.enter(ACCEPT)
        # fig: event loop
        self.poller.on_readable(stop.fileno(), self._on_signal)
        while self.clients or not stop.requested:
            self._watch_listeners()
            self.poller.wait(self._seconds_to_wait())
            self.slot.beat()
            for deadlines in self._deadlines:
                deadlines.run()
        # end fig

    def resolve(self, target: Address, on_found: Callable[[Found], None]) -> None:
        """Answers by `on_found`: at once for a literal, else from the helper threads."""
        if self.server.service.dial.literal(target):
            on_found(addresses_of(self.server.service.dial, target))
            return
        try:
            self._start_resolver().ask(target, on_found)
        except OSError as error:  # no descriptor for it; the next name may find one
            on_found(error)

    def _start_resolver(self) -> Resolver:
        if self._resolver is None:
            from models._resolver import Resolver  # noqa: PLC0415 - its threads, for names only

            self._resolver = Resolver(self.server)
            self.poller.on_readable(self._resolver.fileno(), self._resolver.deliver)
        return self._resolver

    def join(self, client: Opening | Relay) -> None:
        """A client that this loop serves from now on."""
        if not self.clients:
            self.slot.enter(RELAY)
        self.clients.add(client)

    def leave(self, client: Opening | Relay) -> None:
        self.clients.discard(client)
        if not self.clients:
            self.slot.enter(ACCEPT)

    def _on_signal(self) -> None:
        """A stop is seen by `run`; a reload may have brought other deadlines."""
        self.server.stop.clear_wakeup()
        timeouts = self.server.service.timeouts
        self.handshakes.length = timeouts.handshake
        self.talks.length = self.idle.length = timeouts.idle
        self.connects.length = self.server.service.dial.timeout

    def _seconds_to_wait(self) -> float:
        due = min(deadlines.seconds_left() for deadlines in self._deadlines)
        if not self._accepting and not self.server.stop.requested:
            due = min(due, self._accept_again - time.monotonic())
        return max(0.0, due)

    def _watch_listeners(self) -> None:
        wanted = not self.server.stop.requested and time.monotonic() >= self._accept_again
        if wanted == self._accepting:
            return
        self._accepting = wanted
        if self.server.stop.requested:
            for client in list(self.clients):
                client.on_stop()
        for listener in self.server.listeners:
            if wanted:
                listener.setblocking(False)
                self.poller.on_readable(listener.fileno(), partial(self._accept, listener))
            else:
                self.poller.on_readable(listener.fileno(), None)

    def _accept(self, listener: socket.socket) -> None:
        """The listener is readable. It may be no longer: the client can have left (UNP 16.6)."""
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                accepted, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if self.server.stop.requested:
                    return
                self.server.accept.survive(error)
                if error.errno in OUT_OF_RESOURCES:
                    self._accept_again = time.monotonic() + RESOURCE_PAUSE
                    return
            else:
                self._admit(accepted)

    def _admit(self, accepted: socket.socket) -> None:
        if not self.poller.admits(accepted.fileno()):
            log.warning(f"client refused: {self.poller.limit}", peer_name(accepted))
            accepted.close()
            return
        accepted.setblocking(False)
        self.slot.accepted()
        self.slot.enter(RELAY)
        Opening(self, accepted).start()
        if self.server.accept.left is not None:
            self.server.accept.left -= 1
            if self.server.accept.left == 0:
                self.server.stop.retire()
