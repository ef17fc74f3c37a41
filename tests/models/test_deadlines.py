"""Deadlines: what expires, in which order, and what the clock says of it."""

from __future__ import annotations

from math import inf

import pytest

from models._deadlines import Clock, Deadlines

LONG, SHORT = 60.0, 10.0


class Time:
    """`time.monotonic`, moved by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr("models._deadlines.time", time)
    return time


class Log:
    """Two kinds of deadlines on one clock, and what has expired."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.expired: list[str] = []
        self.long = Deadlines(self.clock, LONG, self.expired.append)
        self.short = Deadlines(self.clock, SHORT, self.expired.append)


def test_what_is_due_expires_and_nothing_else(time: Time) -> None:
    log = Log()
    log.long.set("a")
    log.short.set("b")
    time.now += 1
    log.short.set("c")
    for seconds, expired in [(8.9, []), (0.2, ["b"]), (1.0, ["b", "c"]), (48.0, ["b", "c"])]:
        time.now += seconds
        log.clock.run()
        assert log.expired == expired
    time.now += 1
    log.clock.run()
    assert log.expired == ["b", "c", "a"]
    assert log.clock.due == inf


def test_cancelled_and_set_again(time: Time) -> None:
    log = Log()
    for client in "abc":
        log.short.set(client)
    log.short.cancel("b")
    log.short.cancel("never set")
    time.now += SHORT - 1
    log.short.set("a")
    time.now += 1
    log.clock.run()
    assert log.expired == ["c"]
    time.now += SHORT - 1
    log.clock.run()
    assert log.expired == ["c", "a"]


def test_one_that_expires_may_cancel_the_next_and_set_itself_again(time: Time) -> None:
    clock, expired = Clock(), []

    def on_expired(client: str) -> None:
        expired.append(client)
        deadlines.cancel("b")
        deadlines.set(client)

    deadlines = Deadlines(clock, SHORT, on_expired)
    deadlines.set("a")
    deadlines.set("b")
    for count in (1, 2):
        time.now += SHORT
        clock.run()
        assert expired == ["a"] * count


def test_seconds_left_are_those_of_the_first(time: Time) -> None:
    log = Log()
    assert log.clock.seconds_left() == inf
    log.long.set("a")
    log.short.set("b")
    assert log.clock.seconds_left() == SHORT
    time.now += SHORT + 1
    log.clock.run()
    assert log.expired == ["b"]
    assert log.clock.seconds_left() == LONG - SHORT - 1


def test_what_was_due_before_it_was_looked_at_leaves_no_time(time: Time) -> None:
    log = Log()
    log.short.set("a")
    time.now += SHORT + 1
    log.clock.now = time.now
    assert log.clock.seconds_left() == 0


def test_cancelled_deadline_wakes_the_loop_once_at_most(time: Time) -> None:
    log = Log()
    log.short.set("a")
    log.short.cancel("a")
    assert log.clock.seconds_left() == SHORT
    time.now += SHORT
    log.clock.run()
    assert log.clock.seconds_left() == inf


def test_shorter_deadlines_do_not_wait_for_longer_ones_from_before(time: Time) -> None:
    """A reload (SIGHUP) made them shorter: what was set before keeps its time, and stands in nobody's way."""
    log = Log()
    log.long.set("old")
    log.long.set("old, cancelled")
    log.long.length = SHORT
    log.long.set("new")
    log.long.cancel("old, cancelled")
    assert log.clock.seconds_left() == SHORT
    for now, expired in [(SHORT, ["new"]), (LONG - 1, ["new"]), (LONG, ["new", "old"])]:
        time.now = 1000.0 + now
        log.clock.run()
        assert log.expired == expired
    assert log.clock.due == inf


def test_a_client_from_before_that_is_set_again_has_the_new_length(time: Time) -> None:
    log = Log()
    log.long.set("a")
    log.long.length = SHORT
    log.long.set("b")
    time.now += 1
    log.long.set("a")
    time.now += SHORT
    log.clock.run()
    assert log.expired == ["b", "a"]
    assert log.clock.due == inf


@pytest.mark.parametrize("lengths", [(LONG, SHORT, 1.0), (LONG, 1.0, SHORT), (SHORT, LONG, 1.0)])
def test_lengths_that_change_twice(time: Time, lengths: tuple[float, ...]) -> None:
    log = Log()
    for length in lengths:
        log.long.length = length
        log.long.set(f"{length:g}")
    for number, length in enumerate(sorted(lengths), 1):
        time.now = 1000.0 + length - 0.1
        log.clock.run()
        assert len(log.expired) == number - 1
        time.now = 1000.0 + length
        log.clock.run()
        assert log.expired[-1] == f"{length:g}"
    assert log.clock.due == inf
