"""The load from several workers: a real scheduler and two real workers, on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compare import schema
from compare.bench import Bench, BenchFailed
from compare.cluster import Cluster, merge, split
from compare.interrupt import Interrupt
from tests.compare.conftest import PATIENCE, Command

LOAD = {"do": "measure", "scenario": "load", "point": 900.0, "connections": 10, "duration": 1.0, "seed": 3}


def test_a_load_is_divided() -> None:
    parts = split(LOAD, 3)
    assert [part["connections"] for part in parts] == [3, 3, 4]
    assert [part["point"] for part in parts] == [300, 300, 300]
    assert len({part["seed"] for part in parts}) == 3
    assert all(part["duration"] == 1 for part in parts)
    busy = {"do": "measure", "scenario": "concurrency", "point": 100.0, "duration": 1.0}
    assert [part["point"] for part in split(busy, 3)] == [33, 33, 34]
    assert [part["count"] for part in split({"do": "hold", "count": 7}, 2)] == [3, 4]


def test_what_one_connection_does_is_done_by_one() -> None:
    """As many shards as there are connections; and no more than one where the scenario has one."""
    assert len(split({"do": "measure", "scenario": "concurrency", "point": 2.0}, 3)) == 2
    bulk = {"do": "measure", "scenario": "bulk-up", "duration": 1.0, "rate": 1e9}
    assert split(bulk, 3) == [bulk]
    assert split({"do": "mixed", "rate": 500.0, "connections": 8}, 3) == [
        {"do": "mixed", "rate": 500.0, "connections": 8}
    ]
    assert len(split({"do": "open", "port": 1}, 3)) == 3


def test_answers_are_put_together() -> None:
    one = {"count": 3, "wall": 1.0, "late": 0.0, "offered": 300, "latency_us": [[80, 2], [90, 1]]}
    other = {"count": 5, "wall": 1.2, "late": 0.1, "offered": 300, "latency_us": [[70, 1], [90, 4]]}
    assert merge([one, other]) == {
        "count": 8,
        "wall": 1.2,
        "late": 0.1,
        "offered": 600,
        "latency_us": [[70, 1], [80, 2], [90, 5]],
    }
    assert merge([one]) is one


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Command]]:
    """The address of a scheduler with two workers, which end with it."""
    pytest.importorskip("distributed")
    folder, command = tmp_path_factory.mktemp("dask"), Command()
    environment = {**command.environment(), "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    log = (folder / "log").open("w+")

    def start(*words: str) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "distributed.cli.dask_scheduler", *words]
        if words[0] == "worker":
            program = [sys.executable, "-m", "distributed.cli.dask_worker", *words[1:]]
        return subprocess.Popen(program, env=environment, cwd=folder, stderr=log, text=True)

    running = [
        start("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", "scheduler.json")
    ]
    try:
        address = said(folder / "log", r"Scheduler at:\s+(tcp://\S+)")
        for number in (1, 2):
            words = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", f"w{number}"]
            running.append(start("worker", address, *words))
        said(folder / "log", r"(?s)Registered to:.*Registered to:()")
        yield address, command
    finally:
        for process in reversed(running):  # a worker whose scheduler has gone waits for another
            process.terminate()
            process.wait(PATIENCE)
        log.close()
    left = command.left_behind()
    command.kill()
    assert left == []


def said(log: Path, pattern: str) -> str:
    deadline = time.monotonic() + PATIENCE
    while not (found := re.search(pattern, log.read_text())):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found[1]


@pytest.mark.slow
def test_a_run_on_two_workers(scheduler: tuple[str, Command], tmp_path: Path) -> None:
    """Loads of one connection by one of them, the others by both; all add up."""
    address, command = scheduler
    what = ["--models", "epoll", "--no-peers", "--no-null", "--no-baselines", "--rounds", "1", "--seed", "1"]
    words = [*what, "--scenarios", "bulk-up,connections-concurrent,concurrency", "--duration", "0.2"]
    done = command.run("run", *words, "--cluster", address, "--out", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    result = schema.load((tmp_path / "result.json").read_text())
    assert result.environment["generators"] == 2
    assert 0 < result.environment["start_error_us"] < 1e6
    assert result.environment["pinned"]["generator"] == []
    points = [sample.point for sample in result.samples if sample.scenario == "concurrency"]
    assert sorted(point for point in points if point) == [1, 10, 100, 1000]
    for sample in result.samples:
        if sample.invalid:
            assert re.match(r"the generator was late|Little's law", sample.invalid)  # a busy machine
        assert sample.figures["generator_cpu"] > 0
        if sample.scenario != "bulk-up":
            assert sum(count for _, count in sample.latency_us) == sample.figures["count"] > 0


def test_an_open_loop_is_divided_among_workers(scheduler: tuple[str, Command]) -> None:
    """The offered rates add up to what was offered, and the answers to all that was asked."""
    address, _ = scheduler
    interrupt = Interrupt()
    cluster = Cluster(address)
    with Bench(interrupt, generator=cluster) as bench:
        bench.order("open", port=bench.target_port, target=bench.target_port, method=None, password=None)
        answer = bench.order(
            "measure", scenario="load", duration=0.5, rate=0.0, point=400.0, connections=10, seed=3
        )
        bench.order("close")
    interrupt.close()
    print(cluster.described(), f"{cluster.spread / 1e3:.0f} us apart")
    assert (answer["offered"], answer["connections"]) == (400, 10)
    assert 100 < answer["count"] == sum(count for _, count in answer["latency_us"]) < 300


def test_shards_start_together(scheduler: tuple[str, Command]) -> None:
    """By their own clocks, whose error was measured: orders arrive one after the other."""
    address, _ = scheduler
    cluster, interrupt = Cluster(address), Interrupt()
    try:
        cluster.send({"do": "hold", "count": 4})  # nothing is open: the generators say so by ending
        with pytest.raises(BenchFailed, match="generator of a worker has ended"):
            cluster.answer(interrupt, PATIENCE)
        assert cluster.spread < 50e6
    finally:
        cluster.stop()
        interrupt.close()


MISTAKES = {
    "no scheduler": (
        ["--cluster", "tcp://127.0.0.1:9"],
        os.EX_UNAVAILABLE,
        "tcp://127.0.0.1:9: no scheduler there",
    ),
    "no address of ours": (["--server-address", "192.0.2.1"], os.EX_USAGE, "an IPv4 address of this machine"),
    "no address": (["--server-address", "localhost"], os.EX_USAGE, "an IPv4 address of this machine"),
}


@pytest.mark.parametrize(("words", "code", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(words: list[str], code: int, expected: str, command: Command, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    done = command.run("run", "--models", "fork", "--out", str(tmp_path), *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_servers_listen_where_they_are_told_to(command: Command, tmp_path: Path) -> None:
    """On another address of loopback: what is reachable there alone is reached."""
    what = ["--models", "fork", "--no-peers", "--no-null", "--scenarios", "connections", "--rounds", "1"]
    done = command.run(
        "run", *what, "--duration", "0.05", "--server-address", "127.0.0.2", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    samples = schema.load((tmp_path / "result.json").read_text()).samples
    assert {(sample.row, sample.invalid) for sample in samples} == {
        (row, None) for row in ("fork", "direct", "relay", "bare-fork")
    }
