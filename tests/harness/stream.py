"""One end of a connection, plain or sealed, with the same few verbs."""

from __future__ import annotations

import hashlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

from tests.harness.wire import Credentials, Seal, Unseal

PATIENCE = 10.0  # seconds that any single call may block
CHUNK = 256 * 1024
RESET = (ConnectionResetError, BrokenPipeError)


def pattern(size: int, seed: int = 1) -> bytes:
    """The same bytes for the same seed; no two seeds alike."""
    return random.Random(seed).randbytes(size)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Stream:
    """A plain TCP connection. What it sends and receives is plaintext in every subclass."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self._unsent = memoryview(b"")
        self._early = b""

    # what a subclass changes
    def _outgoing(self, plain: bytes | memoryview) -> bytes | memoryview:
        return plain

    def _incoming(self, raw: bytes) -> bytes:
        return raw

    def _at_end(self) -> None:
        pass

    # verbs
    def send(self, plain: bytes | memoryview) -> None:
        self.flush()
        self.sock.sendall(self._outgoing(plain))

    def receive(self) -> bytes:
        """The next bytes, b"" at a clean end. Raises ConnectionResetError, Cut or WrongTag."""
        if self._early:
            early, self._early = self._early, b""
            return early
        while raw := self.sock.recv(CHUNK):
            if plain := self._incoming(raw):
                return plain
        self._at_end()
        return b""

    def receive_exactly(self, size: int) -> bytes:
        """`size` bytes; fails if the stream ends before."""
        parts, missing = [], size
        while missing:
            part = self.receive()
            assert part, f"the stream ended {missing} bytes early"
            if len(part) > missing:
                part, self._early = part[:missing], part[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def receive_all(self) -> bytes:
        """Everything up to a clean end."""
        parts = []
        while part := self.receive():
            parts.append(part)
        return b"".join(parts)

    def finish(self) -> None:
        """FIN: nothing more comes from here. The other direction stays open."""
        self.flush()
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Closes with RST (SO_LINGER 0)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # pushing against somebody who does not read
    def push(self, plain: bytes, limit: int, quiet: float = 0.5) -> int:
        """Sends `plain` over and over until nothing was taken for `quiet` seconds, or `limit` bytes.

        Returns the bytes of plaintext that it began to send; what did not fit waits for `flush`.
        """
        pushed = 0
        self.sock.setblocking(False)
        try:
            while pushed < limit:
                view = memoryview(self._outgoing(plain))
                pushed += len(plain)
                while view:
                    if not select.select((), (self.sock,), (), quiet)[1]:
                        self._unsent = view
                        return pushed
                    view = view[self.sock.send(view) :]
        finally:
            self.sock.settimeout(PATIENCE)
        return pushed

    def flush(self) -> None:
        """Sends what `push` could not."""
        unsent, self._unsent = self._unsent, memoryview(b"")
        if unsent:
            self.sock.sendall(unsent)

    # how a connection ends
    def how_it_ends(self, within: float) -> str:
        """'FIN', 'RST', 'data' if bytes come, or 'open' if none of these happens in time."""
        deadline = time.monotonic() + within
        if self._early:
            return "data"
        self.sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            return "data" if self.sock.recv(CHUNK) else "FIN"
        except RESET:
            return "RST"
        except TimeoutError:
            return "open"
        finally:
            self.sock.settimeout(PATIENCE)

    def ends_after_data(self) -> tuple[bytes, str]:
        """All that still comes, and then 'FIN', 'RST' or 'cut' (a clean FIN inside a record)."""
        parts = []
        try:
            while part := self.receive():
                parts.append(part)
        except RESET:
            return b"".join(parts), "RST"
        except Exception as error:  # noqa: BLE001 - its name is the answer
            return b"".join(parts), type(error).__name__
        return b"".join(parts), "FIN"


class Sealed(Stream):
    """A connection that carries SIP004 records."""

    def __init__(self, sock: socket.socket, credentials: Credentials) -> None:
        super().__init__(sock)
        self.outgoing = Seal(credentials)
        self.incoming = Unseal(credentials)

    def _outgoing(self, plain: bytes | memoryview) -> bytes:
        return self.outgoing.seal(plain)

    def _incoming(self, raw: bytes) -> bytes:
        return self.incoming.unseal(raw)

    def _at_end(self) -> None:
        self.incoming.ended()


class Task(threading.Thread):
    """A function in the background; `result` waits for it and passes its failure on."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._failure: BaseException | None = None
        self._value: object = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again in result()
            self._failure = error

    def result(self, within: float = 60.0) -> object:
        self.join(within)
        assert not self.is_alive(), f"not done within {within:g} s"
        if self._failure:
            raise self._failure
        return self._value


def send_and_finish(stream: Stream, content: bytes) -> None:
    """All of `content`, then FIN."""
    view = memoryview(content)
    for start in range(0, len(view), CHUNK):
        stream.send(view[start : start + CHUNK])
    stream.finish()


def exchange(near: Stream, far: Stream, size: int, seed: int = 1) -> None:
    """`size` bytes each way at once, FIN each way, and both must arrive exactly."""
    up, down = pattern(size, seed), pattern(size, seed + 1)
    tasks = [Task(lambda: send_and_finish(near, up)), Task(lambda: send_and_finish(far, down))]
    reader = Task(near.receive_all)
    received_up = far.receive_all()
    received_down = reader.result()
    for task in tasks:
        task.result()
    assert isinstance(received_down, bytes)
    assert len(received_up) == len(up)
    assert sha256(received_up) == sha256(up), "what went up arrived changed"
    assert len(received_down) == len(down)
    assert sha256(received_down) == sha256(down), "what came down arrived changed"
