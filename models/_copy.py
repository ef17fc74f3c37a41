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
import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from math import inf
from types import FrameType
from typing import NamedTuple, NoReturn

from models._bare_thread import BareThread
from models._direction import Direction
from models._scoreboard import Slot
from models._server import Timeouts, silent_for
from tunnel.connection import seconds
from tunnel.errors import ProtocolError
from tunnel.flow import Flow
from tunnel.log import describe
from tunnel.session import Session

POLLIN, POLLOUT, POLLERR, POLLHUP = select.POLLIN, select.POLLOUT, select.POLLERR, select.POLLHUP
POLLRDHUP = getattr(select, "POLLRDHUP", 0)  # Linux: a FIN has come, behind what can be read
BEATS = 1.0  # seconds between signs of life while nothing moves
LULL = 0.1  # seconds of silence after which a direction gives its buffers back
EARLY = 0.01  # seconds by which the kernel may end a call before its time: it counts in jiffies
GONE = os.EX_UNAVAILABLE  # exit code of a child whose destination has gone
GOOD, BAD = b"+", b"-"  # how the direction of the parent has ended
LAST_WORDS = 500  # bytes at most
TCP_CLOSE = 7  # <netinet/tcp.h>, the first byte of TCP_INFO


class Link(NamedTuple):
    """A connection whose two ends are there."""

    session: Session
    accepted: socket.socket
    dialled: socket.socket
    timeouts: Timeouts
    slot: Slot


def answer(link: Link) -> None:
    """Tells the accepted side that it is connected: before anybody could send it what comes from there."""
    if words := link.session.answer(None):
        link.accepted.sendall(words)


def first_words(link: Link) -> memoryview:
    """What goes to the dialled side before anything is read from the accepted one.

    At the client end the header waits a moment for the first payload, to share its segment.
    """
    if link.session.patience:
        poller = select.poll()
        poller.register(link.accepted, POLLIN)
        if poller.poll(link.session.patience * 1000):
            return memoryview(b"")
    return link.session.up.buffer_updated(0)


def copy_by_poll(link: Link) -> None:
    """One thread that waits for whatever comes next."""
    session, accepted, dialled, timeouts, slot = link
    answer(link)
    up = Direction(session.up, accepted, dialled, slot.count_up)
    down = Direction(session.down, dialled, accepted, slot.count_down)
    up.send(first_words(link))
    silent, pause = 0.0, min(timeouts.half_closed, BEATS)  # seconds
    # fig: copy by poll
    poller = select.poll()
    changed = True  # what the poller is to be asked for
    accepted_fd, dialled_fd = accepted.fileno(), dialled.fileno()
    while up.open or down.open:
        if changed:
            poller.register(accepted_fd, interest(up, down))
            poller.register(dialled_fd, interest(down, up))
            changed = False
        ready = poller.poll(pause * 1000)
        slot.beat()
        silent = 0.0 if ready else silent + pause
        if silent and silent >= (longest := timeouts.silence(both := up.open and down.open)):
            raise silent_for(longest, both)
        for fd, events in ready:
            reading, writing = (up, down) if fd == accepted_fd else (down, up)
            if writing.pending and events & ~POLLIN:
                writing.send(writing.pending)
                changed = True
                if not writing.open:
                    writing.pass_on_fin(reading)
            if reading.open and not reading.pending and events & ~POLLOUT:
                reading.read()
                if events & POLLRDHUP and reading.open and not reading.pending:
                    reading.read()  # the FIN has come with the last bytes
                if reading.pending or not reading.open:
                    changed = True
                if not reading.open:
                    reading.pass_on_fin(writing)
            elif events & POLLERR:
                raise failure_of(reading.source)
            elif events & POLLHUP:
                poller.unregister(fd)  # it has ended both ways; poll would say so again and again
    # end fig
    if up.broken or down.broken:
        raise ConnectionResetError("one side went before it had received all")


def interest(reading: Direction, writing: Direction) -> int:
    """What to ask poll about a socket that one direction reads and the other writes."""
    events = POLLIN | POLLRDHUP if reading.open and not reading.pending else 0
    return events | POLLOUT if writing.pending else events


