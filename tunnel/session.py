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

Rules: `up` and `down` share no mutable state, so two threads or two processes may own one each. Nothing
here refers back to its session: a connection's memory is free when its last reference goes, without
the garbage collector. `fresh`, at each end: the memory of salts (tunnel/replay.py). It knows what came and
what was sent, since one key seals both ways: either could be played to us as the other.
A relay without encryption is another pair of Flows behind the same Session (services.py).
"""

from __future__ import annotations

from collections.abc import Callable

from tunnel.address import Address, pack, unpack
from tunnel.aead import Opener, Sealer
from tunnel.errors import HandshakeError, ProtocolError, Truncated
from tunnel.flow import EMPTY, Flow, Opening
from tunnel.keys import Secret
from tunnel.socks import SUCCEEDED, SocksError, SocksOpening, reply, reply_to

FIRST_PAYLOAD_WAIT = 0.010  # seconds; a peer that waits for the server to speak first pays them once


class Session:
    """What all sessions have; see the picture above. Subclasses set the three flows."""

    __slots__ = ("down", "opening", "up")

    dials = True  # its opening ends with a target; False: it is a service, and all of it is opening
    opening: Opening
    up: Flow
    down: Flow

    @property
    def target(self) -> Address | None:
        """Where to dial; None while the opening has not said so."""
        return self.opening.target

    @property
    def patience(self) -> float:
        """Seconds to wait for the accepted side's first payload before `up`'s header goes alone."""
        return 0.0

    def answer(self, error: Exception | None) -> bytes:  # noqa: ARG002 - for those that do tell
        """What to tell the accepted side: None for a dialled connection, or why there is none."""
        return b""


class Request(Opening):
    """The opening of a sealed stream: opens `up`'s records until the address header is whole."""

    __slots__ = ("_error", "_head", "_up")

    def __init__(self, up: Opener) -> None:
        super().__init__()
        self._up = up
        self._head = b""
        self._error: ProtocolError | None = None

    def get_buffer(self) -> memoryview:
        return self._up.get_buffer()

    def buffer_updated(self, n: int) -> memoryview:
        """Sets the target. Raises RecordError, Replayed, or HandshakeError for a bad address."""
        if self._error:
            raise self._error.again()
        plain = self._up.buffer_updated(n)
        if self._head:
            plain = memoryview(self._head + plain)
        try:
            parsed = unpack(plain)
        except HandshakeError as error:
            self._error = error.again()
            raise
        if parsed is None:
            self._head = bytes(plain)
        else:
            self.target, size = parsed
            self._up.hold(plain[size:])
        return EMPTY

    def eof(self) -> memoryview:
        self._up.eof()
        if self._head:
            raise Truncated("stream ended inside the address header")
        return EMPTY

    def release(self) -> None:
        self._up.release()


class ServerSession(Session):
    """Opens the accepted side's records and dials where they say: `tunnel serve`."""

    __slots__ = ()

    def __init__(self, secret: Secret, fresh: Callable[[bytes], bool] | None = None) -> None:
        self.up = up = Opener(secret, fresh)
        self.opening = Request(up)
        self.down = Sealer(secret, remember=fresh)


class ForwardSession(Session):
    """Seals what the accepted side sends, to one fixed target: `tunnel forward`."""

    __slots__ = ()

    def __init__(self, secret: Secret, target: Address, fresh: Callable[[bytes], bool] | None = None) -> None:
        self.opening = Opening(target)
        self.up = Sealer(secret, pack(target), fresh)
        self.down = Opener(secret, fresh)

    @property
    def patience(self) -> float:
        return FIRST_PAYLOAD_WAIT


class SocksSession(Session):
    """Seals what a SOCKS5 client sends, to the target that it names: `tunnel local`."""

    __slots__ = ()
    opening: SocksOpening

    def __init__(self, secret: Secret, fresh: Callable[[bytes], bool] | None = None) -> None:
        self.up = up = Sealer(secret, remember=fresh)
        self.opening = SocksOpening(up)
        self.down = Opener(secret, fresh)

    @property
    def patience(self) -> float:
        return 0.0 if self.opening.early else FIRST_PAYLOAD_WAIT

    def answer(self, error: Exception | None) -> bytes:
        if error is None:
            return reply(SUCCEEDED)
        if isinstance(error, SocksError):
            return error.reply
        return reply_to(error) if isinstance(error, OSError) and self.target else b""
