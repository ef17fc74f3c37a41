"""Rows 13 to 20: how streams end, how they stall, and what changes on the way."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from tests.conformance import test_backpressure as backpressure
from tests.conformance import test_bytes as exact
from tests.conformance import test_endings as endings
from tests.faults.between import Between
from tests.faults.case import Case
from tests.faults.network import Network
from tests.faults.rows import PEERS, row
from tests.harness import socks
from tests.harness.places import closed_place
from tests.harness.rig import LOCAL
from tests.harness.stream import RESET, Task, exchange, pattern, sha256

MB = 1_000_000
CUT = "connection to .* cut: "


@row(13, quick=("prefork",), peers=PEERS)
def test_half_close_client_first(case: Case) -> None:
    """A request, `shutdown(SHUT_WR)`, 10 MB back by their SHA-256."""
    exact.test_client_ends_first_and_still_gets_ten_megabytes(case.rig())


@row(13, quick=("sigio",), peers=PEERS)
def test_half_close_target_first(case: Case) -> None:
    """The target says a word and ends; 10 MB go up to it, by their SHA-256."""
    exact.test_target_ends_first_and_still_gets_ten_megabytes(case.rig())


@row(13, peers=PEERS)
def test_half_closed_for_seven_seconds(case: Case) -> None:
    """A request, `shutdown(SHUT_WR)`, nothing for 7 s, then 1 MB back."""
    exact.test_half_closed_for_longer_than_other_tunnels_allow(case.rig())


@row(14, quick=("fork", "uvloop"), peers=PEERS)
def test_reset_from_either_side(case: Case) -> None:
    """SO_LINGER 0 after an exchange, by the client, then by the target."""
    rig = case.rig()
    for who in ("client", "target"):
        endings.test_reset_on_one_side_resets_the_other_at_once(rig, who)
    case.reason(CUT, 2)


@row(14, quick=("thread",), peers=PEERS)
def test_reset_in_the_middle_of_a_transfer(case: Case) -> None:
    """The same while the other side sends as fast as it can."""
    rig = case.rig()
    for who in ("client", "target"):
        endings.test_reset_during_a_transfer_stops_the_sender(rig, who)
    case.reason(CUT, 2)


@row(15, quick=("epoll", "prethread"), peers=PEERS)
def test_wrong_tag_after_a_megabyte(case: Case) -> None:
    """A relay between client and server changes one bit of what follows the first megabyte."""
    rig = case.rig()
    changing = threading.Event()

    def change(_place: int, piece: bytes) -> bytes:
        if not changing.is_set():
            return piece
        changing.clear()
        middle = len(piece) // 2
        return piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]

    content, rest = pattern(MB), pattern(MB, seed=2)
    with Between(rig.place, change) as relay:
        near = rig.near(place=relay.place)
        far = rig.far()
        sending = Task(lambda: near.send(content))
        assert sha256(far.receive_exactly(MB)) == sha256(content)
        sending.result()
        changing.set()
        with contextlib.suppress(OSError):
            near.send(rest)
        received, ending = far.ends_after_data()
    assert rest.startswith(received), "something forged was forwarded"
    assert len(received) < MB
    assert ending == "RST", f"the target gets {ending}"
    case.reason(CUT + "wrong tag")


@row(16, quick=("trampoline",), peers=PEERS)
def test_target_closes_first(case: Case) -> None:
    """The target sends 3 MB and closes at once, before any of it was read."""
    exact.test_target_that_has_everything_may_leave_while_the_client_waits(case.rig())


@row(17, quick=("select",), peers=PEERS)
def test_client_never_reads(case: Case) -> None:
    """A client with an SO_RCVBUF of 8 KiB, a target that would send 1 GB."""
    backpressure.test_side_that_never_reads_stalls_its_sender_in_bounded_memory(case.make, "client")


@row(17, peers=PEERS)
def test_target_never_reads(case: Case) -> None:
    """The same the other way round."""
    backpressure.test_side_that_never_reads_stalls_its_sender_in_bounded_memory(case.make, "target")


@row(18, quick=("asyncio", "prefork-mutex"), peers=PEERS)
def test_write_after_reset(case: Case) -> None:
    """One side resets, and the other writes twenty times into what is left; both ways."""
    rig = case.rig()
    for target_leaves in (True, False):
        near, far = rig.open()
        leaving, staying = (far, near) if target_leaves else (near, far)
        staying.send(b"ping")
        assert leaving.receive_exactly(4) == b"ping"
        leaving.reset()
        with contextlib.suppress(*RESET):
            for _ in range(20):
                staying.send(pattern(1000))
                time.sleep(0.002)  # an EPIPE is the second answer
        assert staying.how_it_ends(1.0) in ("FIN", "RST")
    case.reason(CUT, 2)


@row(19, quick=("iterative", "tornado"), peers=PEERS)
def test_single_bytes(case: Case) -> None:
    """400 single bytes each way with TCP_NODELAY; a sealed stream cut into its bytes."""
    rig = case.rig()
    exact.test_single_bytes_each_in_a_write_of_its_own(rig)
    rig.close_streams()
    exact.test_sealed_stream_cut_into_single_bytes(rig)


@row(19)
def test_mtu_of_576(case: Case) -> None:
    """Loopback with an MTU of 576 in a network namespace: 3 MB each way."""
    with Network() as network:
        network.run("ip", "link", "set", "lo", "mtu", "576")
        rig = case.make()
        near, far = rig.open()
        assert near.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) < 576
        exchange(near, far, 3 * MB)
        case.look()


@row(20, quick=("poll",), peers=PEERS)
def test_target_refuses(case: Case) -> None:
    """A request for a closed port."""
    rig = case.rig()
    started = time.monotonic()
    near = rig.near(target=closed_place(), first=b"is anybody there?")
    ending = near.how_it_ends(2.0)
    assert ending in ("FIN", "RST"), f"{ending} after 2 s"
    assert time.monotonic() - started < 1.0
    case.reason("cannot connect to .*: Connection refused")


@row(20, quick=("prefork-fdpass",))
def test_server_refuses_the_local_end(case: Case) -> None:
    """The local end, with nobody where its server should be: SOCKS5 reply 5."""
    rig = case.make(end=LOCAL)
    rig.listener.close()
    with pytest.raises(socks.Refused) as refusal:
        rig.near()
    assert refusal.value.code == 5
    rig.listener = socket.create_server(rig.far_place)
    rig.listener.settimeout(10)
    case.reason("cannot connect to .*: Connection refused")


def test_digests_tell_streams_apart() -> None:
    """What all rows rely on when they say exact."""
    assert sha256(pattern(1000, 1)) != sha256(pattern(1000, 2))
