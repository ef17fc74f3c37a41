"""Where failed handshakes go: read and thrown away, silently, until one deadline from accept.

    worker --add(socket, deadline)--> [ one poll loop a process ] --> FIN at the deadline,
                                                                      or when the peer ends

A prober learns from *when* and *how* a server closes. So every failure ends here, whatever it was:
nothing is sent, nothing restarts the timer, and since all that came has been read, the close is a
FIN and not an RST. It holds no worker: the loop has a thread of its own, started by the first
failure (with `_thread`, because importing `threading` makes every fork dearer; see log.py).

What is beyond a cap must be closed, and whenever a failure leads to a close, that tells of the failure: send
byte after byte of rubbish, look when one of your connections is closed, and you know how many bytes a
handshake has. Hence two caps. The first is `--max-per-source`, and `--max-connections`: a connection keeps
its place while it is drained, so the limits are met at accept, before the first byte, whatever comes then.
The second, CAPACITY, is what saves the descriptors of a server without such limits: the newcomer stays,
and the source that has most here loses the connection that is next to its end. To learn from that, a
prober has to hold CAPACITY connections of each process, and nobody else is in its count.

A client end has told its client what was wrong, and has nothing to hide from it: `longest` is the time that
such a client gets to read it.

Rules: bounded; a place in the limits is given back when the drain closes the connection.
"""

from __future__ import annotations

import _thread
import contextlib
import select
import socket
import time
from collections import Counter
from math import inf
from typing import NamedTuple, Protocol

CAPACITY = 1024  # sockets drained at once, by each process
SCRATCH = 16 * 1024  # bytes read at once
PAUSE = 0.02  # seconds without looking, when there was no memory to look


class Place(Protocol):
    """What a connection takes of the server's limits."""

    def keep(self) -> Place:
        """The place, for somebody else."""

    def leave(self) -> None:
        """Gives it back."""


class Drained(NamedTuple):
    """A connection that is drained."""

    sock: socket.socket
    deadline: float  # monotonic seconds
    source: str  # the host that it comes from
    place: Place


class Drain:
    """Takes sockets off their workers' hands. Safe between threads; build anew after a fork.

    None of them is drained for more than `longest` seconds.
    """

    def __init__(self, *, longest: float = inf, in_thread: bool = True, capacity: int = CAPACITY) -> None:
        self._longest = longest
        self._in_thread = in_thread
        self._capacity = capacity
        self._drained: dict[int, Drained] = {}  # by descriptor
        self._first = inf  # no deadline is earlier
        self._poller = select.poll()
        self._lock = _thread.allocate_lock()
        self._wake: socket.socket | None = None  # its far end is in the thread's poll set

    def __len__(self) -> int:
        """How many sockets it drains."""
        return len(self._drained)

    def add(self, sock: socket.socket, deadline: float, place: Place) -> None:
        """Drains a duplicate of `sock` until `deadline` (monotonic seconds); the caller closes its own.

        Takes over its place. Raises OSError if there is no descriptor for the duplicate, or no thread.
        """
        deadline = min(deadline, time.monotonic() + self._longest)
        with self._lock:
            if self._in_thread and self._wake is None:
                self._start()
            if len(self._drained) >= self._capacity:
                self._make_room()
            mine = self._duplicate(sock)
            mine.setblocking(False)
            self._drained[mine.fileno()] = Drained(mine, deadline, host_of(mine), place.keep())
            self._first = min(self._first, deadline)
            self._poller.register(mine, select.POLLIN)
            if self._wake is not None:
                self._wake.send(b"\0")

    def finish(self) -> None:
        """Drains what was added, here and now: for a process that has nothing else to do."""
        scratch = bytearray(SCRATCH)
        while self._drained:
            self._drain_once(scratch, None)

    def _start(self) -> None:
        wake, woken = socket.socketpair()
        try:
            _thread.start_new_thread(self._run, (woken,))
        except RuntimeError as error:
            raise OSError(None, str(error)) from None
        self._wake = wake

    def _run(self, woken: socket.socket) -> None:
        scratch = bytearray(SCRATCH)
        self._poller.register(woken, select.POLLIN)
        while True:
            self._drain_once(scratch, woken)

    def _duplicate(self, sock: socket.socket) -> socket.socket:
        try:
            return sock.dup()
        except OSError:
            if not self._drained:
                raise
            self._make_room()
            return sock.dup()

    def _make_room(self) -> None:
        """Closes what has the least to lose, of the source that has most here."""
        most = Counter(drained.source for drained in self._drained.values()).most_common(1)[0][0]
        theirs = (fd for fd, drained in self._drained.items() if drained.source == most)
        self._close(min(theirs, key=lambda fd: self._drained[fd].deadline))

    def _drain_once(self, scratch: bytearray, woken: socket.socket | None) -> None:
        wait = None if self._first == inf else max(0.0, self._first - time.monotonic()) * 1000 + 1
        try:
            ready = self._poller.poll(wait)
        except OSError:  # no memory for its list; those who are drained can wait
            time.sleep(PAUSE)
            return
        for fd, _ in ready:
            if woken is not None and fd == woken.fileno():
                with contextlib.suppress(OSError):  # what was not read wakes us again
                    woken.recv(SCRATCH)
            else:
                self._discard(fd, scratch)
        now = time.monotonic()
        if now >= self._first:
            with self._lock:
                for fd in [fd for fd, drained in self._drained.items() if drained.deadline <= now]:
                    self._close(fd)
                self._first = min((drained.deadline for drained in self._drained.values()), default=inf)

    def _discard(self, fd: int, scratch: bytearray) -> None:
        with self._lock:
            if fd not in self._drained:
                return  # it had to make room a moment ago
            try:
                ended = not self._drained[fd].sock.recv_into(scratch)
            except BlockingIOError:
                return
            except OSError:  # reset by the peer: nothing is left to hide
                ended = True
            if ended:
                self._close(fd)

    def _close(self, fd: int) -> None:
        drained = self._drained.pop(fd)
        self._poller.unregister(fd)
        drained.place.leave()
        drained.sock.close()

    def descriptors(self) -> set[int]:
        """Of what it drains."""
        return set(self._drained)


def host_of(sock: socket.socket) -> str:
    try:
        return str(sock.getpeername()[0])
    except (OSError, IndexError):  # it has gone; or it is no TCP: a rehearsal
        return ""
