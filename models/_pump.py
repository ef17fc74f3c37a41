"""The body of every blocking model: one client, from accept to close.

    accept --> opening --> dial --> copy both directions --> close
                  |          `-- refused: say so, close
                  `-- not the protocol: drain (tunnel/drain.py)

The two directions of the copy must run side by side, or one that stalls would stop the other
(UNP 16.2). There are two ways to do that:

    copy_by_poll       this thread, poll, and sends that do not block
    copy_by_threads    two threads, each blocking in recv or send: the simplest code there is

Rules: whatever happens to one client is logged in one line and ends with that client. Only our own
mistakes get out of `serve_client`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable

from models._direction import Direction, abort
from models._server import Server
from tunnel.address import Address
from tunnel.dial import Dial, seconds
from tunnel.errors import ProtocolError
from tunnel.log import log, peer_name
from tunnel.session import Flow, Session

REHEARSALS = 10  # CPython 3.11 specialises bytecode at the eighth run

Copy = Callable[[Session, socket.socket, socket.socket, float], None]


class ClientLeft(Exception):
    """The client closed before it had said where to go. Nothing is wrong with that."""


def serve_client(server: Server, accepted: socket.socket, copy: Copy | None = None) -> None:
    """Serves one connection and closes it."""
    session = server.new_session()
    dialled = None
    try:
        dialled = connect(server, session, accepted)
        if dialled is not None:
            (copy or copy_by_poll)(session, accepted, dialled, server.timeouts.idle)
    except (ProtocolError, OSError) as error:
        log.warning(f"connection to {session.target} cut: {describe(error)}", peer_name(accepted))
        abort(accepted)
        if dialled is not None:
            abort(dialled)
    finally:
        session.up.release()
        session.down.release()
        accepted.close()
        if dialled is not None:
            dialled.close()


class Dialled(Dial):
    """A dial that has its connection already, whatever the target."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock

    def __call__(self, target: Address) -> socket.socket:  # noqa: ARG002
        return self._sock


def rehearse(server: Server) -> None:
    """Serves a made-up client a few times, over socket pairs, before the first fork.

    Whatever happens only once in a process (symbols bound, ciphers looked up, bytecode specialised)
    writes to memory, and each page written to after a fork is a page copied. Done here, it is done
    once for all children: a tenth fewer page faults for each (docs/performance.md).
    """
    for _ in range(REHEARSALS):
        client, accepted = socket.socketpair()
        target, dialled = socket.socketpair()
        with client, target:
            for end, words in ((client, server.rehearsal.client), (target, server.rehearsal.target)):
                end.sendall(words)
                end.shutdown(socket.SHUT_WR)
            serve_client(server._replace(dial=Dialled(dialled)), accepted)


def connect(server: Server, session: Session, accepted: socket.socket) -> socket.socket | None:
    """From accept to a dialled connection; None if there is none and the client knows all it may."""
    deadline = time.monotonic() + server.timeouts.handshake
    try:
        target = read_opening(server, session, accepted, deadline)
    except ClientLeft:
        return None
    except ProtocolError as error:
        log.warning(f"handshake failed: {error}", peer_name(accepted))
        send_all(accepted, memoryview(session.answer(error)))
        server.drain.add(accepted, deadline)
        return None
    except TimeoutError:
        log.info(f"handshake not finished within {server.timeouts.handshake:g} s", peer_name(accepted))
        return None
    except ConnectionError as error:
        log.debug(f"left during the handshake: {describe(error)}", peer_name(accepted))
        return None
    try:
        return server.dial(target)
    except OSError as error:
        log.info(f"cannot connect to {target}: {describe(error)}", peer_name(accepted))
        send_all(accepted, memoryview(session.answer(error)))
        return None


def read_opening(server: Server, session: Session, accepted: socket.socket, deadline: float) -> Address:
    """Reads until the target is known. One deadline for all of it, or a byte a second would do."""
    opening = session.opening
    while session.target is None:
        if time.monotonic() > deadline:
            raise TimeoutError
        try:
            n = accepted.recv_into(opening.get_buffer())
        except BlockingIOError:  # SO_RCVTIMEO, see WAKES in _server.py
            if server.stop.requested:
                raise ClientLeft from None
            continue
        if not n:
            opening.eof()
            raise ClientLeft
        send_all(accepted, opening.buffer_updated(n))
    return session.target


def first_words(session: Session, accepted: socket.socket) -> memoryview:
    """What goes to the dialled side before anything is read from the accepted one.

    At the client end the header waits a moment for the first payload, to share its segment.
    """
    send_all(accepted, memoryview(session.answer(None)))
    if session.patience:
        poller = select.poll()
        poller.register(accepted, select.POLLIN)
        if poller.poll(session.patience * 1000):
            return memoryview(b"")
    return session.up.buffer_updated(0)


