"""The load generator: a process that speaks Shadowsocks itself, so that no client program is between.

    compare --one JSON line--> generator --one JSON line--> compare        (bench.py)
                                   |
                                   `== sealed ==> server == plain ==> target

    open      what to connect to from now on; connections of before are closed
    warm      the scenario's load until two windows agree; thrown away, but its rate is told
    measure   the scenario's load for a time: counts, bytes, latencies, the wall time
    hold      N connections, each used once, left open
    crowd     N short connections in all, several at once: UNP's client of chapter 30
    close     all connections

Rules: one connection at a time unless its line says otherwise, since `iterative` has no more. Every byte
that comes back is compared. A failure of a server is an answer, {"error": ...}, and not the end of
the generator. It ends when its standard input does.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from threading import Thread
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
from tunnel.address import Address
from tunnel.buffers import LARGEST
from tunnel.dial import seconds
from tunnel.errors import ProtocolError
from tunnel.flow import Flow
from tunnel.keys import Secret, find_method
from tunnel.session import ForwardSession

SILENCE = 10.0  # seconds without a byte before a server counts as stuck
PING_UP, PING_DOWN = 40, 48  # bytes of pattern: with their heads, 64 bytes each way
SHORT_UP, SHORT_DOWN = 40, 984  # a short connection: 64 bytes up, 1,000 down
AGREE = 0.1  # two warm-up windows whose rates differ by less than this agree
WINDOWS = 10  # of warm-up, at most


class Failed(Exception):
    """The server, or the bytes that it passed on, did not do what they should."""


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
        self.place: tuple[str, int] = ("127.0.0.1", order["port"])
        self._target = Address("127.0.0.1", order["target"])
        self._secret: Secret | None = None
        if order["method"] is not None:
            self._secret = Secret.from_password(find_method(order["method"]), order["password"])

    def flows(self) -> tuple[Flow, Flow]:
        if self._secret is None:
            return Plain(), Plain()
        session = ForwardSession(self._secret, self._target)
        return session.up, session.down


class Connection:
    """One connection through the server to the target. Raises Failed."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.up, self.down = endpoint.flows()
        self.sock = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.sock.setsockopt(socket.SOL_SOCKET, option, seconds(SILENCE))
        try:
            self.sock.connect(endpoint.place)
        except OSError as error:
            self.sock.close()
            raise Failed(f"cannot connect: {error.strerror}") from None

    def exchange(self, tag: int, up: int, down: int) -> None:
        """One request and its reply, every byte compared."""
        try:
            self._send(tag, up, down)
            self._receive(tag, down)
        except BlockingIOError:
            raise Failed(f"nothing moved for {SILENCE:g} s") from None
        except ProtocolError as error:
            raise Failed(f"what came back is not the protocol: {error}") from None
        except OSError as error:
            raise Failed(f"connection lost: {error.strerror}") from None

    def _send(self, tag: int, up: int, down: int) -> None:
        head = REQUEST.pack(MAGIC, tag, up, down)
        place = start_up(tag)
        while head or up:
            buffer = self.up.get_buffer()
            size = len(head)
            buffer[:size] = head
            head = b""
            piece = pattern(place, min(up, len(buffer) - size))
            buffer[size : size + len(piece)] = piece
            self.sock.sendall(self.up.buffer_updated(size + len(piece)))
            place += len(piece)
            up -= len(piece)

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
                raise Failed("more bytes came back than were asked for")
            index = first_wrong(plain, place)
            if index is not None:
                raise Failed(f"wrong byte down, at {down - left + index} of {down}")
            place += len(plain)
            left -= len(plain)

    def finish(self) -> None:
        """Ends it in order: our FIN, then the server's, with nothing in between."""
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
        raise Failed("wrong bytes where the reply should be")
    if wrong != ALL_RIGHT:
        raise Failed(f"wrong byte up, at {wrong}")


