"""`make soak`: a server under mixed load and trouble, for as long as you like.

    python -m tests.soak.run --model fork --minutes 10 [--seed 1] [--clients 6]

    warm-up --> baseline --> load and trouble --> quiet --> the same again?

Trouble: a worker is killed, the configuration is read again (SIGHUP), a new program takes over (SIGUSR2).
What a kill has cut is counted apart; whatever else a client misses is lost, and nothing may be. Exit code
1 says that something was lost, that more is held than at the beginning, or that the log has a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from models import MODELS
from tests.harness.rig import DEFAULT, SERVE, Rig
from tests.harness.targets import Target
from tests.harness.tree import Holdings, child_pids, holdings, is_alive, members, wait_until
from tests.soak.clients import Client

WORKERS = 4  # in models that have a pool
WARM_UP = 10.0  # seconds of load before the baseline is taken
EACH = 2.0  # seconds from one trouble to the next, on average
UPGRADE_EVERY = 15  # troubles
# Bytes of memory that the server may have more, and each of its processes: free buffers are kept
# (tunnel/buffers.py), and what the allocator has not given back. (After a row of the faults it is the same.)
GROWTH, GROWTH_EACH = 8_000_000, 1_000_000
SETTLES = 15.0  # seconds until all is as it was, with probes that are drained for up to HANDSHAKE
HANDSHAKE = 5  # seconds


class State(NamedTuple):
    """What a server holds when it is quiet."""

    holds: Holdings
    memory: int  # bytes, PSS of anonymous memory: without the 32 MiB of salts, which fill up by and by


class Kill:
    """Of a worker, from just before the signal to its death: until then it may be given a client."""

    def __init__(self) -> None:
        self.dead = float("inf")  # when


class Load:
    """Clients, each in a thread, until they are told to stop."""

    def __init__(self, rig: Rig, target: Target, clients: int, seed: str) -> None:
        self.done: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()  # by a kill
        self.lost: list[str] = []
        self.compared = 0  # bytes
        self.kills: list[Kill] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(
                target=self._work,
                args=(Client(rig.place, target.place, DEFAULT, f"{seed}-{number}"),),
            )
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, client: Client) -> None:
        while not self._over.is_set():
            kind, work = client.visit()
            began = time.monotonic()
            try:
                compared = work()
            except Exception as error:  # noqa: BLE001 - whatever it is, something was missed
                with self._lock:
                    self._missed(kind, began, error)
            else:
                with self._lock:
                    self.done[kind] += 1
                    self.compared += compared

    def _missed(self, kind: str, began: float, error: Exception) -> None:
        if any(began <= kill.dead for kill in self.kills):
            self.cut[kind] += 1
        else:
            took = time.monotonic() - began
            self.lost.append(f"{kind}: {type(error).__name__} {error}, after {took:.1f} s")

    def finish(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


class Trouble:
    """Kills, reloads and upgrades, one after the other."""

    def __init__(self, rig: Rig, load: Load, seed: str) -> None:
        self.made: Counter[str] = Counter()
        self.pid = rig.pid  # of the server: another one after an upgrade
        self._rig, self._load = rig, load
        self._chance = random.Random(seed)

    def make(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, self._chance.expovariate(1 / EACH)))
            if sum(self.made.values()) % UPGRADE_EVERY == UPGRADE_EVERY - 1:
                self.upgrade()
            elif self._chance.random() < 0.5:
                self.reload()
            else:
                self.kill()
            if not is_alive(self.pid):
                raise SystemExit(f"the server has ended:\n{self._rig.tunnel.log()[-2000:]}")

    def kill(self) -> None:
        """A worker or a client's child; models with one process have none, and nothing is killed."""
        if victims := child_pids(self.pid):
            victim, kill = self._chance.choice(victims), Kill()
            self._load.kills.append(kill)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                self.made["kills"] += 1
            wait_until(lambda: not is_alive(victim), 10.0, f"{victim} is dead")
            kill.dead = time.monotonic()

    def reload(self) -> None:
        before = len(self._rig.tunnel.matching("configuration read again"))
        os.kill(self.pid, signal.SIGHUP)
        self._rig.tunnel.wait_for_lines("configuration read again", before + 1, within=20)
        self.made["reloads"] += 1

    def upgrade(self) -> None:
        start = len(self._rig.tunnel.lines)
        os.kill(self.pid, signal.SIGUSR2)
        (line,) = self._rig.tunnel.wait_for_lines(r"new program is \d+", start=start, within=20)
        self._rig.tunnel.wait_for_lines("the new program has taken over", start=start, within=40)
        old, self.pid = self.pid, int(re.findall(r"new program is (\d+)", line)[0])
        wait_until(lambda: not is_alive(old), 60.0, "the old program ends with its last client")
        self.made["new programs"] += 1