def failure_of(sock: socket.socket) -> OSError:
    """The error that is pending on a socket (UNP 7.5, SO_ERROR)."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return ConnectionResetError(code, "connection failed")


def copy_by_threads(link: Link) -> None:
    """One direction in a thread of its own, the other in this one."""
    answer(link)
    pair = Pair(link)
    downward = BareThread()
    downward.start(pair.run, pair.downward, pair.wake)
    pair.run(pair.upward, pair.wake)
    downward.join()
    if pair.failures:
        raise pair.failures[0]


class Pair:
    """Two sockets, and what the two that copy between them know of each other."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.sockets = (link.accepted, link.dialled)
        self.bytes = link.slot.moved()  # when somebody looked last
        self.moved = time.monotonic()  # when bytes moved last, as far as is known here
        self.sending: set[socket.socket] = set()  # those that a thread may be blocked on in send
        self.failures: list[Exception] = []
        self.cut = False  # somebody has called `wake`
        self.is_whole = self.was_not_cut  # asked when a source has ended
        self.ended = False  # one direction has
        self.has_ended: Callable[[], bool] = lambda: False  # asked where nobody says so
        self.pause = min(link.timeouts.half_closed, BEATS if link.slot.watched else inf)
        self.lull = seconds(min(self.pause, LULL))
        for sock in self.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, self.lull)
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
        while n := self.receive(source, flow):
            count(n)
            self.send_all(destination, flow.buffer_updated(n))
        if self.is_whole(source):
            self.send_all(destination, flow.eof())
            destination.shutdown(socket.SHUT_WR)
        # end fig
        self.end_one()

    def end_one(self) -> None:
        """One direction has ended; from now on the other has less time to be silent."""
        self.ended, self.moved = True, time.monotonic()

    def was_not_cut(self, source: socket.socket) -> bool:
        """True for an end that is a FIN. An RST tells but one of two callers, and it may have been the
        other one, in send; to this one it looks like an end."""
        return not self.failures and not (source in self.sending and is_dead(source))

    def receive(self, source: socket.socket, flow: Flow) -> int:
        """recv that gives up once neither direction has moved for the idle time."""
        while True:
            try:
                return source.recv_into(flow.get_buffer())
            except BlockingIOError:
                flow.release()
                self.wait_for(source)

    def wait_for(self, source: socket.socket) -> None:
        """Blocks in recv without a buffer: who waits longer than a lull should own none."""
        waiting = True
        while waiting:
            self.check_idle(source, socket.SO_RCVTIMEO)
            with contextlib.suppress(BlockingIOError):
                source.recv(1, socket.MSG_PEEK)
                waiting = False
        source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, self.lull)

    def send_all(self, destination: socket.socket, view: memoryview) -> None:
        """sendall that keeps count: on a timeout the socket module's own forgets what it sent."""
        self.sending.add(destination)
        while view:
            try:
                view = view[destination.send(view) :]
                self.moved = time.monotonic()
                self.link.slot.beat()
            except BlockingIOError:
                self.check_idle(destination, socket.SO_SNDTIMEO)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise DestinationGone(error.errno, error.strerror) from None
        self.sending.discard(destination)

    def check_idle(self, sock: socket.socket, timeout: int) -> None:
        """A call has timed out. What the other one reads is seen in the scoreboard, whoever it is."""
        self.link.slot.beat()
        moved = self.link.slot.moved()
        if moved != self.bytes:
            self.bytes, self.moved = moved, time.monotonic()
        if not self.ended and self.has_ended():
            self.end_one()
        longest = self.link.timeouts.silence(not self.ended)
        left = longest - (time.monotonic() - self.moved)
        if self.cut or left < EARLY:
            raise silent_for(longest, not self.ended)
        sock.setsockopt(socket.SOL_SOCKET, timeout, seconds(min(left, self.pause)))

    def run(self, step: Callable[[], None], on_failure: Callable[[], None]) -> None:
        """One direction. A failure ends both, except that of a destination which has gone: what it
        sent before is still on its way through the other direction."""
        try:
            step()
        except DestinationGone as error:
            self.failures.append(error)
        except (ProtocolError, OSError) as error:
            self.failures.append(error)
            on_failure()

    def wake(self) -> None:
        """Makes the other thread's recv or send return, without a FIN: what was cut off must not
        look whole. A blocked send ends only by SHUT_WR, but the FIN waits behind all that the full
        send buffer holds, and `abort` throws both away."""
        self.cut = True
        for sock in self.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds(0.001))
            shut(sock, socket.SHUT_RD)
        for sock in list(self.sending):
            shut(sock, socket.SHUT_WR)


