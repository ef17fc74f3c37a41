"""Many connections at once, driven by one epoll loop: what a blocking client cannot load.

    schedule: due, due, due ...                    open loop: requests are due when they are due
        |                                          and wait for a free connection if they must
        v
    [ waiting ] --> Stream, Stream, Stream --sealed--> server        latency: due  --> last byte
                      ^                  |                           service: sent --> last byte
                      `---- epoll <------'

    open_loop   requests on a schedule: exponential gaps from a seed (Poisson), over N connections
    busy        N connections, each asks again as soon as it is answered (closed loop)
    crowd       short connections, several at once, each the next when one is done
    keep        N connections, each used once, left open

What is due is never put off: a server that stalls makes what came due meanwhile late, and that is in
the latency. How late the generator itself was is counted apart (`late`): a request was due, a
connection was free, and still it was sent more than LATE afterwards. `in_flight` is the mean number
of requests on their way, by integral over the loop's own count, so that Little's law can be asked.

Rules: what one connection does is in stream.py. The garbage collector is off during a load. Time is waited
for by select on the epoll's own descriptor: epoll_wait counts in milliseconds.
"""

from __future__ import annotations

import gc
import os
import random
import select
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import accumulate, takewhile
from typing import Any

from compare.client import SILENCE, Endpoint, Failed, WrongBytes
from compare.stats import evenness
from compare.stream import ONE_EACH, Prepared, Shape, Stream, prepare

LATE = 1_000_000  # nanoseconds after which a send is late
AT_ONCE = 50  # connections that `keep` opens together


