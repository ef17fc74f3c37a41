"""The bench: the target and the generator, two processes that live as long as the run.

    run --+-- a line each way ---> generator    (load.py)       core 1
          +-- a line, its port <-- target       (target.py)     core 1, or 2 if there is one
          +----------------------> server       (servers.py)    core 0
          `-- for one sample ----> Background: a second generator and target, below the others

With one core all share it, and latency and throughput say little; CPU time still does. Where clients are
measured (`--end local`), the target is null.py: a Shadowsocks server and the target in one.

What is beside the load that is measured comes from a Background, whose two processes are SCHED_IDLE: the
kernel takes the core from them as soon as one of the others wakes. In one generator, or one target, small
requests waited for megabytes that are not the server's. All of these are in one session: the kernel weighs
sessions against each other (sched_autogroup, sched(7)), and SCHED_IDLE counts within one.

Rules: a question is answered within ANSWER seconds or the generator is broken; the wait for it is
cut short by Ctrl-C.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from compare.interrupt import Interrupt
from compare.null import ANY
from compare.servers import LOOPBACK, launched
from compare.tree import cpu_clock

TARGET = (sys.executable, "-m", "compare.target")
SEALED_TARGET = (sys.executable, "-m", "compare.null")
GENERATOR = (sys.executable, "-m", "compare.load")
ANSWER = 60.0  # seconds beyond the load's own duration: more than any timeout in load.py
READ = 1 << 16


class BenchFailed(Exception):
    """The generator or the target is broken: ours to mend, not a server's fault."""


class LoadFailed(Exception):
    """The generator's answer was an error: the server's fault."""


class Cores(NamedTuple):
    """Who runs where."""

    server: tuple[int, ...]
    generator: tuple[int, ...]
    target: tuple[int, ...]

    @classmethod
    def of_this_machine(cls) -> Cores:
        usable = sorted(os.sched_getaffinity(0))
        first, second, third = usable[0], usable[min(1, len(usable) - 1)], usable[min(2, len(usable) - 1)]
        return cls((first,), (second,), (third,))

    @property
    def apart(self) -> bool:
        return self.server != self.generator


class Generator(Protocol):
    """Who makes the load: a Helper, or a cluster of them (cluster.py)."""

    def cpu(self) -> float: ...

    def send(self, order: dict[str, Any]) -> None: ...

    def answer(
        self, interrupt: Interrupt, patience: float, tick: Callable[[], None] | None = None
    ) -> dict[str, Any]: ...

    def stop(self) -> None: ...


class Helper:
    """One of our processes: asked and answered in lines of JSON, ended at once."""

    def __init__(self, program: Sequence[str], cores: Sequence[int], *, below: bool = False) -> None:
        """below: it runs only while nobody else wants its core."""
        self._process = subprocess.Popen(
            launched(program, cores), stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
        if below:
            os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))
        self._name = " ".join(program[1:])
        self._read = b""

    def cpu(self) -> float:
        """CPU seconds so far."""
        return cpu_clock(self._process.pid)

    def send(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchFailed(f"{self._name} has ended") from None

    def answer(
        self, interrupt: Interrupt, patience: float, tick: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """The next line; `tick` is called every 50 ms until it comes. Raises LoadFailed, BenchFailed."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        deadline = time.monotonic() + patience
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0:
                raise BenchFailed(f"{self._name} did not answer within {patience:g} s")
            if not interrupt.wait(fd, min(left, 0.05) if tick else left):
                if tick:
                    tick()
                continue
            more = os.read(fd, READ)
            if not more:
                raise BenchFailed(f"{self._name} has ended")
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        answered: dict[str, Any] = json.loads(line)
        if "error" in answered:
            raise LoadFailed(answered["error"])
        return answered

    def stop(self) -> None:
        """Ends it: it has nothing to save, and may be in the middle of a load."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


class Background:
    """`with bench.background() as bulk:` what moves bytes beside a load, from a place of its own."""

    def __init__(self, bench: Bench, interrupt: Interrupt, how: dict[str, Any]) -> None:
        self._interrupt = interrupt
        cores = bench.cores.target  # a cluster's generators are elsewhere
        self._target = Helper((*TARGET, bench.address), cores, below=True)
        self._generator = Helper(GENERATOR, cores, below=True)
        self._how = how

    def __enter__(self) -> Background:
        try:
            port = self._target.answer(self._interrupt, ANSWER)["port"]
            self.begin("open", **self._how | {"target": port})
            self.end()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.begin("close")
                self.end()
        finally:
            self._stop()

    def begin(self, do: str, **details: Any) -> None:
        """Asks its generator, and does not wait for the answer."""
        self._generator.send({"do": do, **details})

    def end(self) -> dict[str, Any]:
        """The answer. Raises LoadFailed, BenchFailed, Interrupted."""
        return self._generator.answer(self._interrupt, ANSWER)

    def cpu(self) -> Spent:
        return Spent(self._generator.cpu(), self._target.cpu())

    def _stop(self) -> None:
        self._generator.stop()
        self._target.stop()


class Spent(NamedTuple):
    """CPU seconds of those that make the load."""

    generator: float
    target: float


class Bench:
    """`with Bench(interrupt) as bench:`; both processes are gone afterwards."""

    def __init__(
        self,
        interrupt: Interrupt,
        address: str = LOOPBACK,
        generator: Generator | None = None,
        sealed: str | None = None,
    ) -> None:
        """sealed: the method of a target that speaks Shadowsocks itself: what a client leads to."""
        self.cores = Cores.of_this_machine()
        if generator:
            self.cores = self.cores._replace(generator=())  # elsewhere
        self.address = address  # of servers and target
        self._interrupt = interrupt
        target = (*TARGET, address) if sealed is None else (*SEALED_TARGET, address, ANY, sealed)
        self.target = Helper(target, self.cores.target)
        self.generator = generator or Helper(GENERATOR, self.cores.generator)
        self.target_port = 0
        self._opened: dict[str, Any] = {}

    def __enter__(self) -> Bench:
        try:
            self.target_port = self.target.answer(self._interrupt, ANSWER)["port"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.generator.stop()
        self.target.stop()

    def background(self) -> Background:
        """To the server that the generator was told to open last."""
        return Background(self, self._interrupt, self._opened)

    def pause(self, seconds: float) -> None:
        """Raises Interrupted."""
        self._interrupt.wait(None, seconds)

    def order(self, do: str, tick: Callable[[], None] | None = None, **details: Any) -> dict[str, Any]:
        """Asks the generator. Raises LoadFailed, BenchFailed, Interrupted."""
        if do == "open":
            details = self._opened = {"host": self.address, **details}
        self.generator.send({"do": do, **details})
        return self.generator.answer(self._interrupt, details.get("duration", 0.0) + ANSWER, tick)
