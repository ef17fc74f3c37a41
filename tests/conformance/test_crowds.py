"""Many clients at once, and too many: what runs out is waited for, and nobody who is served notices."""

from __future__ import annotations

import contextlib

import pytest

from tests.conformance.conftest import MakeRig
from tests.harness.places import closed_place
from tests.harness.rig import FORWARD, LOCAL, SERVE
from tests.harness.stream import RESET, Stream, exchange, pattern, sha256
from tests.harness.tree import child_pids, cpu_seconds, holdings, most_descriptors, wait_until
from tests.harness.wire import Seal, address_header

CROWD = 300
NOFILE = 64  # descriptors for a whole server, where running out of them is the subject
SAID = "(accepting pauses|clients are turned away): "  # the second: with libuv's EMFILE trick


@pytest.mark.two_clients
@pytest.mark.ends(SERVE, LOCAL)
@pytest.mark.costly
def test_300_connections_at_once_are_all_exact(make_rig: MakeRig) -> None:
    # A pool has as many clients at once as it has workers, so here it has enough of them.
    rig = make_rig(workers=CROWD + 1, warm=False)
    pairs = []
    for number in range(CROWD):
        near = rig.near(first=pattern(10_000, seed=number))
        pairs.append((near, rig.far()))
    for number, (near, far) in enumerate(pairs):
        near.send(pattern(20_000, seed=number + CROWD))
        far.send(pattern(30_000, seed=-number))
    for number, (near, far) in enumerate(pairs):
        near.finish()
        far.finish()
        sent = pattern(10_000, seed=number) + pattern(20_000, seed=number + CROWD)
        assert sha256(far.receive_all()) == sha256(sent)
        assert sha256(near.receive_all()) == sha256(pattern(30_000, seed=-number))
    for near, far in pairs:
        near.close()
        far.close()
    rig.transfer()


@pytest.mark.ends(SERVE, FORWARD)
@pytest.mark.costly
def test_more_clients_than_are_served_at_once_wait_their_turn(make_rig: MakeRig) -> None:
    rig = make_rig(workers=2)
    waiting = [rig.near(first=number.to_bytes(2, "big")) for number in range(40)]
    served = set()
    for _ in waiting:
        far = rig.far()
        number = int.from_bytes(far.receive_exactly(2), "big")
        served.add(number)
        exchange(waiting[number], far, 1000)
        waiting[number].close()
        far.close()
    assert served == set(range(len(waiting)))
    rig.is_healthy()


@pytest.mark.ends(SERVE)
@pytest.mark.only("thread")
def test_without_descriptors_a_handshake_that_is_late_is_closed_and_not_reset(make_rig: MakeRig) -> None:
    rig = make_rig("--handshake-timeout", "1", config={"nofile": NOFILE})
    flood = [rig.silent() for _ in range(2 * NOFILE)]
    rig.tunnel.wait_for_lines(SAID + "Too many open files")
    assert {stream.how_it_ends(10.0) for stream in flood} == {"FIN"}
    assert rig.tunnel.matching("connection to .* cut") == []


@pytest.mark.ends(SERVE)
@pytest.mark.only(
    "thread", "select", "prefork-epoll", "epoll", "trampoline", "asyncio", "uvloop", "tornado"
)  # where many clients share one process: who is alone in one leaves it enough descriptors
def test_without_descriptors_a_handshake_that_fails_ends_when_the_others_do(make_rig: MakeRig) -> None:
    """Nothing has been drained yet. Whoever sees to it that there are none would be told of each failure."""
    rig = make_rig("--handshake-timeout", "1.5", config={"nofile": NOFILE}, workers=2)
    flood = [rig.silent() for _ in range(2 * NOFILE)]
    rig.tunnel.wait_for_lines(SAID + "Too many open files")
    probes, silent = flood[:3], flood[3]
    for probe in probes:
        probe.sock.sendall(pattern(100))
    rig.tunnel.wait_for_lines("handshake failed", len(probes))
    assert [stream.how_it_ends(0.05) for stream in (silent, *probes)] == ["open"] * 4
    assert [stream.how_it_ends(5.0) for stream in (silent, *probes)] == ["FIN"] * 4
    assert rig.tunnel.matching("connection to .* cut") == []
    for stream in flood:
        stream.close()
    rig.is_healthy()


