"""Every scenario, against real servers: its figures are there, add up, and every client was served."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compare import beside, ceiling, cgroup, sample, servers, tree, unp
from compare.analysis import METRICS
from compare.bench import Bench
from compare.drive import poisson
from compare.forks import FORKS
from compare.interrupt import Interrupt
from compare.plan import CHILDREN, HERD, SCENARIOS, SHOCK, Planned
from compare.sample import take
from compare.schema import Result, RowInfo, Sample, Settings, Worker
from compare.servers import BARE_FORK, DIRECT, NULL, RELAY, ROWS
from compare.validity import LITTLE, little, why_invalid

METHOD = "aes-256-gcm"
SETTINGS = Settings([], 1, 0.1, 1, METHOD)
BUSY = re.compile("the generator (was late|used)|the bulk stream was starved")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    interrupt = Interrupt()
    with Bench(interrupt) as made:
        yield made
    interrupt.close()


def taken(bench: Bench, row: str, scenario: str, point: float | None = None) -> Sample:
    """A sample that went well. A busy machine makes the generator late, a stream slow: not asked here."""
    interrupt = Interrupt()
    sample = take(Planned(row, scenario, 1, point), SETTINGS, bench, interrupt)
    interrupt.close()
    assert sample.invalid is None or BUSY.match(sample.invalid), sample.invalid
    assert sample.notes == []
    return sample


@pytest.mark.parametrize("row", ["iterative", "fork", "epoll", RELAY, NULL])
def test_both_ways_at_once(row: str, bench: Bench) -> None:
    figures = taken(bench, row, "bulk-both").figures
    assert figures["bytes"] >= 1 << 20
    assert figures["wall"] > 0
    assert figures["cpu"] > 0


@pytest.mark.parametrize("row", ["thread", "prefork", RELAY])
def test_bulk_tells_what_the_kernel_did(row: str, bench: Bench) -> None:
    interrupt = Interrupt()
    sample = take(Planned(row, "bulk-down", 1), Settings([], 1, 0.5, 1, METHOD), bench, interrupt)
    interrupt.close()
    assert sample.invalid is None
    assert sample.figures["ctx_voluntary"] + sample.figures["ctx_involuntary"] > 0
    assert sample.figures["faults_minor"] >= 0
    assert sample.figures["faults_major"] >= 0
    assert 1e6 < sample.figures["pss_peak"] < 1e9
    moved = sum(rate / 10 for _, rate in sample.series) * 1e6
    assert 0 < moved <= sample.figures["bytes"]
    assert [at for at, _ in sample.series] == [round(n / 10, 1) for n in range(1, len(sample.series) + 1)]


@pytest.mark.parametrize("size", SCENARIOS["sizes"].points)
def test_messages_of_each_size(size: float, bench: Bench) -> None:
    figures = taken(bench, "epoll", "sizes", size).figures
    assert figures["bytes"] == figures["count"] * size
    assert figures["count"] >= 64


@pytest.mark.parametrize("row", ["thread", "epoll", RELAY, DIRECT])
def test_an_offered_load_is_answered_in_full(row: str, bench: Bench) -> None:
    sample = taken(bench, row, "load", 500)
    figures = sample.figures
    assert figures["offered"] == 500
    assert figures["connections"] == 10
    assert sum(count for _, count in sample.latency_us) == figures["count"]
    assert sum(count for _, count in sample.service_us) == figures["count"] > 20
    mean = [sum(v * n for v, n in counts) for counts in (sample.latency_us, sample.service_us)]
    assert mean[0] >= mean[1]  # due before sent
    off = little(figures, sample.service_us)
    assert off is not None
    assert off < LITTLE


@pytest.mark.parametrize(("row", "connections"), [("prefork", 10), ("select", 100), ("uvloop", 100)])
def test_busy_connections(row: str, connections: int, bench: Bench) -> None:
    sample = taken(bench, row, "concurrency", connections)
    assert sample.figures["count"] >= connections
    assert sample.figures["bytes"] == sample.figures["count"] * 16 * 1024 + sample.figures["count"] * 24
    assert 0 < sample.figures["fairness"] <= 1


def test_concurrent_connections(bench: Bench) -> None:
    sample = taken(bench, "fork", "connections-concurrent")
    assert sample.figures["count"] >= 10
    assert sample.figures["failures"] == 0
    assert sum(count for _, count in sample.latency_us) == sample.figures["count"]


@pytest.mark.parametrize("row", ["fork", "epoll"])
def test_idle_connections_and_a_new_one_among_them(row: str, bench: Bench) -> None:
    figures = taken(bench, row, "idle", 100).figures
    assert figures["held"] == 100
    assert figures["pss"] > figures["pss_idle"] > 0
    assert 0 < figures["first_us"] < 10e6


def test_stacks_of_threads_are_told_apart(bench: Bench) -> None:
    """Two threads a client, whose stacks have at least one page each; a loop has one thread."""
    figures = taken(bench, "thread", "idle", 100).figures
    assert 2 * 100 * 4096 <= figures["stacks"] < figures["pss"] - figures["pss_idle"]
    each, beyond = (
        METRICS[key].of(Sample("", "", 1, figures=figures)) for key in ("idle_each", "idle_beyond")
    )
    assert each
    assert beyond == pytest.approx(each - figures["stacks"] / 100 / 1e3)
    assert taken(bench, "epoll", "idle", 100).figures["stacks"] == 0


def test_a_bare_fork_of_the_process_that_forks(bench: Bench) -> None:
    """It copies the page tables that serving a client copies, and less than that client's pages."""
    figures = taken(bench, BARE_FORK, "connections").figures
    assert figures["count"] == FORKS
    each = METRICS["connection_cpu"].of(Sample("", "", 1, figures=figures))
    assert each
    assert 10 < each < 1e5  # microseconds
    faults = METRICS["connection_faults"].of(Sample("", "", 1, figures=figures))
    assert faults
    assert 10 < faults < 2000


