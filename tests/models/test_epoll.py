"""The loop of models/epoll without a tunnel: each test is one sentence about libuv's loop."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterator

import pytest

if not hasattr(select, "epoll"):
    pytest.skip("epoll is Linux's own", allow_module_level=True)

from models._deadlines import Deadlines
from models.epoll.core import Loop, Watcher
from models.epoll.linux import POLLIN, POLLOUT, io_poll
from models.epoll.stream import EOF, READS, Stream
from models.epoll.tcp import Listener, tcp_connect
from tests.harness.places import closed_place
from tunnel.dial import Dial

Pair = tuple[socket.socket, socket.socket]


class Recorder:
    """An epoll that writes down what it is told."""

    def __init__(self, backend: select.epoll) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.poll = backend.poll
        self._backend = backend

    def register(self, fd: int, events: int) -> None:
        self.calls.append(("ADD", fd, events))
        self._backend.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self.calls.append(("MOD", fd, events))
        self._backend.modify(fd, events)

    def unregister(self, fd: int) -> None:
        self.calls.append(("DEL", fd, 0))
        self._backend.unregister(fd)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    backend = loop.backend
    loop.backend = Recorder(backend)  # type: ignore[assignment]
    yield loop
    backend.close()
    os.close(loop.emfile_fd)


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def calls(loop: Loop) -> list[tuple[str, int, int]]:
    """What the kernel has been told since the last look."""
    assert isinstance(loop.backend, Recorder)
    said, loop.backend.calls = loop.backend.calls, []
    return said


class Log(list[object]):
    """Callbacks that write down what they get."""

    def watcher(self, w: Watcher, events: int) -> None:
        self.append((w.fd, events))

    def status(self, status: int) -> None:
        self.append(status)


def turn(loop: Loop) -> None:
    """One round of `run`, without waiting."""
    loop.run_pending()
    io_poll(loop, 0)


# watchers


def test_start_and_stop_make_no_system_call_until_the_poll(loop: Loop, pair: Pair) -> None:
    fd = pair[0].fileno()
    w = Watcher(Log().watcher, fd)
    loop.io_start(w, POLLIN)
    loop.io_start(w, POLLOUT)
    loop.io_stop(w, POLLOUT)
    assert calls(loop) == []
    turn(loop)
    assert calls(loop) == [("ADD", fd, POLLIN)]
    loop.io_start(w, POLLOUT)
    turn(loop)
    assert calls(loop) == [("MOD", fd, POLLIN | POLLOUT)]


def test_started_and_stopped_again_in_one_round_costs_nothing(loop: Loop, pair: Pair) -> None:
    w = Watcher(Log().watcher, pair[0].fileno())
    loop.io_start(w, POLLIN)
    turn(loop)
    calls(loop)
    loop.io_start(w, POLLOUT)
    loop.io_stop(w, POLLOUT)
    turn(loop)
    assert calls(loop) == []


def test_stopped_watcher_leaves_the_kernel_at_its_next_event(loop: Loop, pair: Pair) -> None:
    log, fd = Log(), pair[0].fileno()
    w = Watcher(log.watcher, fd)
    loop.io_start(w, POLLIN)
    turn(loop)
    loop.io_stop(w, POLLIN)
    turn(loop)
    assert calls(loop) == [("ADD", fd, POLLIN)]
    pair[1].send(b"x")
    turn(loop)
    turn(loop)
    assert calls(loop) == [("DEL", fd, 0)]
    assert log == []


def test_stopped_and_started_again_before_an_event(loop: Loop, pair: Pair) -> None:
    log, fd = Log(), pair[0].fileno()
    w = Watcher(log.watcher, fd)
    loop.io_start(w, POLLIN)
    turn(loop)
    loop.io_stop(w, POLLIN)
    turn(loop)
    calls(loop)
    loop.io_start(w, POLLIN)
    pair[1].send(b"x")
    turn(loop)
    assert log == [(fd, POLLIN)]
    assert calls(loop) == [], "the kernel had never been told"


def test_stopped_and_started_again_after_an_event(loop: Loop, pair: Pair) -> None:
    log, fd = Log(), pair[0].fileno()
    w = Watcher(log.watcher, fd)
    loop.io_start(w, POLLIN)
    turn(loop)
    loop.io_stop(w, POLLIN)
    pair[1].send(b"x")
    turn(loop)
    loop.io_start(w, POLLIN)
    turn(loop)
    assert log == [(fd, POLLIN)]
    assert [name for name, _, _ in calls(loop)] == ["ADD", "DEL", "ADD"]


def test_number_that_changes_hands_within_a_round_gets_no_event_of_its_past(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    streams = [Stream(loop, near) for near, _ in pairs]
    log, heirs = Log(), []

    def first_come(stream: Stream, other: Stream) -> None:
        number = other.fd
        other.close()
        heir = socket.socket()
        assert heir.fileno() == number
        heirs.append(Stream(loop, heir))
        heirs[-1].cb = log.watcher
        loop.io_start(heirs[-1], POLLIN)
        stream.read_stop()

    for stream, other in (streams, streams[::-1]):
        stream.read_start(lambda: memoryview(bytearray(1)), lambda _n, a=stream, b=other: first_come(a, b))  # type: ignore[misc]
    for _, far in pairs:
        far.send(b"x")
    turn(loop)
    assert len(heirs) == 1, "both were ready, the first one closed the second"
    assert log == []
    for stream in (*streams, *heirs):
        stream.close()
    for _, far in pairs:
        far.close()


def test_closed_stream_is_silent_although_its_socket_lives_on(loop: Loop, pair: Pair) -> None:
    near, far = pair
    stream = Stream(loop, near)
    stream.read_start(lambda: memoryview(bytearray(1)), Log().status)
    turn(loop)
    with near.dup():
        stream.close()
        far.send(b"x")
        assert loop.backend.poll(0) == []


# streams


@pytest.mark.parametrize(
    ("sent", "reads"), [(5, [5]), (8, [8, 0]), (9, [8, 1]), (8 * READS + 1, [8] * READS)]
)
def test_read_goes_on_while_buffers_are_filled_but_not_for_ever(
    loop: Loop, pair: Pair, sent: int, reads: list[int]
) -> None:
    log = Log()
    Stream(loop, pair[0]).read_start(lambda: memoryview(bytearray(8)), log.status)
    pair[1].send(bytes(sent))
    turn(loop)
    assert log == reads


def test_reader_that_stops_is_not_called_again(loop: Loop, pair: Pair) -> None:
    stream, log = Stream(loop, pair[0]), Log()

    def read_cb(n: int) -> None:
        log.status(n)
        stream.read_stop()

    stream.read_start(lambda: memoryview(bytearray(8)), read_cb)
    pair[1].send(bytes(100))
    turn(loop)
    turn(loop)
    assert log == [8]


def test_end_and_error_are_told_once(loop: Loop) -> None:
    near, far = socket.socketpair()
    log = Log()
    stream = Stream(loop, near)
    stream.read_start(lambda: memoryview(bytearray(8)), log.status)
    far.send(b"x")
    far.shutdown(socket.SHUT_WR)
    for _ in range(3):
        turn(loop)
    assert log == [1, EOF]
    stream.close()
    far.close()


def full(sock: socket.socket) -> int:
    """Sends until there is no room. Returns the bytes."""
    sock.setblocking(False)
    sent = 0
    try:
        while True:
            sent += sock.send(bytes(65536))
    except BlockingIOError:
        return sent


def read_all(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data))
    return data


def test_write_with_an_empty_queue_is_tried_at_once(loop: Loop, pair: Pair) -> None:
    log = Log()
    assert Stream(loop, pair[0]).write(b"at once", log.status)
    assert pair[1].recv(100) == b"at once"
    turn(loop)
    assert log == []
    assert calls(loop) == []


def test_writes_wait_for_room_in_order_and_the_shutdown_behind_them(loop: Loop, pair: Pair) -> None:
    near, far = pair
    stream, log = Stream(loop, near), Log()
    before = full(near)
    assert not stream.write(b"first", lambda status: log.append(("first", status)))
    read_all(far, before)  # there is room now, but nobody overtakes
    assert not stream.write(b"second", lambda status: log.append(("second", status)))
    stream.shutdown(lambda status: log.append(("shutdown", status)))
    assert stream.write_queue_size() == 11
    assert log == []
    for _ in range(3):
        turn(loop)
    assert log == [("first", 0), ("second", 0), ("shutdown", 0)]
    assert read_all(far, 11) == b"firstsecond"
    assert far.recv(1) == b""
    assert stream.pevents == 0, "POLLOUT is off, or the loop would spin"


def test_shutdown_comes_from_the_loop_and_never_from_within_the_call(loop: Loop, pair: Pair) -> None:
    log = Log()
    Stream(loop, pair[0]).shutdown(log.status)
    assert log == []
    assert loop.backend_timeout() == 0
    turn(loop)
    assert log == [0]
    assert pair[1].recv(1) == b""


def test_pending_watcher_that_is_closed_is_not_called(loop: Loop, pair: Pair) -> None:
    log = Log()
    with socket.socket() as sock:
        other = Stream(loop, sock)
        stream = Stream(loop, pair[0])
        stream.shutdown(lambda _status: other.close())
        other.shutdown(log.status)
        turn(loop)
        assert log == []


def test_write_that_waits_hears_that_the_reader_has_gone(loop: Loop) -> None:
    near, far = socket.socketpair()
    stream, log = Stream(loop, near), Log()
    full(near)
    assert not stream.write(b"never", log.status)
    far.close()
    turn(loop)
    assert len(log) == 1
    assert isinstance(log[0], int)
    assert log[0] < 0
    stream.close()


# listeners and dialling


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_one_accept_for_each_readiness(loop: Loop, listening: socket.socket) -> None:
    streams: list[Stream] = []
    listener = Listener(loop, listening, lambda it, _status: streams.append(it.accept()))
    listener.listen()
    clients = [socket.create_connection(listening.getsockname()) for _ in range(3)]
    for count in (1, 2, 3, 3):
        turn(loop)
        assert len(streams) == count
    for stream in (*streams, listener):
        stream.close()
    for client in clients:
        client.close()


def test_listener_stops_until_its_client_is_taken(loop: Loop, listening: socket.socket) -> None:
    log = Log()
    listener = Listener(loop, listening, lambda _it, status: log.append(status))
    listener.listen()
    clients = [socket.create_connection(listening.getsockname()) for _ in range(2)]
    for _ in range(4):
        turn(loop)
    assert log == [0], "the second client waits in the kernel"
    stream = listener.accept()
    turn(loop)
    assert log == [0, 0]
    for one in (stream, listener):
        one.close()
    for client in clients:
        client.close()


def test_closed_listener_is_silent_although_others_hold_it(loop: Loop, listening: socket.socket) -> None:
    place = listening.getsockname()
    with listening.dup(), socket.socket() as dead:
        listener = Listener(loop, listening, lambda _it, _status: None)
        listener.listen()
        turn(loop)
        os.dup2(dead.fileno(), listening.fileno())  # as models/_stop.py does at SIGTERM
        listener.close()
        with socket.create_connection(place):
            assert loop.backend.poll(0) == []


def test_connection_refused_is_told_by_the_callback(loop: Loop) -> None:
    log = Log()
    place = closed_place()
    stream = tcp_connect(loop, Dial(), (place.host, place.port), log.status)
    for _ in range(100):
        io_poll(loop, 0.1)
        if log:
            break
    assert log == [-errno.ECONNREFUSED]
    stream.close()


def test_loop_ends_with_its_last_handle(loop: Loop, pair: Pair) -> None:
    log = Log()
    stream = Stream(loop, pair[0])
    Deadlines(loop.timers, 10.0, log.append).set("a timer keeps no loop alive")

    def close(status: int) -> None:
        log.status(status)
        stream.close()

    stream.shutdown(close)
    loop.run()
    assert log == [0]


def test_loop_waits_for_the_next_deadline_and_no_longer(loop: Loop, pair: Pair) -> None:
    stream = Stream(loop, pair[0])
    timer = Deadlines(loop.timers, 0.02, Stream.close)
    timer.set(stream)
    started = time.monotonic()
    loop.run()
    assert 0.02 <= time.monotonic() - started < 1.0
