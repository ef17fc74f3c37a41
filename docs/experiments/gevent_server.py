"""Candidate `gevent`: blocking code on greenlets. Measured by candidates.py; not in the registry.

    +----------------------------- the only thread -----------------------------+
    |   hub: libev's loop --- switch ---> greenlet: accept                      |
    |     ^                `- switch ---> greenlet: a client, then its up       |
    |     |                `- switch ---> greenlet: its down                    |
    |     `------ wait(): this greenlet's stack is put aside, the hub goes on   |
    +---------------------------------------------------------------------------+
              names: getaddrinfo in the hub's thread pool

This is models/_tasks.py with its generators gone. A task there yields what it waits for, and each
function on the way to that yield says `yield from`; here `wait` is an ordinary call that returns later.

Left out: the new deadlines of SIGHUP.
"""

from __future__ import annotations

import errno
import os
import socket
import time

import gevent
from gevent.event import Event
from gevent.socket import wait

from models._deadlines import Clock, Deadlines
from models._direction import Direction, abort
from models._limits import NOWHERE
from models._loop import TICK
from models._resolver import addresses_of
from models._scoreboard import ACCEPT, RELAY, Slot
from models._server import OUT_OF_RESOURCES, RESOURCE_PAUSE, Server
from models._tasks import send_now
from tunnel.address import Address
from tunnel.errors import ProtocolError
from tunnel.log import describe, log, peer_name
from tunnel.session import Session

READ, WRITE = 1, 2  # EV_READ, EV_WRITE
TIMED_OUT = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


class Waits:
    """libev's two watchers of a socket: made once, as gevent's own sockets have them."""

    def __init__(self, sock: socket.socket) -> None:
        io = gevent.get_hub().loop.io
        self.readable, self.writable = io(sock.fileno(), READ), io(sock.fileno(), WRITE)

    def close(self) -> None:
        """Before the descriptor: libev must have forgotten its number."""
        self.readable.close()
        self.writable.close()


