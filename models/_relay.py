"""The body of every loop: many clients in one thread, over a tiny poller.

    Poller       which descriptor has which callback; how to wait for them is the model's own
    Loop         listeners, clients, deadlines
    Relay        one client:  opening -> resolving -> dialling -> greeting -> copying -> closed

Each state waits for exactly one thing and for a deadline, and no call blocks:

    opening      the client's request              handshake deadline, counted from accept
    resolving    addresses from the helper thread
    dialling     a connection in progress          connect timeout, per address
    greeting     the client's first payload        10 ms, then the header goes alone
    copying      both Directions                   idle time, restarted by any byte

Rules: a relay owns its two sockets and is the only one to close them. All deadlines of one kind are
equally long, so they expire in the order in which they were set: a queue is all the timer there is,
and it costs nothing while nothing expires.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from models._direction import Direction, abort
from models._pump import describe
from models._server import OUT_OF_RESOURCES, RESOURCE_PAUSE, Server
from tunnel.address import Address
from tunnel.dial import Dial, SockAddr
from tunnel.errors import ProtocolError
from tunnel.log import log, peer_name
from tunnel.session import FIRST_PAYLOAD_WAIT

if TYPE_CHECKING:
    from models._resolver import Resolver

Callback = Callable[[], None]
Found = list[SockAddr] | OSError
NOTHING_DUE = 3600.0  # seconds
ACCEPTS_AT_ONCE = 16  # then the clients that are there have their turn


class Poller:
    """Descriptors and what to call when they are ready. A model says how to wait."""

    limit = ""  # what to say of a descriptor that is not admitted

    def __init__(self) -> None:
        self.readers: dict[int, Callback] = {}
        self.writers: dict[int, Callback] = {}

    def admits(self, fd: int) -> bool:
        """False for a descriptor that this way of waiting cannot handle."""
        return True

    def wait(self, seconds: float) -> None:
        """Waits at most so long, and calls what is ready."""
        raise NotImplementedError

    def on_readable(self, fd: int, callback: Callback | None) -> None:
        """Calls `callback` whenever `fd` is readable, or no longer."""
        if callback:
            self.readers[fd] = callback
        else:
            self.readers.pop(fd, None)

    def on_writable(self, fd: int, callback: Callback | None) -> None:
        """Calls `callback` whenever `fd` is writable, or no longer."""
        if callback:
            self.writers[fd] = callback
        else:
            self.writers.pop(fd, None)

    def forget(self, fd: int) -> None:
        """No more of `fd`, which is about to be closed."""
        self.on_readable(fd, None)
        self.on_writable(fd, None)


class Deadlines:
    """Deadlines of one length: a queue in the order of expiry, at most one place for each relay."""

    def __init__(self, length: float, expired: Callable[[Relay], None]) -> None:
        self.length = length
        self._expired = expired
        self._queue: OrderedDict[Relay, tuple[float, int]] = OrderedDict()

    def set(self, relay: Relay) -> None:
        """Calls `expired(relay)` after the time, unless it is cancelled before."""
        self._queue[relay] = time.monotonic() + self.length, relay.moves()

    def cancel(self, relay: Relay) -> None:
        self._queue.pop(relay, None)

    def next(self) -> float:
        """Seconds until the first is due."""
        for due, _ in self._queue.values():
            return due - time.monotonic()
        return NOTHING_DUE

    def run(self) -> None:
        """Expires what is due. A relay that has moved bytes meanwhile gets its time again."""
        now = time.monotonic()
        while self._queue:
            relay, (due, moves) = next(iter(self._queue.items()))
            if due > now:
                break
            del self._queue[relay]
            if relay.moves() == moves:
                self._expired(relay)
            else:
                self.set(relay)


class Loop:
    """Runs all clients of a server over a poller until the server is asked to stop."""

    def __init__(self, server: Server, poller: Poller) -> None:
        self.server = server
        self.poller = poller
        self.relays: set[Relay] = set()
        self.handshakes = Deadlines(server.timeouts.handshake, Relay.on_handshake_expired)
        self.connects = Deadlines(server.dial.timeout, Relay.on_connect_expired)
        self.greetings = Deadlines(FIRST_PAYLOAD_WAIT, Relay.on_greeting)
        self.idle = Deadlines(server.timeouts.idle, Relay.on_idle)
        self._deadlines = (self.handshakes, self.connects, self.greetings, self.idle)
        self._accepting = False
        self._accept_again = 0.0  # monotonic; after descriptors have run out
        self._resolver: Resolver | None = None

    # fig: event loop
    def run(self) -> None:
        """Returns once a stop was asked for and the last client has left."""
        stop = self.server.stop
        self.poller.on_readable(stop.fileno(), stop.clear_wakeup)
        while self.relays or not stop.requested:
            self._watch_listeners()
            self.poller.wait(self._seconds_to_wait())
            for deadlines in self._deadlines:
                deadlines.run()
    # end fig

    def resolve(self, relay: Relay, target: Address) -> None:
        """Answers by `relay.on_found`, at once for a literal, else from the helper threads."""
        if self.server.dial.literal(target):
            relay.on_found(addresses_of(self.server.dial, target))
            return
        if self._resolver is None:
            from models._resolver import Resolver  # noqa: PLC0415 - its threads, for names only

            self._resolver = Resolver(self.server.dial)
            self.poller.on_readable(self._resolver.fileno(), self._resolver.deliver)
        self._resolver.ask(target, relay.on_found)

    def _seconds_to_wait(self) -> float:
        due = min(deadlines.next() for deadlines in self._deadlines)
        if not self._accepting and not self.server.stop.requested:
            due = min(due, self._accept_again - time.monotonic())
        return max(0.0, due)

    def _watch_listeners(self) -> None:
        wanted = not self.server.stop.requested and time.monotonic() >= self._accept_again
        if wanted == self._accepting:
            return
        self._accepting = wanted
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
        relay = Relay(self, accepted)
        self.relays.add(relay)
        relay.start()


def addresses_of(dial: Dial, target: Address) -> Found:
    """`dial.addresses` with its error as a value, as a callback wants it."""
    try:
        return dial.addresses(target)
    except OSError as error:
        return error


def guarded(step: Callable[[Relay], None]) -> Callable[[Relay], None]:
    """Whatever fails in a relay's step ends that relay, and the loop goes on."""

    def run(relay: Relay) -> None:
        try:
            step(relay)
        except (ProtocolError, OSError) as error:
            relay.cut(error)

    return run


