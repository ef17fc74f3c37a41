"""Before a connection is worth dialling: what is not the protocol is told nothing.

A prober watches three things: what comes back, whether the close is FIN or RST, and when (it would
learn from an RST how much had been read). So: nothing, FIN, and one deadline counted from accept.
"""

from __future__ import annotations

import contextlib
import random
import select
import time

import pytest

from models import MODELS
from tests.conformance.conftest import MakeRig
from tests.harness import socks
from tests.harness.rig import DEFAULT, LOCAL, SERVE, Rig
from tests.harness.stream import Sealed, Stream
from tests.harness.wire import Seal, address_header

LINGER = 10.0  # seconds after a refusal (RFC 1928 section 6)
HANDSHAKE = 0.8  # seconds, where the deadline itself is the subject
# Lengths around every boundary: salt 16, length and its tag 18, then payload and its tag.
LENGTHS = (1, 8, 12, 15, 16, 17, 22, 33, 34, 35, 41, 49, 50, 51, 56, 57, 58, 221, 3000)


def good_opening(rig: Rig, payload: bytes = b"") -> bytes:
    """A whole sealed request: salt, length record, address record."""
    return Seal(DEFAULT).seal(address_header(*rig.far_place) + payload)


def random_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def begin(rig: Rig, content: bytes) -> Stream:
    stream = rig.silent()
    if content:
        stream.sock.sendall(content)
    return stream


def test_client_that_connects_and_leaves_is_no_event(rig: Rig) -> None:
    before = len(rig.tunnel.lines)
    for number in range(20):
        stream = rig.silent()
        if number % 2:
            stream.reset()
        else:
            stream.close()
    rig.transfer()
    assert not rig.tunnel.matching("warning|error", before), rig.tunnel.log()


@pytest.mark.ends(SERVE)
def test_truncated_request_then_fin_gets_fin_and_nothing_else(rig: Rig) -> None:
    whole = good_opening(rig)
    for size in range(0, len(whole), 3):
        stream = begin(rig, whole[:size])
        stream.finish()
        assert stream.how_it_ends(2.0) == "FIN", f"after {size} bytes of a good request"
        stream.close()


@pytest.mark.ends(LOCAL)
def test_truncated_socks_request_then_fin_gets_fin(rig: Rig) -> None:
    greeting, request = b"\x05\x01\x00", b"\x05\x01\x00\x03\x0btarget.test\x00"
    for size in range(len(request)):
        stream = begin(rig, greeting)
        assert socks.receive_exactly(stream.sock, 2) == b"\x05\x00"
        stream.sock.sendall(request[:size])
        stream.finish()
        assert stream.how_it_ends(2.0) == "FIN", f"after {size} bytes of a request"
        stream.close()
    for size in (0, 1, 2):
        stream = begin(rig, greeting[:size])
        stream.finish()
        assert stream.how_it_ends(2.0) == "FIN", f"after {size} bytes of a greeting"
        stream.close()


@pytest.mark.ends(SERVE)
def test_random_bytes_then_fin_get_fin_and_nothing_else(rig: Rig) -> None:
    for size in LENGTHS:
        stream = begin(rig, random_bytes(size))
        stream.finish()
        assert stream.how_it_ends(2.0) == "FIN", f"after {size} random bytes"
        stream.close()


@pytest.mark.ends(SERVE)
def test_random_bytes_are_drained_in_silence(rig: Rig) -> None:
    enough = [size for size in LENGTHS if size >= 34]  # fewer bytes are no failure yet, but a slow client
    streams = [begin(rig, random_bytes(size)) for size in enough]
    for stream in streams:
        with contextlib.suppress(OSError):
            stream.sock.sendall(random_bytes(100_000))
    time.sleep(0.1)  # in which nothing must happen
    for stream in streams:
        assert stream.how_it_ends(0.02) == "open"
    for stream in streams:
        stream.sock.sendall(b"late data")
        stream.finish()
        assert stream.how_it_ends(2.0) == "FIN"
        stream.close()


