"""One connection each, of a kind that chance has chosen: transfers, half-closes, and bad manners.

    up       TAKE     sends, and is told the digest of what arrived
    sink     SINK     sends, ends first, and is told the digest then
    down     SOURCE   receives, compares the digest
    last     LAST     ends first; the target sends after that
    slow     SOURCE   receives with pauses, so that the server must wait with full buffers
    idle     TAKE     is silent for a while between two pieces
    reset    TAKE     leaves with RST in the middle
    probe    -        is no client at all: random bytes, then FIN, RST or nothing more

The target's words are those of tests/harness/targets.py. All numbers come from the client's own seed.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable

from tests.harness.process import Place
from tests.harness.stream import Sealed, Stream
from tests.harness.targets import CONTENT, short_digest
from tests.harness.wire import Credentials, address_header

PATIENCE = 20.0  # seconds that anything may take: two cores, and everybody wants them
LARGEST = 3_000_000  # bytes


class Lost(Exception):
    """An answer that is not the right one."""


class Client:
    """Connects to `server` for `target`, again and again."""

    def __init__(self, server: Place, target: Place, credentials: Credentials, seed: str) -> None:
        self._server, self._target, self._credentials = server, target, credentials
        self.chance = random.Random(seed)

    def visit(self) -> tuple[str, Callable[[], int]]:
        """What comes next, and the doing of it, which returns the bytes that were compared."""
        kinds = (self.up, self.sink, self.down, self.last, self.slow, self.idle, self.reset, self.probe)
        work = self.chance.choices(kinds, weights=(8, 5, 8, 4, 1, 2, 3, 3))[0]
        return work.__name__, work

    def _open(self, line: str) -> Sealed:
        sock = socket.create_connection(self._server, PATIENCE)
        stream = Sealed(sock, self._credentials)
        sock.settimeout(PATIENCE)
        stream.send(address_header(*self._target) + line.encode() + b"\n")
        return stream

    def _size(self) -> int:
        """As likely to be among the tens as among the millions."""
        return int(10 ** self.chance.uniform(1, 6.47)) % LARGEST

    def _send(self, stream: Stream, size: int) -> None:
        piece = self.chance.choice((1 << 10, 1 << 14, 1 << 18)) if size < 200_000 else 1 << 18
        for start in range(0, size, piece):
            stream.send(CONTENT[start : min(start + piece, size)])

    def _told(self, stream: Stream, size: int) -> int:
        if stream.receive_exactly(64).decode() != short_digest(size):
            raise Lost(f"{size} bytes arrived changed")
        return size

    def _compared(self, received: bytes, size: int) -> int:
        if received != CONTENT[:size]:
            raise Lost(f"{len(received)} bytes received, {size} sent: not the same")
        return size

    def up(self) -> int:
        size = self._size()
        stream = self._open(f"TAKE {size}")
        with stream.sock:
            self._send(stream, size)
            told = self._told(stream, size)
            stream.finish()
            return told + len(stream.receive_all())

    def sink(self) -> int:
        size = self._size()
        stream = self._open("SINK")
        with stream.sock:
            self._send(stream, size)
            stream.finish()
            return self._told(stream, size) + len(stream.receive_all())

    def down(self) -> int:
        size = self._size()
        stream = self._open(f"SOURCE {size}")
        with stream.sock:
            return self._compared(stream.receive_all(), size)

    def last(self) -> int:
        size = self._size()
        stream = self._open(f"LAST {size} {self.chance.uniform(0, 0.2):.3f}")
        with stream.sock:
            stream.finish()
            return self._compared(stream.receive_all(), size)

    def slow(self) -> int:
        size = LARGEST
        stream = self._open(f"SOURCE {size}")
        with stream.sock:
            received = b""
            while part := stream.receive():
                received += part
                time.sleep(self.chance.uniform(0, 0.05))
            return self._compared(received, size)

    def idle(self) -> int:
        stream = self._open("TAKE 2000")
        with stream.sock:
            self._send(stream, 1000)
            time.sleep(self.chance.uniform(0.1, 2))
            stream.send(CONTENT[1000:2000])
            return self._told(stream, 2000)

    def reset(self) -> int:
        size = self._size()
        stream = self._open(f"TAKE {size + 1}")
        self._send(stream, size)
        stream.reset()
        return 0

    def probe(self) -> int:
        with socket.create_connection(self._server, PATIENCE) as sock:
            sock.sendall(self.chance.randbytes(self.chance.randrange(1, 300)))
            manner = self.chance.randrange(3)
            if manner == 0:
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1024):
                    raise Lost("a probe was answered")
            elif manner == 1:
                Stream(sock).reset()
        return 0
