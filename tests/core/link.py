"""A fake network: two sessions joined in memory, and nobody else.

    application ==cable==> client session ==cable==> server session ==cable==> target

A `Cable` is a connected pair of `Plug`s. A `Relay` does with a session what every model does, word
for word as `tunnel/session.py` tells it, with plugs where a model has sockets. `ConnectionPair`
has two of them, and the test holds both loose ends. A `cut` says how many bytes each read may get.
"""

from __future__ import annotations

from collections.abc import Callable

from tunnel.address import Address
from tunnel.errors import ProtocolError
from tunnel.flow import Flow
from tunnel.session import Session

Cut = Callable[[], int]


def whole() -> int:
    """A read gets all that is there."""
    return 2**30


def bytewise() -> int:
    return 1


class Wire:
    """One direction of a cable: bytes that were sent and not yet read, and perhaps the end."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self.flying = bytearray()
        self.writes: list[bytes] = []  # as they were sent: what would share a segment
        self.ended = False

    @property
    def sent(self) -> bytes:
        """All that ever went through."""
        return b"".join(self.writes)


class Plug:
    """One end of a cable, with as much of a socket as a relay needs."""

    def __init__(self, reads: Wire, writes: Wire) -> None:
        self.reads = reads
        self.writes = writes

    def send(self, data: bytes | memoryview) -> None:
        if data:
            assert not self.writes.ended, "sent after the end"
            self.writes.writes.append(bytes(data))
            self.writes.flying += data

    def end(self) -> None:
        """The FIN."""
        self.writes.ended = True

    @property
    def readable(self) -> bool:
        return bool(self.reads.flying) or self.reads.ended

    def recv_into(self, buffer: memoryview) -> int:
        """0 is the end. Only when `readable`."""
        assert self.readable
        assert len(buffer), "a read into no room would look like the end"
        size = min(len(buffer), len(self.reads.flying), self.reads.cut())
        buffer[:size] = self.reads.flying[:size]
        del self.reads.flying[:size]
        return size

    def recv(self) -> bytes:
        """All that is there, for the test's own ends."""
        received = bytes(self.reads.flying)
        self.reads.flying.clear()
        return received


def cable(cut: Cut = whole) -> tuple[Plug, Plug]:
    there, back = Wire(cut), Wire(cut)
    return Plug(there, back), Plug(back, there)


class Relay:
    """What every model does with one session. `turn` does the next thing that can be done."""

    def __init__(self, session: Session, accepted: Plug, dial: Callable[[Address], Plug]) -> None:
        self.session = session
        self.accepted = accepted
        self.dialled: Plug | None = None
        self.error: ProtocolError | OSError | None = None
        self.waits = False  # for the first payload, as long as session.patience says
        self._dial = dial
        self._open: dict[Flow, tuple[Plug, Plug]] = {}

    def turn(self) -> bool:
        """True if anything moved."""
        if self.error is not None:
            return False
        try:
            return self._turn()
        except (ProtocolError, OSError) as error:
            self.error = error
            self.accepted.send(self.session.answer(error))
            return True

    def patience_is_over(self) -> None:
        """The accepted side said nothing within `session.patience`: the header goes alone."""
        if self.waits:
            self._copy(self.session.up.buffer_updated(0))

    def _turn(self) -> bool:
        session, accepted = self.session, self.accepted
        if session.target is None:
            if not accepted.readable:
                return False
            n = accepted.recv_into(session.opening.get_buffer())
            accepted.send(session.opening.buffer_updated(n) if n else session.opening.eof())
            session.opening.release()
            return bool(n)
        if self.dialled is None:
            self.dialled = self._dial(session.target)
            accepted.send(session.answer(None))
            self.waits = session.patience > 0
            if not self.waits:
                self._copy(session.up.buffer_updated(0))
            return True
        if self.waits:
            if not accepted.readable:
                return False
            self._copy(memoryview(b""))
        moved = [self._move(flow, *ends) for flow, ends in list(self._open.items())]
        return any(moved)

    def _copy(self, first: memoryview) -> None:
        assert self.dialled is not None
        self.waits = False
        self.dialled.send(first)
        self._open = {
            self.session.up: (self.accepted, self.dialled),
            self.session.down: (self.dialled, self.accepted),
        }

    def _move(self, flow: Flow, source: Plug, destination: Plug) -> bool:
        if not source.readable:
            return False
        n = source.recv_into(flow.get_buffer())
        if n:
            destination.send(flow.buffer_updated(n))
        else:
            destination.send(flow.eof())
            destination.end()
            del self._open[flow]
        flow.release()
        return True


class ConnectionPair:
    """A client session and a server session; the test is the application and the target."""

    def __init__(self, client: Session, server: Session, cut: Cut = whole) -> None:
        self.application, accepted_by_client = cable(cut)
        dialled_by_client, accepted_by_server = cable(cut)
        dialled_by_server, self.target = cable(cut)
        self.dialled_to: list[Address] = []
        self.wire = dialled_by_client  # between the two sessions

        def to_target(address: Address) -> Plug:
            self.dialled_to.append(address)
            return dialled_by_server

        self.client = Relay(client, accepted_by_client, lambda _: dialled_by_client)
        self.server = Relay(server, accepted_by_server, to_target)

    def settle(self, patience_over: bool = True) -> None:
        """Everything moves until nothing can."""
        while True:
            while self.client.turn() | self.server.turn():
                pass
            if not (patience_over and (self.client.waits or self.server.waits)):
                return
            self.client.patience_is_over()
            self.server.patience_is_over()

    def to_target(self, data: bytes) -> bytes:
        """Sends as the application; returns what the target gets."""
        self.application.send(data)
        self.settle()
        return self.target.recv()

    def to_application(self, data: bytes) -> bytes:
        """Sends as the target; returns what the application gets."""
        self.target.send(data)
        self.settle()
        return self.application.recv()
