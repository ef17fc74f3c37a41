"""Where failed handshakes go: read and thrown away, silently, until one deadline from accept.

    worker --add(socket, deadline)--> [ one poll loop a process ] --> FIN at the deadline,
                                                                      or when the peer ends

A prober learns from *when* and *how* a server closes. So every failure ends here, whatever it was:
nothing is sent, nothing restarts the timer, and since all that came has been read, the close is a
FIN and not an RST. It holds no worker: the loop has a thread of its own, started by the first
failure (with `_thread`, because importing `threading` makes every fork dearer; see log.py).

Rules: bounded. Beyond CAPACITY the newcomer is closed at once.
"""

from __future__ import annotations

import _thread
import select
import socket
import time

CAPACITY = 1024  # sockets drained at once, by each process
SCRATCH = 16 * 1024  # bytes read at once


class Drain:
    """Takes sockets off their workers' hands. Safe between threads; build anew after a fork."""

    def __init__(self, *, in_thread: bool = True) -> None:
        self._in_thread = in_thread
        self._sockets: dict[int, tuple[socket.socket, float]] = {}
        self._lock = _thread.allocate_lock()
        self._wake: socket.socket | None = None  # its far end is in the thread's poll set

    def add(self, sock: socket.socket, deadline: float) -> None:
        """Drains a duplicate of `sock` until `deadline` (monotonic seconds); the caller closes its own.

        Raises OSError if there is no descriptor for the duplicate, or no thread to drain in.
        """
        with self._lock:
            if len(self._sockets) >= CAPACITY:
                return
            if self._in_thread and self._wake is None:
                wake, woken = socket.socketpair()
                try:
                    _thread.start_new_thread(self._run, (woken,))
                except RuntimeError as error:
                    raise OSError(None, str(error)) from None
                self._wake = wake
            mine = sock.dup()
            mine.setblocking(False)
            self._sockets[mine.fileno()] = (mine, deadline)
            if self._wake is not None:
                self._wake.send(b"\0")

    def __len__(self) -> int:
        """How many sockets it drains."""
        return len(self._sockets)

    def finish(self) -> None:
        """Drains what was added, here and now: for a process that has nothing else to do."""
        scratch = bytearray(SCRATCH)
        while self._sockets:
            self._drain_once(scratch, None)

    def _run(self, woken: socket.socket) -> None:
        scratch = bytearray(SCRATCH)
        while True:
            self._drain_once(scratch, woken)

    def _drain_once(self, scratch: bytearray, woken: socket.socket | None) -> None:
        poller = select.poll()
        with self._lock:
            for fd in self._sockets:
                poller.register(fd, select.POLLIN)
            first = min((deadline for _, deadline in self._sockets.values()), default=None)
        if woken is not None:
            poller.register(woken, select.POLLIN)
        wait = None if first is None else max(0.0, first - time.monotonic()) * 1000 + 1
        for fd, _ in poller.poll(wait):
            if woken is not None and fd == woken.fileno():
                woken.recv(SCRATCH)
            else:
                self._discard(fd, scratch)
        now = time.monotonic()
        with self._lock:
            for fd in [fd for fd, (_, deadline) in self._sockets.items() if deadline <= now]:
                self._close(fd)

    def _discard(self, fd: int, scratch: bytearray) -> None:
        try:
            ended = not self._sockets[fd][0].recv_into(scratch)
        except BlockingIOError:
            return
        except OSError:  # reset by the peer: nothing is left to hide
            ended = True
        if ended:
            with self._lock:
                self._close(fd)

    def _close(self, fd: int) -> None:
        sock, _ = self._sockets.pop(fd)
        sock.close()
