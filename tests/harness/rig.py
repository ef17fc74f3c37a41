"""A server under test between two ends that the test holds.

    end         near                      under test          far
    serve       sealed stream      -->    tunnel serve   -->  plain connection
    local       SOCKS5, then plain -->    tunnel local   -->  sealed stream
    forward     plain connection   -->    tunnel forward -->  sealed stream

`near` and `far` have the same verbs, so a check is written once and holds for every end.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.harness import socks
from tests.harness.process import Place, Tunnel, waiting_for_accept
from tests.harness.stream import PATIENCE, Sealed, Stream, exchange
from tests.harness.tree import Holdings, child_pids, cpu_seconds, holdings, stop, title_of, wait_until
from tests.harness.wire import Credentials, address_header

SERVE, LOCAL, FORWARD = ENDS = ("serve", "local", "forward")
DEFAULT = Credentials("aes-128-gcm", "correct horse")
NAMED = ("target.test", 80)  # where `near` asks to go at the client end; nobody resolves it

# A process starts these with the first bad handshake and the first names, and keeps them. After `meet_probes`
# the first is in the baseline.
DRAIN_THREADS = 1
RESOLVER_THREADS, RESOLVER_DESCRIPTORS = 4, 2
IDLE_WINDOW = 0.07  # seconds of looking at an idle server
TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds: /proc counts CPU in these
LOOKS = (1, 2, 4)  # each so many windows long: work ends, a spin does not
NO_HANDSHAKE = bytes(64)  # more than a salt and a sealed length, and no greeting of SOCKS5


class Rig:
    """One `tunnel` process and both its neighbours."""

    def __init__(
        self,
        directory: Path,
        model: str,
        end: str,
        *arguments: str,
        credentials: Credentials = DEFAULT,
        config: Mapping[str, object] | None = None,
        listen: Sequence[str] = ("127.0.0.1:0",),
        listeners: int = 0,
        far_host: str = "127.0.0.1",
        far_buffer: int = 0,
        server: Place | None = None,
        resolves: bool = False,
        workers: int = 0,
        threads: int = 0,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.model, self.end, self.credentials = model, end, credentials
        self._resolves = resolves
        self.workers = workers  # of its pool, all of which belong to the baseline
        self._threads = threads  # the same, of a pool of threads
        self._opened: list[Stream] = []
        family = socket.AF_INET6 if ":" in far_host else socket.AF_INET
        self.listener = socket.socket(family)
        if far_buffer:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, far_buffer)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((far_host, 0))
        self.listener.listen(1024)
        self.listener.settimeout(PATIENCE)
        self.far_place = Place(*self.listener.getsockname()[:2])
        settings = dict(config or {})
        words = list(arguments)
        if end != SERVE:
            host, port = server or self.far_place
            settings |= {"server": host, "server_port": port}
        if end == FORWARD:
            words += ["--target", f"{NAMED[0]}:{NAMED[1]}"]
        try:
            self.tunnel = self.start(
                directory,
                *words,
                config=settings,
                listen=listen,
                listeners=listeners,
                environment=environment,
                prefix=prefix,
            )
        except BaseException:
            self.listener.close()
            raise
        self.baseline: Holdings | None = None
        self._met: set[int] = set()  # pids of who has drained somebody already
        self._missed = 0  # processes that had drained nobody when the baseline was taken

    def start(self, directory: Path, *words: str, **options: Any) -> Tunnel:
        """What is under test; a subclass may have another program."""
        return Tunnel(directory, self.end, self.model, self.credentials, *words, **options)

    @property
    def place(self) -> Place:
        return self.tunnel.place

    @property
    def pid(self) -> int:
        return self.tunnel.pid

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.close_streams()
        self.listener.close()
        self.tunnel.kill()

    def close_streams(self) -> None:
        """Whatever the test left open."""
        while self._opened:
            self._opened.pop().close()

    # the two ends
    def unconnected(self, place: Place | None = None) -> socket.socket:
        return socket.socket(socket.AF_INET6 if ":" in (place or self.place).host else socket.AF_INET)

    def connect(self, receive_buffer: int = 0, place: Place | None = None) -> socket.socket:
        """A connection to the server under test, and no byte yet."""
        place = place or self.place
        sock = self.unconnected(place)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(place)
        except BaseException:
            sock.close()
            raise
        return sock

    def keep(self, stream: Stream) -> Stream:
        """Closed with the check, at the latest."""
        self._opened.append(stream)
        return stream

    def silent(self, place: Place | None = None) -> Stream:
        """A client that has connected and says nothing."""
        return self.keep(Stream(self.connect(place=place)))

    def near(
        self,
        target: tuple[str, int] | None = None,
        receive_buffer: int = 0,
        place: Place | None = None,
        first: bytes = b"",
    ) -> Stream:
        """A client that has said where to go. Raises socks.Refused."""
        if self.end == SERVE:
            sealed = Sealed(self.connect(receive_buffer, place), self.credentials)
            self.keep(sealed)
            sealed.send(address_header(*(target or self.far_place)) + first)
            return sealed
        if self.end == LOCAL:
            sock = socks.connect(place or self.place, target or NAMED, receive_buffer)
            stream = self.keep(Stream(sock))
        else:
            stream = self.keep(Stream(self.connect(receive_buffer, place)))
        if first:
            stream.send(first)
        return stream

    def far(self) -> Stream:
        """What the server under test connected to, with the address header read."""
        stream = self.far_before_header()
        if isinstance(stream, Sealed):
            expected = address_header(*NAMED)
            assert stream.receive_exactly(len(expected)) == expected
        return stream

    def far_before_header(self) -> Stream:
        accepted, _ = self.listener.accept()
        return self.keep(Stream(accepted) if self.end == SERVE else Sealed(accepted, self.credentials))

    def open(self, receive_buffer: int = 0, place: Place | None = None) -> tuple[Stream, Stream]:
        """One connection through the server under test."""
        near = self.near(receive_buffer=receive_buffer, place=place)
        return near, self.far()

    # the same checks after everything
    def warm_up(self) -> None:
        """One transfer, and then what the server holds is its baseline."""
        full = self.workers
        wait_until(lambda: not full or len(self._waiting()) == full, 5.0, "the pool is full")
        threads = self._threads
        wait_until(lambda: not threads or holdings(self.pid).threads > threads, 5.0, "all threads run")
        self.transfer()
        self.baseline = self.steady(processes=1 + self.workers)

    def meet_probes(self, within: float = 5.0) -> None:
        """A failed handshake for each process that serves, so that its drain is in the baseline, too.

        It leaves no line in the log. Who takes a connection is the kernel's choice: on a busy machine some
        may be missed, and `settles` knows how many.
        """
        self._meet(within)
        self._missed = len(self._serving() - self._met)
        self.baseline = self.steady(processes=1 + self.workers)

    def _meet(self, within: float = 5.0) -> None:
        deadline = time.monotonic() + within
        while self.end != FORWARD and (unmet := self._serving() - self._met):  # there, nobody can say rubbish
            if time.monotonic() > deadline:
                break
            met = self._probe(len(unmet), stopped=self._serving() & self._met)
            if not met & unmet:
                met |= self._probe(max(1, self.workers))
            self._met |= met

    def _waiting(self) -> list[int]:
        """Workers that have begun to wait for clients: their titles say so, in brackets."""
        return [pid for pid in child_pids(self.pid) if title_of(pid).endswith("]")]

    def _serving(self) -> set[int]:
        return set(child_pids(self.pid)) if self.workers else {self.pid}

    def _probe(self, clients: int, stopped: Set[int] = frozenset()) -> set[int]:
        """So many at once; returns the pids of those that served them.

        While some are stopped, a loop cannot take them all, time and again; where a master passes connections
        on, all workers must have one.
        """
        start = len(self.tunnel.lines)
        try:
            for pid in stopped:
                stop(pid)
            streams = [Stream(self.connect()) for _ in range(clients)]
            with contextlib.suppress(AssertionError):  # workers that block have one each by then
                wait_until(lambda: not waiting_for_accept(self.place), 0.1, "all are accepted")
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        for stream in streams:
            stream.sock.sendall(NO_HANDSHAKE)
        ports = "|".join(str(stream.sock.getsockname()[1]) for stream in streams)
        said = rf"\[(\d+)\] \S+:({ports}): handshake failed"
        lines = self.tunnel.wait_for_lines(said, clients, start=start)
        for stream in streams:
            stream.close()
        self.tunnel.forget(lines)
        served = {int(re.findall(said, line)[0][0]) for line in lines}
        return served if self.workers else {self.pid}  # a child of its own has served it, and ends

    def steady(self, within: float = 3.0, processes: int | None = None) -> Holdings:
        """What the tree holds, once two looks in a row agree, and there are as many `processes`."""
        last: Holdings | None = None

        def agrees() -> bool:
            nonlocal last
            before, last = last, holdings(self.pid)
            return before == last and last.zombies == 0 and processes in (None, last.processes)

        wait_until(agrees, within, f"{self.model} does not come to rest")
        assert last is not None
        return last

    def transfer(self, size: int = 20_000, within: float = 2.0) -> None:
        """A new connection works, both ways, within the time."""
        started = time.monotonic()
        token = os.urandom(16)
        near = self.near(first=token)
        far = self._far_that_begins_with(token)
        exchange(near, far, size)
        near.close()
        far.close()
        took = time.monotonic() - started
        assert took < within, f"a new transfer took {took:.1f} s"

    def _far_that_begins_with(self, token: bytes) -> Stream:
        """Passes over connections that an earlier client of the check had asked for."""
        for _ in range(1000):
            far = self.far_before_header()
            expected = address_header(*NAMED) + token if self.end != SERVE else token
            with contextlib.suppress(AssertionError, OSError):
                if far.receive_exactly(len(expected)) == expected:
                    return far
            far.close()
        raise AssertionError("1000 connections arrived, and none was ours")

    def settles(self, within: float = 3.0) -> None:
        """Processes, threads and descriptors go back to the baseline, and no zombie is left."""
        base = self.baseline
        assert base is not None
        least = base._replace(threads=0, descriptors=0)  # libfaketime, too, has some that it closes
        most = base._replace(threads=base.threads + DRAIN_THREADS * self._missed)
        if not self._met:  # any of them may have begun to drain
            most = with_more(base, DRAIN_THREADS, 0)
        if self._resolves:
            most = with_more(most, RESOLVER_THREADS, RESOLVER_DESCRIPTORS)

        def back() -> bool:
            if self._met and len(self._serving()) == max(1, self.workers):
                self._meet()  # who has come since, in the place of another one
            now = holdings(self.pid)
            return all(low <= held <= high for low, held, high in zip(least, now, most, strict=True))

        try:
            wait_until(back, within, "")
        except AssertionError:
            raise AssertionError(
                f"{self.model} {self.end} holds {holdings(self.pid)} {within:g} s later, it began with {base}"
            ) from None

    def idles(self, window: float = IDLE_WINDOW, part: float = 0.0) -> None:
        """The server does not spin: a tick of CPU and that part of the time, or it is looked at again."""
        used = []
        for windows in LOOKS:
            before = cpu_seconds(self.pid)
            time.sleep(windows * window)
            used.append(cpu_seconds(self.pid) - before)
            if used[-1] < 1.5 * TICK + part * windows * window:
                return
        said = " and ".join(f"{seconds:.2f} s" for seconds in used)
        raise AssertionError(
            f"{self.model} {self.end} used {said} of CPU in 1, 2 and 4 times {window:g} idle s"
        )

    def is_healthy(self) -> None:
        """After every check: serves, holds what it held, idles, and has not stumbled."""
        assert self.tunnel.running, f"{self.model} {self.end} has ended:\n{self.tunnel.log()}"
        self.close_streams()
        self.transfer()
        self.settles()
        self.idles()
        assert "Traceback" not in self.tunnel.log(), self.tunnel.log()


def with_more(base: Holdings, threads: int, descriptors: int) -> Holdings:
    """So many more for each process."""
    return base._replace(
        threads=base.threads + threads * base.processes,
        descriptors=base.descriptors + descriptors * base.processes,
    )
