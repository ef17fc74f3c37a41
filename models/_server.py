"""What a model is given: `Server`, and the accept with its errors taken care of.

Rules: a model's accept loop is one line, `while accepted := server.accept(slot):`, since what accept
can raise is the same for every model that blocks in it (UNP 5.11, accept(2)).
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable, Collection, Sequence
from math import inf
from typing import NamedTuple

from models._limits import Limits, Seldom
from models._scoreboard import ACCEPT, Scoreboard, Slot
from models._stop import Stop
from tunnel.address import Address
from tunnel.connection import accept_from, seconds
from tunnel.dial import Dial
from tunnel.drain import Drain
from tunnel.session import Session

# SO_RCVTIMEO of the listener, which accepted sockets inherit (seconds). accept returns after this time,
# so that a signal is seen which slipped in between Python's last look and the call that then blocked;
# and the recv of a handshake returns, so that its deadline is looked at without setting a timer.
WAKES = 1.0
# After these, accepting pauses. EUSERS: the server has all the clients it may have (_limits.py).
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EUSERS)
GONE_BEFORE_ACCEPT = (  # accept(2): errors of the new connection, not of the listener
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOPROTOOPT,
    errno.EPERM,
)
ACCEPTS_AT_ONCE = 16  # by a loop; then the clients that are there have their turn
RESOURCE_PAUSE = 0.02  # seconds without accepting when descriptors or memory have run out


class Timeouts(NamedTuple):
    """Deadlines in seconds, all by the monotonic clock."""

    handshake: float  # from accept to a whole request
    idle: float  # without a byte in either direction
    half_closed: float  # the same, once one direction has ended; at most `idle`

    def silence(self, both: bool) -> float:
        """How long nothing may move: with `both` directions open, or with one."""
        return self.idle if both else self.half_closed


def silent_for(length: float, both: bool) -> TimeoutError:
    """What a connection is cut for."""
    return TimeoutError(f"nothing moved for {length:g} s" + ("" if both else " after one side had ended"))


class Workers(NamedTuple):
    """The size of a pool: at least and at most so many processes."""

    least: int
    most: int


class Rehearsal(NamedTuple):
    """What the two sides of a connection could say, for `_rehearsal.rehearse`."""

    client: Callable[[Address], bytes]  # accepted side: an opening, for this target where it may choose one
    target: Callable[[], bytes]  # dialled side: a short reply
    dial: Callable[[Address], Dial]  # to this target, or to this server whatever the target


class Service(NamedTuple):
    """What is done for a connection. A reload (SIGHUP) replaces it for all that come after."""

    new_session: Callable[[], Session]
    dial: Dial
    timeouts: Timeouts
    rehearsal: Rehearsal
    workers: Workers
    max_requests: int | None  # connections after which a pool's worker is replaced by a fresh one
    heartbeat: float  # seconds without a sign of life after which a pool's worker is killed
    copy: str  # how a blocking model copies both directions: a name in `_copy.COPIES`
    linger: float = inf  # seconds that a failed handshake is drained at most


class Server:
    """All that a model is given."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        service: Service,
        stop: Stop,
        scoreboard: Scoreboard,
        limits: Limits | None = None,
    ) -> None:
        self.listeners = listeners
        self.service = service
        self.stop = stop
        self.scoreboard = scoreboard
        self.limits = limits or Limits()
        self.accept = Accept(listeners, stop, self.limits)
        self.drain = Drain(longest=service.linger)
        stop.spared = self._drained

    def _drained(self) -> Collection[int]:
        """By whichever drain this process has now."""
        return self.drain.descriptors()

    def drain_anew(self, *, in_thread: bool = True) -> None:
        """After a fork, or before many: the thread that drains, and what wakes it, are one process's own."""
        self.drain.close()
        self.drain = Drain(longest=self.service.linger, in_thread=in_thread)

    def finish_draining(self, sign_of_life: Callable[[], None] = lambda: None) -> None:
        """For whoever accepts no more: a probe must not learn from the close that a worker was replaced.

        A stop does end it.
        """
        while len(self.drain) and not self.stop.impatient:
            sign_of_life()
            self.wait_for_signal()
            self.stop.asked()

    def wait_for_signal(self) -> None:
        """In a thread that serves nobody. Returns also when WAKES seconds have passed."""
        poller = select.poll()
        poller.register(self.stop.fileno(), select.POLLIN)
        try:
            if poller.poll(WAKES * 1000):
                self.stop.clear_wakeup()
        except OSError as error:
            self.accept.sit_out(error, "waiting pauses")


class Accept:
    """Accept with a capital letter, as the book writes its wrappers: returns only what can be served.

    `accept(slot)` gives the next connection, or None once the caller must stop. With several listeners
    it waits for any of them; a listener that another worker was faster on is no error (UNP 16.6).
    """

    def __init__(self, listeners: Sequence[socket.socket], stop: Stop, limits: Limits) -> None:
        self._stop = stop
        self._limits = limits
        self.left: int | None = None  # connections until this worker has served enough
        self._short = False  # of descriptors or memory; said once
        # And seldom: at the edge it comes and goes, since other threads may open a file for a moment.
        self._shortages = Seldom()
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._only = listeners[0] if len(listeners) == 1 else None
        self._poller = select.poll()
        for listener in listeners:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds(WAKES))
            # What was inherited may be as another model has left it.
            listener.setblocking(self._only is not None)
            if not self._only:
                self._poller.register(listener, select.POLLIN)

    def __call__(self, slot: Slot) -> socket.socket | None:
        slot.enter(ACCEPT)
        while not self._stop.asked() and self.left != 0:
            try:
                accepted = self.take(self._only or self._ready())
            except BlockingIOError:
                slot.beat()
            except OSError as error:
                if self._stop.requested:
                    break
                self.sit_out(error)
                slot.beat()
            else:
                self.taken()
                return accepted
        return None

    def take(self, listener: socket.socket) -> socket.socket:
        """accept(2), of whom the limits admit. Raises OSError for `survive`."""
        return self._limits.accept(listener) if self._limits.on else accept_from(listener)

    def taken(self) -> None:
        """A client has been accepted, here or by a loop."""
        self._short = False
        if self.left is not None:
            self.left -= 1

    def survive(self, error: OSError, consequence: str = "accepting pauses") -> None:
        """Raises `error` again unless the next accept may well succeed."""
        if error.errno == errno.EUSERS:
            self._limits.say_full()
        elif error.errno in OUT_OF_RESOURCES:
            if not self._short:
                self._shortages.warn(f"{consequence}: {error.strerror}")
            self._short = True
        elif error.errno not in GONE_BEFORE_ACCEPT:
            raise error

    def sit_out(self, error: OSError, consequence: str = "accepting pauses") -> None:
        """As `survive`; waits a moment if something has run out. For who has nothing else to do meanwhile."""
        self.survive(error, consequence)
        if error.errno in OUT_OF_RESOURCES:
            time.sleep(RESOURCE_PAUSE)

    def _ready(self) -> socket.socket:
        ready = self._poller.poll(WAKES * 1000)
        if not ready:
            raise BlockingIOError
        return self._listeners[ready[0][0]]
