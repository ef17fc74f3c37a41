"""Threads that serve clients: how they end, what they show, what they own while nothing comes."""

from __future__ import annotations

import socket
import threading

import pytest

from models._bare_thread import BareThread
from models._copy import Link, copy_by_threads
from models._scoreboard import Scoreboard
from models._server import Timeouts
from models._threads import PATIENT, WAITS, switch_interval
from tunnel.address import Address
from tunnel.services import Plain, RelaySession

PATIENCE = 10.0  # seconds for what takes milliseconds


def test_join_waits_for_the_end_of_the_work() -> None:
    may_end, done = threading.Event(), []

    def work(word: str) -> None:
        may_end.wait(PATIENCE)
        done.append(word)

    thread = BareThread()
    assert not thread.runs()
    thread.start(work, "done")
    assert thread.runs()
    assert not done
    may_end.set()
    thread.join()
    assert done == ["done"]
    assert not thread.runs()


def test_what_gets_out_of_the_work_is_shown_and_ends_the_thread(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise AssertionError("a mistake of ours")

    thread = BareThread()
    thread.start(work)
    thread.join()
    assert "AssertionError: a mistake of ours" in capsys.readouterr().err


def test_no_thread_to_be_had_is_an_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("models._bare_thread.start_new_thread", refuse)
    thread = BareThread()
    with pytest.raises(OSError, match="can't start new thread"):
        thread.start(print)
    thread.join()


def test_a_crowd_of_threads_does_not_wake_more_often_than_a_processor_can() -> None:
    assert switch_interval(1) == switch_interval(100) == PATIENT
    for clients in (1000, 5000, 20_000):
        assert 2 * clients / switch_interval(clients) <= 1.001 * WAITS, "threads, and how often each wakes"


class Watched(Plain):
    """Says when it has given its buffers back."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def get_buffer(self) -> memoryview:
        self.released.clear()
        return super().get_buffer()

    def release(self) -> None:
        super().release()
        self.released.set()


def test_direction_that_waits_owns_no_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models._copy.LULL", 0.05)
    client, accepted = socket.socketpair()
    dialled, target = socket.socketpair()
    session = RelaySession(Address("192.0.2.1", 9))
    session.up, session.down = up, down = Watched(), Watched()
    link = Link(session, accepted, dialled, Timeouts(60.0, 60.0, 60.0), Scoreboard("thread", "relay").take())
    copying = BareThread()
    with client, accepted, dialled, target:
        for end in (client, target):
            end.settimeout(PATIENCE)
        copying.start(copy_by_threads, link)
        for word in (b"before the silence", b"after it"):
            for here, there in ((client, target), (target, client)):
                here.sendall(word)
                assert there.recv(100) == word
            assert up.released.wait(PATIENCE)
            assert down.released.wait(PATIENCE)
        for end in (client, target):
            end.shutdown(socket.SHUT_WR)
        copying.join()
