"""A prober: hundreds of connections from one epoll loop, and how each of them ends.

    connect --> send, at once or byte by byte --> IDLE                     --> what came back,
                                              --> FIN                          FIN or RST,
                                              --> LATE: more bytes later       and when

Rules: each connection comes from an address of its own (127.1.0.0/16), so that a limit for each source
does not decide. A close is counted from the connection, after a FIN from that FIN.
"""

from __future__ import annotations

import heapq
import itertools
import random
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from tests.harness.process import Place
from tests.harness.stream import RESET

IDLE, FIN, LATE = FOLLOW_UPS = ("idle", "FIN", "late data")
AT_ONCE = 300  # connections
BYTE_PAUSE = 0.002  # seconds between single bytes
READ = 65536
_sources = itertools.count()


class Probe(NamedTuple):
    """What to send, and what then."""

    kind: str
    content: bytes
    then: str = IDLE
    bytewise: bool = False


class Outcome(NamedTuple):
    """What a prober sees."""

    probe: Probe
    received: int  # bytes
    ending: str  # FIN, RST, or open
    seconds: float  # from the connection, or from the FIN that was sent

    def __str__(self) -> str:
        answered = f"{self.received} bytes, " if self.received else ""
        return f"{self.probe.kind}, {self.probe.then}: {answered}{self.ending} after {self.seconds:.2f} s"


class Connection:
    """One probe on its way."""

    def __init__(self, probe: Probe, place: Place) -> None:
        self.probe = probe
        self.received = 0
        number = next(_sources) % 60_000
        self.sock = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        self.sock.bind((f"127.1.{number // 250}.{1 + number % 250}", 0))
        self.sock.settimeout(5.0)
        self.sock.connect(place)  # loopback: the listener's queue takes it at once
        self.sock.setblocking(False)
        self.since = time.monotonic()


class Prober:
    """Runs probes against one server."""

    def __init__(self, place: Place, within: float, late_after: float = 0.0) -> None:
        self._place, self._within, self._late = place, within, late_after
        self._epoll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.outcomes: list[Outcome] = []

    def run(self, probes: Sequence[Probe], at_once: int = AT_ONCE) -> list[Outcome]:
        """In random order, `at_once` of them at a time."""
        waiting = list(probes)
        random.shuffle(waiting)
        while waiting:
            batch, waiting = waiting[:at_once], waiting[at_once:]
            for probe in batch:
                self._begin(probe)
                self._step(0)
            deadline = time.monotonic() + self._within
            while self._open and (left := deadline - time.monotonic()) > 0:
                self._step(left)
            for connection in list(self._open.values()):
                self._end(connection, "open")
            self._due.clear()
        return self.outcomes

    def _begin(self, probe: Probe) -> None:
        connection = Connection(probe, self._place)
        self._open[connection.sock.fileno()] = connection
        self._epoll.register(connection.sock, select.EPOLLIN | select.EPOLLRDHUP)
        if probe.bytewise:
            for number, byte in enumerate(probe.content):
                self._at(number * BYTE_PAUSE, connection, bytes([byte]))
            self._then(connection, len(probe.content) * BYTE_PAUSE)
        else:
            self._send(connection, probe.content)
            self._then(connection, 0.0)

    def _then(self, connection: Connection, after: float) -> None:
        if connection.probe.then == FIN:
            self._at(max(after, self._late), connection, None)
        elif connection.probe.then == LATE:
            self._at(max(after, self._late), connection, random.randbytes(200))

    def _at(self, seconds: float, connection: Connection, content: bytes | None) -> None:
        """Sends later; None is a FIN."""
        step = (
            (lambda: self._finish(connection)) if content is None else lambda: self._send(connection, content)
        )
        heapq.heappush(self._due, (connection.since + seconds, next(self._order), step))

    def _send(self, connection: Connection, content: bytes) -> None:
        if connection.sock.fileno() >= 0 and content:
            with suppress(*RESET):  # then the next read says so
                connection.sock.send(content)

    def _finish(self, connection: Connection) -> None:
        if connection.sock.fileno() >= 0:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)
            connection.since = time.monotonic()

    def _step(self, seconds: float) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()
        if self._due:
            seconds = min(seconds, max(0.0, self._due[0][0] - time.monotonic()))
        for fd, _ in self._epoll.poll(seconds):
            self._read(self._open[fd])

    def _read(self, connection: Connection) -> None:
        try:
            came = connection.sock.recv(READ)
        except BlockingIOError:
            return
        except RESET:
            self._end(connection, "RST")
            return
        connection.received += len(came)
        if not came:
            self._end(connection, "FIN")

    def _end(self, connection: Connection, ending: str) -> None:
        took = time.monotonic() - connection.since
        self.outcomes.append(Outcome(connection.probe, connection.received, ending, took))
        del self._open[connection.sock.fileno()]
        connection.sock.close()


def ask(
    place: Place, probes: Iterable[Probe], within: float, *, at_once: int = AT_ONCE, late_after: float = 0.0
) -> list[Outcome]:
    """How each of the probes ended, `within` seconds at most for each batch."""
    return Prober(place, within, late_after).run(list(probes), at_once)
