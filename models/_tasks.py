"""The body of `trampoline`: one client, as the straight line of code that _pump.py has.

    blocking                                   here
    accepted.recv_into(...)                    yield read_wait(accepted)    then recv_into, which cannot block
    destination.send(...)                      yield write_wait(destination)
    connect, until SO_SNDTIMEO                 yield write_wait(dialled, seconds)
    a second thread                            spawn(copy(...))
    thread.join()                              yield pause(), until somebody calls wake

A task is a generator. It runs until it yields what it waits for, and the scheduler sends it True when
that has come, or False when the time for it is over. Between two yields nobody else runs: there
is nothing to lock.

Rules: whoever spawns a task cancels it before it closes what the task waits for. Whatever happens to
one client is logged in one line and ends with that client.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Generator
from typing import NamedTuple, Protocol, TypeVar

from models._direction import NOW, Direction, abort
from models._limits import Place
from models._resolver import Found, Resolver
from models._scoreboard import ACCEPT, RELAY, Slot
from models._server import WAKES, Server, silent_for
from tunnel.address import Address
from tunnel.dial import SockAddr
from tunnel.errors import ProtocolError
from tunnel.log import describe, log, peer_name
from tunnel.session import Session

Result = TypeVar("Result")


class Wait(NamedTuple):
    """What a task yields."""

    fd: int  # -1: nothing but time, or somebody who calls `wake`
    event: int
    seconds: float | None


Code = Generator[Wait, bool | None, Result]


class File(Protocol):
    def fileno(self) -> int: ...


def read_wait(file: File | int, seconds: float | None = None) -> Wait:
    """Until there is something to read, or an end, or an error."""
    return Wait(file if isinstance(file, int) else file.fileno(), select.POLLIN, seconds)


def write_wait(file: File, seconds: float | None = None) -> Wait:
    """Until there is room to send, or a connection is made, or an error."""
    return Wait(file.fileno(), select.POLLOUT, seconds)


def pause(seconds: float | None = None) -> Wait:
    """Until somebody calls `wake`."""
    return Wait(-1, 0, seconds)


class Task:
    """A generator, and what it waits for; nothing while it is about to run, or has ended."""

    __slots__ = ("code", "timer", "wait")

    def __init__(self, code: Code[None]) -> None:
        self.code = code
        self.wait: Wait | None = None
        self.timer = 0  # the number of the wait, if it has a time


class Scheduler(Protocol):
    """What tasks ask of the scheduler (trampoline.py)."""

    current: Task  # the one that runs

    def spawn(self, code: Code[None]) -> Task:
        """One task more."""

    def wake(self, task: Task, came: bool) -> None:
        """Ends a task's wait, if it does wait; `came` is what its yield returns."""

    def cancel(self, task: Task) -> None:
        """Ends a task, whatever it waits for."""

    def run(self) -> None:
        """One round. Raises OSError if the kernel has no memory for the wait."""


