"""The table of places: what is taken, by whom, and what is free again. From outside: tests/conformance."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from models._limits import Full, Limits, Refused, Table, read_counts, source_of
from models._server import WAKES, Accept, Server
from models._stop import Renewal, Stop
from models._threads import ClientThreads
from models.sigio import accept_all

CHILDREN, ROUNDS = 4, 3000


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def counts(limits: Limits) -> tuple[int, int]:
    assert limits._table
    return read_counts(limits._table._memory)


def test_without_limits_nothing_is_shared_and_every_place_is_nowhere() -> None:
    limits = Limits()
    assert not limits.on
    assert limits._table is None
    place = limits.claim(5)
    place.keep().leave()
    place.leave()
    limits.bury(os.getpid())


def test_total_is_what_is_open_and_not_what_was(listener: socket.socket) -> None:
    limits = Limits(total=2)
    with socket.create_connection(listener.getsockname()), socket.create_connection(listener.getsockname()):
        accepted = [limits.accept(listener) for _ in range(2)]
        with pytest.raises(Full):
            limits.accept(listener)
        places = [limits.claim(sock.fileno()) for sock in accepted]
        assert counts(limits) == (2, 0)
        kept = places[0].keep()
        places[0].leave()
        assert counts(limits) == (2, 0), "whoever has passed its place on gives nothing back"
        kept.leave()
        kept.leave()
        assert counts(limits) == (1, 0)
        with socket.create_connection(listener.getsockname()):
            accepted.append(limits.accept(listener))
        for sock in accepted:
            sock.close()


def test_accept_that_fails_gives_its_place_back(listener: socket.socket) -> None:
    limits = Limits(total=1)
    listener.setblocking(False)
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            limits.accept(listener)


def crowd_of(listener: socket.socket, *hosts: int) -> list[socket.socket]:
    return [socket.create_connection(listener.getsockname(), 5, (f"127.0.0.{n}", 0)) for n in hosts]


def test_after_each_source_that_is_refused_the_caller_decides_whether_to_go_on(
    listener: socket.socket,
) -> None:
    """It may have to give a sign of life, or to stop; who is refused may come back as fast as it can."""
    limits = Limits(per_source=1)
    listener.setblocking(False)
    crowd = crowd_of(listener, 1, 1, 1, 2)
    accepted = [limits.accept(listener)]
    for _ in range(2):
        with pytest.raises(Refused):
            limits.accept(listener)
    accepted.append(limits.accept(listener))
    assert [sock.getpeername()[0] for sock in accepted] == ["127.0.0.1", "127.0.0.2"]
    assert counts(limits) == (2, 2)
    assert [sock.recv(1) for sock in crowd[1:3]] == [b"", b""], "closed at once"
    for sock in (*crowd, *accepted):
        sock.close()


class Threads:
    """In the place of sigio's."""

    def __init__(self) -> None:
        self.started: list[socket.socket] = []

    def start(self, accepted: socket.socket) -> None:
        self.started.append(accepted)


def test_sigio_forgets_nobody_who_waits_behind_a_source_that_is_refused(listener: socket.socket) -> None:
    """No other signal comes for who is there already. In between it has a moment for its other duties."""
    stop = Stop([listener], 1.0, Renewal(lambda: True, lambda: None))
    server = cast("Server", SimpleNamespace(stop=stop, accept=Accept([listener], stop, Limits(per_source=1))))
    listener.setblocking(False)
    threads = Threads()
    crowd = crowd_of(listener, 1, 1, 2, 2, 3)
    pauses = [accept_all(server, listener, cast("ClientThreads", threads)) for _ in range(3)]
    assert pauses == [0.0, 0.0, WAKES]
    assert [sock.getpeername()[0] for sock in threads.started] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    for sock in (*crowd, *threads.started):
        sock.close()


def test_limits_are_on_when_there_is_a_table_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a reload; other threads accept meanwhile."""
    limits, seen = Limits(), []

    class Late(Table):
        def __init__(self) -> None:
            seen.append(limits.on)
            super().__init__()

    monkeypatch.setattr("models._limits.Table", Late)
    limits.change(5, None)
    assert (seen, limits.on) == ([False], True)


def test_what_a_process_held_is_free_when_it_is_buried() -> None:
    table = Table()
    mine = table.take(10)
    pid = os.fork()
    if pid == 0:
        assert table.take(10) is not None
        assert table.take(10) is not None
        os._exit(0)
    os.waitpid(pid, 0)
    assert [table.take(4), table.take(4)] == [3, None]
    table.free_all_of(pid)
    assert [table.take(4), table.take(4), table.take(4)] == [1, 2, None]
    assert mine == 0


def test_a_connection_that_could_not_be_passed_on_keeps_its_place(listener: socket.socket) -> None:
    """It is counted until it ends, and not until the child ends that was too late for it."""
    limits, leaving = Limits(total=5), 1 << 21
    with socket.create_connection(listener.getsockname()):
        accepted = limits.accept(listener)
        with pytest.raises(BrokenPipeError), limits.passing(accepted.fileno(), leaving):
            raise BrokenPipeError
        limits.bury(leaving)
        assert counts(limits) == (1, 0)
        place = limits.claim(accepted.fileno())
        accepted.close()
        place.leave()
        assert counts(limits) == (0, 0)


def test_of_processes_that_race_for_the_last_place_one_has_it() -> None:
    """Each takes and frees as fast as it can, and looks whether it has it alone."""
    table = Table()
    pids = []
    for _ in range(CHILDREN):
        pid = os.fork()
        if pid == 0:
            code = 0
            for _ in range(ROUNDS):
                if (index := table.take(1)) is not None:
                    alone = bytes(table._taken[: CHILDREN + 1]).count(1) == 1
                    if not alone or table._owners[index] != os.getpid():
                        code = 1
                    table.free(index)
            os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * CHILDREN
    assert [table.take(1), table.take(1)] == [0, None]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_source_is_an_ipv4_address_or_an_ipv6_network(one: str, other: str, same: bool) -> None:
    assert (source_of(one) == source_of(other)) is same
    assert 0 < source_of(one) < 1 << 64
