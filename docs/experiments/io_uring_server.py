"""Candidate `io_uring`: the kernel is told what to do, and says what it has done. Not in the registry.

    +------------------------------- the only thread -------------------------------+
    |   task (a generator) -- yields an operation --> submission queue -.           |
    |     ^                                                  io_uring_enter: for    |
    |     |                                                  all that have come     |
    |     `------- its result <-- Completion <-- completion queue <----'            |
    +-------------------------------------------------------------------------------+
              names: a few helper threads, which wake the ring through an eventfd

io_uring(7), by way of the package uring-api. Measured by candidates.py.

Every other loop waits until a call would not block, then makes it: a reactor. This one makes the call,
and waits until it has been done: a proactor. What follows from that:

    a buffer belongs to the kernel from the start of a recv to its end, so each direction of an idle
    connection would own one. With `shared`, small reads take one of a few buffers that all
    connections share, once there is something to put into it (IOSQE_BUFFER_SELECT)
    an operation holds its own reference to the socket: closing the descriptor neither ends it, nor sends
    the FIN, nor frees the port, not even at exit. Whoever closes cancels first, and waits for the end
    sockets must be blocking ones: with O_NONBLOCK an operation fails with EAGAIN instead of waiting

Left out: the new deadlines of SIGHUP.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import TypeVar

import uring_api
from uring_api import Completion

from models._copy import is_dead
from models._deadlines import Clock, Deadlines
from models._direction import abort
from models._limits import NOWHERE
from models._loop import TICK
from models._resolver import Found, Resolver
from models._scoreboard import ACCEPT, RELAY, Slot
from models._server import OUT_OF_RESOURCES, RESOURCE_PAUSE, Server
from models._tasks import send_now
from tunnel.address import Address
from tunnel.buffers import SIZES
from tunnel.errors import ProtocolError
from tunnel.flow import Flow
from tunnel.log import describe, log, peer_name
from tunnel.session import Session

ENTRIES = 1024  # of the submission queue; the completion queue has twice as many
SHARED = 256  # buffers that all connections share
# One thread submits and reaps, so the kernel may leave a completion's work to that thread's next call.
FLAGS = uring_api.IORING_SETUP_SINGLE_ISSUER | uring_api.IORING_SETUP_DEFER_TASKRUN
GONE = (errno.EPIPE, errno.ECONNRESET)

Result = TypeVar("Result")
Code = Generator[Completion, Completion, Result]


class Task:
    """A generator, and the operation whose end it waits for."""

    __slots__ = ("code", "operation")

    def __init__(self, code: Code[None]) -> None:
        self.code = code
        self.operation: Completion | None = None


class House:
    """The ring, its tasks, and all clients."""

    def __init__(self, server: Server, slot: Slot, shared: bool) -> None:
        self.server = server
        self.slot = slot
        self.ring = uring_api.Ring(ENTRIES, FLAGS)
        self.buffers = self.ring.create_buf_group(SIZES[0], SHARED) if shared else None
        self.clients: set[Client] = set()
        self.doors: set[Task] = set()
        self.clock = Clock()
        timeouts = server.service.timeouts
        self.handshakes = Deadlines(self.clock, timeouts.handshake, Client.on_handshake_expired)
        self.connects = Deadlines(self.clock, server.service.dial.timeout, Client.on_connect_expired)
        self.talks = Deadlines(self.clock, timeouts.idle, Client.on_talk_expired)
        self.idle = Deadlines(self.clock, timeouts.idle, Client.on_idle)
        self.ticks: Deadlines[House] = Deadlines(self.clock, TICK, House.tick)
        self.resolver = Resolver(server, self.watch)

    def run(self) -> None:
        self.slot.enter(ACCEPT)
        self.watch(self.server.stop.fileno(), self.on_signal)
        self.doors = {self.spawn(self.accept(listener.dup())) for listener in self.server.listeners}
        self.tick()
        while self.clients or self.doors:
            try:
                completions = self.ring.wait(self.clock.seconds_left())
            except InterruptedError:
                completions = None
            for completion in completions or ():
                self.step(completion.take_user_data(), completion)
            self.clock.run()

    def spawn(self, code: Code[None]) -> Task:
        task = Task(code)
        self.step(task, None)
        return task

    def step(self, task: Task, came: Completion | None) -> None:
        """Runs a task until it yields its next operation. None is submitted before all have run."""
        task.operation = None
        try:
            operation = next(task.code) if came is None else task.code.send(came)
        except StopIteration:
            return
        operation.user_data = task
        task.operation = operation
        self.ring.prepare(operation)

    def cancel(self, task: Task) -> None:
        """Its operation comes back soon, with ECANCELED unless it was done already."""
        if task.operation is not None:
            self.ring.prepare_cancel_nowait(task.operation)

    def readable(self, fd: int, seconds: float | None = None) -> Completion:
        operation = self.ring.construct_poll(fd, select.POLLIN)
        operation.timeout = seconds
        return operation

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        def task() -> Code[None]:
            while True:
                yield self.readable(fd)
                callback()

        self.spawn(task())

    def tick(self) -> None:
        self.ticks.set(self)
        self.slot.beat()

    def on_signal(self) -> None:
        stop = self.server.stop
        stop.clear_wakeup()
        if stop.requested:
            for door in self.doors:
                self.cancel(door)
        if stop.impatient:
            for client in self.clients:
                client.on_stop()

    def accept(self, listener: socket.socket) -> Code[None]:
        listener.setblocking(True)
        with listener:
            while not self.server.stop.requested:
                fd = (yield self.ring.construct_accept(listener.fileno(), socket.SOCK_CLOEXEC)).res
                if fd >= 0:
                    self.server.accept.taken()
                    self.slot.accepted()
                    self.slot.enter(RELAY)
                    Client(self, socket.socket(listener.family, socket.SOCK_STREAM, 0, fd)).start()
                elif fd != -errno.ECANCELED:
                    self.server.accept.survive(OSError(-fd, os.strerror(-fd)))
                    if -fd in OUT_OF_RESOURCES:
                        yield self.readable(self.server.stop.fileno(), RESOURCE_PAUSE)
        self.doors = {door for door in self.doors if door.operation is not None}  # without this one

    def leave(self, client: Client) -> None:
        self.clients.discard(client)
        if not self.clients:
            self.slot.enter(ACCEPT)


class Client:
    """One client: a task until it is dialled, then two, of which the last closes."""

    def __init__(self, house: House, accepted: socket.socket) -> None:
        self.house = house
        self.service = house.server.service
        self.session: Session = self.service.new_session()
        self.accepted = accepted
        self.dialled: socket.socket | None = None
        self.tasks: list[Task] = []
        self.running = 0
        self.failure: Exception | None = None  # why operations are cancelled, or have failed
        self.sending: set[int] = set()  # descriptors
        self.broken = False  # a destination has gone, with bytes undelivered
        self.moves = self.moves_before = 0  # what the idle time looks at
        house.clients.add(self)

    def start(self) -> None:
        self.run(self.open())

    def run(self, code: Code[None]) -> None:
        """One task more. The last one to end closes: nothing waits for these descriptors then."""

        def guarded() -> Code[None]:
            try:
                yield from code
            except (ProtocolError, OSError) as error:
                self.fail(error)
            self.running -= 1
            if not self.running:
                self.close()

        self.running += 1
        self.tasks.append(self.house.spawn(guarded()))

    def fail(self, error: Exception) -> None:
        """Ends what the client's tasks wait for; each then raises the error in its own place."""
        if self.failure is None:
            self.failure = error
            for task in self.tasks:
                self.house.cancel(task)

    def checked(self, came: Completion) -> int:
        """The result of an operation. Raises `failure`, or the operation's own error."""
        self.moves += 1
        if self.failure is not None:
            raise self.failure
        result: int = came.res
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    # --- request, dial ---

    def open(self) -> Code[None]:
        deadline = time.monotonic() + self.house.handshakes.length
        session, accepted = self.session, self.accepted
        waiting = self.house.handshakes if session.dials else self.house.talks
        try:
            yield from self.request(waiting)
        except ProtocolError as error:
            log.warning(f"handshake failed: {error}", peer_name(accepted))
            send_now(accepted, session.answer(error))
            self.house.server.drain.add(accepted, deadline, NOWHERE)
            return
        except OSError as error:
            log.info(f"left during the handshake: {describe(error)}", peer_name(accepted))
            self.failure = None
            return
        finally:
            waiting.cancel(self)
        if (target := session.target) is None:
            return
        try:
            self.dialled = yield from self.dial(target)
        except OSError as error:
            log.info(f"cannot connect to {target}: {describe(error)}", peer_name(accepted))
            send_now(accepted, session.answer(error))
            self.failure = None
        else:
            yield from self.relay(self.dialled)

    def request(self, waiting: Deadlines[Client]) -> Code[None]:
        session, opening, fd = self.session, self.session.opening, self.accepted.fileno()
        waiting.set(self)
        while session.target is None:
            n = yield from self.receive(fd, opening)
            self.house.slot.count_up(n)
            yield from self.send(fd, opening.buffer_updated(n) if n else opening.eof())
            if not n:
                return
            if not session.dials:
                waiting.set(self)

    def dial(self, target: Address) -> Code[socket.socket]:
        """Raises OSError: of the last address tried, or DestinationDenied."""
        found = yield from self.addresses(target)
        if isinstance(found, OSError):
            raise found
        failure = OSError()
        for address in found:
            sock = None
            try:
                sock = self.service.dial.start(address)
                self.house.connects.set(self)
                self.checked((yield self.house.ring.construct_poll(sock.fileno(), select.POLLOUT)))
                if not (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    sock.setblocking(True)
                    return sock
                failure = OSError(code, os.strerror(code))
            except OSError as error:
                failure, self.failure = error, None
            finally:
                self.house.connects.cancel(self)
            if sock is not None:
                sock.close()
        raise failure

    def addresses(self, target: Address) -> Code[Found]:
        found: list[Found] = []
        if self.service.dial.literal(target):
            self.house.resolver.resolve(target, found.append)
            return found[0]
        woken = os.eventfd(0)  # another task's callback can wake this one only by the ring

        def on_found(answer: Found) -> None:
            found.append(answer)
            os.eventfd_write(woken, 1)

        self.house.resolver.resolve(target, on_found)
        try:
            while not found:
                yield self.house.readable(woken)
        finally:
            os.close(woken)
        return found[0]

    # --- relay ---

    def relay(self, dialled: socket.socket) -> Code[None]:
        session, accepted, slot = self.session, self.accepted, self.house.slot
        send_now(accepted, session.answer(None))
        self.house.idle.set(self)
        wait = session.patience
        if not wait or (yield self.house.readable(accepted.fileno(), wait)).res < 0:
            yield from self.send(dialled.fileno(), session.up.buffer_updated(0))
        self.run(self.copy(session.down, dialled, accepted, slot.count_down))
        yield from self.copy(session.up, accepted, dialled, slot.count_up)

    def copy(
        self, flow: Flow, source: socket.socket, destination: socket.socket, count: Callable[[int], None]
    ) -> Code[None]:
        """One direction, to its end."""
        reading, writing = source.fileno(), destination.fileno()
        while n := (yield from self.receive(reading, flow)):
            count(n)
            if not (yield from self.send(writing, flow.buffer_updated(n))):
                return
            flow.release()
        # An RST is told to one operation only. If that was the send, a recv sees what looks like an end.
        if self.broken or (reading in self.sending and is_dead(source)):
            self.broken = True
        elif (yield from self.send(writing, flow.eof())):
            try:
                destination.shutdown(socket.SHUT_WR)
            except OSError:  # it has gone by itself (ENOTCONN); its own direction says how
                self.broken = True

    def receive(self, fd: int, flow: Flow) -> Code[int]:
        ring, buffers = self.house.ring, self.house.buffers
        buffer = flow.get_buffer()
        if buffers is None or len(buffer) != SIZES[0]:
            return self.checked((yield ring.construct_recv(fd, buffer)))
        flow.release()
        came = yield ring.construct_recv_buf(fd, buffers)
        if came.res == -errno.ENOBUFS:  # all of them are being looked at
            return self.checked((yield ring.construct_recv(fd, flow.get_buffer())))
        n = self.checked(came)
        if n:
            flow.get_buffer()[:n] = memoryview(came.result)
            came.result.close()
        return n

    def send(self, fd: int, view: memoryview | bytes) -> Code[bool]:
        """False if the destination has gone. What it sent before is still read, by the other direction.

        A send that may wait is handed to a worker thread of the kernel's when the reader stalls, and that
        thread stays. So none waits here but the poll.
        """
        ring = self.house.ring
        while view:
            self.sending.add(fd)
            came = yield ring.construct_send(fd, view, socket.MSG_DONTWAIT)
            if came.res == -errno.EAGAIN:
                came = yield ring.construct_poll(fd, select.POLLOUT)
                if came.res >= 0:
                    continue
            self.sending.discard(fd)
            if -came.res in GONE and self.failure is None:
                self.broken = True
                return False
            view = view[self.checked(came) :]
        return True

    # --- the end ---

    def on_handshake_expired(self) -> None:
        self.fail(TimeoutError(f"no whole request within {self.house.handshakes.length:g} s"))

    def on_talk_expired(self) -> None:
        self.fail(TimeoutError(f"nothing moved for {self.house.talks.length:g} s"))

    def on_connect_expired(self) -> None:
        self.fail(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def on_idle(self) -> None:
        before, self.moves_before = self.moves_before, self.moves
        if before == self.moves:
            self.fail(TimeoutError(f"nothing moved for {self.house.idle.length:g} s"))
        else:
            self.house.idle.set(self)

    def on_stop(self) -> None:
        if self.session.target is None:
            self.fail(ConnectionError("the server ends"))

    def close(self) -> None:
        if self.failure is None and self.broken:
            self.failure = ConnectionResetError("one side went before it had received all")
        dialled = [self.dialled] if self.dialled else []
        if self.failure is not None:
            text = f"connection to {self.session.target} cut: {describe(self.failure)}"
            log.warning(text, peer_name(self.accepted))
            abort(self.accepted, *dialled)
        for sock in (self.accepted, *dialled):
            sock.close()
        self.session.up.release()
        self.session.down.release()
        self.house.idle.cancel(self)
        self.house.leave(self)
        self.tasks.clear()


def run(server: Server, shared: bool) -> None:
    slot = server.scoreboard.take()
    slot.own("tunnel: io_uring")
    House(server, slot, shared).run()


serve = partial(run, shared=False)
serve_shared = partial(run, shared=True)
