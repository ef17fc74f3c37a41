"""--relay: each way to copy both directions, under each blocking model that can copy that way.

What the rest of this list says of a model's own way is said here, in short, of the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from models import MODELS
from tests.conformance.conftest import pool_of
from tests.harness.marks import ACCEPT_ONLY
from tests.harness.rig import LOCAL, SERVE, Rig
from tests.harness.stream import CHUNK, PATIENCE, Sealed, Task, exchange, pattern, send_and_finish, sha256
from tests.harness.tree import holdings, is_alive, members, memory, wait_until

MB = 1_000_000
WORKERS = 3
PAIRS = [(model.name, way) for model in MODELS.values() for way in model.copies if way != model.copy]


def each_of(pairs: list[tuple[str, str]]) -> pytest.MarkDecorator:
    spread = [
        pytest.param(*pair, marks=[pytest.mark.slow] if pair[0] in ACCEPT_ONLY else []) for pair in pairs
    ]
    return pytest.mark.parametrize(("name", "way"), spread)


EVERY_WAY = each_of(PAIRS)
FORKS = each_of([pair for pair in PAIRS if pair[1] == "fork"])
MakeWay = Callable[..., Rig]


@pytest.fixture
def start(name: str, way: str, tmp_path: Path) -> Iterator[MakeWay]:
    """A server of that model and way; afterwards it serves, and holds what it held."""
    made: list[Rig] = []

    def make(*arguments: str, end: str = SERVE) -> Rig:
        words = [*pool_of(name, WORKERS), "--relay", way, *arguments]
        rig = Rig(tmp_path, name, end, *words, workers=WORKERS if MODELS[name].master else 0)
        made.append(rig)
        rig.warm_up()
        return rig

    yield make
    for rig in made:
        print(rig.tunnel.log())  # shown with a failure
        try:
            if rig.tunnel.running:
                rig.is_healthy()
        finally:
            rig.close()


@EVERY_WAY
@pytest.mark.parametrize("side", [SERVE, LOCAL])
def test_transfer_both_ways_and_half_closed_in_either_order(start: MakeWay, side: str) -> None:
    rig = start(end=side)
    near, far = rig.open()
    exchange(near, far, 3 * MB)
    near.close()
    far.close()
    for client_first in (True, False):
        near, far = rig.open()
        early, late = (near, far) if client_first else (far, near)
        early.send(b"all I have")
        early.finish()
        assert late.receive_all() == b"all I have"
        sending = Task(lambda late=late: send_and_finish(late, pattern(3 * MB)))  # type: ignore[misc]
        assert sha256(early.receive_all()) == sha256(pattern(3 * MB))
        sending.result()
        near.close()
        far.close()


@EVERY_WAY
@pytest.mark.parametrize("who", ["client", "target"])
def test_reset_is_passed_on_at_once(start: MakeWay, who: str) -> None:
    rig = start()
    for half_closed in (False, True):
        near, far = rig.open()
        leaving, staying = (near, far) if who == "client" else (far, near)
        staying.send(b"ping")
        assert leaving.receive_exactly(4) == b"ping"
        leaving.send(b"pong")
        assert staying.receive_exactly(4) == b"pong"
        if half_closed:
            staying.finish()
            assert leaving.receive_all() == b""
        leaving.reset()
        assert staying.how_it_ends(1.0) == "RST"


@EVERY_WAY
@pytest.mark.parametrize("who", ["client", "target"])
def test_reset_of_a_side_that_did_not_read(start: MakeWay, who: str) -> None:
    rig = start()
    near, far = rig.open(receive_buffer=8192)
    leaving, staying = (near, far) if who == "client" else (far, near)
    leaving.send(b"part of")
    assert staying.receive_exactly(7) == b"part of"
    staying.push(bytes(250_000), 1000 * MB, 0.1)
    leaving.reset()
    assert staying.how_it_ends(1.0) == "RST"


@EVERY_WAY
@pytest.mark.parametrize("side", [SERVE, LOCAL])
def test_forged_record_resets_both_sides_and_says_why(start: MakeWay, side: str) -> None:
    """At the client's end it comes from the target, in the direction that a second process copies."""
    rig = start(end=side)
    near, far = rig.open()
    sealed, plain = (near, far) if side == SERVE else (far, near)
    assert isinstance(sealed, Sealed)
    sealed.send(b"whole")
    assert plain.receive_exactly(5) == b"whole"
    forged = bytearray(sealed.outgoing.seal(b"forged" * 1000))
    forged[100] ^= 1
    with contextlib.suppress(OSError):
        sealed.sock.sendall(forged)
    assert plain.ends_after_data() == (b"", "RST")
    assert sealed.ends_after_data()[0] == b""
    rig.tunnel.wait_for_lines("cut: wrong tag")


