"""The body of every blocking model: one client, from accept to close.

    accept --> opening --> dial --> copy both directions (_copy.py) --> close
                  |          `-- refused: say so, close
                  `-- not the protocol, or nothing whole in time: drain (tunnel/drain.py)

Rules: whatever happens to one client is logged in one line and ends with that client. Only our own
mistakes get out of `serve_client`.
"""

from __future__ import annotations

import contextlib
import socket
import time

from models._copy import COPIES, Link
from models._direction import abort
from models._limits import Place
from models._scoreboard import DIAL, DRAIN, RELAY, Slot
from models._server import WAKES, Server
from tunnel.address import Address
from tunnel.connection import seconds
from tunnel.errors import ProtocolError
from tunnel.log import describe, log, peer_name
from tunnel.session import Session

SHORTEST = 0.001  # seconds; an SO_RCVTIMEO of 0 is none
# Before the deadline of a handshake a client that has not said where to go is left to the drain: one place
# closes all of them, as late as the other, and a prober with a clock learns nothing from it.
EARLY = 0.1  # seconds, and
EARLY_PART = 0.1  # of the whole time at most


class ClientLeft(Exception):
    """The client closed before it had said where to go. Nothing is wrong with that."""


def serve_client(server: Server, slot: Slot, accepted: socket.socket, since: float | None = None) -> None:
    """Serves one connection and closes it. `since`: of its accept (monotonic), if that was a while ago."""
    slot.accepted()
    service = server.service
    session = service.new_session()
    place = server.limits.claim(accepted.fileno())
    dialled = None
    try:
        dialled = connect(server, slot, session, accepted, place, since=since or time.monotonic())
        if dialled is not None:
            slot.enter(RELAY)
            COPIES[service.copy](Link(session, accepted, dialled, service.timeouts, slot))
    except (ProtocolError, OSError) as error:
        log.warning(f"connection to {session.target} cut: {describe(error)}", peer_name(accepted))
        abort(accepted)
        if dialled is not None:
            abort(dialled)
    finally:
        session.up.release()
        session.down.release()
        accepted.close()
        place.leave()  # not before: somebody may wait for just this one
        if dialled is not None:
            dialled.close()


def connect(
    server: Server, slot: Slot, session: Session, accepted: socket.socket, place: Place, *, since: float
) -> socket.socket | None:
    """From accept to a dialled connection; None if there is none and the client knows all it may."""
    timeouts = server.service.timeouts
    deadline = since + timeouts.handshake
    try:
        until = deadline - min(EARLY, EARLY_PART * timeouts.handshake)
        target = session.target or read_opening(server, slot, session, accepted, until)
    except ClientLeft:
        return None
    except ProtocolError as error:
        slot.enter(DRAIN)
        log.warning(f"handshake failed: {error}", peer_name(accepted))
        tell(accepted, session.answer(error))
        slot.drained()
        server.drain.add(accepted, deadline, place)
        return None
    except TimeoutError as error:
        log.info(describe(error), peer_name(accepted))
        if session.dials:
            with contextlib.suppress(OSError):  # no thread for it: it is closed a moment too early
                server.drain.add(accepted, deadline, place)
        return None
    except ConnectionError as error:
        log.debug(f"left during the handshake: {describe(error)}", peer_name(accepted))
        return None
    slot.enter(DIAL)
    try:
        return server.service.dial(target, slot.beat)
    except OSError as error:
        log.info(f"cannot connect to {target}: {describe(error)}", peer_name(accepted))
        tell(accepted, session.answer(error))
        return None


def tell(accepted: socket.socket, words: bytes) -> None:
    """The answer to what has failed, and has been logged. Who has left need not hear it."""
    if words:
        with contextlib.suppress(OSError):
            accepted.sendall(words)


def read_opening(
    server: Server, slot: Slot, session: Session, accepted: socket.socket, deadline: float
) -> Address:
    """Reads until the target is known. One deadline for all of it, or a byte a second would do.

    A service's client stays in here, as long as it uses the service.
    """
    opening, idle = session.opening, server.service.timeouts.idle
    if not session.dials:
        slot.enter(RELAY)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds(WAKES))
        deadline = time.monotonic() + idle
    elif deadline - time.monotonic() < WAKES:
        wake_at(deadline, accepted)
    while True:
        try:
            n = accepted.recv_into(opening.get_buffer())
        except BlockingIOError:  # SO_RCVTIMEO, see WAKES in _server.py
            if server.stop.impatient:
                raise ClientLeft from None
        else:
            if not n:
                opening.eof()
                raise ClientLeft
            slot.count_up(n)
            if view := opening.buffer_updated(n):
                send_all(slot, accepted, view, idle)
            if opening.target is not None:
                return opening.target
            if not session.dials:
                deadline = time.monotonic() + idle
        slot.beat()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(
                "no whole request in time" if session.dials else f"nothing moved for {idle:g} s"
            )
        if left < WAKES and session.dials:
            wake_at(deadline, accepted)


def wake_at(deadline: float, accepted: socket.socket) -> None:
    """recv returns at that moment, where it would next do so up to WAKES seconds later."""
    left = max(deadline - time.monotonic(), SHORTEST)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds(left))


def send_all(slot: Slot, accepted: socket.socket, view: memoryview, idle: float) -> None:
    """sendall that gives signs of life, and gives up when nothing moves; where SO_SNDTIMEO is set."""
    deadline = time.monotonic() + idle
    while view:
        try:
            view = view[accepted.send(view) :]
            deadline = time.monotonic() + idle
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing moved for {idle:g} s") from None
        slot.beat()
