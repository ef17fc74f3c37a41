"""One of many connections: it never blocks, and is always somewhere in an exchange.

    Prepared (request and right reply, made before the load)
        | begin                            serve, as epoll says
        v                                       v
    [ sends the request ] ==sealed==> server ==> [ compares the reply, byte by byte ] --> over: True
                                                    `-- finish: our FIN, and the server's is waited for

    prepare         exchanges of one shape with changing tags, over and over
    prepare_line    UNP 30.3's request: a line with a number, answered by that many bytes

Rules: nothing is made during the load that could be made before it. A wrong byte is WrongBytes, whatever
else the server does wrong is Failed.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import NamedTuple

from compare.client import Endpoint, Failed, WrongBytes, check_reply
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
from tunnel.errors import ProtocolError
from tunnel.flow import EMPTY

TAGS = 509  # exchanges prepared of each kind; prime, so that connections take turns in all of them
PREPARED_UP = 2048  # bytes up that are prepared; they fit the smallest buffer. The rest is sealed on the way
INPUT, OUTPUT = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT

Wrong = Callable[[memoryview, int], int | None]


class Shape(NamedTuple):
    """Bytes of pattern each way in one exchange."""

    up: int
    down: int
    both: bool = False  # at once; the head of the reply comes last


ONE_EACH = Shape(1, 1)


class Prepared(NamedTuple):
    """An exchange, ready to be sent and verified."""

    tag: int
    request: bytes  # its head, and the first bytes up
    up_place: int
    up_left: int  # bytes up that are not in `request`
    reply: bytes  # the right head
    down_place: int
    down: int
    wrong: Wrong = first_wrong
    both: bool = False


def prepare(shape: Shape, tags: int = TAGS) -> Iterator[Prepared]:
    """Exchanges with one tag after the other, over and over."""
    return cycle([_prepared(tag, shape) for tag in range(1, tags + 1)])


def _prepared(tag: int, shape: Shape) -> Prepared:
    up, down, both = shape
    first = pattern(start_up(tag), min(up, PREPARED_UP))
    return Prepared(
        tag,
        REQUEST.pack(BOTH if both else MAGIC, tag, up, down) + first,
        start_up(tag) + len(first),
        up - len(first),
        REPLY.pack(MAGIC, tag, ALL_RIGHT),
        start_down(tag),
        down,
        both=both,
    )


BOOKS_REPLY = bytes(range(256)) * (CHUNK // 256 + 1)


def wrong_of_the_book(view: memoryview, place: int) -> int | None:
    """The first byte that `tunnel serve --service bytes` should not have sent."""
    start = place % 256
    if BOOKS_REPLY.startswith(view, start):
        return None
    return next(index for index, got in enumerate(view) if got != (start + index) % 256)


def prepare_line(size: int) -> Iterator[Prepared]:
    """UNP 30.3's request: a line with a number, answered by that many bytes."""
    return cycle([Prepared(0, b"%d\n" % size, 0, 0, b"", 0, size, wrong_of_the_book)])


