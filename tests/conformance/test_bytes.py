"""What goes in comes out: exactly, in both directions, in any rhythm, to the last byte."""

from __future__ import annotations

import socket
import time

import pytest

from tests.conformance.conftest import MakeRig
from tests.harness.rig import FORWARD, LOCAL, SERVE, Rig
from tests.harness.stream import Sealed, Task, exchange, pattern, send_and_finish, sha256
from tests.harness.wire import KEY_SIZES, Credentials, address_header

pytestmark = pytest.mark.ends(SERVE, LOCAL, FORWARD)
MB = 1_000_000


def test_megabytes_both_ways_at_once_arrive_exactly(rig: Rig) -> None:
    near, far = rig.open()
    exchange(near, far, 6 * MB)


@pytest.mark.parametrize("method", KEY_SIZES)
@pytest.mark.ends(SERVE, LOCAL)
@pytest.mark.costly
def test_every_method(make_rig: MakeRig, method: str) -> None:
    rig = make_rig(credentials=Credentials(method, "pässword"), warm=False)
    near, far = rig.open()
    exchange(near, far, MB)


def test_client_ends_first_and_still_gets_ten_megabytes(rig: Rig) -> None:
    near, far = rig.open()
    near.send(b"a request")
    near.finish()
    assert far.receive_all() == b"a request"
    answer = pattern(10 * MB)
    sending = Task(lambda: send_and_finish(far, answer))
    assert sha256(near.receive_all()) == sha256(answer)
    sending.result()


def test_target_ends_first_and_still_gets_ten_megabytes(rig: Rig) -> None:
    near, far = rig.open()
    near.send(b"hello")
    assert far.receive_exactly(5) == b"hello"
    far.send(b"nothing more from me")
    far.finish()
    assert near.receive_all() == b"nothing more from me"
    upload = pattern(10 * MB)
    sending = Task(lambda: send_and_finish(near, upload))
    assert sha256(far.receive_all()) == sha256(upload)
    sending.result()


@pytest.mark.slow
def test_half_closed_for_longer_than_other_tunnels_allow(rig: Rig) -> None:
    near, far = rig.open()
    near.send(b"request")
    near.finish()
    assert far.receive_all() == b"request"
    time.sleep(7)  # the subject of this check: some close both sides a few seconds after the first FIN
    answer = pattern(MB)
    send_and_finish(far, answer)
    assert near.receive_all() == answer


def test_both_end_without_a_byte(rig: Rig) -> None:
    near, far = rig.open()
    near.finish()
    assert far.receive_all() == b""
    far.finish()
    assert near.receive_all() == b""


def test_single_bytes_each_in_a_write_of_its_own(rig: Rig) -> None:
    near, far = rig.open()
    for stream in (near, far):
        stream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    content = pattern(400)
    for sender, receiver in ((near, far), (far, near)):
        for byte in content:
            sender.send(bytes([byte]))
        assert receiver.receive_exactly(len(content)) == content


@pytest.mark.ends(SERVE)
def test_sealed_stream_cut_into_single_bytes(rig: Rig) -> None:
    near = Sealed(rig.connect(), rig.credentials)
    near.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    content = pattern(150)
    for byte in near.outgoing.seal(address_header(*rig.far_place)) + near.outgoing.seal(content):
        near.sock.sendall(bytes([byte]))
    far = rig.far()
    assert far.receive_exactly(len(content)) == content
    near.close()


def test_target_that_speaks_first_is_heard_at_once(rig: Rig) -> None:
    near = rig.near()
    started = time.monotonic()
    far = rig.far()
    far.send(b"220 ready\r\n")
    assert near.receive_exactly(11) == b"220 ready\r\n"
    assert time.monotonic() - started < 1.0
    near.send(b"QUIT\r\n")
    assert far.receive_exactly(6) == b"QUIT\r\n"


def test_request_and_first_payload_in_one_write(rig: Rig) -> None:
    near = rig.near(first=b"GET / HTTP/1.0\r\n\r\n")
    far = rig.far()
    assert far.receive_exactly(18) == b"GET / HTTP/1.0\r\n\r\n"
    send_and_finish(far, b"200")
    assert near.receive_all() == b"200"


def test_ping_pong_is_not_held_back(rig: Rig) -> None:
    near, far = rig.open()
    started = time.monotonic()
    for number in range(200):
        ball = number.to_bytes(4, "big")
        near.send(ball)
        far.send(far.receive_exactly(4))
        assert near.receive_exactly(4) == ball
    assert time.monotonic() - started < 4.0, "200 round trips: a delayed ACK takes 40 ms each"


def test_target_that_has_everything_may_leave_while_the_client_waits(rig: Rig) -> None:
    near, far = rig.open()
    answer = pattern(3 * MB)
    sending = Task(lambda: send_and_finish(far, answer))
    sending.result()
    far.close()
    assert sha256(near.receive_all()) == sha256(answer)
