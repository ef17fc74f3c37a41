"""One connection of the generator: it speaks Shadowsocks itself, so that no client program is between.

    Endpoint    where to connect, and how to speak there: sealed; plain for a baseline; SOCKS5, then
                plain, for a client that is measured
    Connection  blocking, one exchange at a time: for loads that are one client after the other
                (many at once: drive.py)

Rules: every byte that comes back is compared; whatever a server does wrong is Failed, with the reason.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from compare.exchange import (
    ALL_RIGHT,
    CHUNK,
    MAGIC,
    REPLY,
    REQUEST,
    first_wrong,
    pattern,
    start_down,
    start_up,
)
from tunnel import socks
from tunnel.address import Address
from tunnel.buffers import LARGEST
from tunnel.connection import seconds
from tunnel.errors import ProtocolError
from tunnel.flow import Flow
from tunnel.keys import Secret, find_method
from tunnel.session import ForwardSession

TENTH = 10**8  # nanoseconds
GREETING = 3  # bytes of it in socks.request
NO_AUTHENTICATION, SUCCEEDED = b"\x05\x00", socks.reply(socks.SUCCEEDED)  # what SOCKS5 should answer
SILENCE = 10.0  # seconds without a byte before a server counts as stuck


class Failed(Exception):
    """The server, or the bytes that it passed on, did not do what they should."""


class WrongBytes(Failed):
    """What came through is not what was sent: never forgiven."""


class Plain(Flow):
    """No protocol at all: for the baseline without a server."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        self._in_class = LARGEST  # what goes out is what came in, so it cannot grow on the way

    def buffer_updated(self, n: int) -> memoryview:
        buffer = self._in
        assert buffer is not None
        return buffer[:n]


class Endpoint:
    """Where to connect, and how to speak there."""

    def __init__(self, order: dict[str, Any]) -> None:
        host = order.get("host", "127.0.0.1")  # of the server, and of the target as the server sees it
        self.place: tuple[str, int] = (host, order["port"])
        self.fin: bool = order.get("fin", True)  # the server passes our FIN on; else nobody waits for its own
        self._target = Address(host, order["target"])
        self.socks: bytes | None = socks.request(self._target) if order.get("socks") else None
        self._secret: Secret | None = None
        if order["method"] is not None:
            self._secret = Secret.from_password(find_method(order["method"]), order["password"])

    def flows(self) -> tuple[Flow, Flow]:
        if self._secret is None:
            return Plain(), Plain()
        session = ForwardSession(self._secret, self._target)
        return session.up, session.down


class Progress:
    """Bytes in each tenth of a second, from when it is made."""

    def __init__(self) -> None:
        self._since = time.monotonic_ns()
        self._tenths: list[int] = []

    def add(self, n: int) -> None:
        tenth = (time.monotonic_ns() - self._since) // TENTH
        while len(self._tenths) <= tenth:
            self._tenths.append(0)
        self._tenths[tenth] += n

    def series(self) -> list[tuple[float, float]]:
        """(seconds, MB/s) at the end of each tenth; the last one is not whole, and left out."""
        return [(round((at + 1) / 10, 1), n * 10 / 1e6) for at, n in enumerate(self._tenths[:-1])]


class Connection:
    """One connection through the server to the target. Raises Failed."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.up, self.down = endpoint.flows()
        self.progress = Progress()
        self._fin = endpoint.fin
        self.sock = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.sock.setsockopt(socket.SOL_SOCKET, option, seconds(SILENCE))
        try:
            self.sock.connect(endpoint.place)
            if endpoint.socks:
                self._ask(endpoint.socks)
        except BlockingIOError:
            self.sock.close()
            raise Failed(f"no answer to SOCKS5 for {SILENCE:g} s") from None
        except OSError as error:
            self.sock.close()
            raise Failed(f"cannot connect: {error.strerror}") from None
        except Failed:
            self.sock.close()
            raise

    def _ask(self, request: bytes) -> None:
        """RFC 1928 as most clients speak it: the greeting's answer is waited for, then CONNECT's."""
        for words, answer in ((request[:GREETING], NO_AUTHENTICATION), (request[GREETING:], SUCCEEDED)):
            self.sock.sendall(words)
            said = self.sock.recv(len(answer), socket.MSG_WAITALL)
            if said[:2] != answer[:2]:
                raise Failed(f"SOCKS5 was answered with {said.hex() or 'nothing'}")

    def exchange(self, tag: int, up: int, down: int, message: int = CHUNK) -> None:
        """One request and its reply, every byte compared; at most `message` bytes are sent at once."""
        self.progress = Progress()
        try:
            self._send(tag, up, down, message)
            self._receive(tag, down)
        except BlockingIOError:
            raise Failed(f"nothing moved for {SILENCE:g} s") from None
        except ProtocolError as error:
            raise Failed(f"what came back is not the protocol: {error}") from None
        except OSError as error:
            raise Failed(f"connection lost: {error.strerror}") from None

    def _send(self, tag: int, up: int, down: int, message: int) -> None:
        head = REQUEST.pack(MAGIC, tag, up, down)
        place = start_up(tag)
        while head or up:
            buffer = self.up.get_buffer()
            size = len(head)
            buffer[:size] = head
            head = b""
            piece = pattern(place, min(up, len(buffer) - size, message))
            buffer[size : size + len(piece)] = piece
            self.sock.sendall(self.up.buffer_updated(size + len(piece)))
            place += len(piece)
            up -= len(piece)
            self.progress.add(len(piece))

    def _receive(self, tag: int, down: int) -> None:
        head, place, left = b"", start_down(tag), down
        while left or len(head) < REPLY.size:
            n = self.sock.recv_into(self.down.get_buffer())
            if not n:
                raise Failed(f"connection ended with {left} of {down} bytes to come")
            plain = self.down.buffer_updated(n)
            if len(head) < REPLY.size:
                missing = REPLY.size - len(head)
                head += plain[:missing]
                plain = plain[missing:]
                if len(head) == REPLY.size:
                    check_reply(head, tag)
            if not plain:
                continue
            if len(plain) > left:
                raise WrongBytes("more bytes came back than were asked for")
            index = first_wrong(plain, place)
            if index is not None:
                raise WrongBytes(f"wrong byte down, at {down - left + index} of {down}")
            place += len(plain)
            left -= len(plain)
            self.progress.add(len(plain))

    def finish(self) -> None:
        """Ends it in order: our FIN, then the server's, with nothing in between."""
        if not self._fin:
            self.close()
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
            if self.sock.recv(1):
                raise Failed("bytes after the end")
        except BlockingIOError:
            raise Failed(f"the server did not close within {SILENCE:g} s") from None
        except OSError as error:
            raise Failed(f"connection lost at its end: {error.strerror}") from None
        finally:
            self.close()

    def close(self) -> None:
        self.up.release()
        self.down.release()
        self.sock.close()


def check_reply(head: bytes, tag: int) -> None:
    magic, answered, wrong = REPLY.unpack(head)
    if magic != MAGIC or answered != tag:
        raise WrongBytes("wrong bytes where the reply should be")
    if wrong != ALL_RIGHT:
        raise WrongBytes(f"wrong byte up, at {wrong}")
