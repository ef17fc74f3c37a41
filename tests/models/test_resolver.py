"""Names for loops: what happens when there are fewer threads than wanted, or none."""

from __future__ import annotations

import _thread
import select
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from models._resolver import THREADS, Found, Resolver
from models._server import Server
from tunnel.address import Address
from tunnel.dial import Dial
from tunnel.log import describe

PATIENCE = 10.0  # seconds for what takes milliseconds
NAME = Address("localhost", 80)


class Loop:
    """Watches one descriptor."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}
        self.found: list[Found] = []

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self.watched[fd] = callback

    def run(self) -> None:
        """Until an answer has come."""
        (fd,) = self.watched
        assert select.select([fd], [], [], PATIENCE)[0]
        self.watched[fd]()


class Threads:
    """`_thread.start_new_thread`, which succeeds as often as it may."""

    def __init__(self) -> None:
        self.may_start = 0
        self.started = 0

    def start(self, work: Callable[[], None], arguments: tuple[()]) -> int:
        if self.started == self.may_start:
            raise RuntimeError("can't start new thread")
        self.started += 1
        return START(work, arguments)


START = _thread.start_new_thread


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    threads = Threads()
    monkeypatch.setattr("models._resolver._thread.start_new_thread", threads.start)
    return threads


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def resolver(loop: Loop) -> Resolver:
    return Resolver(cast("Server", SimpleNamespace(service=SimpleNamespace(dial=Dial()))), loop.watch)


def test_without_any_thread_one_name_fails_and_the_next_is_looked_up(
    resolver: Resolver, loop: Loop, threads: Threads
) -> None:
    for _ in range(3):
        resolver.resolve(NAME, loop.found.append)
    assert len(loop.found) == 3
    for found in loop.found:
        assert isinstance(found, OSError)
        assert describe(found) == "can't start new thread"
    threads.may_start = 1
    resolver.resolve(NAME, loop.found.append)
    loop.run()
    assert isinstance(loop.found[3], list)
    assert loop.found[3]


def test_one_thread_is_enough_and_the_others_come_with_later_names(
    resolver: Resolver, loop: Loop, threads: Threads
) -> None:
    for may_start in (1, 2, 100):
        threads.may_start = may_start
        resolver.resolve(NAME, loop.found.append)
        loop.run()
        assert isinstance(loop.found[-1], list)
    assert threads.started == THREADS