def poisson(rate: float, duration: float, seed: int) -> array[int]:
    """When requests are due, in nanoseconds from the start: exponential gaps, the same for one seed."""
    chance = random.Random(seed)
    dues = accumulate(chance.expovariate(rate) for _ in iter(int, 1))
    return array("q", (int(due * 1e9) for due in takewhile(lambda due: due < duration, dues)))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def first_on_its_core() -> Iterator[None]:
    """Where that is allowed (CAP_SYS_NICE): what else runs there would make requests late. Only for a load
    that leaves most of the core to the target."""
    ordinary = os.sched_getscheduler(0) == os.SCHED_OTHER  # else somebody has decided already: chrt(1)
    with suppress(PermissionError):
        if ordinary:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        if ordinary:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def counted(nanoseconds: array[int]) -> list[tuple[int, int]]:
    """(microseconds, how often)"""
    return sorted(Counter(each // 1000 for each in nanoseconds).items())


class InFlight:
    """How many requests are on their way, as an integral over time."""

    def __init__(self, now: int) -> None:
        self.now = 0  # requests
        self._started = self._last = now
        self._area = 0

    def change(self, by: int, now: int) -> None:
        self._area += self.now * (now - self._last)
        self._last = now
        self.now += by

    def mean(self) -> float:
        """From the start to the last change."""
        return self._area / max(1, self._last - self._started)


class Driver:
    """The loop, and the connections that stay open from one load to the next."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}  # all that are open
        self._kept: list[Stream] = []  # idle
        self._busy: list[Stream] = []  # those of open_loop and busy
        self._slept = False  # in the last turn
        self._waited = 0  # nanoseconds in which the loop had nothing to do

    def open_loop(
        self,
        rate: float,
        duration: float,
        connections: int,
        shape: Shape,
        *,
        seed: int,
        first: bool = False,
    ) -> dict[str, Any]:
        """`rate` requests a second on a schedule; `first` on its core."""
        free = deque(self._ready(connections))
        exchanges = prepare(shape)
        dues = poisson(rate, duration, seed)
        latencies, services = array("q"), array("q")
        late = following = 0
        clock = time.perf_counter_ns
        with undisturbed(), first_on_its_core() if first else nullcontext():
            started = now = before = clock()
            flight, self._waited = InFlight(now), 0
            for stream in free:
                stream.free_since = started
            while following < len(dues) or flight.now:
                while free and following < len(dues) and (due := started + dues[following]) <= now:
                    following += 1
                    stream = free.popleft()
                    if now - max(due, stream.free_since) > LATE:
                        late += 1
                    stream.sent = now
                    flight.change(1, now)
                    stream.begin(next(exchanges), due)
                    now = clock()
                idle = started + dues[following] - now if free and following < len(dues) else None
                events = self._turn(idle)
                woken = clock()
                free_since = woken if self._slept else before
                before = woken
                for fd, event in events:
                    stream = self._streams[fd]
                    if not stream.serve(event):
                        continue
                    now = clock()
                    latencies.append(now - stream.due)
                    services.append(now - stream.sent)
                    flight.change(-1, now)
                    stream.free_since = free_since
                    free.append(stream)
                now = clock()
            wall = (clock() - started) / 1e9
        return {
            "wall": wall,
            "count": len(latencies),
            "offered": rate,
            "achieved": len(latencies) / wall,
            "late": late / max(1, len(latencies)),
            "in_flight": flight.mean(),
            "waited": self._waited / 1e9 / wall,
            "connections": connections,
            "rate": len(latencies) / wall,
            "latency_us": counted(latencies),
            "service_us": counted(services),
        }

    def busy(self, duration: float, connections: int, shape: Shape) -> dict[str, Any]:
        """Every connection asks again as soon as it is answered."""
        streams = self._ready(connections)
        exchanges = prepare(shape)
        latencies = array("q")
        clock = time.perf_counter_ns
        with undisturbed():
            started = now = clock()
            end = started + int(duration * 1e9)
            flight, self._waited = InFlight(now), 0
            for stream in streams:
                stream.received = 0
                flight.change(1, now)
                stream.begin(next(exchanges), now)
                now = clock()
            while flight.now:
                for fd, event in self._turn(None):
                    stream = self._streams[fd]
                    if not stream.serve(event):
                        continue
                    now = clock()
                    latencies.append(now - stream.due)
                    if now < end:
                        stream.begin(next(exchanges), now)
                    else:
                        flight.change(-1, now)
            wall = (clock() - started) / 1e9
        count = len(latencies)
        return {
            "wall": wall,
            "count": count,
            "bytes": count * (shape.up + shape.down),
            "in_flight": flight.mean(),
            "waited": self._waited / 1e9 / wall,
            "connections": connections,
            "fairness": evenness([stream.received for stream in streams]),
            "rate": count / wall,
            "latency_us": counted(latencies),
        }

    def crowd(
        self,
        count: int,
        clients: int,
        exchanges: Iterator[Prepared],
        *,
        duration: float | None = None,
        finish: bool = True,
        lenient: bool = False,
    ) -> dict[str, Any]:
        """`count` short connections, `clients` at once; none begins after `duration`.

        finish: our FIN, then the server's; otherwise we close first, and at once, as in the book.
        lenient: connections that failed are counted, and not the end; a wrong byte is.
        """
        latencies, firsts = array("q"), array("q")
        clock = time.perf_counter_ns
        failures = begun = 0
        alive: set[int] = set()
        with undisturbed():
            started = now = clock()
            end = started + int((duration or 1e9) * 1e9)
            flight, self._waited = InFlight(now), 0
            while alive or (begun < count and now < end):
                while len(alive) < clients and begun < count and now < end:
                    begun += 1
                    try:
                        stream = self._open(next(exchanges))
                    except Failed:
                        if not lenient:
                            raise
                        failures += 1
                    else:
                        alive.add(stream.fd)
                        flight.change(1, now)
                    now = clock()
                for fd, event in self._turn(None):
                    stream = self._streams[fd]
                    try:
                        if not stream.serve(event):
                            continue
                        if finish and self._endpoint.fin and not stream.ending:
                            stream.finish()
                            continue
                        now = clock()
                        latencies.append(now - stream.began)
                        firsts.append(stream.first - stream.began)
                    except Failed as failure:
                        if not lenient or isinstance(failure, WrongBytes):
                            raise
                        failures += 1
                    flight.change(-1, now)
                    alive.discard(fd)
                    self._close(stream)
                now = clock()
            wall = (clock() - started) / 1e9
        served = len(latencies)
        return {
            "wall": wall,
            "count": served,
            "failures": failures,
            "in_flight": flight.mean(),
            "waited": self._waited / 1e9 / wall,
            "connections": clients,
            "rate": served / wall,
            "first_us": sorted(firsts)[served // 2] / 1000 if served else 0.0,
            "latency_us": counted(latencies),
        }

    def keep(self, count: int, shape: Shape) -> dict[str, Any]:
        """Opens `count` connections, uses each once, and leaves them open."""
        exchanges = prepare(shape)
        begun = 0
        waiting: set[int] = set()
        while begun < count or waiting:
            while begun < count and len(waiting) < AT_ONCE:
                begun += 1
                waiting.add(self._open(next(exchanges)).fd)
            for fd, event in self._turn(None):
                stream = self._streams[fd]
                if stream.serve(event):
                    waiting.discard(fd)
                    self._kept.append(stream)
        return {"held": len(self._kept)}

    def close(self) -> None:
        """Ends all connections in order, so that no server has an error to log. Raises Failed."""
        if not self._endpoint.fin:
            self.drop()
        for stream in self._streams.values():
            stream.finish()
        while self._streams:
            for fd, event in self._turn(None):
                if self._streams[fd].serve(event):
                    self._close(self._streams[fd])
        self._kept, self._busy = [], []

    def drop(self) -> None:
        """Closes all connections as they are."""
        for stream in list(self._streams.values()):
            self._close(stream)
        self._kept, self._busy = [], []

    def _ready(self, count: int) -> list[Stream]:
        """`count` connections that have been used once."""
        if len(self._busy) < count:
            kept, self._kept = self._kept, []
            self.keep(count - len(self._busy), ONE_EACH)
            self._busy += self._kept
            self._kept = kept
        return self._busy[:count]

    def _open(self, exchange: Prepared) -> Stream:
        """A new connection, in its first exchange. Raises Failed."""
        stream = Stream(self._endpoint, self._epoll)
        try:
            stream.begin(exchange, stream.began)
        except Failed:
            stream.close()
            raise
        self._streams[stream.fd] = stream
        return stream

    def _close(self, stream: Stream) -> None:
        del self._streams[stream.fd]
        stream.close()

    def _turn(self, idle: int | None) -> list[tuple[int, int]]:
        """What has happened; waits at most `idle` nanoseconds, or until the server counts as stuck."""
        events = self._epoll.poll(0)
        self._slept = not events
        if events:
            return events
        patience = SILENCE if idle is None else min(SILENCE, max(0, idle) / 1e9)
        asleep = time.perf_counter_ns()
        readable, _, _ = select.select((self._epoll,), (), (), patience)
        self._waited += time.perf_counter_ns() - asleep
        if not readable and (idle is None or patience == SILENCE):
            raise Failed(f"nothing moved for {SILENCE:g} s")
        return self._epoll.poll(0) if readable else []
