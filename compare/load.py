"""The load generator: a process that speaks Shadowsocks itself, so that no client program is between.
Where client programs are what is measured, it speaks SOCKS5 (client.py alone does).

    compare --one JSON line--> generator --one JSON line--> compare        (bench.py)
                                   |
                                   `== sealed ==> server == plain ==> target

    open      what to connect to from now on; connections of before are closed
    warm      the scenario's load until two windows agree; thrown away, but its rate is told
    measure   the scenario's load for a time: counts, bytes, latencies, the wall time
    hold      N connections, each used once, left open
    first     new connections, one after the other: time to their first byte
    bulk      N bulk streams down beside each other, or one beside another generator's small requests
    crowd     N short connections in all, several at once: UNP's client of chapter 30
    close     all connections

client.py has one blocking connection, for loads of one client; drive.py an epoll loop, for many (stream.py).
Rules: one connection at a time unless its line says otherwise, since `iterative` has no more. Every byte
that comes back is compared. A failure of a server is an answer, {"error": ...}, and not the end of
the generator. It ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from compare.client import Connection, Endpoint, Failed
from compare.drive import Driver
from compare.exchange import CHUNK
from compare.stream import Shape, prepare, prepare_line
from tunnel.address import Address
from tunnel.keys import Secret, find_method
from tunnel.session import ForwardSession

PING = Shape(40, 48)  # bytes of pattern: with their heads, 64 bytes each way
SHORT = Shape(40, 984)  # a short connection: 64 bytes up, 1,000 down
BUSY = Shape(40, 16 * 1024 - 16)  # a busy connection: 64 bytes up, 16 KiB down
BULK = 1 << 20  # bytes down of one exchange of a bulk stream beside others
LEAST = 64  # messages of one measurement, at least
FIRSTS = 20  # connections whose first byte is waited for
AGREE = 0.1  # two warm-up windows whose rates differ by less than this agree
WINDOWS = 10  # of warm-up, at most


class Load:
    """The scenarios' loads against one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._driver = Driver(endpoint)
        self._tag = 0
        self._connection: Connection | None = None  # the one that bulk and ping-pong keep open
        self._works: dict[str, Callable[[int], None]] = {
            "bulk-up": lambda size: self._on_open(size, 0),
            "bulk-down": lambda size: self._on_open(0, size),
            "ping-pong": lambda _: self._on_open(PING.up, PING.down),
            "connections": lambda _: self._one_connection(self._next_tag()),
        }

    def warm(self, seconds_each: float, **what: Any) -> dict[str, Any]:
        """Windows of load until two agree; tells the last one's rate (bytes or exchanges a second)."""
        rate = 0.0
        enough = time.monotonic() + 2 * WINDOWS * seconds_each  # the smallest window may be long
        for _ in range(WINDOWS):
            before, rate = rate, self.measure(duration=seconds_each, rate=rate, **what)["rate"]
            if abs(rate - before) < AGREE * rate or time.monotonic() > enough:
                break
        return {"rate": rate}

    def measure(
        self,
        scenario: str,
        duration: float,
        rate: float,
        *,
        point: float | None = None,
        connections: int = 1,
        seed: int = 0,
        first: bool = False,
    ) -> dict[str, Any]:
        """The scenario's load. `rate`: as the warm-up found it; `point`: where on the scenario's axis;
        `first`: on the generator's core."""
        size = max(4 * CHUNK, int(rate * duration))
        if scenario in ("bulk-up", "bulk-down"):
            return self._bulk(scenario, size)
        if scenario == "bulk-both":  # as many bytes each way as were found to move both ways together
            answer = self._driver.busy(0, 1, Shape(size // 2, size // 2, both=True))
            return answer | {"rate": answer["bytes"] / answer["wall"]}
        if scenario == "sizes":
            assert point is not None
            return self._messages(int(point), rate, duration)
        if scenario == "load":
            assert point is not None
            return self._driver.open_loop(point, duration, connections, PING, seed=seed, first=first)
        if scenario == "concurrency":
            assert point is not None
            return self._driver.busy(duration, int(point), BUSY)
        if scenario == "connections-concurrent":
            return self._driver.crowd(1 << 30, connections, prepare(SHORT), duration=duration)
        return self._one_after_the_other(scenario, duration)

    def hold(self, count: int) -> dict[str, Any]:
        return self._driver.keep(count, PING)

    def first(self) -> dict[str, Any]:
        return self._driver.crowd(FIRSTS, 1, prepare(SHORT))

    def bulk(self, duration: float, connections: int) -> dict[str, Any]:
        return self._driver.busy(duration, connections, Shape(0, BULK))

    def crowd(
        self,
        count: int,
        clients: int,
        lines: int | None = None,
        lenient: bool = False,
    ) -> dict[str, Any]:
        """`count` short connections, `clients` at once; each takes the next when it is done with one.

        lines: asks the book's server for so many bytes, and closes first. lenient: counts failures.
        """
        exchanges = prepare(SHORT) if lines is None else prepare_line(lines)
        return self._driver.crowd(count, clients, exchanges, finish=lines is None, lenient=lenient)

    def close(self) -> dict[str, Any]:
        """Ends all connections in order, so that no server has an error to log."""
        connection, self._connection = self._connection, None
        try:
            if connection:
                connection.finish()
            self._driver.close()
        finally:
            self._driver.drop()
        return {}

    def drop(self) -> None:
        """Closes all connections as they are: the server must not wait for us before it ends."""
        if self._connection:
            self._connection.close()
            self._connection = None
        self._driver.drop()

    def _bulk(self, scenario: str, size: int) -> dict[str, Any]:
        started = time.perf_counter()
        self._works[scenario](size)
        wall = time.perf_counter() - started
        assert self._connection is not None
        series = self._connection.progress.series()
        return {"wall": wall, "bytes": size, "count": 1, "rate": size / wall, "series": series}

    def _messages(self, message: int, rate: float, duration: float) -> dict[str, Any]:
        """One stream up, a system call a message."""
        count = max(LEAST, int(rate * duration) // message)
        started = time.perf_counter()
        self._on_open(count * message, 0, message)
        wall = time.perf_counter() - started
        return {"wall": wall, "bytes": count * message, "count": count, "rate": count * message / wall}

    def _one_after_the_other(self, scenario: str, duration: float) -> dict[str, Any]:
        work = self._works[scenario]
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

    def _on_open(self, up: int, down: int, message: int = CHUNK) -> None:
        if self._connection is None:
            self._connection = Connection(self._endpoint)
        self._connection.exchange(self._next_tag(), up, down, message)

    def _one_connection(self, tag: int) -> None:
        connection = Connection(self._endpoint)
        try:
            connection.exchange(tag, SHORT.up, SHORT.down)
            connection.finish()
        finally:
            connection.close()

    def _next_tag(self) -> int:
        self._tag += 1
        return self._tag


def wake_on_time() -> None:
    """Timers of this process alone fire when they are due, and not up to 50 us later (PR_SET_TIMERSLACK)."""
    with contextlib.suppress(OSError), open("/proc/self/timerslack_ns", "w", encoding="ascii") as file:
        file.write("1")


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
    wake_on_time()
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