@pytest.mark.ends(SERVE, LOCAL)
@pytest.mark.costly
def test_out_of_descriptors_pauses_accepting_and_nothing_else(make_rig: MakeRig) -> None:
    rig = make_rig(config={"nofile": NOFILE})
    near, far = rig.open()
    flood = [rig.silent() for _ in range(2 * NOFILE)]
    rig.steady()
    if most_descriptors(rig.pid) >= NOFILE - 1:  # with a process for each client nobody runs out
        rig.tunnel.wait_for_lines(SAID + "Too many open files")
    before = cpu_seconds(rig.pid)
    exchange(near, far, 300_000)
    assert cpu_seconds(rig.pid) - before < 0.5
    rig.idles(0.4)
    lines = rig.tunnel.matching(SAID)
    assert len(lines) <= 2, "said once, not at every attempt"
    for stream in flood:
        stream.close()
    rig.is_healthy()


@pytest.mark.only("epoll")
@pytest.mark.ends(SERVE)
def test_who_comes_too_late_for_a_descriptor_hears_it_at_once(make_rig: MakeRig) -> None:
    """And the listener, which stays readable while somebody waits, does not keep the loop busy."""
    rig = make_rig(config={"nofile": NOFILE})
    flood = [rig.silent() for _ in range(2 * NOFILE)]
    assert [stream.how_it_ends(1.0) for stream in flood[-NOFILE:]] == ["FIN"] * NOFILE
    rig.idles(0.3)
    for _ in range(2):  # the trick works again and again
        assert rig.silent().how_it_ends(1.0) == "FIN"
    rig.close_streams()
    rig.settles()  # or whoever comes next is turned away, too
    rig.is_healthy()


@pytest.mark.ends(SERVE)
def test_sigterm_while_descriptors_are_out(make_rig: MakeRig) -> None:
    rig = make_rig(config={"nofile": NOFILE})
    flood = [rig.silent() for _ in range(2 * NOFILE)]
    rig.steady()
    rig.tunnel.terminate()
    for stream in flood:
        assert stream.how_it_ends(2.0) in ("FIN", "RST"), "who has not said where to go has nothing to lose"
    assert rig.tunnel.wait(3.0) == 0


@pytest.mark.ends(SERVE)
def test_bad_handshake_while_descriptors_are_out(make_rig: MakeRig) -> None:
    rig = make_rig(config={"nofile": NOFILE})
    flood = [rig.silent() for _ in range(2 * NOFILE)]
    rig.steady()
    for stream in flood[:20]:
        stream.sock.sendall(pattern(100))
    rig.idles(0.3)
    assert rig.tunnel.running, rig.tunnel.log()
    for stream in flood:
        stream.close()
    rig.is_healthy()


@pytest.mark.ends(SERVE)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_request_while_descriptors_are_out_is_refused_and_no_more(make_rig: MakeRig, host: str) -> None:
    rig = make_rig(config={"nofile": NOFILE}, resolves=True)
    flood = [rig.silent() for _ in range(2 * NOFILE)]
    rig.steady()
    for stream in flood[:5]:
        stream.sock.sendall(Seal(rig.credentials).seal(address_header(host, rig.far_place.port)))
    rig.idles(0.3)
    assert rig.tunnel.running, rig.tunnel.log()
    for stream in flood:
        stream.close()
    rig.is_healthy()


