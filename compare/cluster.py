"""The load from many machines: shards of it run as Dask actors, and their answers are put together.

    compare --order--> Cluster --part--> Shard (actor on a worker) --line--> generator (load.py)
       ^                  |                  `-- waits for the common start, by its own clock
       |                  `--part--> Shard ...          generators ====> server on --server-address
       `-- merged: counts, bytes and rates added, histograms added, the longest wall time

A load that has several connections is split (PARTS): each shard has its share of the connections, and of
the offered rate. A load of one connection is made by the first shard alone, or it would be another load.

Clocks: each worker's is read over the connection that will carry the orders. The round trip that took
least bounds the error: half of it. The start is so far ahead that every order has arrived. Histograms
are exact counts, which add up exactly, so nothing is lost by merging and no sketch is needed.

Rules: a shard that fails fails the sample, as one generator would. Percentiles that are computed already
cannot be merged, so what answers with them is never split.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from compare.bench import BenchFailed, LoadFailed
from compare.interrupt import Interrupt

if TYPE_CHECKING:
    from distributed import ActorFuture

MISSING = "the cluster needs Dask: pip install 'unp-tunnel[cluster]'"
CONNECT = 5.0  # seconds to reach the scheduler, and to start the shards
STOP = 2.0  # seconds for a shard to stop
TRIPS = 20  # round trips for one worker's clock
AHEAD = 0.05  # seconds from sending orders to the common start, at least; and ten round trips
LOOKS = 0.005  # seconds between two looks at whether all have answered
PARTS = {  # orders that are split: what of them is divided
    "load": ("point", "connections"),
    "concurrency": ("point",),
    "connections-concurrent": ("connections",),
    "crowd": ("count", "clients"),
    "hold": ("count",),
}
ADDED = ("count", "bytes", "rate", "offered", "achieved", "in_flight", "connections", "failures", "held")
LONGEST = ("wall", "late")  # of a part that was late, the whole was
COUNTED = ("latency_us", "service_us")


class ClusterFailed(Exception):
    """No cluster there, or none that can be used: one line for the user."""


class Shard:
    """On a worker: one generator, as compare would start it on this machine."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "compare.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        weakref.finalize(self, self._process.kill)  # compare was killed, so nobody says stop

    def clock(self) -> int:
        return time.monotonic_ns()

    def cpu(self) -> float:
        from compare.tree import cpu_clock  # noqa: PLC0415 - the actor's class is made on every worker

        return cpu_clock(self._process.pid)

    def order(self, line: str, at: int) -> tuple[str, int]:
        """The generator's answer to an order that is given when this worker's clock shows `at`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        time.sleep(max(0, at - time.monotonic_ns()) / 1e9)
        started = time.monotonic_ns()
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline(), started

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Clock(NamedTuple):
    """A worker's clock, as seen from here. Nanoseconds."""

    ahead: int  # of ours
    error: int  # to either side, at most