class Client:
    """One client: its greenlet runs `serve`."""

    def __init__(self, house: House, accepted: socket.socket) -> None:
        self.house = house
        self.service = house.server.service
        self.session: Session = self.service.new_session()
        self.accepted = accepted
        self.dialled: socket.socket | None = None
        self.accepted_waits = Waits(accepted)
        self.dialled_waits: Waits | None = None
        self.down: gevent.Greenlet | None = None
        self.up_to_now: tuple[Direction, Direction] | None = None
        self.moves = 0  # of both when the idle time was last looked at
        self.greenlet = gevent.spawn(self.serve)

    def serve(self) -> None:
        try:
            if (target := self.request()) and self.dial(target):
                self.relay()
        except (ProtocolError, OSError) as error:
            self.cut(error)
        finally:
            self.close()

    def request(self) -> Address | None:
        """Where the client wants to go; None if it has left, or is left to the drain."""
        session, accepted, handshake = self.session, self.accepted, self.service.timeouts.handshake
        deadline = time.monotonic() + handshake
        talk = Direction(session.opening, accepted, accepted, self.house.slot.count_up)
        waiting = self.house.handshakes if session.dials else self.house.talks
        self.house.openings.add(self)
        waiting.set(self)
        try:
            while session.target is None or talk.pending:
                if talk.pending:
                    wait(self.accepted_waits.writable)
                    talk.send(talk.pending)
                else:
                    talk.flow.release()
                    wait(self.accepted_waits.readable)
                    talk.read()
                if not talk.open:
                    return None
                if not session.dials:
                    waiting.set(self)
        except ProtocolError as error:
            log.warning(f"handshake failed: {error}", peer_name(accepted))
            send_now(accepted, session.answer(error))
            self.stop_waiting()  # the drain has the descriptor from now on
            self.house.server.drain.add(accepted, deadline, NOWHERE)
            return None
        except TimeoutError as error:
            log.info(describe(error), peer_name(accepted))
            return None
        except ConnectionError as error:
            log.debug(f"left during the handshake: {describe(error)}", peer_name(accepted))
            return None
        finally:
            self.house.openings.discard(self)
            waiting.cancel(self)
        return session.target

    def dial(self, target: Address) -> bool:
        dial, failure = self.service.dial, OSError()
        try:
            if dial.literal(target):
                found = addresses_of(dial, target)
            else:
                found = gevent.get_hub().threadpool.apply(addresses_of, (dial, target))
            if isinstance(found, OSError):
                raise found
            for address in found:
                try:
                    self.dialled = dial.start(address)
                    self.dialled_waits = Waits(self.dialled)
                    wait(self.dialled_waits.writable, dial.timeout, TIMED_OUT)
                    if not (code := self.dialled.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                        return True
                    failure = OSError(code, os.strerror(code))
                except OSError as error:
                    failure = error
                self.hang_up()
        except OSError as error:
            failure = error
        log.info(f"cannot connect to {target}: {describe(failure)}", peer_name(self.accepted))
        send_now(self.accepted, self.session.answer(failure))
        return False

    def relay(self) -> None:
        """Both directions to their ends. Raises what ends them otherwise."""
        session, accepted, dialled, slot = self.session, self.accepted, self.dialled, self.house.slot
        assert dialled is not None
        assert self.dialled_waits is not None
        up = Direction(session.up, accepted, dialled, slot.count_up)
        down = Direction(session.down, dialled, accepted, slot.count_down)
        self.up_to_now = up, down
        self.house.idle.set(self)
        send_now(accepted, session.answer(None))
        if not session.patience or not self.came_within(session.patience):
            up.send(session.up.buffer_updated(0))
        self.down = gevent.spawn(self.copy_down, down, up)
        copy(up, down, self.accepted_waits, self.dialled_waits)
        self.down.join()
        if up.broken or down.broken:
            raise ConnectionResetError("one side went before it had received all")

    def copy_down(self, down: Direction, up: Direction) -> None:
        """The second greenlet. Its failure is thrown into the first, whatever that one waits for."""
        assert self.dialled_waits is not None
        try:
            copy(down, up, self.dialled_waits, self.accepted_waits)
        except (ProtocolError, OSError) as error:
            self.greenlet.kill(error, block=False)

    def came_within(self, seconds: float) -> bool:
        try:
            wait(self.accepted_waits.readable, seconds)
        except TimeoutError:
            return False
        return True

    def on_idle(self) -> None:
        assert self.up_to_now is not None
        before, self.moves = self.moves, sum(direction.moves for direction in self.up_to_now)
        if before == self.moves:
            self.greenlet.kill(self.silence(), block=False)
        else:
            self.house.idle.set(self)

    def on_handshake_expired(self) -> None:
        self.greenlet.kill(TimeoutError("no whole request in time"), block=False)

    def on_talk_expired(self) -> None:
        self.greenlet.kill(self.silence(), block=False)

    def silence(self) -> TimeoutError:
        return TimeoutError(f"nothing moved for {self.service.timeouts.idle:g} s")

    def cut(self, error: Exception) -> None:
        """Ends both connections so that neither side can take what it got for a whole."""
        log.warning(f"connection to {self.session.target} cut: {describe(error)}", peer_name(self.accepted))
        self.stop_waiting()
        abort(self.accepted, *([self.dialled] if self.dialled else []))

    def close(self) -> None:
        self.stop_waiting()
        self.session.up.release()
        self.session.down.release()
        self.accepted.close()
        self.hang_up()
        self.house.idle.cancel(self)
        self.house.leave(self)

    def stop_waiting(self) -> None:
        """Nobody may wait for a descriptor that is about to be closed."""
        if self.down is not None:
            self.down.kill()
        self.accepted_waits.close()
        if self.dialled_waits is not None:
            self.dialled_waits.close()

    def hang_up(self) -> None:
        if self.dialled is not None:
            if self.dialled_waits is not None:
                self.dialled_waits.close()
            self.dialled.close()
        self.dialled = self.dialled_waits = None


def copy(direction: Direction, other: Direction, source: Waits, destination: Waits) -> None:
    """One direction, to its end."""
    while direction.open:
        if direction.pending:
            wait(destination.writable)
            direction.send(direction.pending)
        else:
            direction.flow.release()
            wait(source.readable)
            direction.read()
    direction.pass_on_fin(other)


class House:
    """All clients, and who lets them in."""

    def __init__(self, server: Server, slot: Slot) -> None:
        self.server = server
        self.slot = slot
        self.clients: set[Client] = set()
        self.openings: set[Client] = set()  # those who have not said where to go
        self.clock = Clock()
        timeouts = server.service.timeouts
        self.handshakes = Deadlines(self.clock, timeouts.handshake, Client.on_handshake_expired)
        self.talks = Deadlines(self.clock, timeouts.idle, Client.on_talk_expired)
        self.idle = Deadlines(self.clock, timeouts.idle, Client.on_idle)
        self.pause = min(TICK, *(length / 4 for length in timeouts))  # nobody tells of a new deadline
        self.doors: list[gevent.Greenlet] = []
        self.empty = Event()

    def run(self) -> None:
        self.slot.enter(ACCEPT)
        gevent.spawn(self.hear_signals)
        gevent.spawn(self.keep_time)
        self.doors = [gevent.spawn(self.accept, listener.dup()) for listener in self.server.listeners]
        gevent.joinall(self.doors)
        while self.clients:
            self.empty.clear()
            self.empty.wait()

    def accept(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        waits = Waits(listener)
        try:
            while not self.server.stop.requested:
                wait(waits.readable)
                self.accept_one(listener)
        finally:
            waits.close()
            listener.close()

    def accept_one(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except BlockingIOError:  # the client may have left (UNP 16.6)
            return
        except OSError as error:
            self.server.accept.survive(error)
            if error.errno in OUT_OF_RESOURCES:
                gevent.sleep(RESOURCE_PAUSE)
            return
        accepted.setblocking(False)
        self.server.accept.taken()
        self.slot.accepted()
        self.slot.enter(RELAY)
        self.clients.add(Client(self, accepted))

    def hear_signals(self) -> None:
        """Python's handlers run in between its instructions, so somebody must be woken (signal(7))."""
        stop = self.server.stop
        with socket.socket(fileno=os.dup(stop.fileno())) as woken:
            waits = Waits(woken)
            while True:
                wait(waits.readable)
                stop.clear_wakeup()
                if stop.requested:
                    gevent.killall(self.doors, block=False)
                if stop.impatient:
                    for client in list(self.openings):
                        client.greenlet.kill(block=False)

    def keep_time(self) -> None:
        while True:
            gevent.sleep(min(self.pause, self.clock.seconds_left()))
            self.clock.run()
            self.slot.beat()

    def leave(self, client: Client) -> None:
        self.clients.discard(client)
        if not self.clients:
            self.slot.enter(ACCEPT)
            self.empty.set()


def serve(server: Server) -> None:
    slot = server.scoreboard.take()
    slot.own("tunnel: gevent")
    House(server, slot).run()
