"""The drain itself: its deadline, its cap, the places that it gives back. From outside: tests/conformance."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import cast

import pytest

from tests.harness.tree import wait_until
from tunnel.drain import Drain

SOON = 0.2  # seconds


class Place:
    """Counts who has it."""

    def __init__(self) -> None:
        self.kept = self.left = 0

    def keep(self) -> Place:
        self.kept += 1
        return self

    def leave(self) -> None:
        self.left += 1


class Clients:
    """Connections to a listener of ours, from any address of this machine."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sockets: list[socket.socket] = []

    def connect(
        self, drain: Drain, host: str = "127.0.0.1", seconds: float = 60.0
    ) -> tuple[socket.socket, Place]:
        """A client that the drain has; what was accepted is closed here, as a worker does."""
        near = socket.create_connection(self.listener.getsockname(), 5.0, (host, 0))
        self.sockets.append(near)
        place = Place()
        with self.listener.accept()[0] as accepted:
            drain.add(accepted, time.monotonic() + seconds, place)
        return near, place


@pytest.fixture
def clients() -> Iterator[Clients]:
    clients = Clients()
    yield clients
    for sock in (clients.listener, *clients.sockets):
        sock.close()


def is_open(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return bool(sock.recv(1))
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(5.0)


def test_each_is_closed_by_fin_at_its_own_deadline_whatever_it_sends(clients: Clients) -> None:
    drain = Drain()
    started = time.monotonic()
    late, _ = clients.connect(drain, seconds=3 * SOON)
    near, place = clients.connect(drain, seconds=SOON)  # the one that is added later ends sooner
    near.sendall(bytes(200_000))
    assert near.recv(1) == b""
    assert SOON <= time.monotonic() - started < 3 * SOON
    assert place.left == 1
    assert is_open(late)
    assert late.recv(1) == b""
    assert time.monotonic() - started >= 3 * SOON
    assert len(drain) == 0


def test_who_was_told_why_has_so_long_to_read_it(clients: Clients) -> None:
    drain = Drain(longest=SOON)
    near, place = clients.connect(drain)
    assert near.recv(1) == b""
    assert place.left == 1


def test_whoever_ends_first_is_let_go_at_once(clients: Clients) -> None:
    drain = Drain()
    near, place = clients.connect(drain)
    near.sendall(b"late data")
    near.shutdown(socket.SHUT_WR)
    assert near.recv(1) == b""
    wait_until(lambda: (place.kept, place.left, len(drain)) == (1, 1, 0), 2.0, "its place is given back")


class Forgetful:
    """A poller that once has no memory for its list."""

    def __init__(self) -> None:
        self._poller = select.poll()
        self.register, self.unregister = self._poller.register, self._poller.unregister
        self.failed = False

    def poll(self, wait: float | None) -> list[tuple[int, int]]:
        if not self.failed:
            self.failed = True
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return self._poller.poll(wait)


def test_without_memory_for_a_moment_all_are_drained_all_the_same(clients: Clients) -> None:
    drain = Drain()
    poller = Forgetful()
    drain._poller = cast("select.poll", poller)
    near, place = clients.connect(drain, seconds=SOON)
    assert near.recv(1) == b""
    assert poller.failed
    assert place.left == 1


def test_beyond_the_cap_the_source_that_has_most_loses_what_is_next_to_its_end(clients: Clients) -> None:
    drain = Drain(capacity=5)
    other, _ = clients.connect(drain, "127.0.0.9", seconds=20)
    many = [clients.connect(drain, seconds=seconds) for seconds in (50, 30, 40, 60)]
    for loser in (1, 2, 0):
        newcomer, _ = clients.connect(drain)
        near, place = many[loser]
        assert near.recv(1) == b"", "FIN, as at its deadline"
        assert place.left == 1
        assert is_open(newcomer)
        assert len(drain) == 5
    assert is_open(other), "others lose nothing by it"


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


@pytest.mark.parametrize("before", [0, 1])
def test_without_a_descriptor_nobody_is_closed_before_its_time(clients: Clients, before: int) -> None:
    """Nor the first one that fails: there would be a difference for who has seen to it that there is none."""
    drain = Drain()
    nears = [clients.connect(drain)[0] for _ in range(before)]
    nears.append(socket.create_connection(clients.listener.getsockname(), 5.0))
    clients.sockets.append(nears[-1])
    accepted, place = clients.listener.accept()[0], Place()
    with no_descriptor_left():
        drain.add(accepted, time.monotonic() + SOON, place)
    accepted.close()
    assert [is_open(near) for near in nears] == [True] * len(nears)
    assert nears[-1].recv(1) == b""
    assert (place.kept, place.left) == (1, 1)


class Stuck:
    """A poller that has not had its turn for a while."""

    def __init__(self) -> None:
        self._poller = select.poll()
        self.register, self.unregister = self._poller.register, self._poller.unregister
        self.turn = threading.Event()

    def poll(self, wait: float | None) -> list[tuple[int, int]]:
        self.turn.wait()
        return self._poller.poll(wait)


def test_however_many_come_at_once_none_waits_for_the_thread_that_waits_for_its_lock() -> None:
    """A socket pair has room for some 280 bytes, and nobody could make any while `add` waits for some."""
    drain, poller = Drain(), Stuck()
    drain._poller = cast("select.poll", poller)
    ends = [socket.socketpair() for _ in range(300)]
    for near, _ in ends:
        near.close()

    def add_all() -> None:
        for _, accepted in ends:
            drain.add(accepted, time.monotonic() + 60, Place())

    worker = threading.Thread(target=add_all, daemon=True)
    worker.start()
    worker.join(5.0)
    assert not worker.is_alive(), f"stuck after {len(drain)}"
    poller.turn.set()
    wait_until(lambda: len(drain) == 0, 2.0, "all have ended, and it has seen it")


def test_place_of_a_connection_that_cannot_be_drained_stays_with_its_worker() -> None:
    drain, place = Drain(), Place()
    gone = socket.socket()
    gone.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        drain.add(gone, time.monotonic() + 60, place)
    assert (place.kept, place.left) == (0, 0)


def test_connection_that_no_thread_can_drain_stays_with_its_worker(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    drain = Drain()
    monkeypatch.setattr("_thread.start_new_thread", none_left)
    near = socket.create_connection(clients.listener.getsockname(), 5.0)
    clients.sockets.append(near)
    accepted, place = clients.listener.accept()[0], Place()
    with accepted:
        with pytest.raises(OSError, match="can't start new thread"):
            drain.add(accepted, time.monotonic() + 60, place)
        assert is_open(accepted)
    assert (len(drain), place.kept, place.left) == (0, 0, 0)
    monkeypatch.undo()
    near, place = clients.connect(drain, seconds=SOON)
    assert near.recv(1) == b"", "the next one finds a thread"


def test_what_is_built_anew_after_a_fork_leaves_no_descriptor_behind() -> None:
    before = os.listdir("/proc/self/fd")
    Drain().close()
    Drain(in_thread=False).close()
    assert os.listdir("/proc/self/fd") == before


def test_process_that_has_nothing_else_to_do_drains_by_itself(clients: Clients) -> None:
    drain = Drain(in_thread=False)
    near, place = clients.connect(drain, seconds=SOON)
    near.sendall(b"late data")
    drain.finish()
    assert near.recv(1) == b""
    assert (len(drain), place.left) == (0, 1)
