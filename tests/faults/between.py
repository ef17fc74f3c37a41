"""A relay in user space between a client and the server under test: it changes, delays, cuts into pieces.

client ==> [ Between: place ] ==> server         each piece passes through `change`, or waits
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from tests.harness.process import Place

Change = Callable[[int, bytes], bytes]  # of a piece, and where in the stream it begins


class Between:
    """Serves any number of connections. `change` is for what goes up, `piece` and `delay` for both ways."""

    def __init__(
        self, there: Place, change: Change | None = None, piece: int = 65536, delay: float = 0.0
    ) -> None:
        self._there, self._change, self._piece, self._delay = there, change, piece, delay
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.place = Place(*self._listener.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Between:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._there)
                for source, destination, change in ((client, server, self._change), (server, client, None)):
                    destination.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    arguments = (source, destination, change)
                    threading.Thread(target=self._copy, args=arguments, daemon=True).start()

    def _copy(self, source: socket.socket, destination: socket.socket, change: Change | None) -> None:
        place = 0
        with contextlib.suppress(OSError):
            while piece := source.recv(self._piece):
                time.sleep(self._delay)
                destination.sendall(change(place, piece) if change else piece)
                place += len(piece)
            destination.shutdown(socket.SHUT_WR)
