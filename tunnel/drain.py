"""Where failed handshakes go: read and thrown away, silently, until one deadline from accept.

    worker --add(socket, deadline)--> [ one poll loop a process ] --> FIN at the deadline,
                                                                      or when the peer ends

A prober learns from *when* and *how* a server closes. So every failure ends here, whatever it was:
nothing is sent, nothing restarts the timer, and since all that came has been read, the close is a
FIN and not an RST. It holds no worker: the loop has a thread of its own, started by the first
failure (with `_thread`, because importing `threading` makes every fork dearer; see log.py).

Nor does it need a descriptor then: what wakes the loop is made beforehand, and of the connection it takes the
descriptor that there is. Else who uses up the descriptors would be told of each failure by its early close.
(asyncio, uvloop and Tornado do not part with a descriptor. There the client is drained where it is served:
`_drain` in models/_protocol.py and models/_streams.py.)

What is beyond a cap must be closed, and whenever a failure leads to a close, that tells of the failure: send
byte after byte of rubbish, look when one of your connections is closed, and you know how many bytes a
handshake has. Hence two caps. The first is `--max-per-source`, and `--max-connections`: a connection keeps
its place while it is drained, so the limits are met at accept, before the first byte, whatever comes then.
The second, CAPACITY, is what saves the descriptors of a server without such limits: the newcomer stays,
and the source that has most here loses the connection that is next to its end. To learn from that, a
prober has to hold CAPACITY connections of each process, and nobody else is in its count. (Where one process
serves one client, as in `fork`, there is one connection in each drain, and neither of this is ever met.)

A client end has told its client what was wrong, and has nothing to hide from it: `longest` is the time that
such a client gets to read it.

Rules: bounded; a place in the limits is given back when the drain closes the connection. Nothing that may
wait is done under the lock, for all workers wait for it.
"""

from __future__ import annotations

import _thread
import contextlib
import select
import socket
import time
from collections import Counter
from collections.abc import Mapping
from math import inf
from typing import NamedTuple, Protocol, TypeVar

from tunnel.connection import adopt

CAPACITY = 1024  # sockets drained at once, by each process
SCRATCH = 16 * 1024  # bytes read at once
PAUSE = 0.02  # seconds without looking, when there was no memory to look

Key = TypeVar("Key")


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
    """Takes sockets off their workers' hands. Safe between threads; `close` it and build anew after a fork.

    None of them is drained for more than `longest` seconds. Raises OSError if there are no two descriptors.
    """

    def __init__(self, *, longest: float = inf, in_thread: bool = True, capacity: int = CAPACITY) -> None:
        self._longest = longest
        self.capacity = capacity
        self._drained: dict[int, Drained] = {}  # by descriptor
        self._first = inf  # no deadline is earlier
        self._poller = select.poll()
        self._lock = _thread.allocate_lock()
        self._running = False  # the thread
        self._wake: tuple[socket.socket, socket.socket] | None = None  # the thread polls the second
        if in_thread:
            self._wake = socket.socketpair()
            for end in self._wake:
                end.setblocking(False)

    def __len__(self) -> int:
        """How many sockets it drains."""
        return len(self._drained)

    def add(self, sock: socket.socket, deadline: float, place: Place) -> None:
        """Drains `sock` until `deadline` (monotonic seconds). Takes over its place and its descriptor, which
        no poller may watch any more; to its owner `sock` is closed.

        Raises OSError if there can be no thread; then all stays with the owner.
        """
        deadline = self.until(deadline)
        with self._lock:
            sock.setblocking(False)
            source = host_of(sock)
            if self._wake is not None:
                self._rouse(*self._wake)
            if len(self._drained) >= self.capacity:
                self._close(first_to_go(self._drained))
            mine = adopt(sock.detach())
            self._drained[mine.fileno()] = Drained(mine, deadline, source, place.keep())
            self._first = min(self._first, deadline)
            self._poller.register(mine, select.POLLIN)

    def until(self, deadline: float) -> float:
        """When a connection is let go whose handshake had that deadline, and has failed now."""
        return min(deadline, time.monotonic() + self._longest)

    def close(self) -> None:
        """Of a drain that nothing was added to: its descriptors, which a fork would pass on."""
        if self._wake is not None:
            for end in self._wake:
                end.close()
            self._wake = None

    def finish(self) -> None:
        """Drains what was added, here and now: for a process that has nothing else to do."""
        scratch = bytearray(SCRATCH)
        while self._drained:
            self._drain_once(scratch, None)

    def _rouse(self, wake: socket.socket, woken: socket.socket) -> None:
        """Makes the thread look again, once it gets the lock; starts it if there is none."""
        if not self._running:
            try:
                _thread.start_new_thread(self._run, (woken,))
            except RuntimeError as error:
                raise OSError(None, str(error)) from None
            self._running = True
        with contextlib.suppress(BlockingIOError):  # so many have roused it that there is no room for more
            wake.send(b"\0")

    def _run(self, woken: socket.socket) -> None:
        scratch = bytearray(SCRATCH)
        self._poller.register(woken, select.POLLIN)
        while True:
            self._drain_once(scratch, woken)

    def _drain_once(self, scratch: bytearray, woken: socket.socket | None) -> None:
        wait = None if self._first == inf else max(0.0, self._first - time.monotonic()) * 1000 + 1
        try:
            ready = self._poller.poll(wait)
        except OSError:  # no memory for its list; those who are drained can wait
            time.sleep(PAUSE)
            return
        for fd, _ in ready:
            if woken is not None and fd == woken.fileno():
                # Under the lock: who has roused us has then added why. What was not read rouses us again.
                with self._lock, contextlib.suppress(OSError):
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


class Waiting(Protocol):
    """Somebody who is drained, here or in a loop that does it itself (models/_house.py)."""

    @property
    def deadline(self) -> float:
        """Monotonic seconds."""

    @property
    def source(self) -> str:
        """The host that it comes from."""


def first_to_go(drained: Mapping[Key, Waiting]) -> Key:
    """Who has the least to lose, of the source that has most of them."""
    most = Counter(waiting.source for waiting in drained.values()).most_common(1)[0][0]
    theirs = (key for key, waiting in drained.items() if waiting.source == most)
    return min(theirs, key=lambda key: drained[key].deadline)


def host_of(sock: socket.socket) -> str:
    try:
        return str(sock.getpeername()[0])
    except (OSError, IndexError):  # it has gone; or it is no TCP: a rehearsal
        return ""