class Load:
    """The scenarios' loads against one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._tag = 0
        self._connection: Connection | None = None  # the one that bulk and ping-pong keep open
        self._held: list[Connection] = []
        self._works: dict[str, Callable[[int], None]] = {
            "bulk-up": lambda size: self._on_open(size, 0),
            "bulk-down": lambda size: self._on_open(0, size),
            "ping-pong": lambda _: self._on_open(PING_UP, PING_DOWN),
            "connections": lambda _: self._one_connection(self._next_tag()),
        }

    def warm(self, scenario: str, seconds_each: float) -> dict[str, Any]:
        """Windows of load until two agree; tells the last one's rate (bytes or exchanges a second)."""
        rate = 0.0
        for _ in range(WINDOWS):
            before, rate = rate, self._window(scenario, seconds_each, rate)["rate"]
            if abs(rate - before) < AGREE * rate:
                break
        return {"rate": rate}

    def measure(self, scenario: str, duration: float, rate: float) -> dict[str, Any]:
        return self._window(scenario, duration, rate)

    def hold(self, count: int) -> dict[str, Any]:
        for _ in range(count):
            connection = Connection(self._endpoint)
            self._held.append(connection)
            connection.exchange(self._next_tag(), PING_UP, PING_DOWN)
            connection.up.release()
            connection.down.release()
        return {"held": len(self._held)}

    def crowd(self, count: int, clients: int) -> dict[str, Any]:
        """`count` short connections by `clients` threads; each takes the next when it is done with one.

        When one fails, the others stop too.
        """
        tags = iter(range(1, count + 1))  # a step of it is atomic
        failures: list[Failed] = []
        latencies: list[Counter[int]] = [Counter() for _ in range(clients)]
        clock = time.perf_counter_ns

        def client(mine: Counter[int]) -> None:
            for tag in tags:
                started = clock()
                try:
                    self._one_connection(tag)
                except Failed as failure:
                    failures.append(failure)
                if failures:
                    return
                mine[(clock() - started) // 1000] += 1

        threads = [Thread(target=client, args=(mine,)) for mine in latencies]
        started = clock()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = (clock() - started) / 1e9
        if failures:
            raise failures[0]
        together = sum(latencies, Counter())
        return {"wall": wall, "count": count, "latency_us": sorted(together.items())}

    def close(self) -> dict[str, Any]:
        """Ends all connections in order, so that no server has an error to log."""
        connections = [*self._held, *([self._connection] if self._connection else [])]
        self._held, self._connection = [], None
        try:
            for connection in connections:
                connection.finish()
        finally:
            for connection in connections:
                connection.close()
        return {}

    def drop(self) -> None:
        """Closes all connections as they are: the server must not wait for us before it ends."""
        for connection in [*self._held, *([self._connection] if self._connection else [])]:
            connection.close()
        self._held, self._connection = [], None

    def _window(self, scenario: str, duration: float, rate: float) -> dict[str, Any]:
        work = self._works[scenario]
        if scenario.startswith("bulk"):
            size = max(4 * CHUNK, int(rate * duration))
            started = time.perf_counter()
            work(size)
            wall = time.perf_counter() - started
            return {"wall": wall, "bytes": size, "count": 1, "rate": size / wall}
        latencies: Counter[int] = Counter()
        clock = time.perf_counter_ns
        started = now = clock()
        end = started + int(duration * 1e9)
        while now < end:
            work(0)
            before, now = now, clock()
            latencies[(now - before) // 1000] += 1
        wall = (now - started) / 1e9
        count = latencies.total()
        return {"wall": wall, "count": count, "rate": count / wall, "latency_us": sorted(latencies.items())}

    def _on_open(self, up: int, down: int) -> None:
        if self._connection is None:
            self._connection = Connection(self._endpoint)
        self._connection.exchange(self._next_tag(), up, down)

    def _one_connection(self, tag: int) -> None:
        connection = Connection(self._endpoint)
        try:
            connection.exchange(tag, SHORT_UP, SHORT_DOWN)
            connection.finish()
        finally:
            connection.close()

    def _next_tag(self) -> int:
        self._tag += 1
        return self._tag


def measure_aead(method: str, duration: float) -> dict[str, Any]:
    """CPU nanoseconds per byte of sealing and of opening in memory: the floor under every tunnel."""
    secret = Secret.from_password(find_method(method), "floor")
    sealing, opening = (
        ForwardSession(secret, Address("127.0.0.1", 1)),
        ForwardSession(secret, Address("127.0.0.1", 1)),
    )
    spent = {"up": 0, "down": 0}
    total = 0
    end = time.monotonic() + duration
    while time.monotonic() < end:
        buffer = sealing.up.get_buffer()
        started = time.thread_time_ns()
        sealed = sealing.up.buffer_updated(len(buffer))
        spent["down"] += time.thread_time_ns() - started
        total += len(buffer)
        while sealed:
            buffer = opening.down.get_buffer()
            size = min(len(buffer), len(sealed))
            buffer[:size] = sealed[:size]
            started = time.thread_time_ns()
            opening.down.buffer_updated(size)
            spent["up"] += time.thread_time_ns() - started
            sealed = sealed[size:]
    return {"bytes": total, "sealing_ns": spent["down"], "opening_ns": spent["up"]}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # compare has been killed: end without a traceback
    load: Load | None = None
    for line in sys.stdin:
        order = json.loads(line)
        do = order.pop("do")
        try:
            if do == "open":
                load = Load(Endpoint(order))
                answer: dict[str, Any] = {}
            elif do == "aead":
                answer = measure_aead(**order)
            else:
                assert load is not None
                answer = getattr(load, do)(**order)
        except Failed as failure:
            answer = {"error": str(failure)}
            if load is not None:
                load.drop()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
