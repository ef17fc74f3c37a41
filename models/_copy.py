"""How the two directions of one connection are copied, side by side: the choice of UNP 16.2.

    poll       one thread, poll, and sends that do not block
    threads    two threads, each blocking in recv or in send: the simplest code there is
    fork       two processes, the same code

Side by side, because one that stalls must not stop the other.

Rules: each copies until both directions have ended by themselves, and passes each FIN on. All raise
TimeoutError once nothing has moved either way for the idle time, OSError, or ProtocolError; the caller
then resets both connections.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

from models._direction import Direction
from models._scoreboard import Slot
from tunnel.dial import seconds
from tunnel.errors import ProtocolError
from tunnel.session import Flow, Session

BEATS = 1.0  # seconds between signs of life while nothing moves


class Link(NamedTuple):
    """A connection whose two ends are there."""

    session: Session
    accepted: socket.socket
    dialled: socket.socket
    idle: float  # seconds without a byte either way
    slot: Slot


def first_words(link: Link) -> memoryview:
    """What goes to the dialled side before anything is read from the accepted one.

    At the client end the header waits a moment for the first payload, to share its segment.
    """
    if answer := link.session.answer(None):
        link.accepted.sendall(answer)
    if link.session.patience:
        poller = select.poll()
        poller.register(link.accepted, select.POLLIN)
        if poller.poll(link.session.patience * 1000):
            return memoryview(b"")
    return link.session.up.buffer_updated(0)


def copy_by_poll(link: Link) -> None:
    """One thread that waits for whatever comes next."""
    session, accepted, dialled, idle, slot = link
    up = Direction(session.up, accepted, dialled, slot.count_up)
    down = Direction(session.down, dialled, accepted, slot.count_down)
    up.send(first_words(link))
    silent, pause = 0.0, min(idle, BEATS)  # seconds
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
        ready = poller.poll(pause * 1000)
        slot.beat()
        silent = 0.0 if ready else silent + pause
        if silent >= idle:
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
    # end fig
    if up.broken or down.broken:
        raise ConnectionResetError("one side went before it had received all")


def interest(reading: Direction, writing: Direction) -> int:
    """What to ask poll about a socket that one direction reads and the other writes."""
    events = select.POLLIN if reading.open and not reading.pending else 0
    return events | select.POLLOUT if writing.pending else events


def failure_of(sock: socket.socket) -> OSError:
    """The error that is pending on a socket (UNP 7.5, SO_ERROR)."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return ConnectionResetError(code, "connection failed")


def copy_by_threads(link: Link) -> None:
    """One direction in a thread of its own, the other in this one."""
    import threading  # noqa: PLC0415 - only a model with threads pays for it (see tunnel/log.py)

    pair = Pair(link)
    downward = threading.Thread(target=pair.run, args=[pair.downward], daemon=True)
    downward.start()
    pair.run(pair.upward)
    downward.join()
    if pair.failures:
        raise pair.failures[0]


class Pair:
    """Two sockets, and what the two threads between them know of each other."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.sockets = (link.accepted, link.dialled)
        self.moves = 0  # system calls that moved bytes, either way; what the idle timer compares
        self.sending: set[socket.socket] = set()  # those that a thread may be blocked on in send
        self.failures: list[Exception] = []
        self.pause = min(link.idle, BEATS) if link.slot.watched else link.idle  # seconds in one call
        for sock in self.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds(self.pause))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds(self.pause))

    def upward(self) -> None:
        session, accepted, dialled, *_ = self.link
        self.send_all(dialled, first_words(self.link))
        self.copy(session.up, accepted, dialled, self.link.slot.count_up)

    def downward(self) -> None:
        session, accepted, dialled, *_ = self.link
        self.copy(session.down, dialled, accepted, self.link.slot.count_down)

    def copy(
        self, flow: Flow, source: socket.socket, destination: socket.socket, count: Callable[[int], None]
    ) -> None:
        # fig: copy by threads
        while n := self.receive(source, flow.get_buffer()):
            count(n)
            self.send_all(destination, flow.buffer_updated(n))
        if not self.failures:
            self.send_all(destination, flow.eof())
            destination.shutdown(socket.SHUT_WR)
        # end fig

    def receive(self, source: socket.socket, buffer: memoryview) -> int:
        """recv that gives up once neither direction has moved for the idle time."""
        moves, silent = self.moves, 0.0
        while True:
            try:
                n = source.recv_into(buffer)
            except BlockingIOError:
                moves, silent = self.check_idle(moves, silent)
            else:
                self.moves += 1
                return n

    def send_all(self, destination: socket.socket, view: memoryview) -> None:
        """sendall that keeps count: on a timeout the socket module's own forgets what it sent."""
        self.sending.add(destination)
        moves, silent = self.moves, 0.0
        while view:
            try:
                view = view[destination.send(view) :]
                self.moves += 1
            except BlockingIOError:
                moves, silent = self.check_idle(moves, silent)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise DestinationGone(error.errno, error.strerror) from None
        self.sending.discard(destination)

    def check_idle(self, moves: int, silent: float) -> tuple[int, float]:
        """After a call that timed out: how many moves there were by now, and seconds without one."""
        self.link.slot.beat()
        silent = silent + self.pause if self.moves == moves else 0.0
        if silent >= self.link.idle or self.failures:
            raise TimeoutError(f"nothing moved for {self.link.idle:g} s")
        return self.moves, silent

    def run(self, step: Callable[[], None]) -> None:
        """One thread's work. A failure ends both directions, except that of a destination which
        has gone: what it sent before is still on its way through the other direction."""
        try:
            step()
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


def copy_by_fork(link: Link) -> None:
    """One direction in a child, the other in this process, as figure 16.10 has `str_cli`.

    Neither sees whether the other moves bytes, so each direction alone must not be silent for too long.
    Only for models whose clients are served by a main thread: signals are how a child's end is heard.
    """

    status: int | None = None

    def on_child(_number: int, _frame: FrameType | None) -> None:
        nonlocal status
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = code
            if code:  # out of the recv or send that we are blocked in
                raise ConnectionResetError("the direction back was cut")

    pair = Pair(link)
    pid = os.fork()
    if pid == 0:
        pair.run(pair.downward)
        os._exit(os.EX_IOERR if pair.failures else os.EX_OK)
    before = signal.signal(signal.SIGCHLD, on_child)
    try:
        on_child(0, None)  # it may have ended before there was anybody to hear it
        pair.run(pair.upward)
    finally:
        signal.signal(signal.SIGCHLD, before)
        if status is None:
            if pair.failures and not isinstance(pair.failures[0], DestinationGone):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if pair.failures:
        raise pair.failures[0]


COPIES: dict[str, Callable[[Link], None]] = {
    "poll": copy_by_poll,
    "threads": copy_by_threads,
    "fork": copy_by_fork,
}
