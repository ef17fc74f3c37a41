"""Rows 32 to 39: processes of a server that die, hang, or end by the hundred; and what a fork copies."""

from __future__ import annotations

import contextlib
import os
import signal

from tests.conformance import test_crowds as crowds
from tests.conformance import test_master as masters
from tests.conformance import test_workers as workers
from tests.faults.case import Case
from tests.faults.rows import POOLS, row
from tests.harness.places import closed_place
from tests.harness.process import waiting_for_accept
from tests.harness.rig import Rig
from tests.harness.stream import RESET, Sealed, Task, exchange, pattern, send_and_finish, sha256
from tests.harness.tree import child_pids, is_alive, wait_until
from tests.harness.workers import alone, takes_turns
from tunnel.status import board_of

MB = 1_000_000
KILLED = "was killed by SIGKILL"


@row(32, quick=("prefork-fcntl", "fork"))
def test_killed_worker(case: Case) -> None:
    """`kill -9`, by pid, of the process that serves one of two clients, in the middle of a transfer."""
    rig = case.make(workers=workers.WORKERS)
    (near, far), (other_near, other_far) = workers.open_in_two_workers(rig)
    content = pattern(4 * MB)
    transfer = Task(lambda: send_and_finish(other_near, content))
    far.push(pattern(100_000), MB, 0.05)
    os.kill(workers.server_of(rig, near), signal.SIGKILL)
    assert near.ends_after_data()[1] in ("FIN", "RST", "Cut")
    assert sha256(other_far.receive_all()) == sha256(content), "another's stream"
    transfer.result()
    exchange(*rig.open(), 1000)
    case.reason(KILLED)


@row(33, quick=("prefork-mutex",))
def test_killed_holder_of_the_lock(case: Case) -> None:
    """`kill -9` of the worker that is in accept, five times; the next one is in within 1 s."""
    masters.test_killed_holder_of_the_accept_lock_lets_the_next_one_in(case.make)
    case.reason(KILLED, 5)


@row(33)
def test_stopped_holder_of_the_lock(case: Case) -> None:
    """SIGSTOP to it; the heartbeat, 2 s by option, kills it, and the next one is in."""
    masters.test_stopped_holder_of_the_accept_lock_is_killed_and_the_next_one_let_in(case.make)
    case.reason("has given no sign of life")
    case.reason(KILLED)


@row(34, quick=("prefork-reuseport",))
def test_killed_master(case: Case) -> None:
    """`kill -9` of the parent; then the same command again, on the same port."""
    if case.subject in POOLS:
        workers.test_killed_master_takes_its_workers_along_and_frees_the_port(case.make)
        case.forget_first()
        return
    rig = case.make()
    near, far = rig.open()
    child = workers.server_of(rig, near)
    os.kill(rig.pid, signal.SIGKILL)
    rig.tunnel.wait(1.0)
    exchange(near, far, MB)
    near.close()
    far.close()
    wait_until(lambda: not is_alive(child), 2.0, "the child ends with its client")
    case.gone()


@row(35)
def test_hanging_worker(case: Case) -> None:
    """SIGSTOP to a worker; the heartbeat is 2 s by option. It gets SIGABRT, and a second later SIGKILL."""
    masters.test_stopped_worker_is_found_by_its_heartbeat(case.make)
    case.reason("has given no sign of life")
    case.reason(KILLED)


@row(36, quick=("prefork-epoll",))
def test_workers_that_die_at_start(case: Case) -> None:
    """A site module that ends every fork with code 3."""
    masters.test_workers_that_die_at_start_end_the_server_with_a_code_of_its_own(case.make, case.directory)


@row(37)
def test_storm_of_children(case: Case) -> None:
    """500 clients in five bursts, whose children all end at once by a reset."""
    rig = case.make()
    for _ in range(5):
        streams = [rig.near(target=closed_place(), first=b"x") for _ in range(100)]
        for stream in streams:
            with contextlib.suppress(*RESET):
                stream.reset()
    wait_until(lambda: not waiting_for_accept(rig.place), 60.0, "all of them have been accepted")
    case.reason("cannot connect to|cut: ", 0, 500)  # a reset may come before the request was read


@row(38, quick=("fork", "prefork"))
def test_inherited_descriptors(case: Case) -> None:
    """Four clients; one closes, then the target of another one."""
    crowds.test_close_is_seen_while_a_sibling_lives(case.make)


@row(39)
def test_random_numbers_after_a_fork(case: Case) -> None:
    """2,000 connections, a hundred and more by each worker of a pool; the salts of all responses differ."""
    rig = case.make()
    salts = salts_of(rig, 1000)
    case.measure_again()  # until all workers have written to their pages, memory grows
    salts += salts_of(rig, 1000)
    assert len(set(salts)) == 2000
    board = board_of(str(rig.pid))
    assert board
    served = [entry.connections for entry in board.entries() if entry.pid in child_pids(rig.pid)]
    assert len(served) == rig.workers
    assert min(served, default=100) >= 100, f"connections by worker: {served}"


def salts_of(rig: Rig, count: int) -> list[bytes]:
    """Of as many responses, as evenly from all workers as can be done."""
    if takes_turns(rig):
        workers = child_pids(rig.pid)
        salts = []
        for pid in workers:
            with alone(rig, pid):
                salts += [salt for _ in range(count // len(workers)) for salt in salts_at_once(rig, 1)]
        return salts
    at_once = rig.workers or 1
    return [salt for _ in range(count // at_once) for salt in salts_at_once(rig, at_once)]


def salts_at_once(rig: Rig, clients: int) -> list[bytes]:
    pairs = [rig.open() for _ in range(clients)]
    salts = []
    for near, far in pairs:
        far.send(b"x")
        assert near.receive_exactly(1) == b"x"
        assert isinstance(near, Sealed)
        assert near.incoming.salt
        salts.append(near.incoming.salt)
    for near, far in pairs:
        near.close()
        far.close()
    return salts