def copy_by_poll(session: Session, accepted: socket.socket, dialled: socket.socket, idle: float) -> None:
    """Both directions in one thread. Raises TimeoutError after `idle` seconds without a byte."""
    up = Direction(session.up, accepted, dialled)
    down = Direction(session.down, dialled, accepted)
    up.send(first_words(session, accepted))
    # fig: copy by poll
    poller = select.poll()
    watched: tuple[int, int] | None = None
    accepted_fd = accepted.fileno()
    while up.open or down.open:
        wanted = interest(up, down), interest(down, up)
        if wanted != watched:
            poller.register(accepted, wanted[0])
            poller.register(dialled, wanted[1])
            watched = wanted
        ready = poller.poll(idle * 1000)
        if not ready:
            raise TimeoutError(f"nothing moved for {idle:g} s")
        for fd, events in ready:
            reading, writing = (up, down) if fd == accepted_fd else (down, up)
            if writing.pending and events & ~select.POLLIN:
                writing.send(writing.pending)
                if not writing.open:
                    writing.pass_on_fin(reading)
            if reading.open and not reading.pending and events & ~select.POLLOUT:
                reading.read()
                if not reading.open:
                    reading.pass_on_fin(writing)
            elif events & select.POLLERR:
                raise failure_of(reading.source)
            elif events & select.POLLHUP:
                poller.unregister(fd)  # it has ended both ways; poll would say so again and again
    if up.broken or down.broken:
        raise ConnectionResetError("one side went before it had received all")
    # end fig


def interest(reading: Direction, writing: Direction) -> int:
    """What to ask poll about a socket that one direction reads and the other writes."""
    events = select.POLLIN if reading.open and not reading.pending else 0
    return events | select.POLLOUT if writing.pending else events


def failure_of(sock: socket.socket) -> OSError:
    """The error that is pending on a socket (UNP 7.5, SO_ERROR)."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return ConnectionResetError(code, "connection failed")


def copy_by_threads(session: Session, accepted: socket.socket, dialled: socket.socket, idle: float) -> None:
    """One direction in a thread of its own, the other in this one. Raises as `copy_by_poll` does."""
    import threading  # noqa: PLC0415 - only a model with threads pays for it (see tunnel/log.py)

    pair = Pair(accepted, dialled, idle)
    downward = threading.Thread(target=pair.run, args=(pair.copy, session.down, dialled, accepted))
    downward.daemon = True
    downward.start()
    pair.run(pair.upward, session, accepted, dialled)
    downward.join()
    if pair.failures:
        raise pair.failures[0]


class Pair:
    """Two sockets, and what the two threads between them know of each other."""

    def __init__(self, accepted: socket.socket, dialled: socket.socket, idle: float) -> None:
        self.sockets = (accepted, dialled)
        self.moves = 0  # system calls that moved bytes, either way; what the idle timer compares
        self.sending: set[socket.socket] = set()  # those that a thread may be blocked on in send
        self.failures: list[Exception] = []
        for sock in self.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds(idle))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds(idle))

    def upward(self, session: Session, accepted: socket.socket, dialled: socket.socket) -> None:
        self.send_all(dialled, first_words(session, accepted))
        self.copy(session.up, accepted, dialled)

    def copy(self, flow: Flow, source: socket.socket, destination: socket.socket) -> None:
        # fig: copy by threads
        while n := self.receive(source, flow.get_buffer()):
            self.send_all(destination, flow.buffer_updated(n))
        if not self.failures:
            self.send_all(destination, flow.eof())
            destination.shutdown(socket.SHUT_WR)
        # end fig

    def receive(self, source: socket.socket, buffer: memoryview) -> int:
        """recv that gives up once neither direction has moved for the idle time."""
        while True:
            moves = self.moves
            try:
                n = source.recv_into(buffer)
            except BlockingIOError:
                self.check_idle(moves)
            else:
                self.moves += 1
                return n

    def send_all(self, destination: socket.socket, view: memoryview) -> None:
        """sendall that keeps count: on a timeout the socket module's own forgets what it sent."""
        self.sending.add(destination)
        while view:
            moves = self.moves
            try:
                view = view[destination.send(view) :]
                self.moves += 1
            except BlockingIOError:
                self.check_idle(moves)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise DestinationGone(error.errno, error.strerror) from None
        self.sending.discard(destination)

    def check_idle(self, moves: int) -> None:
        if self.moves == moves or self.failures:
            raise TimeoutError("nothing moved within the idle time")

    def run(self, step: Callable[..., None], *args: object) -> None:
        """One thread's work. A failure ends both directions, except that of a destination which
        has gone: what it sent before is still on its way through the other direction."""
        try:
            step(*args)
        except DestinationGone as error:
            self.failures.append(error)
        except (ProtocolError, OSError) as error:
            self.failures.append(error)
            self.wake()

    def wake(self) -> None:
        """Makes the other thread's recv or send return, without a FIN: what was cut off must not
        look whole. A blocked send ends only by SHUT_WR, but the FIN waits behind all that the full
        send buffer holds, and `abort` throws both away."""
        for sock in self.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds(0.001))
            shut(sock, socket.SHUT_RD)
        for sock in list(self.sending):
            shut(sock, socket.SHUT_WR)


class DestinationGone(ConnectionResetError):
    """The side that we were sending to is no longer there."""


def shut(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # not connected any more: then nothing blocks on it
        sock.shutdown(how)


def send_all(sock: socket.socket, view: memoryview) -> None:
    """Sends the few bytes of a handshake; blocks until they are taken."""
    if view:
        sock.sendall(view)


def describe(error: Exception) -> str:
    """An error in the words that a log line needs."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
