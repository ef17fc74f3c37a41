"""Models with children: who dies, who is replaced, who is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil
import pytest

from tests.conformance.conftest import MakeRig
from tests.harness.process import waiting_for_accept
from tests.harness.rig import LOCAL, SERVE, Rig
from tests.harness.stream import RESET, Stream, exchange
from tests.harness.tree import child_pids, is_alive, wait_until

WORKERS = 3


def server_of(rig: Rig, near: Stream) -> int:
    """The pid of the child that holds the connection of this client."""
    mine = near.sock.getsockname()[1]
    for pid in child_pids(rig.pid):
        with contextlib.suppress(psutil.NoSuchProcess):  # an idle one that was asked to end
            for connection in psutil.Process(pid).net_connections("tcp"):
                here, there = connection.laddr, connection.raddr
                if there and there.port == mine and here.port == rig.place.port:
                    return pid
    raise AssertionError("no child holds this connection")


def open_in_two_workers(rig: Rig) -> tuple[tuple[Stream, Stream], tuple[Stream, Stream]]:
    """Two connections. Where the kernel prefers a worker that has one already, that one is stopped."""
    first = rig.open()
    holder = psutil.Process(server_of(rig, first[0]))
    for _ in range(8):
        second = rig.open()
        if server_of(rig, second[0]) != holder.pid:
            return first, second
    holder.suspend()
    wait_until(lambda: holder.status() == psutil.STATUS_STOPPED, 1.0, "the first worker is stopped")
    second = rig.open()
    holder.resume()
    return first, second


@pytest.mark.pools
def test_killed_worker_costs_its_own_stream_and_is_replaced(make_rig: MakeRig) -> None:
    rig = make_rig(workers=WORKERS)
    (near, far), (other_near, other_far) = open_in_two_workers(rig)
    before = child_pids(rig.pid)
    victim = server_of(rig, near)
    os.kill(victim, signal.SIGKILL)
    assert near.how_it_ends(1.0) in ("FIN", "RST")
    assert far.how_it_ends(1.0) in ("FIN", "RST")
    exchange(other_near, other_far, 1_000_000)
    rig.tunnel.wait_for_lines(f"worker {victim} was killed by SIGKILL")
    wait_until(lambda: len(child_pids(rig.pid)) == WORKERS, 2.5, "the worker is replaced")
    assert victim not in child_pids(rig.pid)
    assert len(set(before) & set(child_pids(rig.pid))) == WORKERS - 1, "and only that one"
    rig.is_healthy()


@pytest.mark.pools
@pytest.mark.ends(SERVE)
def test_all_workers_killed_at_once_are_all_replaced(make_rig: MakeRig) -> None:
    rig = make_rig(workers=WORKERS)
    before = child_pids(rig.pid)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: len(child_pids(rig.pid)) == WORKERS and not set(before) & set(child_pids(rig.pid)),
        3.0,
        "all workers are replaced",
    )
    rig.is_healthy()


@pytest.mark.pools
@pytest.mark.ends(SERVE)
def test_workers_that_die_young_are_not_respawned_in_a_tight_loop(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2)
    seen: set[int] = set()
    end_of_look = time.monotonic() + 2.5
    while time.monotonic() < end_of_look:
        for pid in child_pids(rig.pid):
            seen.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    assert len(seen) <= 2 * (1 + 4), f"{len(seen)} workers were started in 2.5 s"
    wait_until(lambda: len(child_pids(rig.pid)) == 2, 3.0, "and yet, once they may live, they are there")
    rig.is_healthy()


@pytest.mark.pools
def test_killed_master_takes_its_workers_along_and_frees_the_port(make_rig: MakeRig) -> None:
    rig = make_rig(workers=WORKERS)
    workers = child_pids(rig.pid)
    os.kill(rig.pid, signal.SIGKILL)
    rig.tunnel.wait(1.0)
    wait_until(lambda: not any(is_alive(pid) for pid in workers), 4.0, "idle workers end too")
    again = make_rig(workers=WORKERS, listen=[str(rig.place)])
    again.is_healthy()


@pytest.mark.pools
@pytest.mark.ends(SERVE)
def test_killed_master_takes_busy_workers_along_too(make_rig: MakeRig) -> None:
    """Clients that keep coming must not keep orphans alive: nobody could stop or replace them."""
    rig = make_rig(workers=2)
    workers = child_pids(rig.pid)
    os.kill(rig.pid, signal.SIGKILL)
    rig.tunnel.wait(1.0)
    deadline = time.monotonic() + 4.0
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "orphans still serve 4 s after their master was killed"
        with contextlib.suppress(ConnectionError):
            Stream(rig.connect()).close()
        time.sleep(0.01)


@pytest.mark.pools
@pytest.mark.ends(SERVE)
def test_orphan_finishes_its_client_before_it_ends(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2)
    near, far = rig.open()
    worker = server_of(rig, near)
    os.kill(rig.pid, signal.SIGKILL)
    rig.tunnel.wait(1.0)
    time.sleep(1.2)  # longer than a worker takes to notice
    exchange(near, far, 1_000_000)
    near.close()
    far.close()
    wait_until(lambda: not is_alive(worker), 4.0, "the orphan ends after its client")


@pytest.mark.elastic
@pytest.mark.ends(SERVE)
def test_pool_grows_when_all_are_busy_and_stops_at_its_most(make_rig: MakeRig) -> None:
    rig = make_rig("--workers", "2:6", workers=0, warm=False)
    wait_until(lambda: len(child_pids(rig.pid)) == 2, 2.0, "the pool starts with its least")
    pairs = [rig.open() for _ in range(6)]
    assert len(child_pids(rig.pid)) == 6
    waiting = rig.near(first=b"seventh")
    assert waiting.how_it_ends(0.3) == "open"
    assert len(child_pids(rig.pid)) == 6
    for near, far in pairs:
        exchange(near, far, 1000)
        near.close()
        far.close()
    assert rig.far().receive_exactly(7) == b"seventh"


@pytest.mark.elastic
@pytest.mark.slow
@pytest.mark.ends(SERVE)
def test_pool_shrinks_to_its_least_when_clients_are_gone(make_rig: MakeRig) -> None:
    rig = make_rig("--workers", "2:5", workers=0, warm=False)
    for near, far in [rig.open() for _ in range(5)]:
        exchange(near, far, 1000)
        near.close()
        far.close()
    wait_until(lambda: len(child_pids(rig.pid)) == 2, 30.0, "idle workers beyond the least are sent home")
    rig.transfer()


@pytest.mark.pools
@pytest.mark.ends(SERVE)
def test_worker_that_is_killed_while_stopping_is_not_replaced(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2)
    (near, _), (other_near, other_far) = open_in_two_workers(rig)
    victim = server_of(rig, near)
    rig.tunnel.terminate()
    rig.tunnel.wait_for_lines("stopping")
    os.kill(victim, signal.SIGKILL)
    exchange(other_near, other_far, 100_000)
    assert rig.tunnel.wait(2.0) == 0


@pytest.mark.only("fork")
@pytest.mark.ends(SERVE, LOCAL)
def test_killed_child_of_a_client_costs_that_client_alone(make_rig: MakeRig) -> None:
    rig = make_rig()
    (near, far), (other_near, other_far) = rig.open(), rig.open()
    os.kill(server_of(rig, near), signal.SIGKILL)
    assert near.how_it_ends(1.0) in ("FIN", "RST")
    assert far.how_it_ends(1.0) in ("FIN", "RST")
    exchange(other_near, other_far, 100_000)
    rig.is_healthy()


@pytest.mark.two_clients
@pytest.mark.ends(SERVE)
def test_children_that_end_by_the_hundred_leave_no_zombie(make_rig: MakeRig) -> None:
    """UNP 5.10: signals are not queued, so one SIGCHLD may stand for many children."""
    rig = make_rig()
    for _ in range(3):
        streams = [rig.near(first=b"x") for _ in range(60)]
        for stream in streams:
            with contextlib.suppress(*RESET):
                stream.reset()
    wait_until(lambda: not waiting_for_accept(rig.place), 60.0, "all of them have been accepted")
    rig.is_healthy()
