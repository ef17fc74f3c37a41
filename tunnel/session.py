"""A Session: one connection through the tunnel, as every model sees it.

                    accepted                                   dialled
                       |  opening   until `target` is known       |
    the side that  <---|                                          |
    connected to us    |  answer()  how the dialling went         |   the side that
                       |                                          |   we connected to
                       |  up    ------------------------------->  |
                       |  <-------------------------------  down  |

What a model does with it, whatever the model:

    while session.target is None:       read into opening, send what it returns to the same peer
    dial(session.target)                or send answer(error) and close
    send session.answer(None)           to the accepted side: nothing, or SOCKS5's "succeeded"
    wait session.patience               for the first payload, so that it shares the header's segment
    send session.up.buffer_updated(0)   to the dialled side: payload that came with the opening
    copy up and down                    until each has ended by itself

    class              accepted side         dialled side            run by
    ServerSession      sealed records        plain                   tunnel serve
    SocksSession       SOCKS5, then plain    sealed records          tunnel local
    ForwardSession     plain                 sealed records          tunnel forward

Rules: `up` and `down` share no mutable state, so two threads or two processes may own one each.
The 2022 edition's records and a relay without encryption are other Flows behind the same Session.
"""

from __future__ import annotations

from tunnel.address import Address, pack, unpack
from tunnel.aead import Opener, Sealer
from tunnel.errors import HandshakeError, Truncated
from tunnel.flow import EMPTY, Flow
from tunnel.keys import Secret
from tunnel.socks import SUCCEEDED, SocksError, SocksOpening, reply, reply_to

__all__ = ["Flow", "ForwardSession", "ServerSession", "Session", "SocksSession"]

FIRST_PAYLOAD_WAIT = 0.010  # seconds; a peer that waits for the server to speak first pays them once


class Session:
    """What all sessions have; see the picture above. Subclasses set the three flows."""

    __slots__ = ("down", "opening", "patience", "target", "up")

    opening: Flow
    up: Flow
    down: Flow
    target: Address | None
    patience: float  # seconds to wait for the accepted side's first payload before up's header goes

    def answer(self, error: Exception | None) -> bytes:  # noqa: ARG002 - for those that do tell
        """What to tell the accepted side: None for a dialled connection, or why there is none."""
        return b""


class _Request(Flow):
    """The opening of a sealed stream: opens records until the address header is whole."""

    __slots__ = ("_error", "_head", "_session")

    def __init__(self, session: ServerSession) -> None:
        super().__init__()
        self._session = session
        self._head = b""
        self._error: HandshakeError | None = None

    def get_buffer(self) -> memoryview:
        return self._session.up.get_buffer()

    def buffer_updated(self, n: int) -> memoryview:
        """Sets the session's target. Raises RecordError, or HandshakeError for a bad address."""
        if self._error:
            raise self._error
        up = self._session.up
        plain = up.buffer_updated(n)
        if self._head:
            plain = memoryview(self._head + plain)
        try:
            parsed = unpack(plain)
        except HandshakeError as error:
            self._error = error
            raise
        if parsed is None:
            self._head = bytes(plain)
        else:
            self._session.target, size = parsed
            up.hold(plain[size:])
        return EMPTY

    def eof(self) -> memoryview:
        self._session.up.eof()
        if self._head:
            raise Truncated("stream ended inside the address header")
        return EMPTY

    def release(self) -> None:
        self._session.up.release()


class ServerSession(Session):
    """Opens the accepted side's records and dials where they say: `tunnel serve`."""

    __slots__ = ()
    up: Opener

    def __init__(self, secret: Secret) -> None:
        self.target = None
        self.patience = 0.0
        self.opening = _Request(self)
        self.up = Opener(secret)
        self.down = Sealer(secret)


class ForwardSession(Session):
    """Seals what the accepted side sends, to one fixed target: `tunnel forward`."""

    __slots__ = ()

    def __init__(self, secret: Secret, target: Address) -> None:
        self.target = target
        self.patience = FIRST_PAYLOAD_WAIT
        self.opening = Flow()
        self.up = Sealer(secret, pack(target))
        self.down = Opener(secret)


class SocksSession(Session):
    """Seals what a SOCKS5 client sends, to the target that it names: `tunnel local`."""

    __slots__ = ()
    up: Sealer

    def __init__(self, secret: Secret) -> None:
        self.target = None
        self.patience = FIRST_PAYLOAD_WAIT
        self.opening = SocksOpening(self._requested)
        self.up = Sealer(secret)
        self.down = Opener(secret)

    def _requested(self, target: Address, early: bytes) -> None:
        self.up.prepend(pack(target) + early)
        self.patience = 0.0 if early else FIRST_PAYLOAD_WAIT
        self.target = target

    def answer(self, error: Exception | None) -> bytes:
        if error is None:
            return reply(SUCCEEDED)
        if isinstance(error, SocksError):
            return error.reply
        return reply_to(error) if isinstance(error, OSError) and self.target else b""
