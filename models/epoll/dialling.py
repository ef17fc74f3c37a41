"""A client that has said where to go, until it is connected there.

    getaddrinfo --> tcp_connect, each address in turn --> answer --> Relay
         |                |
       connect timeout, of each          none of them: answer, close

Rules: `accepted` is not read meanwhile. The Dialling owns both streams, and passes them on.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from models.epoll.relay import Relay
from models.epoll.stream import Stream, error_of
from models.epoll.tcp import tcp_connect
from tunnel.log import describe, log, peer_name

if TYPE_CHECKING:
    from models._limits import Place
    from models._resolver import Found
    from models.epoll.server import EpollServer
    from tunnel.dial import SockAddr
    from tunnel.session import Session


class Dialling:
    """Waits for a name, then for a connection."""

    __slots__ = ("accepted", "addresses", "dialled", "host", "place", "session")

    def __init__(self, host: EpollServer, session: Session, accepted: Stream, place: Place) -> None:
        self.host = host
        self.place = place
        self.session = session
        self.accepted = accepted
        self.dialled: Stream | None = None
        self.addresses: list[SockAddr] = []  # still to be tried, the next one last
        host.clients.add(self)

    def start(self) -> None:
        assert self.session.target is not None
        self.host.connects.set(self)
        self.host.resolver.resolve(self.session.target, self.on_found)

    def on_found(self, found: Found) -> None:
        if self not in self.host.clients:
            return  # it has been closed while the name server thought
        if isinstance(found, OSError):
            self.refuse(found)
        else:
            self.addresses = found[::-1]
            self.on_expired()

    # fig: dial
    def dial_next(self, failure: OSError) -> None:
        """Dials the next address, or refuses with the failure of the last one."""
        if self.dialled is not None:
            self.dialled.close()
            self.dialled = None
        dial = self.host.server.service.dial
        while self.addresses and self.dialled is None:
            try:
                self.dialled = tcp_connect(self.host.loop, dial, self.addresses.pop(), self.on_connected)
            except OSError as error:
                failure = error
        if self.dialled is None:
            self.refuse(failure)
        else:
            self.host.connects.set(self)

    def on_connected(self, status: int) -> None:
        if status < 0:
            self.dial_next(error_of(status))
            return
        assert self.dialled is not None
        relay = Relay(self.host, self.session, self.accepted, self.dialled, self.place)
        self.leave()
        relay.start()
        # end fig

    def on_expired(self) -> None:
        self.dial_next(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def refuse(self, error: OSError) -> None:
        text = f"cannot connect to {self.session.target}: {describe(error)}"
        log.info(text, peer_name(self.accepted.sock))
        try:
            self.accepted.say(self.session.answer(error))
        except OSError as another:
            log.debug(f"left meanwhile: {describe(another)}", peer_name(self.accepted.sock))
        self.close()

    def on_stop(self) -> None:
        """The server ends: what was asked for may still be done."""

    def close(self) -> None:
        self.leave()
        self.session.up.release()
        self.place.leave()
        self.accepted.close()
        if self.dialled is not None:
            self.dialled.close()

    def leave(self) -> None:
        self.host.connects.cancel(self)
        self.host.leave(self)
