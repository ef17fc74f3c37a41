"""Rows 25 to 31: descriptors, processes, threads and memory run out, or somebody sees to it."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.conformance import test_crowds as crowds
from tests.conformance.test_workers import server_of
from tests.faults.case import Case
from tests.faults.rows import ONE_CLIENT, PEERS, POOLS, POOLS_OF_THREADS, row
from tests.faults.starve import Group
from tests.faults.tools import lacking
from tests.harness.rig import Rig
from tests.harness.stream import Stream, exchange, pattern
from tests.harness.tree import (
    child_pids,
    cpu_seconds,
    is_alive,
    members,
    memory,
    most_descriptors,
    wait_until,
)

NOFILE = 64  # descriptors, where they run out
IDLE = 10_000  # connections
IDLE_KB = 20  # of a server's memory for each of them, at most
ENDED = ("FIN", "RST")
MB = 1_000_000


@row(25, quick=("poll", "sigio"), peers=PEERS, cannot=ONE_CLIENT)
def test_out_of_descriptors(case: Case) -> None:
    """`prlimit --nofile=64` on every process of the server, then 128 silent clients beside a live one."""
    rig = case.make()
    near, far = rig.open()
    for process in members(rig.pid):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (NOFILE, NOFILE))
    flood = [rig.silent() for _ in range(2 * NOFILE)]
    rig.steady(within=10.0)
    short = most_descriptors(rig.pid) >= NOFILE - 1
    before = cpu_seconds(rig.pid)
    exchange(near, far, 300_000)
    spent = cpu_seconds(rig.pid) - before
    assert spent < 0.5, f"{spent:.1f} s of CPU beside a small exchange"
    rig.idles(0.5)
    if not short:
        case.note("each client has a process, or a worker, with descriptors of its own")
    for stream in flood:
        stream.close()
    case.reason(crowds.SAID + "Too many open files", int(short), 8)


@contextmanager
def no_more_tasks(rig: Rig, more: int = 0) -> Iterator[None]:
    """The server gets `more` processes and threads, and then EAGAIN."""
    with Group("pids", rig.pid) as group:
        group.tasks(group.tasks_now() + more)
        yield
        group.tasks(None)


@row(26, quick=("fork",))
def test_fork_fails(case: Case) -> None:
    """A pids cgroup with no room left: for a client's child, or for the successor of a killed worker."""
    rig = case.make()
    near, far = rig.open()
    if case.subject in POOLS:
        with Group("pids", rig.pid) as group:
            group.tasks(1)
            holder = server_of(rig, near)
            victim = next(pid for pid in child_pids(rig.pid) if pid != holder)
            os.kill(victim, 9)
            rig.tunnel.wait_for_lines("cannot start a worker: Resource temporarily unavailable")
            exchange(near, far, MB)
            if case.subject != "prefork-reuseport":
                rig.transfer()
            group.tasks(None)
        wait_until(lambda: len(child_pids(rig.pid)) == rig.workers, 5.0, "the killed worker has a successor")
        case.reason("cannot start a worker", 1, 8)
        case.reason(f"worker {victim} was killed")
        return
    with no_more_tasks(rig):
        dropped = [rig.silent() for _ in range(3)]
        for stream in dropped:
            assert stream.how_it_ends(1.0) in ENDED
        exchange(near, far, MB)
    case.reason("client dropped: cannot fork: Resource temporarily unavailable", len(dropped))


@row(27, quick=("thread",))
def test_thread_does_not_start(case: Case) -> None:
    """A pids cgroup: no room for a client's thread, for one of its two, or for all of a pool."""
    if case.subject in POOLS_OF_THREADS:
        with Group("pids") as group:
            group.tasks(6)
            rig = case.make(workers=8, prefix=group.prefix, warm=False)
            rig.tunnel.wait_for_lines("pool has 5 threads of 8: can't start new thread")
            case.watch(rig)
            for stream in [rig.silent() for _ in range(3)]:
                stream.sock.sendall(pattern(100))  # the drain would be a thread, too
                assert stream.how_it_ends(1.0) in ENDED
            group.tasks(None)
            case.reason("handshake failed", 3)
            case.reason("connection to None cut: can't start new thread", 3)
            case.look()
        return
    rig = case.make()
    near, far = rig.open()
    with no_more_tasks(rig):
        for stream in [rig.silent() for _ in range(3)]:
            assert stream.how_it_ends(1.0) in ENDED
        exchange(near, far, MB)
    case.reason("client dropped: can't start new thread", 3)
    if case.subject == "thread":  # which needs two
        with no_more_tasks(rig, 1):
            half = rig.near()
            rig.far()
            assert half.how_it_ends(1.0) in ENDED
        case.reason("cut: can't start new thread")


