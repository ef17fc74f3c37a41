"""`tunnel status`: what it says of a running server, and whether that is true."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from models import MODELS
from tests.conformance.conftest import MakeRig
from tests.harness.places import closed_place
from tests.harness.rig import SERVE, Rig
from tests.harness.stream import pattern, send_and_finish
from tests.harness.tree import child_pids, members, wait_until

pytestmark = pytest.mark.ends(SERVE)
WORKERS = 3
SALT, TAG, LENGTH = 16, 16, 2  # bytes, of SIP004 with aes-128-gcm


def status(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunnel", "status", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def status_of(rig: Rig) -> dict[str, Any]:
    told = status("--json", "--pid", str(rig.pid))
    assert (told.returncode, told.stderr) == (0, "")
    (line,) = told.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def is_stopped(process: psutil.Process) -> bool:
    return all(psutil.Process(thread.id).status() == psutil.STATUS_STOPPED for thread in process.threads())


def total(told: dict[str, Any], name: str) -> int:
    """The sum that is told is the header's, for those who have gone, and that of the slots."""
    assert told[name] >= sum(slot[name] for slot in told["slots"])
    return int(told[name])


def test_connections_and_bytes_add_up(make_rig: MakeRig) -> None:
    rig = make_rig(workers=WORKERS, warm=False)
    sizes = [(number * 1000, number * 5000) for number in range(1, 6)]
    for up, down in sizes:
        near, far = rig.open()
        near.send(pattern(up))
        near.finish()
        assert len(far.receive_all()) == up
        send_and_finish(far, pattern(down))
        assert len(near.receive_all()) == down
        near.close()
        far.close()

    def as_it_was() -> bool:
        told = status_of(rig)
        header = 1 + 4 + 2  # an IPv4 address
        sealed = sum(SALT + 2 * (LENGTH + TAG + TAG) + header + up for up, _ in sizes)
        assert total(told, "connections") == len(sizes)
        # A length of 16,384 bytes and more is more than one record; these sizes stay below that.
        return total(told, "up") == sealed and total(told, "down") == sum(down for _, down in sizes)

    wait_until(as_it_was, 5.0, f"what is told is what was moved: {status_of(rig)}")


@pytest.mark.pools
def test_what_a_dead_worker_did_is_not_forgotten(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2, warm=False)
    for _ in range(4):
        rig.transfer()
    before = status_of(rig)
    for pid in child_pids(rig.pid):
        os.kill(pid, signal.SIGKILL)
        rig.tunnel.wait_for_lines(f"worker {pid} was killed")
    after = status_of(rig)
    for name in ("connections", "up", "down"):
        assert after[name] == before[name] > 0
    assert sum(slot["connections"] for slot in after["slots"]) == 0


@pytest.mark.pools
def test_every_worker_has_a_slot_that_says_what_it_does(make_rig: MakeRig) -> None:
    rig = make_rig(workers=WORKERS)
    told = status_of(rig)
    assert sorted(slot["pid"] for slot in told["slots"]) == child_pids(rig.pid)
    assert {slot["state"] for slot in told["slots"]} <= {"in accept", "waiting for the lock"}
    before = time.monotonic()
    near, _ = rig.open()
    states = [slot["state"] for slot in status_of(rig)["slots"]]
    assert states.count("relaying") == 1
    near.send(b"x")
    (busy,) = [slot for slot in status_of(rig)["slots"] if slot["state"] == "relaying"]
    assert 0.0 <= busy["seconds"] < time.monotonic() - before, "it relays since then"
    assert not any(slot["leaving"] for slot in told["slots"])


