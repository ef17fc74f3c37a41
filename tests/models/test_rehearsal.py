"""The rehearsal before the first fork: all of a connection, and no trace of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from models._pump import serve_client
from models._rehearsal import PATIENCE, REHEARSALS, rehearse
from models._scoreboard import Scoreboard, Slot
from models._server import Rehearsal, Server, Service, Timeouts, Workers
from models._stop import Renewal, Stop
from tunnel.address import Address
from tunnel.dial import Dial
from tunnel.services import service_factory
from tunnel.session import Session

NOBODY = Address("192.0.2.1", 9)  # RFC 5737


class Stage:
    """A relay to a target that nobody could dial, and the sessions that it has made."""

    def __init__(self, listener: socket.socket) -> None:
        self.sessions: list[Session] = []
        make = service_factory("relay", NOBODY)

        def new_session() -> Session:
            self.sessions.append(make())
            return self.sessions[-1]

        service = Service(
            new_session=new_session,
            dial=Dial(),
            timeouts=Timeouts(handshake=10.0, idle=10.0, half_closed=10.0),
            rehearsal=Rehearsal(
                lambda _: b"question", lambda: b"answer", lambda server: Dial(servers=[server])
            ),
            workers=Workers(1, 1),
            max_requests=None,
            heartbeat=60.0,
            copy="poll",
        )
        stop = Stop([listener], 1.0, Renewal(lambda: True, lambda: None))
        self.server = Server([listener], service, stop, Scoreboard("fork", "relay"))


@pytest.fixture
def stage() -> Iterator[Stage]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Stage(listener)


def test_everything_is_served_and_nothing_is_left_of_it(stage: Stage) -> None:
    server = stage.server
    before = server.service, server.listeners
    served: list[tuple[int, int]] = []

    def serve(server: Server, slot: Slot, accepted: socket.socket) -> None:
        serve_client(server, slot, accepted)
        entry = slot.entry()
        served.append((entry.up, entry.down))

    rehearse(server, serve)
    words = len(b"question"), len(b"answer")
    assert served == [(n * words[0], n * words[1]) for n in range(1, REHEARSALS + 1)]
    assert (server.service, server.listeners) == before
    assert server.scoreboard.board.entries() == []
    assert server.scoreboard.board.totals().connections == 0


def test_a_stranger_who_finds_the_port_and_is_silent_holds_up_nobody_for_long(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He is served as one of the made-up clients; the deadlines of a real one are not for him."""
    longest: list[float] = []

    def serve(server: Server, slot: Slot, accepted: socket.socket) -> None:
        longest.extend(server.service.timeouts)
        serve_client(server, slot, accepted)

    def silent(_words: Rehearsal, front: socket.socket, _back: socket.socket, _dials: bool) -> None:
        try:
            socket.create_connection(front.getsockname()).recv(1)
        finally:
            os._exit(0)

    monkeypatch.setattr("models._rehearsal.play", silent)
    rehearse(stage.server, serve)
    assert longest
    assert max(longest) <= PATIENCE


def test_a_mistake_of_ours_gets_out_of_it(stage: Stage) -> None:
    def serve(server: Server, slot: Slot, accepted: socket.socket) -> None:  # noqa: ARG001
        accepted.close()
        raise AssertionError("a mistake")

    with pytest.raises(AssertionError, match="a mistake"):
        rehearse(stage.server, serve)
    assert stage.server.scoreboard.board.entries() == []


def test_without_loopback_there_is_no_rehearsal(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> socket.socket:
        raise OSError("no loopback here")

    monkeypatch.setattr("models._rehearsal.loopback", refuse)
    rehearse(stage.server)
    assert stage.sessions == []
    assert stage.server.scoreboard.board.entries() == []