class Cluster:
    """Stands in for the one generator of a bench. Raises ClusterFailed."""

    def __init__(self, scheduler: str) -> None:
        try:
            import distributed  # noqa: PLC0415 - an extra
        except ImportError:
            raise ClusterFailed(MISSING) from None
        connect: Any = distributed.Client  # it has no types
        try:
            self._client = connect(scheduler, timeout=CONNECT)
        except (OSError, ValueError) as error:
            raise ClusterFailed(f"{scheduler}: no scheduler there: {str(error).splitlines()[0]}") from None
        self._waiting: list[ActorFuture[tuple[str, int]]] = []
        self._starts: list[int] = []  # when each shard of the last order began, by our clock
        self.spread = 0  # nanoseconds between the first and the last start, at most so far
        try:
            workers = sorted(self._client.scheduler_info(n_workers=-1)["workers"])
            if not workers:
                raise ClusterFailed(f"{scheduler}: no workers: dask worker {scheduler}")
            made = [
                self._client.submit(
                    Shard, workers=[worker], actor=True, pure=False, allow_other_workers=False
                )
                for worker in workers
            ]
            self._shards: list[Any] = [future.result(timeout=CONNECT) for future in made]
            self._clocks = [self._read_clock(shard) for shard in self._shards]
        except ClusterFailed:
            self._client.close()
            raise
        except Exception as error:  # noqa: BLE001 - a worker raises whatever its own installation lacks
            self._client.close()
            raise ClusterFailed(f"{scheduler}: a worker cannot make load: {error}") from None

    def described(self) -> dict[str, Any]:
        """For the result's environment."""
        return {
            "generators": len(self._shards),
            "start_error_us": max(clock.error for clock in self._clocks) / 1e3,
        }

    def cpu(self) -> float:
        """CPU seconds of the shard that has used most: it is the one that may be the limit."""
        asked = [shard.cpu() for shard in self._shards]
        return max(float(future.result(timeout=CONNECT)) for future in asked)

    def send(self, order: dict[str, Any]) -> None:
        parts = split(order, len(self._shards))
        longest = max(clock.error for clock in self._clocks)
        start = time.monotonic_ns() + int(AHEAD * 1e9) + 10 * longest if len(parts) > 1 else 0
        self._waiting = [
            shard.order(json.dumps(part), start + clock.ahead if start else 0)
            for shard, clock, part in zip(self._shards, self._clocks, parts, strict=False)
        ]

    def answer(
        self, interrupt: Interrupt, patience: float, tick: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """Of all shards together. Raises LoadFailed, BenchFailed."""
        deadline = time.monotonic() + patience + AHEAD
        while not all(future.done() for future in self._waiting):
            if time.monotonic() > deadline:
                raise BenchFailed(f"a worker did not answer within {patience:g} s")
            interrupt.wait(None, LOOKS)
            if tick:
                tick()
        try:
            answered = [future.result(timeout=CONNECT) for future in self._waiting]
        except Exception as error:  # noqa: BLE001 - whatever ended the worker
            raise BenchFailed(f"a worker has ended: {error}") from None
        if len(answered) > 1:
            self._starts = [at - clock.ahead for (_, at), clock in zip(answered, self._clocks, strict=False)]
            self.spread = max(self.spread, max(self._starts) - min(self._starts))
        if not all(line for line, _ in answered):
            raise BenchFailed("the generator of a worker has ended")
        lines = [json.loads(line) for line, _ in answered]
        errors = [line["error"] for line in lines if "error" in line]
        if errors:
            raise LoadFailed(errors[0])
        return merge(lines)

    def stop(self) -> None:
        """Ends the generators; one in the middle of a load ends with its actor."""
        with contextlib.suppress(Exception):  # a worker that is gone has no generator to stop
            for future in [shard.stop() for shard in self._shards]:
                future.result(timeout=STOP)
        self._client.close()

    def _read_clock(self, shard: Any) -> Clock:
        trips = []
        for _ in range(TRIPS):
            sent = time.monotonic_ns()
            shown = shard.clock().result(timeout=CONNECT)
            back = time.monotonic_ns()
            trips.append(((back - sent) // 2, shown - (sent + back) // 2))
        error, ahead = min(trips)
        return Clock(ahead, error)


def split(order: dict[str, Any], shards: int) -> list[dict[str, Any]]:
    """An order's parts, one a shard; all shards get what opens and closes, one what cannot be divided."""
    if order["do"] in ("open", "close"):
        return [order] * shards
    divided = PARTS.get(order.get("scenario", order["do"]), ())
    if not divided:
        return [order]
    scarce = [
        name for name in divided if name != "point" or order["scenario"] != "load"
    ]  # rates are not whole
    count = max(1, min(shards, *(int(order[name]) for name in scarce)))
    parts = []
    for index in range(count):
        part = dict(order)
        for name in divided:
            share = order[name] / count
            part[name] = share if name not in scarce else (int(order[name]) + index) // count
        if "seed" in part:
            part["seed"] += 1000 * index  # or all would send at the same moments
        parts.append(part)
    return parts


def merge(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One answer of many. Of a single one nothing is changed."""
    if len(answers) == 1:
        return answers[0]
    merged = {name: value for answer in answers for name, value in answer.items()}
    for name in merged:
        found = [answer[name] for answer in answers if name in answer]
        if name in ADDED:
            merged[name] = sum(found)
        elif name in LONGEST:
            merged[name] = max(found)
        elif name in COUNTED:
            together: Counter[int] = Counter()
            for counts in found:
                together.update(dict(counts))
            merged[name] = [list(item) for item in sorted(together.items())]
    return merged
