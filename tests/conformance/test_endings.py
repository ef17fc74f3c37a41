"""How a connection ends when something is wrong: promptly, on both sides, and never like a whole."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest

from tests.conformance.conftest import MakeRig
from tests.harness import socks
from tests.harness.places import BlackHole, closed_place
from tests.harness.process import Place
from tests.harness.rig import FORWARD, LOCAL, NAMED, SERVE, Rig
from tests.harness.stream import RESET, Sealed, Stream, Task, pattern, sha256
from tests.harness.tree import wait_until

MB = 1_000_000


def sides(rig: Rig) -> tuple[Sealed, Stream]:
    """The end that sends records to the server under test, and the one that gets their plaintext."""
    near, far = rig.open()
    sealed, plain = (near, far) if rig.end == SERVE else (far, near)
    assert isinstance(sealed, Sealed)
    return sealed, plain


def test_wrong_tag_after_a_megabyte_forwards_nothing_forged_and_resets(rig: Rig) -> None:
    sealed, plain = sides(rig)
    content = pattern(MB)
    sending = Task(lambda: sealed.send(content))
    assert sha256(plain.receive_exactly(MB)) == sha256(content)
    sending.result()
    forged = bytearray(sealed.outgoing.seal(b"forged" * 1000))
    forged[100] ^= 1
    with contextlib.suppress(OSError):
        sealed.sock.sendall(forged + sealed.outgoing.seal(b"and more"))
    assert plain.ends_after_data() == (b"", "RST")
    assert sealed.ends_after_data()[0] == b""
    sealed.close()


def test_wrong_tag_within_a_flood_forwards_only_what_came_before(rig: Rig) -> None:
    sealed, plain = sides(rig)
    content = pattern(4 * MB)
    stream = bytearray(sealed.outgoing.seal(content))
    stream[3 * MB] ^= 0x80

    def flood() -> None:
        with contextlib.suppress(OSError):
            sealed.sock.sendall(stream)

    sending = Task(flood)
    received, ending = plain.ends_after_data()
    assert ending == "RST"
    assert content.startswith(received), "something else than the beginning was forwarded"
    assert len(received) < 3 * MB
    sending.result()


def test_stream_that_stops_inside_a_record_is_not_passed_on_as_whole(rig: Rig) -> None:
    sealed, plain = sides(rig)
    sealed.send(b"whole")
    assert plain.receive_exactly(5) == b"whole"
    sealed.sock.sendall(sealed.outgoing.seal(b"half of this is missing")[:-10])
    sealed.finish()
    assert plain.ends_after_data() == (b"", "RST")


@pytest.mark.parametrize("who", ["client", "target"])
def test_reset_on_one_side_resets_the_other_at_once(rig: Rig, who: str) -> None:
    near, far = rig.open()
    near.send(b"ping")
    far.send(far.receive_exactly(4))
    assert near.receive_exactly(4) == b"ping"
    leaving, staying = (near, far) if who == "client" else (far, near)
    leaving.reset()
    assert staying.how_it_ends(1.0) == "RST"


@pytest.mark.parametrize("who", ["client", "target"])
def test_reset_during_a_transfer_stops_the_sender(rig: Rig, who: str) -> None:
    near, far = rig.open()
    leaving, staying = (near, far) if who == "client" else (far, near)

    def send_for_ever() -> float:
        try:
            for _ in range(10_000):
                staying.send(bytes(100_000))
        except RESET:
            return time.monotonic()
        return 0.0

    sending = Task(send_for_ever)
    leaving.receive_exactly(MB)
    left = time.monotonic()
    leaving.reset()
    stopped = sending.result()
    assert isinstance(stopped, float)
    assert stopped, "a gigabyte was sent to nobody"
    assert stopped - left < 1.0


@pytest.mark.parametrize("who", ["client", "target"])
def test_reset_after_the_other_side_had_ended(rig: Rig, who: str) -> None:
    near, far = rig.open()
    leaving, staying = (near, far) if who == "client" else (far, near)
    staying.send(b"all I have")
    staying.finish()
    assert leaving.receive_all() == b"all I have"
    leaving.send(b"part of")
    assert staying.receive_exactly(7) == b"part of"
    leaving.reset()
    assert staying.how_it_ends(1.0) == "RST"


@pytest.mark.parametrize("who", ["client", "target"])
@pytest.mark.costly
def test_reset_of_a_side_that_did_not_read(rig: Rig, who: str) -> None:
    near, far = rig.open(receive_buffer=8192)
    leaving, staying = (near, far) if who == "client" else (far, near)
    leaving.send(b"part of")
    assert staying.receive_exactly(7) == b"part of"
    staying.push(bytes(250_000), 1000 * MB, 0.1)
    leaving.reset()
    assert staying.how_it_ends(1.0) == "RST"


def test_client_that_leaves_while_its_answer_comes(rig: Rig) -> None:
    near, far = rig.open()
    sending = Task(lambda: far.push(bytes(100_000), 1000 * MB, quiet=3.0))
    near.receive_exactly(MB)
    near.close()
    with contextlib.suppress(*RESET):
        pushed = sending.result(10)
        assert isinstance(pushed, int)
        assert pushed < 500 * MB


@pytest.mark.ends(SERVE)
def test_refusing_target_closes_quickly_with_the_reason_in_one_line(rig: Rig) -> None:
    place = closed_place()
    before = len(rig.tunnel.lines)
    started = time.monotonic()
    near = rig.near(target=place, first=b"is anybody there?")
    assert near.how_it_ends(1.0) in ("FIN", "RST")
    assert time.monotonic() - started < 1.0
    rig.tunnel.wait_for_lines(f"cannot connect to {place}: Connection refused", start=before)
    near.close()
    rig.transfer()
    assert len(rig.tunnel.lines) == before + 1, rig.tunnel.log()


@pytest.mark.ends(LOCAL, FORWARD)
def test_refusing_server_is_told_to_the_client(make_rig: MakeRig, end: str) -> None:
    rig = make_rig()
    rig.listener.close()
    before = len(rig.tunnel.lines)
    if end == LOCAL:
        with pytest.raises(socks.Refused) as refusal:
            rig.near()
        assert refusal.value.code == 5, "RFC 1928: connection refused"
    else:
        assert rig.near().how_it_ends(1.0) == "FIN"
    rig.tunnel.wait_for_lines(f"cannot connect to {NAMED[0]}:{NAMED[1]}: Connection refused", start=before)
    rig.close_streams()
    rig.settles()
    rig.idles()
    assert len(rig.tunnel.lines) == before + 1, rig.tunnel.log()


@pytest.mark.ends(SERVE)
def test_name_that_does_not_resolve_is_one_line(make_rig: MakeRig) -> None:
    rig = make_rig(resolves=True)
    near = rig.near(target=("a" * 70 + ".test", 80))  # a label of over 63 bytes: no name server is asked
    assert near.how_it_ends(2.0) in ("FIN", "RST")
    rig.tunnel.wait_for_lines("cannot connect to aaa")
    rig.is_healthy()


def ask(rig: Rig) -> Stream:
    """A client that has asked for a target and does not wait for the answer."""
    if rig.end != LOCAL:
        return rig.near()
    stream = rig.silent()
    stream.sock.sendall(b"\x05\x01\x00")
    assert socks.receive_exactly(stream.sock, 2) == b"\x05\x00"
    socks.request(stream.sock, NAMED)
    return stream


def dialling(place: Place) -> int:
    """How many sockets of this machine have sent a SYN to `place` and heard nothing."""
    table = Path("/proc/net/tcp").read_text()
    return table.count(f" {socket.inet_aton(place.host)[::-1].hex().upper()}:{place.port:04X} 02 ")


@pytest.mark.ends(SERVE, LOCAL, FORWARD)
@pytest.mark.costly
def test_client_that_resets_while_its_target_is_dialled(make_rig: MakeRig, end: str) -> None:
    with BlackHole() as hole:
        rig = make_rig("--connect-timeout", "1", server=hole, warm=False)
        before = dialling(hole)
        client = rig.near(target=hole) if end == SERVE else ask(rig)
        wait_until(
            lambda: dialling(hole) > before or bool(rig.tunnel.matching("cannot connect to")),  # we are late
            5.0,
            "it has read the request, which a reset could discard",
        )
        client.reset()
        rig.tunnel.wait_for_lines("cannot connect to")
        next_client = ask(rig)  # is heard, and told the same
        if end == SERVE:
            far = rig.far()
            next_client.send(b"hello")
            assert far.receive_exactly(5) == b"hello"
        else:
            rig.tunnel.wait_for_lines("cannot connect to", 2)
        assert rig.tunnel.running


@pytest.mark.ends(SERVE, LOCAL, FORWARD)
@pytest.mark.costly
def test_target_that_does_not_answer_is_given_up_in_time(make_rig: MakeRig, end: str) -> None:
    with BlackHole() as hole:
        rig = make_rig("--connect-timeout", "0.6", server=hole, warm=False)
        started = time.monotonic()
        client = rig.near(target=hole) if end == SERVE else ask(rig)
        if end == LOCAL:
            with pytest.raises(socks.Refused) as refusal:
                socks.read_reply(client.sock)
            assert refusal.value.code == 6, "as RFC 1928 comes nearest to a timeout: TTL expired"
        assert client.how_it_ends(2.0) in ("FIN", "RST")
        assert 0.5 < time.monotonic() - started < 1.6
        rig.tunnel.wait_for_lines("cannot connect to .*: Connection timed out")


@pytest.mark.two_clients
@pytest.mark.ends(SERVE)
def test_target_that_does_not_answer_keeps_nobody_else_waiting(make_rig: MakeRig) -> None:
    rig = make_rig("--connect-timeout", "5")
    with BlackHole() as hole:
        for _ in range(3):
            rig.near(target=hole)
        rig.transfer(within=1.0)