class Relay:
    """One client, from accept to close."""

    __slots__ = (
        "_addresses",
        "_deadline",
        "_down",
        "_loop",
        "_poller",
        "_session",
        "_up",
        "accepted",
        "dialled",
    )

    def __init__(self, loop: Loop, accepted: socket.socket) -> None:
        self._loop = loop
        self._poller = loop.poller
        self._session = loop.server.new_session()
        self._addresses: deque[SockAddr] = deque()
        self._deadline = time.monotonic() + loop.handshakes.length
        self._up: Direction | None = None
        self._down: Direction | None = None
        self.accepted = accepted
        self.dialled: socket.socket | None = None

    def moves(self) -> int:
        """Reads so far: an idle timer's question is whether this has changed."""
        return self._up.reads + self._down.reads if self._up and self._down else 0

    def start(self) -> None:
        """opening"""
        if self._session.target is None:
            self._loop.handshakes.set(self)
            self._poller.on_readable(self.accepted.fileno(), self.on_opening)
        else:
            self._resolve(self._session.target)

    def on_opening(self) -> None:
        session = self._session
        try:
            n = self.accepted.recv_into(session.opening.get_buffer())
            if n:
                reply = session.opening.buffer_updated(n)
                if reply:
                    self.accepted.send(reply)
            else:
                session.opening.eof()
                self.close()
                return
        except BlockingIOError:
            return
        except ProtocolError as error:
            self._drain(error)
            return
        except OSError as error:
            log.debug(f"left during the handshake: {describe(error)}", peer_name(self.accepted))
            self.close()
            return
        session.opening.release()
        if session.target is not None:
            self._loop.handshakes.cancel(self)
            self._poller.on_readable(self.accepted.fileno(), None)
            self._resolve(session.target)

    def on_handshake_expired(self) -> None:
        log.info(f"handshake not finished within {self._loop.handshakes.length:g} s", peer_name(self.accepted))
        self.close()

    def _drain(self, error: ProtocolError) -> None:
        log.warning(f"handshake failed: {error}", peer_name(self.accepted))
        answer = self._session.answer(error)
        if answer:
            self.accepted.send(answer)
        self._loop.server.drain.add(self.accepted, self._deadline)
        self.close()

    def _resolve(self, target: Address) -> None:
        """resolving"""
        self._loop.connects.set(self)
        self._loop.resolve(self, target)

    def on_found(self, found: Found) -> None:
        if self.accepted.fileno() < 0:
            return  # it has been closed while the name server thought
        if isinstance(found, OSError):
            self._refuse(found)
        else:
            self._addresses.extend(found)
            self._dial_next(None)

    def _dial_next(self, failure: OSError | None) -> None:
        """dialling"""
        while self._addresses:
            try:
                self.dialled = self._loop.server.dial.start(self._addresses.popleft())
            except OSError as error:
                failure = error
                continue
            if self._poller.admits(self.dialled.fileno()):
                self._loop.connects.set(self)
                self._poller.on_writable(self.dialled.fileno(), self.on_connected)
                return
            failure = OSError(errno.EMFILE, self._poller.limit)
            self._hang_up()
        assert failure is not None
        self._refuse(failure)

    def on_connected(self) -> None:
        assert self.dialled is not None
        self._loop.connects.cancel(self)
        self._poller.on_writable(self.dialled.fileno(), None)
        code = self.dialled.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._hang_up()
            self._dial_next(OSError(code, os.strerror(code)))
        else:
            self._greet()

    def on_connect_expired(self) -> None:
        self._hang_up()
        self._dial_next(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def _hang_up(self) -> None:
        if self.dialled is not None:
            self._poller.forget(self.dialled.fileno())
            self.dialled.close()
            self.dialled = None

    def _refuse(self, error: OSError) -> None:
        log.info(f"cannot connect to {self._session.target}: {describe(error)}", peer_name(self.accepted))
        answer = self._session.answer(error)
        if answer:
            self.accepted.send(answer)
        self.close()

    @guarded
    def _greet(self) -> None:
        """greeting"""
        answer = self._session.answer(None)
        if answer:
            self.accepted.send(answer)
        if self._session.patience:
            self._poller.on_readable(self.accepted.fileno(), self.on_first_payload)
            self._loop.greetings.set(self)
        else:
            self.on_greeting()

    @guarded
    def on_first_payload(self) -> None:
        self._loop.greetings.cancel(self)
        self._copy(memoryview(b""))

    @guarded
    def on_greeting(self) -> None:
        self._copy(self._session.up.buffer_updated(0))

    def _copy(self, first: memoryview) -> None:
        """copying"""
        assert self.dialled is not None
        session = self._session
        self._up = Direction(session.up, self.accepted, self.dialled)
        self._down = Direction(session.down, self.dialled, self.accepted)
        self._loop.idle.set(self)
        self._poller.on_readable(self.accepted.fileno(), self.on_accepted_readable)
        self._poller.on_readable(self.dialled.fileno(), self.on_dialled_readable)
        self._up.send(first)
        self._settle(self._up, self.on_accepted_readable, self.on_dialled_writable)

    # fig: copying
    @guarded
    def on_accepted_readable(self) -> None:
        self._up.read()
        self._settle(self._up, self.on_accepted_readable, self.on_dialled_writable)

    @guarded
    def on_dialled_writable(self) -> None:
        self._up.send(self._up.pending)
        self._settle(self._up, self.on_accepted_readable, self.on_dialled_writable)

    @guarded
    def on_dialled_readable(self) -> None:
        self._down.read()
        self._settle(self._down, self.on_dialled_readable, self.on_accepted_writable)

    @guarded
    def on_accepted_writable(self) -> None:
        self._down.send(self._down.pending)
        self._settle(self._down, self.on_dialled_readable, self.on_accepted_writable)

    def _settle(self, direction: Direction, on_readable: Callback, on_writable: Callback) -> None:
        """Watches what the direction waits for now: room at its destination, else its source."""
        full = bool(direction.pending)
        if full != direction.blocked or not direction.open:
            direction.blocked = full
            wants_more = direction.open and not full and not direction.ended
            self._poller.on_readable(direction.source.fileno(), on_readable if wants_more else None)
            self._poller.on_writable(direction.destination.fileno(), on_writable if full else None)
        if not full:
            direction.flow.release()
        if not self._up.open and not self._down.open:
            self._finish()
    # end fig

    def _finish(self) -> None:
        if self._up.broken or self._down.broken:
            self.cut(ConnectionResetError("one side went before it had received all"))
        else:
            self.close()

    def on_idle(self) -> None:
        self.cut(TimeoutError(f"nothing moved for {self._loop.idle.length:g} s"))

    def cut(self, error: Exception) -> None:
        """Ends this relay so that neither side can take what it got for a whole."""
        log.warning(f"connection to {self._session.target} cut: {describe(error)}", peer_name(self.accepted))
        self._leave()
        abort(self.accepted)
        if self.dialled is not None:
            abort(self.dialled)

    def close(self) -> None:
        """Ends this relay: what was sent is delivered, then the FIN."""
        self._leave()
        self.accepted.close()
        if self.dialled is not None:
            self.dialled.close()

    def _leave(self) -> None:
        """Takes this relay out of everything that knows it."""
        loop = self._loop
        for deadlines in (loop.handshakes, loop.connects, loop.greetings, loop.idle):
            deadlines.cancel(self)
        for sock in (self.accepted, self.dialled):
            if sock is not None and sock.fileno() >= 0:
                self._poller.forget(sock.fileno())
        self._session.up.release()
        self._session.down.release()
        loop.relays.discard(self)
