"""One direction of a relay: from one stream through a flow into the other.

    source --read_cb--> flow --write--> destination
       ^                         |
       | read_start              | did not all go: read_stop, until on_written says that it has
       `-------------------------'

    source's EOF   --> flow.eof(), and a shutdown of the destination behind what is still queued

Rules: never reads while something waits to be written. That is all the backpressure there is: memory is
bounded by one buffer a direction. A destination that has gone does not end the other direction, which
may still hold what it sent before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from models.epoll.stream import EOF, Stream, error_of
from tunnel.errors import ProtocolError

if TYPE_CHECKING:
    from models.epoll.relay import Relay
    from tunnel.flow import Flow

GONE = (BrokenPipeError, ConnectionResetError)


class Direction:
    """One direction of a relay."""

    __slots__ = ("broken", "count", "destination", "done", "flow", "moves", "open", "relay", "source")

    def __init__(
        self, relay: Relay, flow: Flow, source: Stream, destination: Stream, count: Callable[[int], None]
    ) -> None:
        self.relay = relay
        self.flow = flow
        self.source = source
        self.destination = destination
        self.count = count  # is told of the bytes of each read
        self.open = True  # more may come from the source
        self.broken = False  # the destination has gone before it had all
        self.done = False  # the destination has had all, and the FIN; or it is broken
        self.moves = 0  # reads and writes; what the idle timer compares

    def start(self) -> None:
        self.source.read_start(self.flow.get_buffer, self.on_read)

    # fig: read_cb
    def on_read(self, n: int) -> None:
        try:
            if n > 0:
                self.count(n)
                self.moves += 1
                self.send(self.flow.buffer_updated(n))
            elif n == 0:
                self.flow.release()
            elif n == EOF:
                self.send(self.flow.eof())
                self.end()
            else:
                raise error_of(n)
        except (ProtocolError, OSError) as error:
            self.relay.cut(error)

    def send(self, view: memoryview) -> None:
        try:
            if not view or self.destination.write(view, self.on_written):
                self.flow.release()
            else:
                self.source.read_stop()
        except GONE:
            self.give_up()

    def on_written(self, status: int) -> None:
        """write_cb: the destination has taken it all, or has gone."""
        if status == 0:
            self.moves += 1
            self.flow.release()
            if self.open:
                self.start()
        elif isinstance(error := error_of(status), GONE):
            self.give_up()
        else:
            self.relay.cut(error)
        # end fig

    def end(self) -> None:
        """The source has sent its FIN. It is passed on; if it is the second one, by the close."""
        self.open = False
        if self.broken:
            return
        if self.relay.other(self).done and not self.destination.write_queue:
            self.settle()
        else:
            self.destination.shutdown(self.on_shutdown)

    def on_shutdown(self, status: int) -> None:
        if status < 0:  # it has gone by itself (ENOTCONN); its own direction says how
            self.broken = True
        self.settle()

    def give_up(self) -> None:
        self.open, self.broken = False, True
        self.source.read_stop()
        self.flow.release()
        self.settle()

    def settle(self) -> None:
        self.done = True
        if self.relay.other(self).done:
            self.relay.finish()
        else:
            self.relay.half_close()