@EVERY_WAY
@pytest.mark.parametrize("who", ["client", "target"])
def test_side_that_never_reads_stalls_its_sender_in_bounded_memory(start: MakeWay, who: str) -> None:
    rig = start()
    near, far = rig.open(receive_buffer=8192)
    stalled, sender = (near, far) if who == "client" else (far, near)
    block = pattern(CHUNK)
    before = memory(rig.pid)
    pushed = sender.push(block, 1000 * MB, 0.2)
    assert pushed < 100 * MB, "the sender never stalled"
    assert memory(rig.pid) - before < 8 * MB
    rig.idles(0.15)
    other_way = pattern(MB, seed=2)
    sending = Task(lambda: stalled.send(other_way))
    assert sha256(sender.receive_exactly(MB)) == sha256(other_way), "the other direction works meanwhile"
    sending.result()

    def finish() -> None:
        sender.flush()
        sender.finish()

    finishing = Task(finish)
    assert stalled.receive_all() == block * (pushed // CHUNK)
    finishing.result()


@EVERY_WAY
def test_silent_connection_is_cut_and_one_that_moves_in_one_direction_is_not(start: MakeWay) -> None:
    rig = start("--timeout", "0.4")
    for from_client in (True, False):
        near, far = rig.open()
        sender, receiver = (near, far) if from_client else (far, near)
        for number in range(9):
            sender.send(bytes([number]))
            assert receiver.receive_exactly(1) == bytes([number])
            time.sleep(0.1)  # the rhythm is the subject
        receiver.send(b"still here")
        assert sender.receive_exactly(10) == b"still here"
        assert near.how_it_ends(PATIENCE) in ("FIN", "RST")
        assert far.how_it_ends(PATIENCE) in ("FIN", "RST")
        near.close()
        far.close()
    assert len(rig.tunnel.wait_for_lines("cut: nothing moved", 2)) == 2, "one line a client"


@FORKS
def test_second_process_leaves_no_zombie_and_no_descriptor(start: MakeWay) -> None:
    rig = start()
    for _ in range(30):
        rig.transfer(100)
    rig.settles()
    near, far = rig.open()
    exchange(near, far, 1000)
    wait_until(lambda: holdings(rig.pid).zombies == 0, 1.0, "it was waited for")


def copiers(rig: Rig, far_port: int) -> list[psutil.Process]:
    """The processes that hold the connection to the target, the elder first."""
    found = [
        process
        for process in members(rig.pid)
        if any(c.raddr and c.raddr.port == far_port for c in process.net_connections("tcp"))
    ]
    return sorted(found, key=lambda process: process.create_time())


@FORKS
@pytest.mark.parametrize("victim", ["parent", "child"])
def test_neither_process_outlives_the_other(start: MakeWay, victim: str) -> None:
    rig = start()
    near, far = rig.open()
    near.send(b"ping")
    assert far.receive_exactly(4) == b"ping"
    wait_until(lambda: len(copiers(rig, rig.far_place.port)) == 2, 1.0, "two processes copy")
    parent, child = copiers(rig, rig.far_place.port)
    (parent if victim == "parent" else child).kill()
    assert near.how_it_ends(1.0) in ("FIN", "RST")
    assert far.how_it_ends(1.0) in ("FIN", "RST")
    gone = [child, parent] if victim == "parent" else [child]
    wait_until(lambda: not any(is_alive(process.pid) for process in gone), 1.0, "both have ended")


@FORKS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_end_of_the_server_is_the_end_of_both(start: MakeWay, number: signal.Signals) -> None:
    rig = start("--grace", "0.4")
    near, far = rig.open()
    near.send(b"ping")
    assert far.receive_exactly(4) == b"ping"
    wait_until(lambda: len(copiers(rig, rig.far_place.port)) == 2, 1.0, "two processes copy")
    both = copiers(rig, rig.far_place.port)
    os.kill(rig.pid, number)
    rig.tunnel.wait(2.5)
    wait_until(lambda: not any(is_alive(process.pid) for process in both), 1.0, "both have ended")
