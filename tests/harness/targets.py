"""A target for whole chains: its first line says what the client wants of it.

    TAKE n          reads n bytes, then answers their SHA-256
    SINK            reads to the end, then answers the SHA-256 of what came
    LAND            reads to the end, then puts the SHA-256 into `digests`
    SOURCE n        sends the first n bytes of CONTENT and ends
    ECHO            sends back what comes until it ends
    LAST n s        waits for the client's end, then s seconds more, then sends n bytes of CONTENT
    FIRST           says b"first" and ends, then reads to the end and puts the SHA-256 into `digests`
    GET ...         the whole of CONTENT's first 100,000 bytes by HTTP/1.0

`greeter` is a second port where the target speaks first: a banner, then an echo.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import socket
import threading
import time
from types import TracebackType

from tests.harness.process import Place
from tests.harness.stream import pattern, sha256

SIZE = 50_000_000
CONTENT = memoryview(pattern(SIZE, seed=50))
DIGEST = hashlib.sha256(CONTENT).hexdigest()
BANNER = b"220 ready\r\n"
PATIENCE = 60.0  # seconds
READ = 1 << 18


def digest_of_rest(sock: socket.socket, begun: bytes = b"") -> str:
    """The SHA-256 of everything up to the end."""
    digest = hashlib.sha256(begun)
    buffer = memoryview(bytearray(READ))
    while n := sock.recv_into(buffer):
        digest.update(buffer[:n])
    return digest.hexdigest()


def digest_of(sock: socket.socket, size: int, begun: bytes = b"") -> str:
    """The SHA-256 of what has come and of the next `size` bytes."""
    digest = hashlib.sha256(begun)
    buffer = memoryview(bytearray(READ))
    while size:
        n = sock.recv_into(buffer, min(size, READ))
        if not n:
            break
        digest.update(buffer[:n])
        size -= n
    return digest.hexdigest()


def ending_of(sock: socket.socket, begun: bytes) -> str:
    """The SHA-256 of everything up to a clean end, or how it ended instead."""
    try:
        return digest_of_rest(sock, begun)
    except OSError as error:
        return type(error).__name__


class Target:
    """Both ports, served by a thread for each connection."""

    def __init__(self) -> None:
        self.digests: queue.Queue[str] = queue.Queue()
        self._listeners = [socket.create_server(("127.0.0.1", 0), backlog=256) for _ in range(2)]
        self.place, self.greeter = (Place(*listener.getsockname()) for listener in self._listeners)
        for listener, serve in zip(self._listeners, (self._serve, self._greet), strict=True):
            threading.Thread(target=self._accept, args=(listener, serve), daemon=True).start()

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener in self._listeners:
            listener.close()

    def _accept(self, listener: socket.socket, serve: object) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._guarded, args=(serve, sock), daemon=True).start()

    def _guarded(self, serve: object, sock: socket.socket) -> None:
        assert callable(serve)
        sock.settimeout(PATIENCE)
        with sock, contextlib.suppress(OSError):  # the client's side of the test says what went wrong
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            serve(sock)

    def _greet(self, sock: socket.socket) -> None:
        sock.sendall(BANNER)
        while part := sock.recv(READ):
            sock.sendall(part)

    def _serve(self, sock: socket.socket) -> None:
        heard = b""
        while b"\n" not in heard:
            part = sock.recv(READ)
            if not part:
                return
            heard += part
        line, _, rest = heard.partition(b"\n")
        word, *numbers = line.decode().split()
        if word == "SINK":
            sock.sendall(digest_of_rest(sock, rest).encode())
        elif word == "TAKE":
            sock.sendall(digest_of(sock, int(numbers[0]) - len(rest), rest).encode())
            digest_of_rest(sock)
        elif word == "LAND":
            self.digests.put(ending_of(sock, rest))
        elif word == "SOURCE":
            sock.sendall(CONTENT[: int(numbers[0])])
            sock.shutdown(socket.SHUT_WR)
            digest_of_rest(sock)
        elif word == "ECHO":
            sock.sendall(rest)
            while part := sock.recv(READ):
                sock.sendall(part)
            sock.shutdown(socket.SHUT_WR)
        elif word == "LAST":
            digest_of_rest(sock)
            time.sleep(float(numbers[1]))  # the pause that the client asked for
            sock.sendall(CONTENT[: int(numbers[0])])
        elif word == "FIRST":
            sock.sendall(b"first")
            sock.shutdown(socket.SHUT_WR)
            self.digests.put(ending_of(sock, rest))
        elif word == "GET":
            page = CONTENT[:100_000]
            sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page))
            sock.sendall(page)


def short_digest(size: int) -> str:
    return sha256(bytes(CONTENT[:size]))
