"""The body of every loop: one client, as two small state machines that never block.

    Opening                                                    Relay
    request --> resolve --> dial --> patience ----------->  up and down, each
       |           |          |          |                  reading or pending
    59 s from   connect timeout       10 ms, then           idle time, restarted by any byte;
    accept      for each address      the header alone      less of it once one direction has ended

Every state waits for one event and for one deadline. Whatever fails ends this client and no other.

Rules: whoever holds the two sockets is the only one to close them: first the Opening, then the Relay
that it turns into. The poller is told to forget a descriptor before it is closed, since its number
may be somebody else's a moment later.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from models._direction import NOW, Direction, abort
from models._server import silent_for
from tunnel.dial import SockAddr
from tunnel.errors import ProtocolError
from tunnel.log import describe, log, peer_name
from tunnel.session import Session

if TYPE_CHECKING:
    from models._deadlines import Deadlines
    from models._limits import Place
    from models._loop import Callback, Loop
    from models._resolver import Found

Machine = TypeVar("Machine", "Opening", "Relay")
Arguments = TypeVarTuple("Arguments")


def guarded(step: Callable[[Machine, *Arguments], None]) -> Callable[[Machine, *Arguments], None]:
    """A step whose failure cuts its client; the loop goes on."""

    def run(machine: Machine, *args: *Arguments) -> None:
        try:
            step(machine, *args)
        except (ProtocolError, OSError) as error:
            machine.cut(error)

    return run


def is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


class Opening:
    """A client from accept to a dialled connection."""

    __slots__ = (
        "_addresses",
        "_deadline",
        "_expiry",
        "_loop",
        "_place",
        "_session",
        "_talk",
        "accepted",
        "dialled",
    )

    def __init__(self, loop: Loop, accepted: socket.socket) -> None:
        self._loop = loop
        self._session = session = loop.server.service.new_session()
        self._talk = Direction(session.opening, accepted, accepted, loop.slot.count_up)
        self._addresses: deque[SockAddr] = deque()
        self._deadline = time.monotonic() + loop.handshakes.length
        self._expiry: Deadlines[Opening] | None = None
        self._place = loop.server.limits.claim(accepted.fileno())
        self.accepted = accepted
        self.dialled: socket.socket | None = None
        loop.join(self)

    def start(self) -> None:
        if self._session.target is None:
            self._expire_by(self._loop.handshakes if self._session.dials else self._loop.talks)
            self._loop.poller.on_readable(self.accepted.fileno(), self.on_request)
        else:
            self._resolve()

    # --- request ---

    def on_request(self) -> None:
        self._converse(self._talk.read)

    def on_answered(self) -> None:
        self._converse(partial(self._talk.send, self._talk.pending))

    def _converse(self, step: Callable[[], None]) -> None:
        """One step of the opening, which may answer; then what it waits for next."""
        talk, poller, fd = self._talk, self._loop.poller, self.accepted.fileno()
        try:
            step()
        except ProtocolError as error:
            self._drain(error)
            return
        except OSError as error:
            log.debug(f"left during the handshake: {describe(error)}", peer_name(self.accepted))
            self.close()
            return
        full = bool(talk.pending)
        if full != talk.blocked:
            talk.blocked = full
            poller.on_readable(fd, None if full else self.on_request)
            poller.on_writable(fd, self.on_answered if full else None)
        if not full:
            talk.flow.release()
        if not talk.open:
            self.close()
        elif self._session.target is not None and not full:
            poller.on_readable(fd, self.on_early)
            self._resolve()
        elif not self._session.dials:
            self._expire_by(self._loop.talks)

    def on_early(self) -> None:
        """More has come, and there is no connection yet to send it to. Few clients do that, so the others
        stay watched, which costs nothing."""
        self._loop.poller.on_readable(self.accepted.fileno(), None)

    def _expire_by(self, deadlines: Deadlines[Opening] | None) -> None:
        """From now on by this one, and no longer by the one before."""
        if self._expiry is not None:
            self._expiry.cancel(self)
        self._expiry = deadlines
        if deadlines is not None:
            deadlines.set(self)

    def on_stop(self) -> None:
        """The server ends: a client that has not said where to go has nothing to lose."""
        if self._session.target is None:
            self.close()

    def on_handshake_expired(self) -> None:
        log.info(f"no whole request within {self._loop.handshakes.length:g} s", peer_name(self.accepted))
        self.close()

    def on_talk_expired(self) -> None:
        log.info(f"nothing moved for {self._loop.talks.length:g} s", peer_name(self.accepted))
        self.close()

    def _answer(self, answer: bytes | memoryview) -> None:
        """Sends the few bytes of a handshake, which a new connection's buffer has always room for."""
        if answer:
            self.accepted.send(answer, NOW)

    @guarded
    def _drain(self, error: Exception) -> None:
        log.warning(f"handshake failed: {error}", peer_name(self.accepted))
        self._answer(self._session.answer(error))
        self._loop.slot.drained()
        self._loop.poller.forget(self.accepted.fileno())  # the drain has it from now on
        self._loop.server.drain.add(self.accepted, self._deadline, self._place)
        self.close()

    # --- resolve, dial ---

    def _resolve(self) -> None:
        assert self._session.target is not None
        self._expire_by(self._loop.connects)
        self._loop.resolve(self._session.target, self.on_found)

    def on_found(self, found: Found) -> None:
        if self.accepted.fileno() < 0:
            return  # it has been closed while the name server thought
        if isinstance(found, OSError):
            self._refuse(found)
        else:
            self._addresses.extend(found)
            self._dial_next(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    @guarded
    def on_connected(self) -> None:
        assert self.dialled is not None
        code = self.dialled.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and not is_connected(self.dialled):
            return  # it was ready for somebody else, whose number this was a moment ago
        self._expire_by(None)
        self._loop.poller.on_writable(self.dialled.fileno(), None)
        if code:
            self._hang_up()
            self._dial_next(OSError(code, os.strerror(code)))
        else:
            self._greet()

    def on_connect_expired(self) -> None:
        self._hang_up()
        self._dial_next(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def _dial_next(self, failure: OSError) -> None:
        """Dials the next address, or refuses with the failure of the last one."""
        poller = self._loop.poller
        while self._addresses:
            try:
                self.dialled = self._loop.server.service.dial.start(self._addresses.popleft())
            except OSError as error:
                failure = error
                continue
            if poller.admits(self.dialled.fileno()):
                self._expire_by(self._loop.connects)
                poller.on_writable(self.dialled.fileno(), self.on_connected)
                return
            self._hang_up()
            failure = OSError(errno.EMFILE, poller.limit)
        self._refuse(failure)

    def _hang_up(self) -> None:
        if self.dialled is not None:
            self._loop.poller.forget(self.dialled.fileno())
            self.dialled.close()
            self.dialled = None

    @guarded
    def _refuse(self, error: OSError) -> None:
        log.info(f"cannot connect to {self._session.target}: {describe(error)}", peer_name(self.accepted))
        self._answer(self._session.answer(error))
        self.close()

    # --- patience ---

    def _greet(self) -> None:
        self._answer(self._session.answer(None))
        if self._session.patience:
            self._loop.poller.on_readable(self.accepted.fileno(), self.on_first_payload)
            self._expire_by(self._loop.greetings)
        else:
            self.on_patience_over()

    @guarded
    def on_first_payload(self) -> None:
        self._become_relay(memoryview(b""))

    @guarded
    def on_patience_over(self) -> None:
        self._become_relay(self._session.up.buffer_updated(0))

    def _become_relay(self, first: memoryview) -> None:
        assert self.dialled is not None
        relay = Relay(self._loop, self._session, self.accepted, self.dialled, self._place)
        self._leave()
        relay.start(first)

    # --- the end ---

    def cut(self, error: Exception) -> None:
        log.warning(f"connection to {self._session.target} cut: {describe(error)}", peer_name(self.accepted))
        self.close()

    def close(self) -> None:
        self._leave()
        self._session.up.release()
        self._hang_up()
        self._loop.poller.forget(self.accepted.fileno())
        self._place.leave()
        self.accepted.close()

    def _leave(self) -> None:
        """Takes this client out of everything that knows it, but for the poller."""
        self._expire_by(None)
        self._loop.leave(self)


class Relay:
    """A client whose two sockets are connected: copies until both directions have ended."""

    __slots__ = ("_accepted", "_dialled", "_down", "_loop", "_moves", "_place", "_session", "_up")

    def __init__(
        self, loop: Loop, session: Session, accepted: socket.socket, dialled: socket.socket, place: Place
    ) -> None:
        self._loop = loop
        self._place = place
        self._session = session
        self._accepted = accepted
        self._dialled = dialled
        self._up = Direction(session.up, accepted, dialled, loop.slot.count_up)
        self._down = Direction(session.down, dialled, accepted, loop.slot.count_down)
        self._moves = 0  # of both when the idle time was last looked at
        loop.join(self)

    @guarded
    def start(self, first: memoryview) -> None:
        """`first`: what goes to the dialled side before anything is read."""
        self._loop.idle.set(self)
        self._loop.poller.on_readable(self._accepted.fileno(), self.on_accepted_readable)
        self._loop.poller.on_readable(self._dialled.fileno(), self.on_dialled_readable)
        self._up.send(first)
        self._settle(self._up, self._down, self.on_accepted_readable, self.on_dialled_writable)

    # fig: four events
    @guarded
    def on_accepted_readable(self) -> None:
        self._up.read()
        self._settle(self._up, self._down, self.on_accepted_readable, self.on_dialled_writable)

    @guarded
    def on_dialled_writable(self) -> None:
        self._up.send(self._up.pending)
        self._settle(self._up, self._down, self.on_accepted_readable, self.on_dialled_writable)

    @guarded
    def on_dialled_readable(self) -> None:
        self._down.read()
        self._settle(self._down, self._up, self.on_dialled_readable, self.on_accepted_writable)

    @guarded
    def on_accepted_writable(self) -> None:
        self._down.send(self._down.pending)
        self._settle(self._down, self._up, self.on_dialled_readable, self.on_accepted_writable)

    def _settle(
        self, direction: Direction, other: Direction, on_readable: Callback, on_writable: Callback
    ) -> None:
        """Watches what the direction waits for now: room at its destination, else its source."""
        full = bool(direction.pending)
        if full != direction.blocked or not direction.open:
            direction.blocked = full
            reads = direction.open and not full
            self._loop.poller.on_readable(direction.source.fileno(), on_readable if reads else None)
            self._loop.poller.on_writable(direction.destination.fileno(), on_writable if full else None)
        if not full:
            direction.flow.release()
        if not direction.open:
            direction.pass_on_fin(other)
            if other.open:
                self._half_close()
            else:
                self._finish()
        # end fig

    def _finish(self) -> None:
        if self._up.broken or self._down.broken:
            self.cut(ConnectionResetError("one side went before it had received all"))
            return
        self._leave()
        self._accepted.close()
        self._dialled.close()

    def on_stop(self) -> None:
        """The server ends: a transfer may still finish."""

    def _half_close(self) -> None:
        self._loop.idle.cancel(self)
        self._moves = self._up.moves + self._down.moves
        self._loop.half_closed.set(self)

    def on_idle(self) -> None:
        self._check_moves(self._loop.idle, both=True)

    def on_half_closed_idle(self) -> None:
        self._check_moves(self._loop.half_closed, both=False)

    def _check_moves(self, deadlines: Deadlines[Relay], both: bool) -> None:
        """Cuts what has not moved since the last look; else looks again as much later."""
        moves = self._up.moves + self._down.moves
        if moves == self._moves:
            self.cut(silent_for(deadlines.length, both))
        else:
            self._moves = moves
            deadlines.set(self)

    def cut(self, error: Exception) -> None:
        """Ends both connections so that neither side can take what it got for a whole."""
        log.warning(f"connection to {self._session.target} cut: {describe(error)}", peer_name(self._accepted))
        self._leave()
        abort(self._accepted, self._dialled)

    def _leave(self) -> None:
        self._loop.idle.cancel(self)
        self._loop.half_closed.cancel(self)
        self._loop.poller.forget(self._accepted.fileno())
        self._loop.poller.forget(self._dialled.fileno())
        self._session.up.release()
        self._session.down.release()
        self._place.leave()
        self._loop.leave(self)
