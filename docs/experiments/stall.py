"""Coordinated omission, seen: the same stall in a closed loop and in an open one.

    python docs/experiments/stall.py

Starts `tunnel serve --model=epoll`, stops it with SIGSTOP for 200 ms of each second, and asks it the same
small request twice over: in a closed loop (ping-pong: the next one is sent when the last one is
answered) and in an open loop (load: requests are due 300 times a second, whatever the server does). Then
both once more without a stall. Printed in docs/measuring.md.
"""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from threading import Event, Thread
from typing import Any

from tabulate import tabulate

from compare import servers
from compare.bench import Bench
from compare.interrupt import Interrupt
from compare.servers import ROWS
from compare.stats import percentile

METHOD = "aes-256-gcm"
SECONDS = 5.0
STOPPED, RUNNING = 0.2, 0.8  # seconds of each second
OPEN: dict[str, Any] = {"scenario": "load", "point": 300.0, "connections": 1, "seed": 1}
CLOSED: dict[str, Any] = {"scenario": "ping-pong"}
PARTS = (0.5, 0.9, 0.99)


class Stalling:
    """A process that stands still for a fifth of the time, as long as this is entered."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = Event()
        self._thread = Thread(target=self._stop_and_go)

    def _stop_and_go(self) -> None:
        while not self._over.wait(RUNNING):
            os.kill(self._pid, signal.SIGSTOP)
            self._over.wait(STOPPED)
            os.kill(self._pid, signal.SIGCONT)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def main() -> None:
    interrupt = Interrupt()
    lines = []
    with (
        Bench(interrupt) as bench,
        servers.start(ROWS["epoll"], METHOD, bench.cores.server, interrupt) as server,
    ):
        port, target = server.port, bench.target_port
        bench.order("open", port=port, target=target, method=METHOD, password=servers.PASSWORD)
        for stalls in (False, True):
            for name, load in (("closed loop", CLOSED), ("open loop", OPEN)):
                with Stalling(server.pid) if stalls else nullcontext():
                    answer = bench.order("measure", duration=SECONDS, rate=0.0, **load)
                waits = [f"{percentile(answer['latency_us'], part) / 1000:,.2f}" for part in PARTS]
                longest = f"{answer['latency_us'][-1][0] / 1000:,.2f}"
                said = f"{name}, {'stopped 200 ms of each second' if stalls else 'undisturbed'}"
                lines.append([said, answer["count"], *waits, longest])
        bench.order("close")
    interrupt.close()
    heads = ["", "requests", *(f"p{part * 100:g} ms" for part in PARTS), "max ms"]
    print(tabulate(lines, heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
