"""Names for loops: getaddrinfo in a few threads, since it blocks and has no non-blocking form.

    loop --ask--> [ queue ] --> thread: dial.addresses() --> [ answers ] --socketpair--> loop

The way of libuv's `uv_getaddrinfo`: work goes to a small pool, and a byte on a descriptor that the
loop watches says that answers are there.

Rules: started by the first name, so a server of literals has no threads. Callbacks run in the
loop's thread only.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable

from models._loop import Found, addresses_of
from models._server import Server
from tunnel.address import Address

THREADS = 4  # as libuv's default pool

OnFound = Callable[[Found], None]


class Resolver:
    """Answers `ask` through its callback, once the loop has called `deliver`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._asked: queue.SimpleQueue[tuple[Address, OnFound]] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[tuple[OnFound, Found]] = queue.SimpleQueue()
        self._woken, self._wake = socket.socketpair()
        for number in range(THREADS):
            threading.Thread(target=self._work, name=f"resolver {number}", daemon=True).start()

    def fileno(self) -> int:
        """Readable when `deliver` has something to do."""
        return self._woken.fileno()

    def ask(self, target: Address, on_found: OnFound) -> None:
        """`on_found` gets the addresses to try, or the OSError."""
        self._asked.put((target, on_found))

    def deliver(self) -> None:
        """Calls back with the answers that have come."""
        for _ in self._woken.recv(4096):
            on_found, found = self._answered.get()
            on_found(found)

    def _work(self) -> None:
        while True:
            target, on_found = self._asked.get()
            self._answered.put((on_found, addresses_of(self._server.service.dial, target)))
            self._wake.send(b"\0")
