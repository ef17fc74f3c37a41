"""One direction of a relay that must not block: reads, passes through a Flow, sends, and waits.

                     +--------- reading ---------+
         source ---> | recv, flow, send all      | ---> destination
                     +---------------------------+
        destination full |                  ^ drained
                         v                  |
                     +-- pending: the source is not read, the destination is watched --+

    source ended: what is pending goes first, then `open` is False, and the owner passes the FIN on.

Rules: never reads while something is pending. That is all the backpressure there is: memory is
bounded by one buffer, and a peer that does not read stalls the one that writes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from tunnel.flow import EMPTY, Flow

NOW = socket.MSG_DONTWAIT


class Direction:
    """From `source` to `destination` through `flow`. Works on blocking and non-blocking sockets."""

    __slots__ = (
        "blocked",
        "broken",
        "count",
        "destination",
        "ended",
        "flow",
        "moves",
        "open",
        "pending",
        "source",
    )

    def __init__(
        self, flow: Flow, source: socket.socket, destination: socket.socket, count: Callable[[int], None]
    ) -> None:
        self.flow = flow
        self.count = count  # is told of the bytes of each read
        self.source = source
        self.destination = destination
        self.pending = EMPTY
        self.blocked = False  # what a loop last asked its poller for: the destination, not the source
        self.open = True
        self.ended = False  # the source has sent its FIN
        self.broken = False  # the destination has gone, with bytes undelivered
        self.moves = 0  # calls that moved bytes; what the idle timer compares

    def read(self) -> None:
        """The source is readable. Raises OSError of the source, or ProtocolError."""
        try:
            n = self.source.recv_into(self.flow.get_buffer(), 0, NOW)
        except BlockingIOError:
            return
        if n:
            self.moves += 1
            self.count(n)
            view = self.flow.buffer_updated(n)
        else:
            self.ended = True
            view = self.flow.eof()
        self.send(view)

    def send(self, view: memoryview) -> None:
        """Sends what it can of `view`, or of what was pending; the rest is pending."""
        if view:
            try:
                sent = self.destination.send(view, NOW)
                self.moves += 1
                view = view[sent:] if sent < len(view) else EMPTY
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                # The other direction may still hold bytes that the destination sent before it went.
                self.open, self.broken, self.pending = False, True, view[:0]
                return
        self.pending = view
        self.open = not self.ended or bool(view)

    def pass_on_fin(self, other: Direction) -> None:
        """Once it is not open: the FIN, unless `other` has ended too, since then close sends it."""
        if self.broken or not other.open:
            return
        try:
            self.destination.shutdown(socket.SHUT_WR)
        except OSError:  # it has gone by itself (ENOTCONN); its own direction says how
            self.broken = True


def abort(*socks: socket.socket) -> None:
    """Closes with RST, so that what was cut off cannot be taken for a whole (UNP 7.5)."""
    for sock in socks:
        if sock.fileno() >= 0:
            reset_on_close(sock)
            sock.close()


def reset_on_close(sock: socket.socket) -> None:
    """Whoever closes it from now on sends an RST, and throws away what was not sent yet."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