def test_server_is_found_by_any_of_its_processes_its_port_and_its_socket(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2)
    other = make_rig(workers=2)
    for pid in [rig.pid, *(child_pids(rig.pid) if MODELS[rig.model].master else [])]:
        assert json.loads(status("--json", "--pid", str(pid)).stdout)["pid"] == rig.pid
    assert json.loads(status("--json", "--port", str(rig.place.port)).stdout)["pid"] == rig.pid
    assert json.loads(status("--json", "--socket", str(rig.place)).stdout)["pid"] == rig.pid
    assert status("--socket", f"127.0.0.2:{rig.place.port}").returncode == os.EX_UNAVAILABLE
    everybody = [json.loads(line)["pid"] for line in status("--json").stdout.splitlines()]
    assert {rig.pid, other.pid} <= set(everybody)
    assert len(everybody) == len(set(everybody))


OTHER_LAYOUT = """
import os, sys
from models._scoreboard import HEADER, MAGIC, Scoreboard
memory = Scoreboard("epoll", "serve", slots=4).board.memory
memory[:] = bytes([1]) * len(memory)
HEADER.pack_into(memory, 0, MAGIC, 400, os.getpid(), 0.0, 0, 0, 0, 0, b"epoll", b"serve")
print("ready", flush=True)
sys.stdin.read()
"""


def test_board_of_another_layout_is_passed_over() -> None:
    """Another version's server: all servers of a machine are looked at, whichever is asked for."""
    command = [sys.executable, "-c", OTHER_LAYOUT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        told = status("--json", "--pid", str(other.pid))
        assert "Traceback" not in told.stderr
        assert told.returncode == os.EX_UNAVAILABLE
        other.communicate()


def test_depth_of_the_accept_queue_is_told(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2)
    family = members(rig.pid)
    for process in family:
        process.suspend()
    wait_until(lambda: all(map(is_stopped, family)), 2.0, "all are stopped, each thread of them")
    waiting = [rig.connect() for _ in range(3)]
    wait_until(
        lambda: sum(listener["queue"] for listener in status_of(rig)["listeners"]) == len(waiting),
        3.0,
        "all that wait are counted",
    )
    text = status("--pid", str(rig.pid)).stdout
    assert f"{rig.place} (3 in the accept queue)" in text
    for process in family:
        process.resume()
    for sock in waiting:
        sock.close()
    wait_until(
        lambda: not any(listener["queue"] for listener in status_of(rig)["listeners"]), 5.0, "nobody waits"
    )


def test_text_says_the_same_for_people(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2, warm=False)
    rig.transfer()
    wait_until(lambda: total(status_of(rig), "connections") == 1, 3.0, "it is counted")
    told = status("--port", str(rig.place.port))
    assert told.returncode == 0
    first, second, *_ = told.stdout.splitlines()
    assert first.startswith(f"tunnel serve, model {rig.model}, pid {rig.pid}, since ")
    assert second.startswith("1 connection, ")
    assert all(name in told.stdout for name in ("slot", "pid", "state", "connections", "MB up", "MB down"))


@pytest.mark.only("prefork")
def test_server_that_is_not_there_is_an_exit_code(make_rig: MakeRig) -> None:
    rig = make_rig(workers=1, warm=False)
    port = closed_place().port
    for words in (("--port", str(port)), ("--pid", "1"), ("--pid", str(rig.pid), "--port", str(port))):
        told = status(*words)
        assert told.returncode == os.EX_UNAVAILABLE
        assert told.stdout == ""
        assert len(told.stderr.splitlines()) == 1
        assert "no such server" in told.stderr


@pytest.mark.only("prefork")
def test_watching_goes_on_until_it_is_told_to_end(make_rig: MakeRig) -> None:
    rig = make_rig(workers=1)
    words = [sys.executable, "-m", "tunnel", "status", "--watch", "--json", "--pid", str(rig.pid)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout
        assert watching.stderr
        started = time.monotonic()
        seen = [json.loads(watching.stdout.readline())["connections"]]
        rig.transfer()
        while seen[-1] == seen[0]:
            seen.append(json.loads(watching.stdout.readline())["connections"])
            assert time.monotonic() - started < 10
        watching.send_signal(signal.SIGINT)
        assert watching.wait(5) == -signal.SIGINT
        assert watching.stderr.read() == ""
    assert seen[-1] == seen[0] + 1
