"""A dialled client: two directions, and how they end.

    accepted ==up==> dialled      idle time: cut if nothing was read or written in the whole of it
             <=down=              less of it once one direction has ended
                                  10 ms for the first payload, then the header goes alone

    both directions have ended           --> close, which sends the last FIN
    a reset, a forgery, a broken side    --> close_reset of both, so that nobody takes a part for a whole

Rules: the Relay owns both streams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from models._server import silent_for
from models.epoll.direction import Direction
from tunnel.errors import ProtocolError
from tunnel.log import describe, log, peer_name

if TYPE_CHECKING:
    from models._deadlines import Deadlines
    from models._limits import Place
    from models.epoll.server import EpollServer
    from models.epoll.stream import Stream
    from tunnel.session import Session


class Relay:
    """Both directions, and how they end."""

    __slots__ = ("accepted", "dialled", "down", "host", "moved", "place", "session", "up")

    def __init__(
        self, host: EpollServer, session: Session, accepted: Stream, dialled: Stream, place: Place
    ) -> None:
        self.host = host
        self.place = place
        self.session = session
        self.accepted = accepted
        self.dialled = dialled
        self.up = Direction(self, session.up, accepted, dialled, host.slot.count_up)
        self.down = Direction(self, session.down, dialled, accepted, host.slot.count_down)
        self.moved = self.progress()
        host.clients.add(self)

    def start(self) -> None:
        try:
            self.accepted.say(self.session.answer(None))
        except OSError as error:
            self.cut(error)
            return
        self.host.idle.set(self)
        self.down.start()
        self.up.start()
        if self.session.patience:
            self.host.greetings.set(self)
        else:
            self.on_patience_over()

    def on_patience_over(self) -> None:
        """What came with the request, or a header that waited for the first payload, goes now."""
        if self.up.open and not self.up.moves:
            try:
                self.up.send(self.session.up.buffer_updated(0))
            except (ProtocolError, OSError) as error:
                self.cut(error)

    def other(self, direction: Direction) -> Direction:
        return self.down if direction is self.up else self.up

    def progress(self) -> tuple[int, int, int, int]:
        up, down = self.up, self.down
        queues = self.accepted.write_queue_size(), self.dialled.write_queue_size()
        return up.moves, down.moves, *queues

    def half_close(self) -> None:
        self.host.idle.cancel(self)
        self.moved = self.progress()
        self.host.half_closed.set(self)

    def on_idle(self) -> None:
        self.check_progress(self.host.idle, both=True)

    def on_half_closed_idle(self) -> None:
        self.check_progress(self.host.half_closed, both=False)

    def check_progress(self, deadlines: Deadlines[Relay], both: bool) -> None:
        """Cuts what has not moved since the last look; else looks again as much later."""
        moved, self.moved = self.moved, self.progress()
        if moved == self.moved:
            self.cut(silent_for(deadlines.length, both))
        else:
            deadlines.set(self)

    def on_stop(self) -> None:
        """The server ends: a transfer may still finish."""

    def finish(self) -> None:
        if self.up.broken or self.down.broken:
            self.cut(ConnectionResetError("one side went before it had received all"))
        else:
            self.close(reset=False)

    def cut(self, error: Exception) -> None:
        """Ends both connections so that neither side can take what it got for a whole."""
        text = f"connection to {self.session.target} cut: {describe(error)}"
        log.warning(text, peer_name(self.accepted.sock))
        self.close(reset=True)

    def close(self, *, reset: bool) -> None:
        self.place.leave()
        for stream in (self.accepted, self.dialled):
            stream.close(reset=reset)
        for direction in (self.up, self.down):
            direction.flow.release()
            del direction.relay  # else each would keep the other alive until the garbage collector comes
        for deadlines in (self.host.idle, self.host.half_closed, self.host.greetings):
            deadlines.cancel(self)
        self.host.leave(self)