def test_a_bare_fork_that_never_forks_is_invalid(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "ANSWER", 0.3)
    monkeypatch.setattr(servers, "FORK", "iterative")
    interrupt = Interrupt()
    made = take(Planned(BARE_FORK, "connections", 1), SETTINGS, bench, interrupt)
    interrupt.close()
    assert re.match("bare-fork forked nothing: .*listens", made.invalid or "")


@pytest.mark.parametrize(("row", "pool"), [("prefork", True), ("thread", False), ("libev", False)])
def test_the_start_and_an_idle_worker(row: str, pool: bool, bench: Bench) -> None:
    if row == "libev" and shutil.which("ss-server") is None:
        pytest.skip("ss-server is not on PATH")
    figures = taken(bench, row, "start").figures
    assert 0 < figures["start"] < 10
    assert ("worker_private" in figures) is pool
    if pool:
        assert 1e5 < figures["worker_private"] < 1e8


class Watching(Interrupt):
    """Knows what ran when a descriptor that was waited for could be read."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[bytes] = []

    def wait(self, fd: int | None, seconds: float) -> bool:
        readable = super().wait(fd, seconds)
        if fd is not None:
            assert readable
            self.ran = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in tree.descendants(os.getpid())]
        return readable


def test_a_server_begins_when_it_is_executed() -> None:
    """And not when its launcher does, which is a Python too."""
    interrupt = Watching()
    asked = time.monotonic()
    with servers.start(ROWS["iterative"], METHOD, [0], interrupt) as server:
        assert asked < server.began < time.monotonic()
        assert interrupt.ran
        assert not [
            words for words in interrupt.ran if b"--model=iterative" in words and b"launch.py" in words
        ]
    interrupt.close()


def test_small_requests_beside_a_bulk_stream(bench: Bench) -> None:
    sample = taken(bench, "thread", "mixed")
    figures = sample.figures
    assert figures["p99_alone"] > 0
    assert figures["p99_beside"] > 0
    assert figures["bytes"] >= 8 << 20  # at least one exchange of each stream
    assert figures["stream"] > 0
    assert 0.25 <= figures["fairness"] <= 1
    part = 0.1 * SCENARIOS["mixed"].part / beside.PARTS
    due = sum(len(poisson(500, part, 1 + 1 + turn)) for turn in range(1, 2 * beside.TURNS, 2))
    assert sum(count for _, count in sample.latency_us) == due  # those beside the stream, and no others


def test_what_moves_bytes_beside_a_load_gives_way_to_all_others(bench: Bench) -> None:
    how: dict[str, Any] = {
        "method": None,
        "password": None,
        "port": bench.target_port,
        "target": bench.target_port,
    }
    bench.order("open", **how)
    with bench.background() as bulk:
        below = children_that(lambda pid: os.sched_getscheduler(pid) == os.SCHED_IDLE)
        above = children_that(lambda pid: os.sched_getscheduler(pid) == os.SCHED_OTHER)
        assert len(below) == 2
        assert {os.getsid(pid) for pid in below + above} == {os.getsid(0)}  # or they would not be compared
        before = bulk.cpu()
        bulk.begin("bulk", duration=0.05, connections=2)
        assert bulk.end()["bytes"] >= 2 << 20
        assert bulk.cpu().generator > before.generator
    assert not children_that(below.__contains__)


def children_that(are: Callable[[int], bool]) -> list[int]:
    return [pid for pid in tree.descendants(os.getpid())[1:] if are(pid)]


def test_turns_are_added_and_means_weighted_by_time() -> None:
    one = {"wall": 1.0, "count": 100, "late": 0.0, "in_flight": 1.0, "waited": 0.5}
    other = {"wall": 3.0, "count": 300, "late": 0.04, "in_flight": 2.0, "waited": 0.9}
    histograms = {"latency_us": [(5, 1), (7, 2)], "service_us": [(5, 3)]}
    both = beside.joined([one | histograms, other | histograms])
    assert both["latency_us"] == [(5, 2), (7, 4)]
    assert both["service_us"] == [(5, 6)]
    assert (both["count"], both["achieved"]) == (400, 100.0)
    assert both["late"] == pytest.approx(0.03)
    assert both["in_flight"] == pytest.approx(1.75)
    assert both["waited"] == pytest.approx(0.8)


def test_a_stream_that_got_no_time_has_held_up_nobody() -> None:
    assert why_invalid({"stream": 30e6, "streams": 100e6}, [], 0.1) is None
    assert "starved: it moved 20 MB/s" in (why_invalid({"stream": 20e6, "streams": 100e6}, [], 0.1) or "")


@pytest.mark.parametrize("row", ["iterative", "prefork-reuseport", "asyncio"])
def test_a_thousand_connects_at_once(row: str, bench: Bench) -> None:
    figures = taken(bench, row, "shock").figures
    assert figures["count"] + figures["failures"] == SHOCK
    assert figures["failures"] == 0


@pytest.mark.parametrize(
    ("row", "pool"), [("iterative", None), ("thread", None), ("prefork", 15), ("prethread", 15)]
)
def test_the_books_experiment(row: str, pool: int | None, bench: Bench) -> None:
    sample = taken(bench, row, "unp", pool)
    assert sample.figures["count"] == 625  # of 5,000: for a tenth of a second instead of 0.8
    assert len(sample.workers) == (pool or 0)
    if pool:
        assert sum(worker.connections for worker in sample.workers) == 625


def book_result() -> Result:
    """Two rounds: iterative 1 and 1.2 s for 5,000; prefork of 15 twice, of 120 four times that."""

    def sample(row: str, number: int, cpu: float, point: float | None = None) -> Sample:
        figures = {"cpu": cpu / 2, "count": 2500.0}
        served = [100 + 10 * each for each in range(15)] if point == CHILDREN else []
        workers = [Worker(each, 1, 1) for each in served]
        return Sample(row, "unp", number, figures=figures, point=point, workers=workers)

    samples = [sample("iterative", 1, 1.0), sample("iterative", 2, 1.2)]
    for pool, times in ((15, 2), (120, 4)):
        samples += [sample("prefork", 1, 1.0 * times, pool), sample("prefork", 2, 1.2 * times, pool)]
    samples.append(Sample("fork", "unp", 1, invalid="broken", figures={"cpu": 9.0, "count": 1.0}))
    rows = [RowInfo(name, "model", "", "") for name in ("prefork", "iterative", "fork")]
    return Result(Settings(["unp"], 2, 1.0, 1, METHOD), {}, rows, samples)


def test_the_books_columns_stand_beside_ours() -> None:
    iterative, prefork = unp.process_control(book_result())
    assert (iterative.name, iterative.above) == ("iterative", 0)
    assert iterative.cpu == pytest.approx(1.1)
    assert prefork.book == (2, None, 6.2, 1.8, 1.80)
    assert prefork.cpu == pytest.approx(2.2)
    assert prefork.above == pytest.approx(1.1)
    assert (prefork.fewest, prefork.most) == (200, 480)
    assert unp.cells(book_result())[1] == [
        *("2", "prefork", "-", "6.2", "1.8", "1.80", "2.200", "1.100", "200 to 480")
    ]
    assert len(unp.heads()) == len(unp.cells(book_result())[0])


def test_the_books_herd() -> None:
    found = unp.herd(book_result())
    assert set(found) == {"prefork"}
    assert [(pool, book) for pool, book, _ in found["prefork"]] == [(15, 1.8), (120, 13.5)]
    assert [ours for _, _, ours in found["prefork"]] == [pytest.approx(1.1), pytest.approx(3.3)]
    assert [unp.books_herd("prefork-fcntl", pool) for pool in HERD] == [2.7, 5.6, 11.2, 19.2]


def test_the_generators_ceiling(bench: Bench, interrupt: Interrupt) -> None:
    loads = (("bulk-down", None), ("load", 500.0))
    lines = list(ceiling.ceilings(["epoll", "iterative"], SETTINGS, bench, interrupt, loads))
    assert [line.scenario for line in lines] == [scenario for scenario, _ in loads]
    for line in lines:
        assert line.null
        assert line.busy
        assert line.ceiling
        assert line.part
        assert line.ceiling == pytest.approx(line.null / line.busy)
        assert 0 < line.busy < 1.05
        assert line.fastest in ("epoll", "iterative")
    assert lines[1].fastest == "epoll"  # iterative cannot have ten connections
    text = ceiling.table(lines)
    assert text.splitlines()[0].split()[:2] == ["scenario", "point"]
    assert len(text.splitlines()) == len(loads) + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "point"), [("concurrency", 1000), ("idle", 1000), ("idle", 5000), ("load", 8000)]
)
def test_the_far_ends_of_the_axes(scenario: str, point: float, bench: Bench) -> None:
    for row in ("epoll", "thread"):
        if SCENARIOS[scenario].points_of(ROWS[row], (point,)):
            assert taken(bench, row, scenario, point).figures


def test_two_accounts_of_the_same_cpu_agree(bench: Bench) -> None:
    """fork: nearly all of it is spent by children that have ended, which two counters saw in two ways.

    /proc tells the CPU of reaped children, user and system, in whole ticks: each may be one off. What a
    child still runs while it is reaped, the group alone counts. Both may come together, so they are added.
    """
    if cgroup.cpu_source() != "cgroup cpu.stat":
        pytest.skip(
            "NO CGROUP CAN BE MADE HERE (cgroup2 not writable): the CPU figures are not cross-checked"
        )
    interrupt = Interrupt()
    settings = Settings([], 1, 2.0, 1, METHOD)
    sample = take(Planned("fork", "connections", 1), settings, bench, interrupt)
    interrupt.close()
    assert sample.invalid is None
    figures = sample.figures
    assert figures["cpu"] == figures["cpu_cgroup"]
    assert figures["cpu_cgroup"] > 0.1
    most = 2 * tree.TICK + 0.05 * figures["cpu_cgroup"]
    assert figures["cpu_rusage"] == pytest.approx(figures["cpu_cgroup"], rel=0.0, abs=most)
