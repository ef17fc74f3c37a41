"""A connected stream: libuv's src/unix/stream.c.

    POLLIN  --> stream_io --> read: recv into alloc_cb's buffer, read_cb(n), again if it was filled
    POLLOUT --> stream_io --> write queue --> drain: POLLOUT off, the SHUT_WR that waited for it

    write(view, cb)   at once if the queue is empty; what does not fit waits, and then cb(status)
    shutdown(cb)      SHUT_WR behind all that was written before, then cb(status)

A status, and read_cb's n, are as in libuv: below 0 they are an error's number, or EOF.

Differs from libuv: `write` says at once whether all has gone, and calls back only for what had to wait,
where libuv calls back for every write in the next round. And a watcher is a base class here, a member
there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from models._direction import NOW, abort
from models.epoll.core import Loop, Watcher
from models.epoll.linux import ENDS, POLLIN, POLLOUT, platform_invalidate_fd

EOF = -4095  # UV_EOF
READS = 8  # of one stream before the others have their turn; libuv: 32, of 64 KiB where ours reach 256
AllocCb = Callable[[], memoryview]
StatusCb = Callable[[int], None]


def error_of(status: int) -> OSError:
    return OSError(-status, os.strerror(-status))


class Stream(Watcher):
    """uv_stream_t: a TCP connection. Reading: it has a read_cb."""

    __slots__ = ("alloc_cb", "connect_cb", "loop", "read_cb", "shutdown_cb", "sock", "write_queue")

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        super().__init__(Stream.stream_io, sock.fileno())
        self.loop = loop
        self.sock = sock
        self.alloc_cb: AllocCb | None = None
        self.read_cb: StatusCb | None = None
        self.connect_cb: StatusCb | None = None
        self.shutdown_cb: StatusCb | None = None
        self.write_queue: list[tuple[memoryview, StatusCb]] = []
        loop.handles.add(self)

    # fig: stream_io
    def stream_io(self, events: int) -> None:
        if self.connect_cb:
            self.stream_connect()
            return
        if self.read_cb and events & (POLLIN | ENDS):
            self.read()
        if events & (POLLOUT | ENDS):  # nothing comes of it if read_cb has closed the stream
            if self.write_queue:
                self.write_some()
            if not self.write_queue:
                self.drain()
        # end fig

    def read_start(self, alloc_cb: AllocCb, read_cb: StatusCb) -> None:
        self.alloc_cb, self.read_cb = alloc_cb, read_cb
        self.loop.io_start(self, POLLIN)

    def read_stop(self) -> None:
        self.alloc_cb = self.read_cb = None
        self.loop.io_stop(self, POLLIN)

    def read(self) -> None:
        """uv__read. The owner hears of an EAGAIN too (0), since it has lent a buffer."""
        for _ in range(READS):
            if not (self.alloc_cb and self.read_cb):
                return  # the owner has had enough
            buffer = self.alloc_cb()
            try:
                n = self.sock.recv_into(buffer, 0, NOW)
            except BlockingIOError:
                self.read_cb(0)
                return
            except OSError as error:
                n = -(error.errno or 0)
            if n > 0:
                self.read_cb(n)
                if n < len(buffer):
                    return  # there is no more to read
            else:
                read_cb = self.read_cb
                self.read_stop()
                if not self.pevents:  # it would stay readable for ever
                    platform_invalidate_fd(self.loop, self.fd)
                read_cb(n or EOF)

    def write(self, view: memoryview | bytes, cb: StatusCb) -> bool:
        """True if all has gone. Raises OSError, if it was tried at once."""
        view = memoryview(view)
        if not self.write_queue:
            try:
                sent = self.sock.send(view, NOW)
            except BlockingIOError:
                sent = 0
            if sent == len(view):
                return True
            view = view[sent:]
        self.write_queue.append((view, cb))
        self.loop.io_start(self, POLLOUT)
        return False

    def say(self, answer: bytes) -> None:
        """Writes the few bytes of a handshake. Raises OSError; a later one will show with what follows."""
        if answer:
            self.write(answer, lambda _status: None)

    def write_some(self) -> None:
        """uv__write: one attempt for the head of the queue."""
        view, cb = self.write_queue[0]
        status = 0
        try:
            view = view[self.sock.send(view, NOW) :]
        except BlockingIOError:
            return
        except OSError as error:
            status = -(error.errno or 0)
        if view and not status:
            self.write_queue[0] = view, cb
        else:
            del self.write_queue[0]
            cb(status)

    def write_queue_size(self) -> int:
        """Bytes."""
        return sum(len(view) for view, _ in self.write_queue)

    def shutdown(self, cb: StatusCb) -> None:
        self.shutdown_cb = cb
        if not self.write_queue:
            self.loop.io_feed(self)

    def drain(self) -> None:
        """All has been written: the watch for room ends, and the shutdown that waited is made."""
        if self.pevents & POLLOUT:
            self.loop.io_stop(self, POLLOUT)
        if self.shutdown_cb:
            cb, self.shutdown_cb = self.shutdown_cb, None
            status = 0
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                status = -(error.errno or 0)
            cb(status)

    def stream_connect(self) -> None:
        """The connection that was dialled is made, or not."""
        cb, self.connect_cb = self.connect_cb, None
        assert cb
        cb(-self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        if self.fd >= 0 and not self.write_queue:
            self.loop.io_stop(self, POLLOUT)

    def close(self, *, reset: bool = False) -> None:
        """uv_close, or uv_tcp_close_reset: nothing more is called back."""
        if self.fd >= 0:
            self.loop.io_close(self)
            self.loop.handles.discard(self)
            self.alloc_cb = self.read_cb = self.connect_cb = self.shutdown_cb = None
            self.write_queue.clear()
            self.fd = -1
            if reset:
                abort(self.sock)
            else:
                self.sock.close()