class Stream:
    """One connection that never blocks, and the exchange that it is in."""

    __slots__ = (
        "_both",
        "_connected",
        "_down_left",
        "_down_place",
        "_epoll",
        "_events",
        "_got",
        "_pending",
        "_reply_left",
        "_right",
        "_up_left",
        "_up_place",
        "_wrong",
        "began",
        "down",
        "due",
        "ending",
        "fd",
        "first",
        "free_since",
        "received",
        "sent",
        "sock",
        "up",
    )

    def __init__(self, endpoint: Endpoint, epoll: select.epoll) -> None:
        self.up, self.down = endpoint.flows()
        self.began = time.perf_counter_ns()
        self.due = self.sent = self.first = self.free_since = 0
        self.received = 0  # bytes of pattern, in all exchanges
        self.ending = False  # our FIN is sent
        self._epoll = epoll
        self._pending = EMPTY  # sealed, and not taken by the socket yet
        self._got = b""  # of the reply's head
        self._reply_left = self._down_left = self._up_left = 0
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = self.sock.fileno()
        try:
            self.sock.connect(endpoint.place)
            self._connected = True
        except BlockingIOError:
            self._connected = False
        except OSError as error:
            self.close()
            raise Failed(f"cannot connect: {error.strerror}") from None
        self._events = INPUT if self._connected else OUTPUT
        epoll.register(self.fd, self._events)

    def begin(self, exchange: Prepared, due: int) -> None:
        """Sends the request, or as much of it as the socket takes. Raises Failed."""
        self.due = due
        self.first = 0
        self._right = exchange.reply
        self._reply_left = len(exchange.reply)
        self._got = b""
        self._down_place, self._down_left = exchange.down_place, exchange.down
        self._up_place, self._up_left = exchange.up_place, exchange.up_left
        self._wrong, self._both = exchange.wrong, exchange.both
        size = len(exchange.request)
        self.up.get_buffer()[:size] = exchange.request
        self._pending = self.up.buffer_updated(size)
        if self._connected:
            try:
                self._send()
            except OSError as error:
                raise Failed(f"connection lost: {error.strerror}") from None

    def serve(self, events: int) -> bool:
        """One step; True when the exchange is over, or after `finish` the connection. Raises Failed."""
        try:
            if events & select.EPOLLOUT:
                if not self._connected:
                    failure = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if failure:
                        raise Failed(f"cannot connect: {os.strerror(failure)}")
                    self._connected = True
                self._send()
                if not events & ~select.EPOLLOUT:
                    return False
            n = self.sock.recv_into(self.down.get_buffer())
            if self.ending:
                if n:
                    raise Failed("bytes after the end")
                return True
            if not n:
                raise Failed(f"connection ended with {self._down_left} bytes to come")
            plain = self.down.buffer_updated(n)
            return self._take(plain) if plain else False
        except BlockingIOError:
            return False
        except ProtocolError as error:
            raise WrongBytes(f"what came back is not the protocol: {error}") from None
        except OSError as error:
            raise Failed(f"connection lost: {error.strerror}") from None

    def finish(self) -> None:
        """Our FIN; the server's is waited for by `serve`. Raises Failed."""
        self.ending = True
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise Failed(f"connection lost at its end: {error.strerror}") from None

    def close(self) -> None:
        self.up.release()
        self.down.release()
        self.sock.close()  # and out of the epoll set with it

    def _send(self) -> None:
        while True:
            pending = self._pending
            if pending:
                try:
                    n = self.sock.send(pending)
                except BlockingIOError:
                    n = 0
                if n < len(pending):
                    self._pending = pending[n:]
                    self._wait_for(OUTPUT)
                    return
                self._pending = EMPTY
            if not self._up_left:
                self.up.release()
                self._wait_for(INPUT)
                return
            buffer = self.up.get_buffer()
            piece = pattern(self._up_place, min(self._up_left, len(buffer)))
            buffer[: len(piece)] = piece
            self._up_place += len(piece)
            self._up_left -= len(piece)
            self._pending = self.up.buffer_updated(len(piece))

    def _wait_for(self, events: int) -> None:
        if events != self._events:
            self._epoll.modify(self.fd, events)
            self._events = events

    def _take(self, plain: memoryview) -> bool:
        if not self.first:
            self.first = time.perf_counter_ns()
        rest = self._pattern(plain) if self._both else self._head(plain)
        if rest:
            rest = self._head(rest) if self._both else self._pattern(rest)
            if rest:
                raise WrongBytes("more bytes came back than were asked for")
        if self._reply_left or self._down_left:
            return False
        self.down.release()
        return True

    def _head(self, plain: memoryview) -> memoryview:
        left = self._reply_left
        if left:
            piece = plain[:left]
            at = len(self._right) - left
            self._reply_left = left = left - len(piece)
            if piece != self._right[at : at + len(piece)] or self._got:
                self._got += piece
                if not left:
                    check_reply(self._got, REPLY.unpack(self._right)[1])
            elif left:
                self._got += piece
            return plain[len(piece) :]
        return plain

    def _pattern(self, plain: memoryview) -> memoryview:
        piece = plain[: self._down_left]
        if piece:
            index = self._wrong(piece, self._down_place)
            if index is not None:
                raise WrongBytes(f"wrong byte down, {self._down_left - index} before the end")
            self._down_place += len(piece)
            self._down_left -= len(piece)
            self.received += len(piece)
        return plain[len(piece) :]