@pytest.mark.ends(SERVE)
@pytest.mark.parametrize("place", [0, 16, 33, 34, 56])
def test_one_wrong_bit_anywhere_is_drained(rig: Rig, place: int) -> None:
    content = bytearray(good_opening(rig))
    content[place] ^= 1
    before = len(rig.tunnel.lines)
    stream = begin(rig, bytes(content))
    rig.tunnel.wait_for_lines("handshake failed: wrong tag", start=before)
    stream.sock.sendall(random_bytes(70_000))
    assert stream.how_it_ends(0.05) == "open"
    stream.finish()
    assert stream.how_it_ends(2.0) == "FIN"
    assert len(rig.tunnel.matching("warning|error", before)) == 1, "one line says why"


@pytest.mark.ends(SERVE)
@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"\x07\x7f\x00\x00\x01\x00\x50", "address type 7"),
        (b"\x01\x7f\x00\x00\x01\x00\x00", "port 0"),
        (b"\x03\x00\x00\x50", "host name is empty"),
        (b"\x03\x03a\x00b\x00\x50", "NUL"),
    ],
    ids=["type", "port", "empty", "nul"],
)
def test_address_that_cannot_be_meant_is_drained(rig: Rig, header: bytes, reason: str) -> None:
    before = len(rig.tunnel.lines)
    stream = begin(rig, Seal(DEFAULT).seal(header))
    rig.tunnel.wait_for_lines(f"handshake failed: .*{reason}", start=before)
    assert stream.how_it_ends(0.05) == "open"
    stream.finish()
    assert stream.how_it_ends(2.0) == "FIN"


@pytest.mark.ends(SERVE)
@pytest.mark.parametrize("length", [0, 0x4000, 0xFFFF])
def test_impossible_record_length_is_drained(rig: Rig, length: int) -> None:
    seal = Seal(DEFAULT)
    before = len(rig.tunnel.lines)
    stream = begin(rig, seal.salt + seal.record(address_header(*rig.far_place), length))
    rig.tunnel.wait_for_lines(f"handshake failed: .*{length} bytes", start=before)
    assert stream.how_it_ends(0.05) == "open"
    stream.finish()
    assert stream.how_it_ends(2.0) == "FIN"


@pytest.mark.ends(LOCAL)
@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b""),
        (b"GET / HTTP/1.1\r\n", b""),
        (b"\x05\x01\x02", b"\x05\xff"),
        (b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x07"),
        (b"\x05\x01\x00\x05\x01\x00\x09\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x08"),
    ],
    ids=["socks4", "http", "no-acceptable-method", "bind", "address-type"],
)
def test_socks_that_is_not_ours_is_refused_by_the_book(rig: Rig, said: bytes, answer: bytes) -> None:
    stream = begin(rig, said)
    received = socks.receive_exactly(stream.sock, len(answer))
    assert received == answer
    stream.finish()
    rest, ending = stream.ends_after_data()
    assert ending == "FIN"
    assert len(rest) == (8 if len(answer) > 2 else 0), "the rest of a reply, or nothing"


