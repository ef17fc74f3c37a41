"""How a server ends: the same signals mean the same for every model."""

from __future__ import annotations

import resource
import signal
import time

import pytest

from tests.conformance.conftest import MakeRig
from tests.harness.rig import FORWARD, LOCAL, SERVE, Rig
from tests.harness.stream import Stream, Task, exchange, pattern, send_and_finish, sha256
from tests.harness.tree import is_alive, members, wait_until

pytestmark = pytest.mark.costly
MB = 1_000_000
AT_ONCE = 1.0  # seconds
TERMINATE, INTERRUPT = signal.SIGTERM, signal.SIGINT


def refuses(rig: Rig) -> bool:
    try:
        rig.connect().close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


def everybody(rig: Rig) -> list[int]:
    return [process.pid for process in members(rig.pid)]


def all_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(is_alive(pid) for pid in pids), AT_ONCE, "all processes have ended")


def assert_cut(*sides: Stream) -> None:
    """A FIN would make what has come so far look like all."""
    assert [side.how_it_ends(AT_ONCE) for side in sides] == ["RST"] * len(sides)


@pytest.mark.ends(SERVE, LOCAL, FORWARD)
def test_sigterm_without_clients_exits_0_at_once(make_rig: MakeRig) -> None:
    rig = make_rig()
    pids = everybody(rig)
    rig.tunnel.signal(TERMINATE)
    assert rig.tunnel.wait(AT_ONCE) == 0
    all_gone(pids)
    assert refuses(rig)


def test_sigterm_stops_accepting_and_lets_a_transfer_finish(make_rig: MakeRig) -> None:
    rig = make_rig()
    near, far = rig.open()
    content, answer = pattern(8 * MB), pattern(8 * MB, seed=2)
    sending = Task(lambda: near.send(content[: 4 * MB]))
    received = far.receive_exactly(MB)
    rig.tunnel.signal(TERMINATE)
    rig.tunnel.wait_for_lines("stopping")
    wait_until(lambda: refuses(rig), AT_ONCE, "new connections are refused")
    received += far.receive_exactly(3 * MB)
    sending.result()
    assert rig.tunnel.running
    sending = Task(lambda: send_and_finish(near, content[4 * MB :]))
    received += far.receive_all()
    sending.result()
    assert sha256(received) == sha256(content)
    sending = Task(lambda: send_and_finish(far, answer))
    assert sha256(near.receive_all()) == sha256(answer)
    sending.result()
    pids = everybody(rig)
    assert rig.tunnel.wait(2.0) == 0
    all_gone(pids)


@pytest.mark.two_clients
def test_sigterm_waits_for_all_transfers(make_rig: MakeRig) -> None:
    rig = make_rig()
    pairs = [rig.open() for _ in range(5)]
    rig.tunnel.signal(TERMINATE)
    rig.tunnel.wait_for_lines("stopping")
    for near, far in pairs:
        assert rig.tunnel.running
        sending = Task(lambda far=far: send_and_finish(far, pattern(MB)))  # type: ignore[misc]
        near.finish()
        assert far.receive_all() == b""
        assert near.receive_all() == pattern(MB)
        sending.result()
    assert rig.tunnel.wait(2.0) == 0


def test_second_sigterm_ends_at_once(make_rig: MakeRig) -> None:
    rig = make_rig()
    near, far = rig.open()
    pids = everybody(rig)
    rig.tunnel.signal(TERMINATE)
    rig.tunnel.wait_for_lines("stopping")
    rig.tunnel.signal(TERMINATE)
    assert rig.tunnel.wait(AT_ONCE) == -TERMINATE
    all_gone(pids)
    assert_cut(near, far)


@pytest.mark.costly
def test_grace_over_cuts_what_still_runs_and_exits_0(make_rig: MakeRig) -> None:
    rig = make_rig("--grace", "0.5")
    near, far = rig.open()
    pids = everybody(rig)
    started = time.monotonic()
    rig.tunnel.signal(TERMINATE)
    assert rig.tunnel.wait(2.5) == 0
    assert time.monotonic() - started >= 0.45
    all_gone(pids)
    assert_cut(near, far)
    assert rig.tunnel.matching("grace time of 0.5 s is over"), rig.tunnel.log()


@pytest.mark.only("fork", "prefork")
@pytest.mark.ends(SERVE)
@pytest.mark.parametrize("way", ["threads", "fork"])
def test_grace_over_cuts_what_others_copy(make_rig: MakeRig, way: str) -> None:
    rig = make_rig("--grace", "0.2", "--relay", way)
    near, far = rig.open()
    pids = everybody(rig)
    rig.tunnel.signal(TERMINATE)
    assert rig.tunnel.wait(2.5) == 0
    all_gone(pids)
    assert_cut(near, far)