def quiet(pid: int, at_most: Holdings | None = None) -> State:
    """What it holds once that does not change any more, or fits."""
    last: list[Holdings] = []

    def rests() -> bool:
        last.append(holdings(pid))
        if at_most:
            return fits(last[-1], at_most)
        return len(last) > 100 and len(set(last[-100:])) == 1

    with contextlib.suppress(AssertionError):
        wait_until(rests, SETTLES + HANDSHAKE, "")
    return State(last[-1], anonymous_memory(pid))


def anonymous_memory(pid: int) -> int:
    """Of the whole tree, in bytes; what is shared counts once."""
    total = 0
    for process in members(pid):
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/smaps_rollup") as rollup:
            total += 1024 * int(re.findall(r"^Pss_Anon: +(\d+) kB", rollup.read(), re.MULTILINE)[0])
    return total


def fits(now: Holdings, before: Holdings) -> bool:
    """As many processes, and nothing more of anything else."""
    return now.processes == before.processes and all(a <= b for a, b in zip(now, before, strict=True))


def wrong(begin: State, end: State, load: Load, log: str) -> list[str]:
    """What must not be, in words."""
    found = [f"lost: {loss}" for loss in load.lost[:10]]
    if not fits(end.holds, begin.holds):
        found.append(f"holds {end.holds}, it began with {begin.holds}")
    if end.memory > begin.memory + GROWTH + GROWTH_EACH * begin.holds.processes:
        found.append(f"memory is {end.memory >> 20} MiB, it began with {begin.memory >> 20}")
    if "Traceback" in log:
        found.append(f"a traceback: {log[log.index('Traceback') :][:1000]}")
    return found


def soak(directory: Path, model: str, seconds: float, seed: int, clients: int) -> int:
    pool = ["--workers", str(WORKERS)] if MODELS[model].pool else []
    clients = MODELS[model].clients or clients  # `iterative` has one at a time
    config = {"handshake_timeout": HANDSHAKE, "timeout": 60}
    with Target() as target, Rig(directory, model, SERVE, *pool, "--grace", "30", config=config) as rig:
        began = time.monotonic()
        warm_up = Load(rig, target, clients, f"{seed}-warm-up")
        time.sleep(min(WARM_UP, seconds))
        warm_up.finish()
        begin = quiet(rig.pid)
        load = Load(rig, target, clients, str(seed))
        trouble = Trouble(rig, load, f"{seed}-trouble")
        try:
            trouble.make(seconds)
        finally:
            load.finish()
        end = quiet(trouble.pid, begin.holds)
        log = rig.tunnel.log()
        print(Report(model, time.monotonic() - began, seed, begin, end, load, trouble), flush=True)
        found = wrong(begin, end, load, log)
        for line in found:
            print(f"WRONG  {line}")
        return int(bool(found))


class Report(NamedTuple):
    """What there is to tell, in Markdown."""

    model: str
    seconds: float
    seed: int
    begin: State
    end: State
    load: Load
    trouble: Trouble

    def __str__(self) -> str:
        load, begin, end = self.load, self.begin, self.end
        done = ", ".join(f"{count:,} {kind}" for kind, count in sorted(load.done.items()))
        made = ", ".join(f"{count} {what}" for what, count in sorted(self.trouble.made.items()))
        rows = [(name, *pair) for name, *pair in zip(Holdings._fields, begin.holds, end.holds, strict=True)]
        rows.append(("anonymous PSS, MiB", f"{begin.memory / 2**20:.1f}", f"{end.memory / 2**20:.1f}"))
        return (
            f"`{self.model}`, {self.seconds / 60:.1f} minutes, seed {self.seed}:"
            f" {sum(load.done.values()):,} connections ({done}), {load.compared / 1e9:.2f} GB compared;"
            f" {made}; cut by a kill {sum(load.cut.values())}, lost {len(load.lost)}.\n\n"
            "| | begin | end |\n|---|---|---|\n"
            + "\n".join(f"| {name} | {before} | {after} |" for name, before, after in rows)
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.run")
    parser.add_argument("--model", choices=tuple(MODELS), metavar="NAME", default="prefork")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=6)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        return soak(
            Path(directory), arguments.model, arguments.minutes * 60, arguments.seed, arguments.clients
        )


if __name__ == "__main__":
    sys.exit(main())