@pytest.mark.slow
@pytest.mark.only("fork", "prefork", "epoll")  # each makes a drain of its own
@pytest.mark.ends(LOCAL)
def test_socks_client_that_stays_after_a_refusal_is_let_go_when_rfc_1928_wants_it(rig: Rig) -> None:
    stream = begin(rig, b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50")
    assert len(socks.receive_exactly(stream.sock, 12)) == 12
    assert stream.how_it_ends(LINGER + 1.0) == "FIN"


@pytest.mark.two_clients
def test_silent_clients_do_not_keep_others_waiting(rig: Rig) -> None:
    for content in (b"", b"\x05", b"\x05\x01\x00", b"\x05\x01\x00\x05"):
        begin(rig, content)
    rig.transfer(within=1.0)


@pytest.mark.costly
def test_handshake_deadline_counts_from_accept_and_no_byte_extends_it(make_rig: MakeRig) -> None:
    rig = make_rig("--handshake-timeout", str(HANDSHAKE))
    started = time.monotonic()
    stream = rig.silent()
    greeting = b"\x05\xff" + bytes(255)  # SOCKS5 with 255 methods on offer; to a server, part of a salt
    ending = "open"
    for byte in greeting[:12]:
        stream.sock.sendall(bytes([byte]))
        if (ending := stream.how_it_ends(0.15)) != "open":
            break
    took = time.monotonic() - started
    assert ending == "FIN"
    assert HANDSHAKE * 0.9 < took < HANDSHAKE + 0.7
    rig.is_healthy()


@pytest.mark.only("prethread-queue")
@pytest.mark.ends(SERVE)
def test_handshake_deadline_does_not_wait_in_a_queue(make_rig: MakeRig) -> None:
    """Nobody reads a client that waits for a thread, but it has been accepted."""
    length, busy = 1.5, 1.2  # seconds
    rig = make_rig("--handshake-timeout", str(length), workers=1)
    near, far = rig.open()
    started = time.monotonic()
    probes = [rig.silent(), begin(rig, random_bytes(221))]
    time.sleep(busy)  # the only thread is taken
    near.close()
    far.close()
    for probe in probes:
        assert probe.how_it_ends(length) == "FIN"
        took = time.monotonic() - started
        assert length * 0.9 < took < length + 0.7 * busy, f"{took:.2f} s"
    rig.is_healthy()


@pytest.mark.ends(SERVE)
def test_every_failure_ends_at_the_same_deadline(make_rig: MakeRig) -> None:
    rig = make_rig("--handshake-timeout", str(HANDSHAKE))
    good = good_opening(rig)
    forged = good[:-1] + bytes([good[-1] ^ 1])
    probes = (b"", random_bytes(10), random_bytes(221), good[:20], forged)
    alone = MODELS[rig.model].clients == 1  # a silent one is the only client then
    streams = [begin(rig, probe) for probe in (probes[2::2] if alone else probes)]
    started = time.monotonic()
    for number, stream in enumerate(streams):
        assert stream.how_it_ends(HANDSHAKE + 1) == "FIN", f"probe {number}"
        took = time.monotonic() - started
        assert HANDSHAKE * 0.9 < took < HANDSHAKE + 0.7, f"probe {number} ended after {took:.2f} s"
    rig.is_healthy()


@pytest.mark.two_clients
@pytest.mark.ends(SERVE)
def test_time_of_the_close_does_not_tell_a_short_handshake_from_a_wrong_one(make_rig: MakeRig) -> None:
    """Whoever blocks in recv wakes once a second; the drain, at the very deadline, between two of these."""
    length = 1.3
    rig = make_rig("--handshake-timeout", str(length))
    probes = {begin(rig, random_bytes(size)).sock: time.monotonic() for size in (0, 20, 49, 221)}
    took = []
    while probes:
        ready = select.select(probes, [], [], 2 * length)[0]
        assert ready, "all are closed in time"
        for sock in ready:
            assert sock.recv(1) == b""
            took.append(time.monotonic() - probes.pop(sock))
    assert min(took) > 0.9 * length
    assert max(took) - min(took) < 0.4, took


@pytest.mark.two_clients
@pytest.mark.ends(SERVE)
def test_drained_clients_hold_no_worker(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2)
    before = len(rig.tunnel.lines)
    for number in range(8):
        begin(rig, random_bytes(100 + number))
    rig.tunnel.wait_for_lines("handshake failed", 8, start=before)
    rig.transfer(within=1.0)
    rig.is_healthy()


def test_reset_in_the_middle_of_a_handshake(rig: Rig) -> None:
    for content in (b"", b"\x05\x01", random_bytes(40)):
        begin(rig, content).reset()


@pytest.mark.ends(SERVE)
def test_replies_never_share_a_salt(make_rig: MakeRig) -> None:
    rig = make_rig()
    salts = set()
    count = 150
    for _ in range(count):
        near, far = rig.open()
        far.send(b"x")
        assert near.receive_exactly(1) == b"x"
        assert isinstance(near, Sealed)
        salts.add(near.incoming.salt)
        near.close()
        far.close()
    assert len(salts) == count
    rig.is_healthy()


@pytest.mark.ends(LOCAL)
def test_requests_never_share_a_salt(make_rig: MakeRig) -> None:
    rig = make_rig()
    salts = set()
    count = 200
    for _ in range(count):
        near = rig.near(first=b"x")  # else each waits 10 ms for it
        far = rig.far()
        assert isinstance(far, Sealed)
        salts.add(far.incoming.salt)
        near.close()
        far.close()
    assert len(salts) == count
    rig.is_healthy()