@pytest.mark.only("thread", "epoll", "prefork-epoll")
@pytest.mark.ends(SERVE)
def test_grace_over_resets_no_probe(make_rig: MakeRig) -> None:
    """Whoever was drained is told nothing more than before, at the end neither."""
    rig = make_rig("--grace", "0.2", workers=1)
    near, far = rig.open()
    probe = rig.silent()
    probe.sock.sendall(pattern(100))
    rig.tunnel.wait_for_lines("handshake failed")
    rig.tunnel.signal(TERMINATE)
    assert rig.tunnel.wait(2.5) == 0
    assert probe.how_it_ends(AT_ONCE) == "FIN"
    assert_cut(near, far)


@pytest.mark.only("fork")
@pytest.mark.ends(SERVE)
def test_interrupt_without_a_descriptor_left_cuts_all_the_same(make_rig: MakeRig) -> None:
    rig = make_rig()
    near, far = rig.open()
    for process in members(rig.pid):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (process.num_fds(), 4096))
    rig.tunnel.signal(INTERRUPT)
    assert rig.tunnel.wait(AT_ONCE) == -INTERRUPT
    assert_cut(near, far)


@pytest.mark.costly
def test_grace_over_during_a_stall(make_rig: MakeRig) -> None:
    rig = make_rig("--grace", "0.4")
    _, far = rig.open(receive_buffer=8192)
    far.push(bytes(250_000), 1000 * MB, 0.1)
    pids = everybody(rig)
    rig.tunnel.signal(TERMINATE)
    assert rig.tunnel.wait(2.5) == 0
    all_gone(pids)


@pytest.mark.only("thread", "fork", "prefork", "poll")
@pytest.mark.ends(SERVE)
def test_sigterm_to_a_program_that_hands_over_is_the_first_one(make_rig: MakeRig) -> None:
    """Whoever says both would else cut everything, or nothing, by how fast the new program starts."""
    rig = make_rig("--grace", "20")
    near, far = rig.open()
    rig.tunnel.signal(signal.SIGUSR2)
    rig.tunnel.wait_for_lines(r"new program is \d+")
    rig.tunnel.signal(TERMINATE)
    rig.tunnel.wait_for_lines("stopping: transfers have 20 s to finish")
    rig.tunnel.wait_for_lines("the new program has taken over")
    exchange(near, far, MB)
    assert rig.tunnel.wait(2.0) == 0


@pytest.mark.only("thread", "fork", "prefork")
@pytest.mark.ends(SERVE)
def test_grace_time_is_over_for_a_program_that_has_handed_over_too(make_rig: MakeRig) -> None:
    rig = make_rig("--grace", "0.3")
    near, far = rig.open()
    pids = everybody(rig)
    rig.tunnel.signal(signal.SIGUSR2)
    rig.tunnel.wait_for_lines("the new program has taken over")
    rig.tunnel.signal(TERMINATE)
    assert rig.tunnel.wait(2.5) == 0
    all_gone(pids)
    assert_cut(near, far)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["int", "quit"])
def test_interrupt_ends_everything_at_once(make_rig: MakeRig, number: signal.Signals) -> None:
    rig = make_rig()
    near, far = rig.open()
    pids = everybody(rig)
    rig.tunnel.signal(number)
    assert rig.tunnel.wait(AT_ONCE) == -number
    all_gone(pids)
    assert_cut(near, far)


def test_ctrl_c_reaches_every_process_and_leaves_no_traceback(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.open()
    pids = everybody(rig)
    rig.tunnel.signal_group(INTERRUPT)  # as a terminal does
    assert rig.tunnel.wait(AT_ONCE) == -INTERRUPT
    all_gone(pids)
    assert "Traceback" not in rig.tunnel.log()
    assert not rig.tunnel.matching("KeyboardInterrupt")


def test_sigterm_to_every_process_is_one_stop(make_rig: MakeRig) -> None:
    """As a service manager does it: the whole group gets the signal."""
    rig = make_rig()
    near, far = rig.open()
    pids = everybody(rig)
    rig.tunnel.signal_group(TERMINATE)
    rig.tunnel.wait_for_lines("stopping")
    content = pattern(MB)
    sending = Task(lambda: send_and_finish(far, content))
    near.finish()
    assert far.receive_all() == b""
    assert near.receive_all() == content
    sending.result()
    assert rig.tunnel.wait(2.0) == 0
    all_gone(pids)


@pytest.mark.ends(SERVE)
def test_drained_probe_does_not_delay_a_stop(make_rig: MakeRig) -> None:
    rig = make_rig()
    before = len(rig.tunnel.lines)
    probe = rig.silent()
    probe.sock.sendall(pattern(100))
    rig.tunnel.wait_for_lines("handshake failed", start=before)
    rig.tunnel.signal(TERMINATE)
    assert rig.tunnel.wait(2.0) == 0


@pytest.mark.ends(SERVE)
def test_port_is_free_again_after_a_stop(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.transfer()
    rig.tunnel.signal(TERMINATE)
    assert rig.tunnel.wait(2.0) == 0
    again = make_rig(listen=[str(rig.place)])
    assert again.place == rig.place
