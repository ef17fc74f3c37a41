"""What came due while a server stood still is late, and the generator's own lateness is not the server's."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest

from compare import bench, servers
from compare.bench import Bench, LoadFailed
from compare.drive import InFlight, poisson
from compare.interrupt import Interrupt
from compare.plan import Planned
from compare.sample import take
from compare.schema import Settings
from compare.servers import DIRECT, ROWS, Server
from compare.stats import percentile
from compare.stream import Shape, prepare, wrong_of_the_book
from compare.validity import LATE, little, why_invalid, why_limited

METHOD = "aes-256-gcm"
STOPPED, RUNNING = 0.2, 0.8  # seconds of each second


def test_the_schedule_is_seeded_and_has_the_rate_that_was_asked() -> None:
    dues = poisson(1000, 20, 7)
    assert dues == poisson(1000, 20, 7)
    assert dues != poisson(1000, 20, 8)
    assert list(dues) == sorted(dues)
    assert len(dues) == pytest.approx(20_000, rel=0.03)
    gaps = [after - before for before, after in itertools.pairwise(dues)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread == pytest.approx(mean, rel=0.05)  # exponential: as wide as it is long


def test_in_flight_is_an_integral() -> None:
    flight = InFlight(0)
    flight.change(1, 100)
    flight.change(1, 200)
    flight.change(-1, 400)
    flight.change(-1, 1000)
    assert flight.mean() == pytest.approx((0 * 100 + 1 * 100 + 2 * 200 + 1 * 600) / 1000)


def test_prepared_requests_take_turns() -> None:
    exchanges = prepare(Shape(40, 48), tags=3)
    assert [next(exchanges).tag for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


def test_the_books_bytes_are_compared() -> None:
    right = bytes(range(256)) * 20
    assert wrong_of_the_book(memoryview(right)[300:4300], 300) is None
    changed = bytearray(right)
    changed[1000] ^= 4
    assert wrong_of_the_book(memoryview(changed)[300:4300], 300) == 700


def test_a_late_generator_makes_an_open_loop_invalid() -> None:
    good = {"offered": 1000.0, "late": LATE / 2, "wall": 1.0, "count": 1000.0}
    assert why_invalid(good, [], 0.5) is None
    assert "late" in (why_invalid(good | {"late": LATE * 2}, [], 0.5) or "")
    assert "whole" in (why_limited(True, 0.5, 0.96) or "")
    assert "something to do 97%" in (why_limited(True, 0.5, 0.5, 0.03) or "")
    assert why_limited(True, 0.5, 0.5, 0.06) is None
    assert "96% of its core" in (why_invalid(good, [], 0.96) or "")
    assert why_invalid({"wall": 1.0, "count": 5.0}, [], 0.96) is None  # closed loop: limited, and valid


def test_littles_law_is_asked_of_each_point() -> None:
    """10 answers of 100 ms each in a second are 1 in flight."""
    right = {"offered": 10.0, "achieved": 10.0, "in_flight": 1.0}
    services = [(100_000, 10)]
    assert little(right, services) == pytest.approx(0, abs=1e-3)
    assert why_invalid(right, services, 0.1) is None
    lost = right | {"in_flight": 1.5}
    assert little(lost, services) == pytest.approx(1 / 3, abs=1e-3)
    assert "Little" in (why_invalid(lost, services, 0.1) or "")


@contextmanager
def loaded(row: str, interrupt: Interrupt) -> Iterator[tuple[Server, Bench]]:
    """A server, and a generator that is connected to it."""
    with (
        Bench(interrupt) as made,
        servers.start(ROWS[row], METHOD, made.cores.server, interrupt) as server,
    ):
        port, target = server.port, made.target_port
        made.order("open", port=port, target=target, method=METHOD, password=servers.PASSWORD)
        yield server, made


@contextmanager
def stalling(pid: int) -> Iterator[None]:
    """Stops a process for a fifth of each second."""
    over = Event()

    def stop_and_go() -> None:
        while not over.wait(RUNNING / 2):
            os.kill(pid, signal.SIGSTOP)
            over.wait(STOPPED)
            os.kill(pid, signal.SIGCONT)
            over.wait(RUNNING / 2)

    thread = Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def p99(counts: list[tuple[int, int]]) -> float:
    return percentile(counts, 0.99) / 1000  # ms


def test_a_stall_shows_in_open_loop_and_hides_in_closed_loop(interrupt: Interrupt) -> None:
    """Coordinated omission: a client that waits for its answer asks nothing while the server stands."""
    with loaded("epoll", interrupt) as (server, made), stalling(server.pid):
        how: dict[str, Any] = {"scenario": "load", "point": 300, "connections": 1, "seed": 1}
        opened = made.order("measure", duration=2.0, rate=0.0, **how)
        closed = made.order("measure", scenario="ping-pong", duration=2.0, rate=0.0)
        made.order("close")
    assert p99(opened["latency_us"]) > 50
    assert p99(opened["service_us"]) < p99(opened["latency_us"]) / 2  # one in hundreds met the stall
    assert p99(closed["latency_us"]) < p99(opened["latency_us"]) / 2
    assert opened["service_us"][-1][0] > 50_000  # and yet there was one
    assert closed["latency_us"][-1][0] > 50_000
    assert opened["count"] == len(poisson(300, 2.0, 1))


def test_a_generator_that_is_too_slow_is_told(interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "GENERATOR", (sys.executable, "-m", "tests.compare.slow_generator", "3"))
    settings = Settings(["load", "concurrency"], 1, 0.3, 1, METHOD)
    with Bench(interrupt) as made:
        for row in ("epoll", DIRECT):
            sample = take(Planned(row, "load", 1, 1000), settings, made, interrupt)
            assert "the generator" in (sample.invalid or "")
            assert sample.figures["late"] > 10 * LATE
        # Where the machine keeps the server from its core, it is not the generator for once.
        closed = (take(Planned("epoll", "concurrency", 1, 10), settings, made, interrupt) for _ in range(5))
        assert any(sample.limited for sample in closed)


@pytest.mark.parametrize(
    ("way", "scenario", "point"),
    [
        ("up", "load", 500),
        ("up", "shock", None),
        ("down", "concurrency", 10),
        ("down", "bulk-both", None),
    ],
)
def test_a_wrong_byte_under_load_is_invalid(
    way: str, scenario: str, point: float | None, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "TARGET", (sys.executable, "-m", "tests.compare.corrupting_target", way))
    with Bench(interrupt) as made:
        settings = Settings([], 1, 0.05, 1, METHOD)
        sample = take(Planned("epoll", scenario, 1, point), settings, made, interrupt)
    assert f"wrong byte {way}" in (sample.invalid or "")


def test_a_server_that_goes_is_the_servers_fault(interrupt: Interrupt) -> None:
    with loaded("epoll", interrupt) as (server, made):
        made.order("hold", count=5)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(LoadFailed, match="connect"):
            made.order("measure", scenario="load", point=100, connections=3, duration=0.1, rate=0.0)


def test_connects_that_fail_are_counted(interrupt: Interrupt) -> None:
    with loaded("epoll", interrupt) as (server, made):
        os.kill(server.pid, signal.SIGKILL)
        while not server.ended():
            pass
        answer = made.order("crowd", count=50, clients=50, lenient=True)
        assert answer["failures"] == 50
        assert why_invalid(answer, [], 0.1) == "none of 50 connections was served"