class Clients:
    """All clients of one server."""

    def __init__(self, server: Server, scheduler: Scheduler, slot: Slot) -> None:
        self.server = server
        self.number = 0
        self._scheduler = scheduler
        self._slot = slot
        self._openings: set[Task] = set()  # tasks of those that have not said where to go
        self._resolver: Resolver | None = None
        slot.enter(ACCEPT)

    def admit(self, accepted: socket.socket) -> None:
        """Serves one connection and closes it."""
        self.server.accept.taken()
        self._slot.accepted(RELAY)
        self.number += 1
        self._scheduler.spawn(self._serve(accepted))

    def go_on(self) -> None:
        """One round of the scheduler; if it could not wait, a pause."""
        try:
            self._scheduler.run()
        except OSError as error:
            self.server.accept.sit_out(error, "waiting pauses")
        self._slot.beat()

    def hear_signals(self) -> Code[None]:
        """When the server stops, those who have not said where to go have nothing to lose."""
        while True:
            yield read_wait(self.server.stop)
            self.server.stop.clear_wakeup()
            if self.server.stop.impatient:
                for task in self._openings:
                    self._scheduler.wake(task, came=False)

    def _serve(self, accepted: socket.socket) -> Code[None]:
        # fig: one client
        session = self.server.service.new_session()
        place = self.server.limits.claim(accepted.fileno())
        dialled = None
        try:
            dialled = yield from self._connect(session, accepted, place)
            if dialled is not None:
                yield from self._relay(session, accepted, dialled)
        except (ProtocolError, OSError) as error:
            log.warning(f"connection to {session.target} cut: {describe(error)}", peer_name(accepted))
            abort(accepted)
            if dialled is not None:
                abort(dialled)
        # end fig
        finally:
            session.up.release()
            session.down.release()
            accepted.close()
            place.leave()  # not before: somebody may wait for just this one
            if dialled is not None:
                dialled.close()
            self.number -= 1
            if not self.number:
                self._slot.enter(ACCEPT)

    def _connect(self, session: Session, accepted: socket.socket, place: Place) -> Code[socket.socket | None]:
        """From accept to a dialled connection; None if there is none and the client knows all it may."""
        deadline = time.monotonic() + self.server.service.timeouts.handshake
        self._openings.add(self._scheduler.current)
        try:
            target = yield from self._read_opening(session, accepted, deadline)
        except ProtocolError as error:
            log.warning(f"handshake failed: {error}", peer_name(accepted))
            send_now(accepted, session.answer(error))
            self._slot.drained()
            self.server.drain.add(accepted, deadline, place)
            return None
        except TimeoutError as error:
            log.info(describe(error), peer_name(accepted))
            return None
        except ConnectionError as error:
            log.debug(f"left during the handshake: {describe(error)}", peer_name(accepted))
            return None
        finally:
            self._openings.discard(self._scheduler.current)
        if target is None:
            return None
        try:
            return (yield from self._dial(target))
        except OSError as error:
            log.info(f"cannot connect to {target}: {describe(error)}", peer_name(accepted))
            send_now(accepted, session.answer(error))
            return None

    def _read_opening(
        self, session: Session, accepted: socket.socket, deadline: float
    ) -> Code[Address | None]:
        """Reads until the target is known; None if the client has left, or the server is about to.

        One deadline for all of it, or a byte a second would do; a service's client has the idle time.
        """
        server = self.server
        talk = Direction(session.opening, accepted, accepted, self._slot.count_up)
        stopping = session.dials
        while session.target is None or talk.pending:
            idle = server.service.timeouts.idle
            if not session.dials:
                deadline = time.monotonic() + (WAKES if server.stop.requested else idle)
            left = max(0.0, deadline - time.monotonic())
            # fig: one step of an opening
            if talk.pending:
                came = yield write_wait(accepted, left)
                if came:
                    talk.send(talk.pending)
            else:
                talk.flow.release()
                came = yield read_wait(accepted, left)
                if came:
                    talk.read()
            # end fig
            if not talk.open:
                return None
            if not came:
                if not server.stop.requested:
                    raise TimeoutError(
                        "no whole request in time" if session.dials else f"nothing moved for {idle:g} s"
                    )
                if stopping:
                    return None
                stopping = True  # a service's client may finish what it is about
        return session.target

    def _dial(self, target: Address) -> Code[socket.socket]:
        """A connected socket. Raises OSError: of the last address tried, or DestinationDenied."""
        dial = self.server.service.dial
        code = errno.ETIMEDOUT
        for address in (yield from self._addresses(target)):
            try:
                sock = dial.start(address)
            except OSError as error:
                code = error.errno or code
                continue
            came = yield write_wait(sock, dial.timeout)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if came else errno.ETIMEDOUT
            if not code:
                return sock
            sock.close()
        raise OSError(code, os.strerror(code))

    def _addresses(self, target: Address) -> Code[list[SockAddr]]:
        """What to try, in order. Other tasks run while a name server thinks."""
        if self._resolver is None:
            self._resolver = Resolver(self.server, self._watch)
        found: list[Found] = []
        task = self._scheduler.current

        def on_found(answer: Found) -> None:
            found.append(answer)
            self._scheduler.wake(task, came=True)

        self._resolver.resolve(target, on_found)
        if not found and not (yield pause(self.server.service.dial.timeout)):
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        if isinstance(found[0], OSError):
            raise found[0]
        return found[0]

    def _watch(self, fd: int, callback: Callable[[], None]) -> None:
        def watch() -> Code[None]:
            while True:
                yield read_wait(fd)
                callback()

        self._scheduler.spawn(watch())

    def _relay(self, session: Session, accepted: socket.socket, dialled: socket.socket) -> Code[None]:
        """Copies until both directions have ended by themselves. Raises what ends them otherwise."""
        up = Direction(session.up, accepted, dialled, self._slot.count_up)
        down = Direction(session.down, dialled, accepted, self._slot.count_down)
        send_now(accepted, session.answer(None))
        if not (session.patience and (yield read_wait(accepted, session.patience))):
            up.send(session.up.buffer_updated(0))
        failures: list[Exception] = []
        task = self._scheduler.current

        def run(direction: Direction, other: Direction) -> Code[None]:
            try:
                yield from copy(direction, other)
            except (ProtocolError, OSError) as error:
                failures.append(error)
            self._scheduler.wake(task, came=True)

        copies = [self._scheduler.spawn(run(up, down)), self._scheduler.spawn(run(down, up))]
        try:
            while (up.open or down.open) and not failures:
                moves = up.moves + down.moves
                both = up.open and down.open
                longest = self.server.service.timeouts.silence(both)
                if not (yield pause(longest)) and moves == up.moves + down.moves:
                    raise silent_for(longest, both)
        finally:
            for each in copies:
                self._scheduler.cancel(each)
        if failures:
            raise failures[0]
        if up.broken or down.broken:
            raise ConnectionResetError("one side went before it had received all")


def copy(direction: Direction, other: Direction) -> Code[None]:
    """One direction, to its end."""
    # fig: copy by tasks
    while direction.open:
        if direction.pending:
            yield write_wait(direction.destination)
            direction.send(direction.pending)
        else:
            direction.flow.release()
            yield read_wait(direction.source)
            direction.read()
    direction.pass_on_fin(other)
    # end fig


def send_now(sock: socket.socket, answer: bytes) -> None:
    """The few bytes of a handshake, which a new connection's buffer has always room for."""
    if answer:
        sock.send(answer, NOW)