@pytest.mark.ends(SERVE, LOCAL)
@pytest.mark.costly
def test_quick_connections_leave_nothing_behind(make_rig: MakeRig) -> None:
    rig = make_rig()
    count = 500 if rig.model == "fork" and rig.end == SERVE else 100
    quick_connections(rig.transfer, 30)  # every worker has had its first client
    before = rig.steady()
    quick_connections(rig.transfer, count)
    wait_until(lambda: holdings(rig.pid) == before, 3.0, f"{holdings(rig.pid)} like {before} before")
    rig.is_healthy()


def quick_connections(transfer: object, count: int) -> None:
    assert callable(transfer)
    for _ in range(count):
        transfer(100)


@pytest.mark.ends(SERVE)
def test_failed_connections_leave_nothing_behind(make_rig: MakeRig) -> None:
    rig = make_rig()
    closed = closed_place()

    def fail(count: int) -> None:
        for number in range(count):
            stream: Stream
            if number % 3 == 0:
                stream = rig.near(target=closed)
            else:
                stream = rig.silent()
                stream.sock.sendall(pattern(60 if number % 3 == 1 else 5))
                stream.finish()
            assert stream.how_it_ends(2.0) in ("FIN", "RST")
            stream.close()

    fail(120)
    rig.is_healthy()


@pytest.mark.two_clients
@pytest.mark.ends(SERVE, LOCAL)
def test_close_is_seen_while_a_sibling_lives(make_rig: MakeRig) -> None:
    """A child that holds another client's descriptor would keep that connection open."""
    rig = make_rig()
    elder = rig.open()
    (near, far), (other_near, other_far) = rig.open(), rig.open()
    younger = rig.open()
    near.close()
    assert far.how_it_ends(1.0) == "FIN"
    far.close()
    other_far.close()
    assert other_near.how_it_ends(1.0) == "FIN"
    other_near.close()
    for pair in (elder, younger):
        exchange(*pair, 1000)
    rig.is_healthy()


@pytest.mark.ends(SERVE)
def test_flood_beyond_the_backlog_is_recovered_from(make_rig: MakeRig) -> None:
    rig = make_rig("--backlog", "2")
    flood: list[Stream] = []
    for _ in range(30):
        stream = Stream(rig.unconnected())
        flood.append(stream)
        stream.sock.setblocking(False)
        stream.sock.connect_ex(rig.place)
    for stream in flood:
        stream.close()
    rig.is_healthy()


@pytest.mark.only("select")
@pytest.mark.ends(SERVE)
def test_descriptor_1024_of_select_is_refused_in_a_clear_line(make_rig: MakeRig) -> None:
    rig = make_rig()
    near, far = rig.open()
    flood = [rig.silent() for _ in range(1050)]
    rig.tunnel.wait_for_lines("client refused: select cannot watch descriptor 1024")
    assert flood[-1].how_it_ends(1.0) in ("FIN", "RST")
    for host in (rig.far_place.host, "localhost"):  # connecting takes a descriptor, and so does a first name
        asks = flood.pop(0)
        asks.sock.sendall(Seal(rig.credentials).seal(address_header(host, rig.far_place.port)))
        assert asks.how_it_ends(2.0) in ("FIN", "RST")
        flood.append(rig.silent())
    rig.tunnel.wait_for_lines("cannot connect to .*: .*select cannot watch descriptor 1024", 2)
    exchange(near, far, 100_000)
    rig.idles(0.3)
    for stream in flood:
        stream.close()
    rig.is_healthy()


@pytest.mark.ends(SERVE)
def test_target_that_resets_at_once(make_rig: MakeRig) -> None:
    rig = make_rig()
    for _ in range(20):
        near = rig.near(first=b"x")
        rig.far().reset()
        with contextlib.suppress(*RESET):
            assert near.receive() == b""
        near.close()
    rig.is_healthy()


@pytest.mark.pools
@pytest.mark.ends(SERVE)
def test_workers_share_the_clients(make_rig: MakeRig) -> None:
    rig = make_rig(workers=4)
    assert len(child_pids(rig.pid)) == 4
    pairs = [rig.open() for _ in range(4)]
    for near, far in pairs:
        exchange(near, far, 1000)
    rig.is_healthy()
