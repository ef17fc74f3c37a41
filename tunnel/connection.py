"""A connection's socket, without the layers that the module `socket` puts around one.

    socket.socket     __init__, close, accept: Python; family and type become enums at every turn
       ^     `------- _socket.socket: C
       |                 ^
    Connection  ---------' __init__ and close are those in C

A connection is made and closed once, so what a busy server spends on its sockets is mostly these layers:
they are for makefile(), and for printing. Figures: docs/performance.md, "A new connection".

Rules: no makefile(), no `with`, and no use in somebody else's loop, since these count on what the skipped
layers set up. Everything else is as in a `socket.socket`.
"""

from __future__ import annotations

import socket


class Connection(socket.socket):
    """A TCP socket; made, accepted or passed on."""

    __slots__ = ()

    __init__ = socket.SocketType.__init__
    close = socket.SocketType.close


def accept_from(listener: socket.socket) -> Connection:
    """accept(2): the next connection. Raises OSError."""
    fd, _ = listener._accept()  # type: ignore[attr-defined] # what socket.accept calls
    return adopt(fd)


def adopt(fd: int) -> Connection:
    """A connection that has its descriptor already. The family is found out by the C part anyway."""
    connection: Connection = Connection(-1, socket.SOCK_STREAM, 0, fd)
    return connection


def in_full(connection: socket.socket) -> socket.socket:
    """The same connection with all the layers, for somebody else's loop."""
    return socket.socket(-1, socket.SOCK_STREAM, 0, connection.detach())


def seconds(duration: float) -> bytes:
    """A duration as SO_RCVTIMEO and SO_SNDTIMEO want it: struct timeval (socket(7))."""
    whole = int(duration)
    return whole.to_bytes(8, "little") + int((duration - whole) * 1e6).to_bytes(8, "little")
