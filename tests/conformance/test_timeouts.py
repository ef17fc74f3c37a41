"""Clocks: a connection lives by its traffic, whichever way that goes."""

from __future__ import annotations

import time

import pytest

from models import MODELS
from tests.conformance.conftest import MakeRig
from tests.harness.rig import FORWARD, LOCAL, SERVE
from tests.harness.stream import PATIENCE

IDLE = 0.4  # seconds
STEP = 0.1


@pytest.mark.parametrize("who", ["client", "target"])
@pytest.mark.costly
def test_stream_in_one_direction_keeps_a_connection_alive(make_rig: MakeRig, who: str) -> None:
    rig = make_rig("--timeout", str(IDLE))
    near, far = rig.open()
    sender, receiver = (near, far) if who == "client" else (far, near)
    for number in range(int(2.2 * IDLE / STEP)):
        sender.send(bytes([number]))
        assert receiver.receive_exactly(1) == bytes([number])
        time.sleep(STEP)  # the rhythm is the subject
    receiver.send(b"still here")
    assert sender.receive_exactly(10) == b"still here"
    rig.is_healthy()


@pytest.mark.ends(SERVE, LOCAL, FORWARD)
@pytest.mark.costly
def test_silent_connection_is_cut_on_both_sides_with_the_reason(make_rig: MakeRig) -> None:
    rig = make_rig("--timeout", str(IDLE))
    near, far = rig.open()
    started = time.monotonic()  # before the last byte moves, so not after the server's own count begins
    near.send(b"last words")
    assert far.receive_exactly(10) == b"last words"
    assert near.how_it_ends(PATIENCE) in ("FIN", "RST")
    assert time.monotonic() - started > 0.9 * IDLE
    assert far.how_it_ends(PATIENCE) in ("FIN", "RST")
    assert len(rig.tunnel.wait_for_lines("cut: nothing moved")) == 1
    rig.is_healthy()


@pytest.mark.parametrize("who", ["client", pytest.param("target", marks=pytest.mark.slow)])
@pytest.mark.costly
def test_half_closed_connection_that_falls_silent_is_cut_sooner(make_rig: MakeRig, who: str) -> None:
    """It is not cut while the open direction moves, however long that has the time of an idle one."""
    rig = make_rig("--timeout", "60", "--half-closed-timeout", str(IDLE))
    near, far = rig.open()
    whole, silent = rig.open() if MODELS[rig.model].clients != 1 else (None, None)
    ended, lasting = (near, far) if who == "client" else (far, near)
    ended.finish()
    assert lasting.receive_all() == b""
    for number in range(int(2.2 * IDLE / STEP)):
        lasting.send(bytes([number]))
        assert ended.receive_exactly(1) == bytes([number])
        time.sleep(STEP)  # the rhythm is the subject
    started = time.monotonic()
    assert ended.how_it_ends(4 * IDLE) in ("FIN", "RST")
    assert time.monotonic() - started > 0.5 * IDLE
    (line,) = rig.tunnel.wait_for_lines("cut: nothing moved for .* after one side had ended")
    assert f"for {IDLE:g} s" in line
    if whole and silent:
        assert whole.how_it_ends(0.0) == "open", "what is open both ways has more time"
        silent.send(b"x")
        assert whole.receive_exactly(1) == b"x"
    rig.is_healthy()


@pytest.mark.parametrize("way", ["threads", "fork"])
@pytest.mark.parametrize("who", ["client", "target"])
@pytest.mark.only("iterative")
@pytest.mark.ends(SERVE)
def test_half_closed_in_every_way_of_copying(make_rig: MakeRig, way: str, who: str) -> None:
    rig = make_rig("--timeout", "60", "--half-closed-timeout", str(IDLE), "--relay", way)
    near, far = rig.open()
    ended, lasting = (near, far) if who == "client" else (far, near)
    ended.finish()
    assert lasting.receive_all() == b""
    lasting.send(b"x")
    assert ended.receive_exactly(1) == b"x"
    rig.tunnel.wait_for_lines("cut: .*nothing moved for .* after one side had ended")
    assert ended.how_it_ends(1.0) in ("FIN", "RST")
    rig.is_healthy()


@pytest.mark.only("thread", "prefork", "select", "epoll", "trampoline", "asyncio", "tornado")
@pytest.mark.costly
def test_half_closed_time_is_never_more_than_the_idle_time(make_rig: MakeRig) -> None:
    rig = make_rig("--timeout", str(IDLE), "--half-closed-timeout", "60")
    near, far = rig.open()
    near.finish()
    assert far.receive_all() == b""
    assert near.how_it_ends(4 * IDLE) in ("FIN", "RST")
    rig.is_healthy()


@pytest.mark.costly
def test_stalled_connection_is_cut(make_rig: MakeRig) -> None:
    rig = make_rig("--timeout", str(IDLE))
    near, far = rig.open(receive_buffer=8192)
    far.push(bytes(250_000), 10**9, 0.1)
    rig.tunnel.wait_for_lines("cut: nothing moved", within=4 * IDLE)
    near.close()
    rig.is_healthy()
