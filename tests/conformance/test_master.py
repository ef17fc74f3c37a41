"""The master of a pool, seen from outside: its signals, and what it does about workers that fail."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from models import MODELS
from models._scoreboard import ACCEPT
from tests.conformance.conftest import MakeRig
from tests.conformance.test_workers import server_of
from tests.harness.rig import SERVE, Rig
from tests.harness.stream import Stream, Task, exchange, pattern
from tests.harness.targets import Target
from tests.harness.tree import child_pids, holdings, is_alive, members, stop, wait_until
from tests.harness.wire import Credentials
from tunnel.status import board_of

pytestmark = [pytest.mark.ends(SERVE), pytest.mark.pools]
LOCKS = ("prefork-fcntl", "prefork-mutex")
LOOPS = [name for name, model in MODELS.items() if model.master and model.family == "loop"]
ENDED = ("FIN", "RST")


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with Target() as target:
        yield target


def visit(rig: Rig, target: Target) -> None:
    """A connection that must come back whole."""
    token = os.urandom(2000)
    near = rig.near(target=target.place, first=b"ECHO\n" + token)
    near.finish()
    assert near.receive_all() == token
    near.close()


class Crowd:
    """Clients, a few at a time, each of which must be served."""

    def __init__(self, rig: Rig, target: Target, clients: int, at_once: int = 4) -> None:
        self._left = clients
        self._lock = threading.Lock()
        self.served = 0
        self._tasks = [Task(lambda: self._run(rig, target)) for _ in range(at_once)]

    def _run(self, rig: Rig, target: Target) -> None:
        while True:
            with self._lock:
                if not self._left:
                    return
                self._left -= 1
            visit(rig, target)
            with self._lock:
                self.served += 1

    def wait_for(self, served: int) -> None:
        """Until so many were served; fails as soon as one was not."""
        wait_until(lambda: self.served >= served or not self._alive(), 60.0, f"{served} clients are served")
        if not self._alive():
            self.finish()

    def finish(self) -> None:
        for task in self._tasks:
            task.result()

    def _alive(self) -> bool:
        return all(task.is_alive() for task in self._tasks)


def config_of(rig: Rig) -> Path:
    command = list(rig.tunnel.command)
    return Path(command[command.index("--config") + 1])


def configure(rig: Rig, **settings: object) -> None:
    """Changes the file; nobody has been told yet."""
    path = config_of(rig)
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def reload(rig: Rig, pid: int = 0) -> None:
    before = len(rig.tunnel.matching("configuration read again"))
    os.kill(pid or rig.pid, signal.SIGHUP)
    rig.tunnel.wait_for_lines("configuration read again", before + 1)


def kill(rig: Rig, worker: int) -> None:
    """With SIGKILL; returns when it has died. Until then the kernel may still give it a client."""
    os.kill(worker, signal.SIGKILL)
    rig.tunnel.wait_for_lines(f"worker {worker} was killed by SIGKILL")


# HUP, USR2, USR1


def test_ten_reloads_and_a_new_program_refuse_and_break_nothing(make_rig: MakeRig, target: Target) -> None:
    rig = make_rig("--grace", "0.5", workers=3)
    near, far = rig.open()
    crowd = Crowd(rig, target, 1000)
    pid = rig.pid
    for number in range(1, 11):
        crowd.wait_for(number * 90)
        reload(rig, pid)
        if number == 5:
            os.kill(rig.pid, signal.SIGUSR2)
            (line,) = rig.tunnel.wait_for_lines(r"new program is \d+")
            match = re.search(r"new program is (\d+)", line)
            assert match
            pid = int(match[1])
            rig.tunnel.wait_for_lines("the new program has taken over")
    crowd.finish()
    exchange(near, far, 1_000_000)  # it is older than all that, and than the grace time
    near.close()
    far.close()
    assert rig.tunnel.wait(3.0) == 0
    wait_until(lambda: len(child_pids(pid)) == 3, 3.0, "the old generations have ended")
    assert holdings(pid).zombies == 0
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), 3.0, "the new program ends when it is told to")


def test_reload_replaces_the_workers_and_serves_by_the_new_configuration(make_rig: MakeRig) -> None:
    rig = make_rig("--grace", "0.5", workers=2)
    near, far = rig.open()
    holder, before = server_of(rig, near), child_pids(rig.pid)
    configure(rig, password="another")
    reload(rig)
    wait_until(
        lambda: len(child_pids(rig.pid)) == 3 and set(child_pids(rig.pid)) & set(before) == {holder},
        3.0,
        "the idle ones have gone, two new ones have come",
    )
    rig.credentials = Credentials(rig.credentials.method, "another")
    rig.transfer()
    time.sleep(0.6)  # longer than the grace time, which is for stops
    exchange(near, far, 100_000)
    near.close()
    far.close()
    rig.is_healthy()


def test_reload_with_a_mistake_keeps_everything_as_it_was(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2)
    before, good = child_pids(rig.pid), config_of(rig).read_text()
    mistakes: list[dict[str, object]] = [
        {"timeout": "soon"},
        {"key": "short", "log_level": "error"},
        {"model": "no-such"},
        {"log_file": "/no/such/directory/log"},
    ]
    for number, mistake in enumerate(mistakes, 1):
        configure(rig, **mistake)
        os.kill(rig.pid, signal.SIGHUP)
        rig.tunnel.wait_for_lines("configuration not read again: ", number)
        config_of(rig).write_text(good)
    assert child_pids(rig.pid) == before
    rig.is_healthy()
    reload(rig)
    rig.is_healthy()


def test_new_program_that_cannot_start_leaves_the_old_one_at_work(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2)
    before = child_pids(rig.pid)
    configure(rig, timeout="soon")
    os.kill(rig.pid, signal.SIGUSR2)
    rig.tunnel.wait_for_lines(r"new program \d+ has ended before it was ready")
    rig.is_healthy()
    assert child_pids(rig.pid) == before


def test_log_file_that_was_moved_away_is_opened_again_by_everybody(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(workers=2)
    path, moved = tmp_path / "log", tmp_path / "log.1"
    configure(rig, log_file=str(path))
    os.kill(rig.pid, signal.SIGHUP)
    wait_until(lambda: path.exists() and "read again" in path.read_text(), 3.0, "the log goes to the file")
    wait_until(lambda: len(child_pids(rig.pid)) == 2, 3.0, "the old workers have ended")
    path.rename(moved)
    os.kill(rig.pid, signal.SIGUSR1)
    wait_until(path.exists, 3.0, "the file is there again")
    worker = child_pids(rig.pid)[0]
    os.kill(worker, signal.SIGKILL)  # the log that says so is what this is about
    wait_until(lambda: f"worker {worker} was killed" in path.read_text(), 3.0, "the master writes to it")

    def a_worker_writes_to_it() -> bool:
        probe = rig.silent()
        probe.sock.sendall(pattern(100))
        probe.finish()
        probe.how_it_ends(1.0)
        return "handshake failed" in path.read_text()

    wait_until(a_worker_writes_to_it, 5.0, "the workers write to it")
    size = moved.stat().st_size
    a_worker_writes_to_it()
    assert moved.stat().st_size == size


# TTIN, TTOU


def test_ttin_and_ttou_are_one_more_and_one_less(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2)

    def sends(number: signal.Signals, size: int) -> None:
        os.kill(rig.pid, number)
        wait_until(lambda: len(child_pids(rig.pid)) == size, 3.0, f"{size} workers after {number.name}")
        rig.transfer()

    if MODELS[rig.model].reuse_port:
        sends(signal.SIGTTIN, 2)
        sends(signal.SIGTTOU, 2)
        rig.tunnel.wait_for_lines("another number takes a restart", 2)
        return
    sends(signal.SIGTTIN, 3)
    sends(signal.SIGTTIN, 4)
    sends(signal.SIGTTOU, 3)
    sends(signal.SIGTTOU, 2)
    sends(signal.SIGTTOU, 1)
    before = child_pids(rig.pid)
    sends(signal.SIGTTOU, 1)
    assert child_pids(rig.pid) == before, "one is the least"


def test_signals_that_come_during_a_stop_start_nobody(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2)
    near, far = rig.open()
    rig.tunnel.terminate()
    rig.tunnel.wait_for_lines("stopping")
    for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGUSR2):
        os.kill(rig.pid, number)
        rig.tunnel.wait_for_lines(f"{number.name} comes too late")
    wait_until(lambda: len(child_pids(rig.pid)) == 1, 1.0, "only the one with a client is there")
    exchange(near, far, 1000)
    assert rig.tunnel.wait(2.0) == 0


# Workers that fail


def test_workers_that_die_at_start_end_the_server_with_a_code_of_its_own(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nos.register_at_fork(after_in_child=lambda: os._exit(3))\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", os.getcwd())])
    rig = make_rig(workers=2, warm=False, environment=os.environ | {"PYTHONPATH": path})
    assert rig.tunnel.wait(10.0) == os.EX_SOFTWARE
    assert 5 <= len(rig.tunnel.matching("exited with 3")) <= 6, rig.tunnel.log()
    rig.tunnel.wait_for_lines("5 workers in a row ended before their first accept: giving up")


def test_workers_are_replaced_after_so_many_clients_and_nobody_is_lost(
    make_rig: MakeRig, target: Target
) -> None:
    rig = make_rig("--max-requests", "20", workers=2, warm=False)
    before = child_pids(rig.pid)
    Crowd(rig, target, 200).finish()
    wait_until(lambda: len(child_pids(rig.pid)) == 2, 3.0, "all have successors")
    if MODELS[rig.model].family != "loop":  # one loop may take all clients
        assert not set(before) & set(child_pids(rig.pid))
    assert set(before) != set(child_pids(rig.pid))
    assert not rig.tunnel.matching(" (warning|error) "), rig.tunnel.log()


@pytest.mark.only(*LOOPS)
def test_loop_that_has_had_enough_is_replaced_before_its_last_client_leaves(make_rig: MakeRig) -> None:
    rig = make_rig("--max-requests", "1", workers=1, warm=False)
    pairs = [rig.open() for _ in range(3)]
    wait_until(lambda: len(child_pids(rig.pid)) == 4, 3.0, "three that only finish, and one that accepts")
    rig.transfer()
    for near, far in pairs:
        exchange(near, far, 1000)
        near.close()
        far.close()
    wait_until(lambda: len(child_pids(rig.pid)) == 1, 3.0, "those without clients have ended")


@pytest.mark.costly
def test_stopped_worker_is_found_by_its_heartbeat(make_rig: MakeRig) -> None:
    rig = make_rig("--heartbeat", "2", workers=2)
    victim = child_pids(rig.pid)[0]
    stop(victim)
    rig.tunnel.wait_for_lines(f"worker {victim} has given no sign of life for 2 s: killed", within=6.0)
    rig.tunnel.wait_for_lines(f"worker {victim} was killed by SIGKILL: it will be replaced")
    wait_until(lambda: len(child_pids(rig.pid)) == 2, 4.0, "it is replaced")
    rig.is_healthy()


@pytest.mark.costly
def test_nobody_is_killed_who_has_only_nothing_to_do(make_rig: MakeRig) -> None:
    """Waiting for a client, a lock, a slow request or a silent connection is no hang."""
    copies = MODELS[make_rig_model(make_rig)].copies or ("",)
    rigs = [
        make_rig("--heartbeat", "2", *([f"--relay={copy}"] if copy else []), workers=4, warm=False)
        for copy in copies
    ]
    pairs = [rig.open() for rig in rigs]
    slow = [rig.silent() for rig in rigs]
    for byte in pattern(10):  # 5 s, which is more than the heartbeat and the master's next look
        for stream in slow:
            stream.sock.sendall(bytes([byte]))
        time.sleep(0.5)
    for rig, (near, far) in zip(rigs, pairs, strict=True):
        assert not rig.tunnel.matching("sign of life"), rig.tunnel.log()
        exchange(near, far, 100_000)


def make_rig_model(make_rig: MakeRig) -> str:
    rig = make_rig(workers=1, warm=False)
    return rig.model


@pytest.mark.costly
def test_whole_server_that_was_stopped_and_goes_on_kills_nobody(make_rig: MakeRig) -> None:
    rig = make_rig("--heartbeat", "2", workers=2)
    near, far = rig.open()
    rig.tunnel.signal_group(signal.SIGSTOP)
    time.sleep(3.5)
    os.kill(rig.pid, signal.SIGCONT)  # the master first, and well before the others
    time.sleep(0.3)
    rig.tunnel.signal_group(signal.SIGCONT)
    exchange(near, far, 100_000)
    assert not rig.tunnel.matching("sign of life"), rig.tunnel.log()
    rig.is_healthy()


# Locks


def holder_of_lock(rig: Rig) -> int:
    """The one that is in accept; all others wait for the lock."""
    board = board_of(str(rig.pid))
    assert board
    return next(entry.pid for entry in board.entries() if entry.state == ACCEPT)


@pytest.mark.only(*LOCKS)
def test_killed_holder_of_the_accept_lock_lets_the_next_one_in(make_rig: MakeRig) -> None:
    rig = make_rig(workers=4)
    for _ in range(5):
        kill(rig, holder_of_lock(rig))
        rig.transfer(within=1.0)
        wait_until(lambda: len(child_pids(rig.pid)) == 4, 5.0, "it is replaced")
    rig.is_healthy()


@pytest.mark.only(*LOCKS)
def test_stopped_holder_of_the_accept_lock_is_killed_and_the_next_one_let_in(make_rig: MakeRig) -> None:
    rig = make_rig("--heartbeat", "2", workers=4)
    holder = holder_of_lock(rig)
    stop(holder)
    near = rig.near(first=b"waits")
    assert near.how_it_ends(1.0) == "open"
    assert rig.far().receive_exactly(5) == b"waits"
    rig.tunnel.wait_for_lines(f"worker {holder} has given no sign of life for 2 s: killed")
    near.close()
    wait_until(lambda: len(child_pids(rig.pid)) == 4, 5.0, "it is replaced")
    rig.is_healthy()


@pytest.mark.only(*LOCKS)
def test_stopped_waiter_for_the_accept_lock_keeps_nobody_out(make_rig: MakeRig) -> None:
    rig = make_rig(workers=4)
    stopped = [pid for pid in child_pids(rig.pid) if pid != holder_of_lock(rig)][:2]
    for pid in stopped:
        stop(pid)
    for _ in range(10):
        rig.transfer()
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    rig.is_healthy()


# What two models have of their own


@pytest.mark.only("prefork-fdpass")
def test_killed_child_loses_the_client_that_was_passed_to_it_and_no_other(make_rig: MakeRig) -> None:
    rig = make_rig(workers=3)
    victim = child_pids(rig.pid)[0]  # the oldest is chosen first
    stop(victim)
    lost = rig.near(first=b"x")
    near, far = rig.open()
    assert lost.how_it_ends(0.3) == "open"
    os.kill(victim, signal.SIGKILL)
    assert lost.how_it_ends(1.0) in ENDED
    exchange(near, far, 100_000)
    near.close()
    far.close()
    wait_until(lambda: len(child_pids(rig.pid)) == 3, 4.0, "it is replaced")
    rig.is_healthy()


@pytest.mark.only("prefork-fdpass")
def test_client_that_comes_with_a_reload_is_held_by_its_own_worker_alone(make_rig: MakeRig) -> None:
    """Accepted, but not passed on yet when workers are forked: each would keep its connection open."""
    rig = make_rig(workers=3)
    stop(rig.pid)
    near = rig.near(first=b"x")
    os.kill(rig.pid, signal.SIGHUP)
    os.kill(rig.pid, signal.SIGCONT)
    far = rig.far()
    assert far.receive_exactly(1) == b"x"
    rig.tunnel.wait_for_lines("configuration read again")
    near.finish()
    assert far.receive_all() == b""
    far.close()
    assert near.how_it_ends(1.0) == "FIN"
    rig.is_healthy()


@pytest.mark.only("prefork-fdpass")
def test_client_that_comes_with_a_stop_is_passed_on_before_all_are_sent_home(make_rig: MakeRig) -> None:
    """It has been accepted: kept by a master that nobody takes clients from any more, it would hang."""
    rig = make_rig("--grace", "10", workers=3)
    stop(rig.pid)
    near = rig.near(first=b"x")
    os.kill(rig.pid, signal.SIGTERM)
    os.kill(rig.pid, signal.SIGCONT)
    far = rig.far()
    assert far.receive_exactly(1) == b"x"
    exchange(near, far, 100_000)
    near.close()
    far.close()
    assert rig.tunnel.wait(5.0) == 0


@pytest.mark.only("prefork-fdpass")
def test_master_holds_no_client_and_a_worker_no_listener(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2)
    near, _ = rig.open()
    mine = near.sock.getsockname()[1]

    def ports(pid: int) -> tuple[bool, bool]:
        connections = psutil.Process(pid).net_connections("tcp")
        return (
            any(one.status == psutil.CONN_LISTEN for one in connections),
            any(one.raddr and one.raddr.port == mine for one in connections),
        )

    assert ports(rig.pid) == (True, False)
    assert sorted(ports(pid) for pid in child_pids(rig.pid)) == [(False, False), (False, True)]


@pytest.mark.only("prefork-reuseport")
def test_clients_in_the_queue_of_a_dead_worker_wait_for_its_successor(make_rig: MakeRig) -> None:
    rig = make_rig(workers=3)
    victim = child_pids(rig.pid)[0]
    stop(victim)
    clients = [rig.near(first=number.to_bytes(2, "big")) for number in range(20)]
    time.sleep(0.3)
    kill(rig, victim)
    seen = {rig.far().receive_exactly(2) for _ in clients}
    assert len(seen) == len(clients)


# The rest


@pytest.mark.parametrize("count", [500])
def test_quick_connections_leave_no_zombie(make_rig: MakeRig, count: int) -> None:
    relay = ["--relay", "fork"] if "fork" in MODELS[make_rig_model(make_rig)].copies else []
    rig = make_rig(*relay, workers=3)
    for number in range(count):
        if number % 5:
            with contextlib.closing(Stream(rig.connect())):
                continue
        near, far = rig.open()
        near.reset()
        far.close()
    rig.is_healthy()


def test_titles_say_who_does_what(make_rig: MakeRig) -> None:
    rig = make_rig(workers=3)

    def title(pid: int) -> str:
        return " ".join(psutil.Process(pid).cmdline()).strip()

    def numbers() -> set[str]:
        found = [
            re.fullmatch(rf"tunnel: {rig.model} worker (\d+) \[(accept|lock)\]", title(pid)) for pid in pids()
        ]
        return {match[1] for match in found if match}

    def pids() -> list[int]:
        return child_pids(rig.pid)

    assert title(rig.pid) == f"tunnel: {rig.model} master"
    wait_until(lambda: numbers() == {"0", "1", "2"}, 2.0, "three workers, each with a number")
    near, far = rig.open()
    serves = server_of(rig, near)
    wait_until(lambda: title(serves).endswith("[relay]"), 4.0, "the title follows the state")
    near.close()
    far.close()
    kill(rig, next(pid for pid in pids() if "worker 1 " in title(pid)))
    wait_until(lambda: numbers() == {"0", "1", "2"}, 4.0, "the successor has the number of its predecessor")
    assert all(not is_alive(process.pid) or process.status() != "zombie" for process in members(rig.pid))
