"""The target: where the servers connect to. A process of its own, one epoll loop, many connections.

    server ==> accepted ==> | request | up bytes: compared |
           <==              | reply   | down bytes: from the pattern |

Started by bench.py, its last argument the address to listen on: prints its port as one JSON line, and
ends when its standard input does, so it cannot outlive the run. It must never be the bottleneck: large
reads and writes, no copy, no thread.

Rules: while a reply is not sent to its end, nothing more is read from that connection, unless the
request wants both ways at once.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import sys

from compare.exchange import (
    ALL_RIGHT,
    BOTH,
    CHUNK,
    MAGIC,
    REPLY,
    REQUEST,
    first_wrong,
    pattern,
    start_down,
    start_up,
)

BACKLOG = 1024
FIRST = 16 * 1024  # bytes of pattern that share the reply's segment


class Connection:
    """One accepted connection: reads an exchange, verifies it, answers, and so on until its end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = bytearray()  # of the request, while it is incomplete
        self.tag = 0
        self.up_place = self.up_left = self.up_size = 0
        self.down_place = self.down_left = 0
        self.wrong = ALL_RIGHT
        self.both = False  # up and down at once; the head of the reply comes last
        self.pending = memoryview(b"")

    def received(self, view: memoryview) -> None:
        """Takes what was read: parts of one request. Raises ValueError for what is none."""
        if len(self.head) < REQUEST.size:
            missing = REQUEST.size - len(self.head)
            self.head += view[:missing]
            view = view[missing:]
            if len(self.head) < REQUEST.size:
                return
            magic, self.tag, self.up_size, self.down_left = REQUEST.unpack(self.head)
            if magic not in (MAGIC, BOTH):
                raise ValueError("not a request")
            self.both = magic == BOTH
            self.up_place, self.up_left = start_up(self.tag), self.up_size
            self.down_place = start_down(self.tag)
            self.wrong = ALL_RIGHT
            if self.both:
                self._next_down(CHUNK)
        if len(view) > self.up_left:
            raise ValueError("more than was announced")
        if view and self.wrong == ALL_RIGHT:
            index = first_wrong(view, self.up_place)
            if index is not None:
                self.wrong = self.up_size - self.up_left + index
        self.up_place += len(view)
        self.up_left -= len(view)
        if not self.up_left and not self.both:
            self.head.clear()
            self._next_down(FIRST)
            self.pending = memoryview(REPLY.pack(MAGIC, self.tag, self.wrong) + self.pending)
        elif not self.up_left and not self.pending:
            self._end_both()

    def send(self) -> bool:
        """Sends as much as the socket takes; True when the reply is on its way to the last byte."""
        while self.pending:
            try:
                self.pending = self.pending[self.sock.send(self.pending) :]
            except BlockingIOError:
                return False
            if not self.pending and self.down_left:
                self._next_down(CHUNK)
            elif not self.pending and self.both and not self.up_left:
                self._end_both()
        return True

    def _next_down(self, most: int) -> None:
        self.pending = pattern(self.down_place, min(self.down_left, most))
        self.down_place += len(self.pending)
        self.down_left -= len(self.pending)

    def _end_both(self) -> None:
        """Everything has gone both ways: the head of the reply."""
        self.both = False
        self.head.clear()
        self.pending = memoryview(REPLY.pack(MAGIC, self.tag, self.wrong))


class Target:
    """The loop. `run` returns when standard input ends."""

    def __init__(self, listener: socket.socket, connection: type[Connection] = Connection) -> None:
        self._listener = listener
        self._connection = connection
        self._connections: dict[int, Connection] = {}
        self._epoll = select.epoll()
        self._buffer = memoryview(bytearray(CHUNK))

    def run(self) -> None:
        listener, stdin, epoll = self._listener.fileno(), sys.stdin.fileno(), self._epoll
        epoll.register(listener, select.EPOLLIN)
        epoll.register(stdin, select.EPOLLIN)
        while True:
            for fd, events in epoll.poll():
                if fd == listener:
                    self._accept()
                elif fd == stdin:
                    return
                elif not self._serve(self._connections[fd], events):
                    self._connections.pop(fd).sock.close()  # and out of the epoll set with it

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # gone before it was accepted; the generator's side will tell
            return
        sock.setblocking(False)
        self._connections[sock.fileno()] = self._connection(sock)
        self._epoll.register(sock, select.EPOLLIN)

    def _serve(self, connection: Connection, events: int) -> bool:
        """One step of one connection; False once it has ended."""
        try:
            if events & ~select.EPOLLOUT:
                n = connection.sock.recv_into(self._buffer)
                if not n:
                    return False
                connection.received(self._buffer[:n])
            if not connection.pending:
                return True
            if connection.send():
                if events & select.EPOLLOUT:
                    self._epoll.modify(connection.sock, select.EPOLLIN)
            elif connection.both:
                self._epoll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)
            else:
                self._epoll.modify(connection.sock, select.EPOLLOUT)
        except (OSError, ValueError):
            return False
        return True


def main(connection: type[Connection] = Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # compare has been killed: end without a traceback
    listener = socket.create_server((sys.argv[-1], 0), backlog=BACKLOG)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    listener.setblocking(False)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    Target(listener, connection).run()


if __name__ == "__main__":
    main()
