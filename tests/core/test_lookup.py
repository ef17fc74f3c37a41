"""Names for who blocks: an answer in time, or none, and threads that are left behind have a bound."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable

import pytest

from tunnel import lookup
from tunnel.address import Address
from tunnel.dial import Dial
from tunnel.lookup import Lookups

PATIENCE = 10.0  # seconds for what takes milliseconds
SOON = 0.05  # seconds that nobody answers in
NAME = Address("name.test", 80)


def no_sign() -> None:
    """Of life."""


class NameServer:
    """Answers when it may."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.asked = 0

    def addresses(self, target: Address) -> str:
        self.asked += 1
        assert self.may_answer.wait(PATIENCE)
        return target.host


def test_what_is_found_is_returned() -> None:
    assert Lookups(lambda target: target.port).find(NAME, PATIENCE, no_sign) == 80


@pytest.mark.parametrize("error", [OSError(5, "no such name"), AssertionError("a mistake of ours")])
def test_what_is_raised_is_raised_again(error: Exception) -> None:
    def addresses(_: Address) -> None:
        raise error

    lookups = Lookups(addresses)
    for _ in range(lookup.MOST + 1):
        with pytest.raises(type(error), match=r"no such name|a mistake of ours"):
            lookups.find(NAME, PATIENCE, no_sign)


def test_what_is_raised_leaves_no_cycle() -> None:
    def addresses(_: Address) -> None:
        raise OSError(5, "no such name")

    lookups = Lookups(addresses)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with contextlib.suppress(OSError):
                lookups.find(NAME, PATIENCE, no_sign)
        assert not gc.collect()
    finally:
        gc.enable()


def test_time_that_is_over_is_an_oserror_and_there_was_a_sign_of_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup, "BEATS", SOON / 5)
    server, signs = NameServer(), []
    with pytest.raises(TimeoutError, match="Connection timed out"):
        Lookups(server.addresses).find(NAME, SOON, lambda: signs.append(1))
    assert signs
    server.may_answer.set()


def test_threads_that_are_left_behind_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "MOST", 3)
    server = NameServer()
    lookups = Lookups(server.addresses)
    for _ in range(6):
        with pytest.raises(TimeoutError):
            lookups.find(NAME, SOON, no_sign)
    assert server.asked == 3
    answered: list[str] = []
    last = threading.Thread(target=lambda: answered.append(lookups.find(NAME, PATIENCE, no_sign)))
    last.start()
    server.may_answer.set()
    last.join(PATIENCE)
    assert answered == [NAME.host]
    assert server.asked == 4


def test_without_a_thread_it_is_an_oserror_and_the_next_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    lookups = Lookups(lambda target: target.port)
    with monkeypatch.context() as patch:
        patch.setattr("tunnel.lookup._thread.start_new_thread", refuse)
        for _ in range(lookup.MOST + 1):
            with pytest.raises(OSError, match="can't start new thread"):
                lookups.find(NAME, SOON, no_sign)
    assert lookups.find(NAME, PATIENCE, no_sign) == 80


@pytest.mark.parametrize("place", [("127.0.0.1", 0), ("::1", 0)])
def test_a_literal_takes_no_thread(monkeypatch: pytest.MonkeyPatch, place: tuple[str, int]) -> None:
    started: list[object] = []
    monkeypatch.setattr("_thread.start_new_thread", lambda *args: started.append(args))
    with pytest.raises(OSError, match=r"refused|Cannot assign|unreachable"):
        Dial()(Address(*place), no_sign)
    assert not started


def test_a_blocking_dial_gives_a_name_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    answer: Callable[..., list[object]] = lambda *_, **__: [may_end.wait(PATIENCE)]  # noqa: E731
    monkeypatch.setattr("socket.getaddrinfo", answer)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="Connection timed out"):
        Dial(timeout=SOON)(NAME, no_sign)
    assert SOON <= time.monotonic() - started < PATIENCE / 2
    may_end.set()
