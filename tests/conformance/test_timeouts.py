"""Clocks: a connection lives by its traffic, whichever way that goes."""

from __future__ import annotations

import time

import pytest

from tests.conformance.conftest import MakeRig
from tests.harness.rig import FORWARD, LOCAL, SERVE

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
    near.send(b"last words")
    assert far.receive_exactly(10) == b"last words"
    started = time.monotonic()
    assert near.how_it_ends(3 * IDLE) in ("FIN", "RST")
    assert far.how_it_ends(0.5) in ("FIN", "RST")
    assert time.monotonic() - started > 0.9 * IDLE
    assert len(rig.tunnel.wait_for_lines("cut: nothing moved")) == 1
    rig.is_healthy()


@pytest.mark.costly
def test_half_closed_connection_that_falls_silent_is_cut_too(make_rig: MakeRig) -> None:
    rig = make_rig("--timeout", str(IDLE))
    near, far = rig.open()
    near.finish()
    assert far.receive_all() == b""
    assert near.how_it_ends(3 * IDLE) in ("FIN", "RST")
    rig.tunnel.wait_for_lines("cut: nothing moved")
    rig.is_healthy()


@pytest.mark.costly
def test_stalled_connection_is_cut(make_rig: MakeRig) -> None:
    rig = make_rig("--timeout", str(IDLE))
    near, far = rig.open(receive_buffer=8192)
    far.push(bytes(250_000), 10**9, 0.1)
    rig.tunnel.wait_for_lines("cut: nothing moved", within=4 * IDLE)
    near.close()
    rig.is_healthy()
