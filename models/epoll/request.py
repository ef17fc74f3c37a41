"""A client from accept until it has said where to go; a service's client, all the time.

    read_cb --> opening --- wants more ----> read on            59 s from accept
                   |    `-- answers -------> write to the same stream
                   |    `-- not it --------> drain (tunnel/drain.py)
                   `-- target is known ----> Dialling

Rules: the Request owns `accepted`, and passes it on. A client that leaves now is worth no warning.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from models.epoll.dialling import Dialling
from models.epoll.stream import EOF, Stream, error_of
from tunnel.errors import ProtocolError
from tunnel.flow import EMPTY
from tunnel.log import describe, log, peer_name

if TYPE_CHECKING:
    from models.epoll.server import EpollServer


class Request:
    """A service (echo, bytes) is all request: what its opening returns goes back, as long as it is used."""

    __slots__ = ("accepted", "deadline", "ended", "host", "place", "session", "waiting")

    def __init__(self, host: EpollServer, accepted: Stream) -> None:
        self.host = host
        self.accepted = accepted
        self.place = host.server.limits.claim(accepted.fd)
        self.session = host.server.service.new_session()
        self.deadline = time.monotonic() + host.handshakes.length
        self.ended = False  # the client has sent its FIN
        self.waiting = 0  # bytes for the client when it was last looked at
        host.clients.add(self)

    def start(self) -> None:
        if self.session.target is None:
            (self.host.handshakes if self.session.dials else self.host.talks).set(self)
            self.read_start()
        else:
            self.pass_on()

    def read_start(self) -> None:
        self.accepted.read_start(self.session.opening.get_buffer, self.on_read)

    # fig: request
    def on_read(self, n: int) -> None:
        """read_cb: the opening takes it, and what it returns goes back."""
        opening, view = self.session.opening, EMPTY
        try:
            if n > 0:
                self.host.slot.count_up(n)
                view = opening.buffer_updated(n)
            elif n == EOF:
                self.ended = True
                view = opening.eof()
            elif n:
                raise error_of(n)
            gone = not view or self.accepted.write(view, self.on_written)
        except ProtocolError as error:
            self.drain(error)
        except OSError as error:
            self.left(error)
        else:
            if gone:
                self.next_step()
            else:
                self.accepted.read_stop()
                self.moved()

    def next_step(self) -> None:
        """All that the opening returned is on its way."""
        self.session.opening.release()
        if self.ended:
            self.close()
        elif self.session.target is not None:
            self.pass_on()
        else:
            self.moved()
        # end fig

    def moved(self) -> None:
        """A service's client is there as long as it sends, or takes what it is sent."""
        self.waiting = self.accepted.write_queue_size()
        if not self.session.dials:
            self.host.talks.set(self)

    def on_written(self, status: int) -> None:
        """write_cb, of an answer that the client had no room for."""
        if status < 0:
            self.left(error_of(status))
            return
        self.next_step()
        if self in self.host.clients:
            self.read_start()

    def pass_on(self) -> None:
        self.accepted.read_stop()
        dialling = Dialling(self.host, self.session, self.accepted, self.place)
        self.leave()
        dialling.start()

    def left(self, error: OSError) -> None:
        log.debug(f"left during the handshake: {describe(error)}", peer_name(self.accepted.sock))
        self.close()

    def drain(self, error: ProtocolError) -> None:
        log.warning(f"handshake failed: {error}", peer_name(self.accepted.sock))
        try:
            self.accepted.say(self.session.answer(error))
            self.host.slot.drained()
            self.host.loop.io_close(self.accepted)
            self.host.server.drain.add(self.accepted.sock, self.deadline, self.place)
        except OSError as another:
            self.left(another)
        else:
            self.close()

    def on_stop(self) -> None:
        """The server ends: a client that has not said where to go has nothing to lose."""
        self.close()

    def on_expired(self) -> None:
        if self.session.dials:
            text = f"no whole request within {self.host.handshakes.length:g} s"
        elif self.waiting != self.accepted.write_queue_size():
            self.moved()
            return
        else:
            text = f"nothing moved for {self.host.talks.length:g} s"
        log.info(text, peer_name(self.accepted.sock))
        self.close()

    def close(self) -> None:
        self.leave()
        self.session.opening.release()
        self.place.leave()
        self.accepted.close()

    def leave(self) -> None:
        self.host.handshakes.cancel(self)
        self.host.talks.cancel(self)
        self.host.leave(self)