class DestinationGone(ConnectionResetError):
    """The side that we were sending to is no longer there."""


def is_dead(sock: socket.socket) -> bool:
    """True for a connection that has been reset, or that has ended both ways."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE
    except OSError:  # no TCP: a rehearsal
        return False


def shut(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # not connected any more: then nothing blocks on it
        sock.shutdown(how)


def copy_by_fork(link: Link) -> None:
    """One direction in a child, the other in this process, as figure 16.10 has `str_cli`.

        this process: up      <-- SIGCHLD, exit code, last words --         child: down
                              -- how it ended -->
                              -- SIGIO once this end of the line is closed -->

    The child is never on its own: it has asked for SIGIO on the line between the two (UNP 25), so it
    dies when this process lets go of its end, or dies itself. Only for models whose clients are served
    by a main thread, since that is where handlers run.
    """
    answer(link)
    pair = Pair(link)
    pid, status, listening = 0, None, True

    def on_child(_number: int = 0, _frame: FrameType | None = None) -> None:
        nonlocal status
        if listening and pid and status is None:
            try:
                ended, code = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                return  # the call that this one interrupts has just reaped it
            if ended:
                status = code
                pair.end_one()
                if os.waitstatus_to_exitcode(code) not in (os.EX_OK, GONE):
                    pair.wake()

    def wait_for_child() -> int:
        nonlocal listening, status
        listening = False
        if status is None:
            _, status = os.waitpid(pid, 0)
        return status

    def is_whole(source: socket.socket) -> bool:
        """As `was_not_cut`; a child that was told of the RST is about to end, and says so."""
        return not pair.cut and not (is_dead(source) and wait_for_child())

    pair.is_whole = is_whole
    before = signal.signal(signal.SIGCHLD, on_child)
    ours, theirs = socket.socketpair()
    result, tell = os.pipe()
    try:
        # fig: copy by fork
        pid = fork()
        if pid == 0:
            ours.close()
            copy_in_child(pair, theirs, result)
        on_child()  # it may have ended before its pid was known
        pair.run(pair.upward, ours.close)
        os.write(tell, GOOD if not pair.failures else BAD)
        wait_for_child()
        # end fig
        words = last_words(ours) if status and ours.fileno() >= 0 else b""
    finally:
        for end in (ours, theirs):
            end.close()
        for fd in (result, tell):
            os.close(fd)
        signal.signal(signal.SIGCHLD, before)
    if words:
        raise ProtocolError(words.decode())
    if pair.failures:
        raise pair.failures[0]


def fork() -> int:
    """os.fork, whose EAGAIN is no "try again": no process is to be had (fork(2))."""
    try:
        return os.fork()
    except OSError as error:
        raise OSError(error.errno, f"no process for the direction back: {error.strerror}") from None


def last_words(line: socket.socket) -> bytes:
    """Why the child has failed."""
    try:
        return line.recv(LAST_WORDS, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b"the process of the direction back was killed"


def copy_in_child(pair: Pair, line: socket.socket, result: int) -> NoReturn:
    """The direction back, until it has ended or the parent has let go of its end of the line."""
    code = os.EX_SOFTWARE
    poller = select.poll()
    poller.register(result, POLLIN)
    pair.is_whole = lambda source: (
        not is_dead(source) or bool(poller.poll(1000) and os.read(result, 1) == GOOD)
    )
    pair.has_ended = lambda: bool(poller.poll(0))
    try:
        fcntl.fcntl(line, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(line, fcntl.F_SETFL, fcntl.fcntl(line, fcntl.F_GETFL) | os.O_ASYNC)
        if not has_hung_up(line):  # then there may have been no SIGIO
            pair.run(pair.downward, lambda: None)
        code = os.EX_OK
        for failure in pair.failures:
            code = GONE if isinstance(failure, DestinationGone) else os.EX_IOERR
            with contextlib.suppress(BrokenPipeError):  # the parent knows already
                line.send(describe(failure).encode()[:LAST_WORDS])
    except BaseException:  # noqa: BLE001 - shown, and told to the parent by the exit code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def has_hung_up(line: socket.socket) -> bool:
    """True once the other end has been closed."""
    poller = select.poll()
    poller.register(line, 0)  # POLLHUP is always reported
    return bool(poller.poll(0))


COPIES: dict[str, Callable[[Link], None]] = {
    "poll": copy_by_poll,
    "threads": copy_by_threads,
    "fork": copy_by_fork,
}
