"""Limits: how many connections at once, of all workers together and of one source; and what a drain holds."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.conformance.conftest import MakeRig
from tests.conformance.test_handshake import begin, good_opening, random_bytes
from tests.conformance.test_scoreboard import status_of
from tests.harness.process import Place
from tests.harness.rig import SERVE, Rig
from tests.harness.stream import PATIENCE, Sealed, Stream, exchange
from tests.harness.tree import child_pids, wait_until
from tests.harness.wire import address_header
from tunnel.status import counts_of

pytestmark = pytest.mark.ends(SERVE)
FEW = 3  # connections; with fewer workers than that, what they have in common is shared among processes
# Each gives up a connection in code of its own.
ONE_OF_EACH_KIND = ("thread", "prefork", "fork", "select", "epoll", "trampoline", "asyncio", "tornado")
FULL, REFUSED = "accepting pauses: .* connections are open", "client refused: its source has"
WAIT = 0.15  # seconds in which nothing must happen


def open_all(rig: Rig, count: int) -> list[tuple[Stream, Stream]]:
    return [rig.open() for _ in range(count)]


def work(pairs: list[tuple[Stream, Stream]]) -> None:
    for near, far in pairs:
        near.send(b"ping")
        assert far.receive_exactly(4) == b"ping"


def ask_from(rig: Rig, host: str) -> Stream:
    """A client at another address of this machine, which has said where to go."""
    sock = socket.create_connection(rig.place, PATIENCE, (host, 0))
    sealed = Sealed(sock, rig.credentials)
    sealed.send(address_header(*rig.far_place))
    return rig.keep(sealed)


def all_have_left(rig: Rig) -> None:
    """As the server sees it; else the next one might be one too many."""
    rig.close_streams()
    wait_until(lambda: open_now(rig) == 0, 3.0, "whoever leaves makes room for the next one")


def open_now(rig: Rig) -> int | None:
    return counts_of(str(rig.pid))[1]


def nobody_comes(rig: Rig) -> bool:
    rig.listener.settimeout(WAIT)
    try:
        rig.listener.accept()
    except TimeoutError:
        return True
    finally:
        rig.listener.settimeout(PATIENCE)
    return False


@pytest.mark.two_clients
def test_who_is_beyond_the_total_waits_until_somebody_leaves(make_rig: MakeRig) -> None:
    rig = make_rig("--max-connections", str(FEW), workers=FEW + 2)
    for _ in range(2):
        pairs = open_all(rig, FEW)
        waiting = [rig.near(), rig.near()]
        assert nobody_comes(rig), f"{FEW} are served, and no more"
        work(pairs)
        for near, far in pairs[:2]:
            near.close()
            far.close()
        served = [rig.far() for _ in waiting]
        assert nobody_comes(rig)
        work(pairs[2:])
        for near in waiting:
            near.close()
        for far in served:
            far.close()
        pairs[2][0].close()
        pairs[2][1].close()
    rig.tunnel.wait_for_lines(FULL)
    rig.is_healthy()


@pytest.mark.only(*ONE_OF_EACH_KIND)
def test_full_server_stops_when_it_is_told_to(make_rig: MakeRig) -> None:
    rig = make_rig("--max-connections", "1")
    near, far = rig.open()
    rig.near()
    rig.tunnel.terminate()
    rig.tunnel.wait_for_lines("stopping")
    exchange(near, far, 100_000)
    assert rig.tunnel.wait(3.0) == 0


@pytest.mark.two_clients
def test_who_is_beyond_the_share_of_its_source_is_closed_at_once(make_rig: MakeRig) -> None:
    rig = make_rig("--max-per-source", str(FEW), workers=FEW + 2)
    pairs = open_all(rig, FEW)
    assert open_now(rig) == FEW
    refused = [rig.silent() for _ in range(5)]
    for stream in refused:
        assert stream.how_it_ends(2.0) in ("FIN", "RST")
    assert 1 <= len(rig.tunnel.wait_for_lines(REFUSED)) <= len(refused)
    with closing(ask_from(rig, "127.0.0.2")) as other, closing(rig.far()) as far:
        exchange(other, far, 1000)
    work(pairs)
    for near, far in pairs:
        near.close()
        far.close()
    all_have_left(rig)
    assert status_of(rig)["refused"] == len(refused)
    rig.is_healthy()


def comes_again_and_again(make_rig: MakeRig) -> None:
    """A source that has all it may, faster than an accept gives up waiting, for longer than the patience."""
    rig = make_rig("--max-per-source", "1", "--heartbeat", "2", workers=2, warm=False)
    near, far = rig.open()
    until = time.monotonic() + 4.5
    while time.monotonic() < until:
        refused = rig.silent()
        assert refused.how_it_ends(2.0) in ("FIN", "RST")
        refused.close()
        time.sleep(0.1)  # as a client does that tries again
    assert rig.tunnel.matching("no sign of life") == []
    exchange(near, far, 1000)
    with closing(ask_from(rig, "127.0.0.2")) as other, closing(rig.far()) as another:
        exchange(other, another, 1000)


@pytest.mark.only("prefork")
def test_source_that_is_refused_all_the_time_makes_no_worker_look_hung(make_rig: MakeRig) -> None:
    comes_again_and_again(make_rig)


@pytest.mark.slow
@pytest.mark.pools
def test_nor_in_any_other_pool(make_rig: MakeRig) -> None:
    comes_again_and_again(make_rig)


@pytest.mark.two_clients
@pytest.mark.only("thread", "prefork", "fork", "epoll", "asyncio")
def test_ipv6_sources_are_networks_and_mapped_ones_are_ipv4(make_rig: MakeRig) -> None:
    rig = make_rig("--max-per-source", "1", "--allow", "127.0.0.0/8", listen=["[::]:0"], warm=False)
    port = rig.place.port
    first = rig.silent(Place("::1", port))
    wait_until(lambda: open_now(rig) == 1, 2.0, "it is in, before another worker counts the next one")
    assert rig.silent(Place("::1", port)).how_it_ends(5.0) in ("FIN", "RST")
    mapped = rig.silent(Place("127.0.0.1", port))
    wait_until(lambda: open_now(rig) == 2, 2.0, "so is that one")
    assert rig.silent(Place("127.0.0.1", port)).how_it_ends(5.0) in ("FIN", "RST")
    for stream in (first, mapped):
        assert stream.how_it_ends(0.0) == "open"


def leave_by_close(stream: Stream) -> None:
    stream.close()


def leave_by_reset(stream: Stream) -> None:
    stream.reset()


@pytest.mark.parametrize("leave", [leave_by_close, pytest.param(leave_by_reset, marks=pytest.mark.slow)])
@pytest.mark.two_clients
@pytest.mark.only(*ONE_OF_EACH_KIND)
def test_every_way_to_end_gives_the_place_back(make_rig: MakeRig, leave: Callable[[Stream], None]) -> None:
    """In the handshake, refused by the target, drained, in the relay: nothing is kept by mistake."""
    rig = make_rig("--max-connections", str(FEW), "--max-per-source", str(FEW), workers=FEW)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = nobody.getsockname()
        for _ in range(FEW + 1):
            leave(begin(rig, b""))
            leave(begin(rig, random_bytes(20)))
            leave(begin(rig, random_bytes(100)))
            near = rig.near(target=closed)
            assert near.how_it_ends(2.0) in ("FIN", "RST")
            leave(near)
            near, far = rig.open()
            leave(near)
            far.how_it_ends(2.0)
            far.close()
            all_have_left(rig)
    all_have_left(rig)
    work(open_all(rig, FEW))
    all_have_left(rig)
    rig.is_healthy()


@pytest.mark.two_clients
@pytest.mark.only(*ONE_OF_EACH_KIND)
def test_drained_connection_keeps_its_place(make_rig: MakeRig) -> None:
    """Or what is beyond a cap of the drain would tell a prober when a handshake is seen to have failed."""
    rig = make_rig("--max-per-source", str(FEW))
    streams = [begin(rig, random_bytes(size)) for size in (20, 100, 200)]
    rig.tunnel.wait_for_lines("handshake failed", 2)
    assert rig.silent().how_it_ends(2.0) in ("FIN", "RST")
    for stream in streams:
        assert stream.how_it_ends(0.0) == "open"
    streams[1].finish()
    assert streams[1].how_it_ends(2.0) == "FIN"
    wait_until(lambda: open_now(rig) == FEW - 1, 3.0, "the drain gives its place back")
    assert rig.silent().how_it_ends(0.1) == "open"


@pytest.mark.only("iterative")
def test_drained_connections_keep_their_places_where_one_is_served_at_a_time(make_rig: MakeRig) -> None:
    """It serves nobody, and is full all the same: a probe is not let go for the next client."""
    rig = make_rig("--max-per-source", "2", "--max-connections", str(FEW))
    probes = [begin(rig, random_bytes(size)) for size in (100, 200)]
    rig.tunnel.wait_for_lines("handshake failed", 2)
    assert rig.silent().how_it_ends(2.0) in ("FIN", "RST"), "its source has two"
    other = socket.create_connection(rig.place, PATIENCE, ("127.0.0.2", 0))
    probes.append(rig.keep(Stream(other)))
    other.sendall(random_bytes(100))
    rig.tunnel.wait_for_lines("handshake failed", 3)
    with closing(ask_from(rig, "127.0.0.3")) as waits:
        assert nobody_comes(rig), f"{FEW} are there"
        for probe in probes:
            assert probe.how_it_ends(0.0) == "open"
        probes[0].finish()
        assert probes[0].how_it_ends(2.0) == "FIN"
        with closing(rig.far()) as far:
            exchange(waits, far, 1000)
    for probe in probes[1:]:
        assert probe.how_it_ends(0.0) == "open"


@pytest.mark.pools
def test_place_of_a_worker_that_was_killed_is_given_back(make_rig: MakeRig) -> None:
    workers = 2
    rig = make_rig("--max-connections", "2", workers=workers)
    for _ in range(2):
        pairs = open_all(rig, 2)
        assert nobody_comes(rig)
        before = len(rig.tunnel.lines)
        victims = child_pids(rig.pid)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        rig.tunnel.wait_for_lines("was killed by SIGKILL", len(victims), start=before)
        for near, far in pairs:
            near.close()
            far.close()
    work(open_all(rig, 2))
    assert nobody_comes(rig)


@pytest.mark.only("fork")
def test_place_of_a_child_that_was_killed_is_given_back(make_rig: MakeRig) -> None:
    rig = make_rig("--max-connections", "2")
    for _ in range(3):
        open_all(rig, 2)
        for pid in child_pids(rig.pid):
            os.kill(pid, signal.SIGKILL)
    work(open_all(rig, 2))
    assert nobody_comes(rig)


@pytest.mark.only("prefork", "thread", "prefork-epoll", "fork", "select")
def test_reload_changes_the_limits(make_rig: MakeRig) -> None:
    """In the file, since flags are what they are."""
    rig = make_rig(config={"max_per_source": 1}, warm=False)
    near, far = rig.open()
    assert rig.silent().how_it_ends(2.0) in ("FIN", "RST")
    path = rig.tunnel.command[rig.tunnel.command.index("--config") + 1]
    text = Path(path).read_text()
    Path(path).write_text(text.replace('"max_per_source": 1', '"max_per_source": 2'))
    os.kill(rig.pid, signal.SIGHUP)
    rig.tunnel.wait_for_lines("configuration read again")
    wait_until(lambda: rig.silent().how_it_ends(0.1) == "open", 2.0, "the second one is let in")
    exchange(near, far, 1000)


@pytest.mark.only(*ONE_OF_EACH_KIND)
def test_drained_and_replayed_are_told(make_rig: MakeRig) -> None:
    rig = make_rig()
    request = good_opening(rig, b"once")
    with closing(begin(rig, request)), closing(rig.far()) as far:
        assert far.receive_exactly(4) == b"once"
    for content in (request, request, random_bytes(100)):
        begin(rig, content).finish()
    rig.tunnel.wait_for_lines("handshake failed", 3)

    def counted() -> bool:
        told = status_of(rig)
        return (told["drained"], told["replays"], told["refused"]) == (3, 2, 0)

    wait_until(counted, 3.0, "each is counted")


@pytest.mark.only("prefork", "prefork-fcntl", "prefork-mutex", "prefork-fdpass", "prefork-epoll", "tornado")
def test_worker_that_is_replaced_finishes_what_it_drains(make_rig: MakeRig) -> None:
    """Its end must not close a probe sooner than the deadline would."""
    rig = make_rig(workers=2)
    probes = [begin(rig, random_bytes(100)) for _ in range(4)]
    rig.tunnel.wait_for_lines("handshake failed", 4)
    old = child_pids(rig.pid)
    os.kill(rig.pid, signal.SIGHUP)
    rig.tunnel.wait_for_lines("configuration read again")
    wait_until(lambda: len(set(child_pids(rig.pid)) - set(old)) == 2, 3.0, "the new ones are there")
    rig.transfer()
    for probe in probes:
        assert probe.how_it_ends(0.05) == "open"
        probe.finish()
        assert probe.how_it_ends(2.0) == "FIN"
    wait_until(lambda: not set(child_pids(rig.pid)) & set(old), 4.0, "and then the old ones end")
    rig.is_healthy()


@pytest.mark.only("prefork", "select")
def test_probe_does_not_keep_a_server_from_stopping(make_rig: MakeRig) -> None:
    rig = make_rig()
    begin(rig, random_bytes(100))
    rig.tunnel.wait_for_lines("handshake failed")
    rig.tunnel.terminate()
    assert rig.tunnel.wait(3.0) == 0
