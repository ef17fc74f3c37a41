"""Listening and dialling: libuv's src/unix/tcp.c, and the accepting half of its stream.c.

    listen --> io_start --> POLLIN --> server_io: one accept, accepted_fd is set
                                           |
                                           v
                                     connection_cb(0) ---- took it: accept() --> Stream
                                           |
                                           `--- did not: the listener is stopped until somebody does

    out of descriptors --> emfile_trick: the spare one is closed, all who wait are accepted and
                           closed, and the spare one is opened again

Rules: one accept for each readiness, so a flood of clients keeps nobody waiting who is there already.
Turning clients away tells them at once what they would else learn by their own timeout; and a
listener that stays readable would let the loop spin.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable

from models.epoll.core import Loop, spare_descriptor
from models.epoll.linux import POLLIN, POLLOUT
from models.epoll.stream import StatusCb, Stream
from tunnel.connection import accept_from
from tunnel.dial import Dial, SockAddr


class Listener(Stream):
    """uv_tcp_t that listens."""

    __slots__ = ("accepted_fd", "connection_cb", "take")

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        connection_cb: Callable[[Listener, int], None],
        take: Callable[[socket.socket], socket.socket] = lambda listener: listener.accept()[0],
    ) -> None:
        """`sock` is bound and listens already. What is watched, and closed, is a duplicate.

        For `sock` itself is replaced by a dead socket at SIGTERM (models/_stop.py), while others may still
        hold the listener: epoll would go on reporting what nobody here could take out any more.
        """
        super().__init__(loop, sock.dup())
        self.sock.setblocking(False)
        self.cb = Listener.server_io
        self.connection_cb: Callable[[Listener, int], None] | None = connection_cb
        self.take = take  # accept(2), or one that refuses some
        self.accepted_fd: socket.socket | None = None

    def listen(self) -> None:
        """uv__tcp_listen, the half after listen(2)."""
        self.loop.io_start(self, POLLIN)

    # fig: server_io
    def server_io(self, _events: int) -> None:
        assert self.connection_cb
        try:
            self.accepted_fd = self.take(self.sock)
        except BlockingIOError:
            return  # another process was faster, or the client has left (UNP 16.6)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                emfile_trick(self.loop, self.sock)
            self.connection_cb(self, -(error.errno or 0))
            return
        self.connection_cb(self, 0)
        if self.accepted_fd:
            self.loop.io_stop(self, POLLIN)

    def accept(self) -> Stream:
        """uv_accept: the client that waits, which somebody has to be."""
        assert self.accepted_fd
        stream = Stream(self.loop, self.accepted_fd)
        self.accepted_fd = None
        if self.fd >= 0:
            self.loop.io_start(self, POLLIN)
        return stream
        # end fig

    def close(self, *, reset: bool = False) -> None:
        super().close(reset=reset)
        self.connection_cb = None
        if self.accepted_fd:
            self.accepted_fd.close()


def emfile_trick(loop: Loop, sock: socket.socket) -> None:
    """Turns all away who wait, with the help of the spare descriptor."""
    if loop.emfile_fd < 0:
        return
    os.close(loop.emfile_fd)
    with contextlib.suppress(OSError):  # EAGAIN: nobody waits any more
        while True:
            accept_from(sock).close()
    loop.emfile_fd = spare_descriptor()


def tcp_connect(loop: Loop, dial: Dial, address: SockAddr, cb: StatusCb) -> Stream:
    """Dials; `cb` gets the status. Raises OSError if it cannot even be begun."""
    stream = Stream(loop, dial.start(address))
    stream.connect_cb = cb
    loop.io_start(stream, POLLOUT)
    return stream
