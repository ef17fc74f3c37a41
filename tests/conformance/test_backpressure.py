"""One side that does not read: its sender stalls, memory does not grow, nothing else suffers."""

from __future__ import annotations

import socket
import time

import pytest

from tests.conformance.conftest import MakeRig
from tests.harness.rig import SERVE, Rig
from tests.harness.stream import CHUNK, Stream, Task, exchange, pattern, send_and_finish, sha256
from tests.harness.tree import cpu_seconds, memory

MB = 1_000_000
OFFERED = 1000 * MB
KERNEL_AT_MOST = 100 * MB  # what the sockets of one connection may hold between them
GROWTH_AT_MOST = 8 * MB  # of the tree's own memory: one buffer each way, and Python's slack
SMALL = 8192  # SO_RCVBUF of the side that does not read
CLOSE = 7  # tcp_info.tcpi_state: the FIN of this end, the last of both, has been acknowledged
QUIET = 0.2  # seconds without progress that count as a stall


@pytest.mark.parametrize("who", ["client", "target"])
@pytest.mark.costly
def test_side_that_never_reads_stalls_its_sender_in_bounded_memory(make_rig: MakeRig, who: str) -> None:
    rig = make_rig(far_buffer=SMALL if who == "target" else 0)
    near, far = rig.open(receive_buffer=SMALL if who == "client" else 0)
    stalled, sender = (near, far) if who == "client" else (far, near)
    exchanged_before(near, far)
    before = memory(rig.pid)
    block = pattern(CHUNK)
    pushed = sender.push(block, OFFERED, QUIET)
    assert pushed < KERNEL_AT_MOST, "the sender never stalled"
    assert memory(rig.pid) - before < GROWTH_AT_MOST
    rig.idles(0.15)

    other_way = pattern(MB, seed=2)
    sending = Task(lambda: stalled.send(other_way))
    assert sha256(sender.receive_exactly(MB)) == sha256(other_way), "the other direction works meanwhile"
    sending.result()

    def finish() -> None:
        sender.flush()
        sender.finish()

    finishing = Task(finish)
    received = stalled.receive_all()
    finishing.result()
    assert received == block * (pushed // CHUNK), "what was stalled arrives in the end, and exactly"
    stalled.finish()
    assert sender.receive_all() == b""
    rig.is_healthy()


def exchanged_before(near: Stream, far: Stream) -> None:
    """Lets the buffers of both directions grow to what a transfer needs."""
    up, down = pattern(3 * MB, 3), pattern(3 * MB, 4)
    sending = [Task(lambda: near.send(up)), Task(lambda: far.send(down))]
    reading = Task(lambda: near.receive_exactly(len(down)))
    assert far.receive_exactly(len(up)) == up
    assert reading.result() == down
    for task in sending:
        task.result()


@pytest.mark.two_clients
@pytest.mark.costly
def test_stalled_client_holds_up_nobody_else(rig: Rig) -> None:
    near, far = rig.open(receive_buffer=SMALL)
    far.push(pattern(CHUNK), OFFERED, 0.1)
    for _ in range(3):
        rig.transfer(within=1.0)
    near.close()


@pytest.mark.parametrize("who", ["client", "target"])
@pytest.mark.costly
def test_last_bytes_behind_a_stalled_reader_cost_no_cpu(make_rig: MakeRig, who: str) -> None:
    """Both FINs have come, bytes are still undelivered: poll would report POLLHUP for ever."""
    rig = make_rig(far_buffer=SMALL if who == "target" else 0)
    near, far = rig.open(receive_buffer=SMALL if who == "client" else 0)
    reader, sender = (near, far) if who == "client" else (far, near)
    reader.finish()
    assert sender.receive_all() == b""
    block = pattern(CHUNK)
    pushed = sender.push(block, OFFERED, QUIET)

    def finish() -> None:
        sender.flush()
        sender.finish()

    finishing = Task(finish)
    received = bytearray()
    for _ in range(100_000):  # until the FIN is in the server's hands, and some of the data still is too
        if sender.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == CLOSE:
            break
        received += reader.receive()
        assert len(received) < pushed, "everything was delivered before the FIN arrived"
    finishing.result()
    before = cpu_seconds(rig.pid)
    time.sleep(0.25)  # nobody reads, so nothing may happen
    used = cpu_seconds(rig.pid) - before
    received += reader.receive_all()
    assert bytes(received) == block * (pushed // CHUNK)
    assert used < 0.07, f"{used:.2f} s of CPU in 0.25 s of waiting"
    rig.is_healthy()


@pytest.mark.two_clients
@pytest.mark.ends(SERVE)
def test_many_stalled_clients_in_bounded_memory(make_rig: MakeRig) -> None:
    rig = make_rig(workers=8)
    pairs = [rig.open(receive_buffer=SMALL) for _ in range(6)]
    before = memory(rig.pid)
    for _, far in pairs:
        far.push(pattern(CHUNK), OFFERED, 0.05)
    grown = memory(rig.pid) - before
    assert grown < len(pairs) * 2 * MB, f"{grown / MB / len(pairs):.1f} MB for each stalled client"
    rig.is_healthy()


def test_slow_reader_gets_everything(rig: Rig) -> None:
    near, far = rig.open(receive_buffer=SMALL)
    content = pattern(2 * MB)
    sending = Task(lambda: send_and_finish(far, content))
    received = bytearray()
    while part := near.receive():
        received += part
        if len(received) % 7 == 0:
            time.sleep(0.001)  # the slowness is the subject
    assert bytes(received) == content
    sending.result()


@pytest.mark.costly
def test_both_sides_send_much_before_they_read(rig: Rig) -> None:
    near, far = rig.open()
    block = pattern(CHUNK)
    up, down = near.push(block, OFFERED, 0.1), far.push(block, OFFERED, 0.1)
    sending = [Task(near.flush), Task(far.flush)]
    reading = Task(lambda: near.receive_exactly(down))
    assert far.receive_exactly(up) == block * (up // CHUNK)
    assert reading.result() == block * (down // CHUNK)
    for task in sending:
        task.result()
    exchange(near, far, 1000)