@row(28, quick=("select",))
def test_descriptor_1024(case: Case) -> None:
    """1,050 silent clients, and two that ask for a target when no number below 1024 is left."""
    crowds.test_descriptor_1024_of_select_is_refused_in_a_clear_line(case.make)
    case.reason("client refused: select cannot watch descriptor 1024 ", 1, 1100)
    case.reason("cannot connect to .*: .*select cannot watch descriptor 1024", 2)


@row(29, peers=PEERS, cannot={"select": "it watches 1,024 descriptors at most: its lesson"})
def test_ten_thousand_idle_connections(case: Case) -> None:
    """10,000 clients that have said nothing, then a transfer among them; twice, to one process."""
    own = resource.getrlimit(resource.RLIMIT_NOFILE)
    if own[1] < IDLE + 500:
        lacking(f"{own[1]} descriptors are all that a process may have here (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (own[1], own[1]))
    try:
        # Each worker keeps the memory of its own largest crowd, and the kernel shares out a crowd anew each
        # time: a pool grows for some rounds, and loses nothing. With one, the second time tells a leak.
        rig = case.make("--handshake-timeout", "600", workers=1 if case.subject in POOLS else 0)
        before = memory(rig.pid)
        grown = []
        for _ in range(2):  # what the first ones have left is enough for the second ones
            idle = [rig.silent() for _ in range(IDLE)]
            rig.transfer(within=3.0)
            grown.append(memory(rig.pid) - before)
            rig.idles(1.0)
            for stream in idle:
                stream.close()
            rig.settles(within=10.0)
        each = grown[0] / 1000 / IDLE
        assert each < IDLE_KB, f"{each:.1f} KB for each"
        assert grown[1] < 1.1 * grown[0] + MB, f"{grown[0] / MB:.0f} MB, then {grown[1] / MB:.0f} MB"
        case.note(f"{each:.1f} KB each")
        case.allow_growth(max(grown))  # it is free, but the process keeps it
        case.look()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, own)


@row(30, quick=("trampoline",), peers=PEERS)
def test_flood_past_the_backlog(case: Case) -> None:
    """A backlog of 2 by option and 30 connects at once; then everything as usual."""
    crowds.test_flood_beyond_the_backlog_is_recovered_from(case.make)


@row(31)
def test_out_of_memory(case: Case) -> None:
    """A memory cgroup with 2 MB left (`fork`: 30 MB), and clients that need more, until the kernel kills."""
    with Group("memory") as group:
        rig = case.make(prefix=group.prefix)
        group.memory(group.memory_now() + (30 if case.subject == "fork" else 2) * MB)
        streams: list[Stream] = []
        deadline = time.monotonic() + 10.0
        while not group.killed() and time.monotonic() < deadline:
            streams.append(rig.near())
            with suppress(OSError):
                streams.append(rig.far())
                streams[-1].push(pattern(MB), 5 * MB, 0.05)
        group.memory(None)
        assert group.killed(), "nobody was killed"
        for stream in streams:
            stream.close()
        assert is_alive(rig.pid), "the server itself was killed"
        if rig.workers:
            wait_until(lambda: len(child_pids(rig.pid)) == rig.workers, 8.0, "who was killed has a successor")
        case.reason("was killed by SIGKILL", 1 if rig.workers else 0, 8)
        case.reason("client dropped: cannot fork|cannot start a worker|cut: ", 0, 100)
        case.look()
