"""Streams and sessions that somebody cuts, forges and ends, and the truth to hold them against.

    Channel    Sealer --[ in flight ]--> Opener            what comes out has gone in, in this order
    Talk       application --> client end --[ in flight ]--> server end --> target, and back

The truth is what a stream loses where it was changed: every record before the first byte that is not the
sealer's must come out, and no byte after it. Nothing here knows how the core finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.core.feeding import SECRETS
from tests.core.link import ConnectionPair, Plug, Wire
from tests.core.test_records import pattern
from tunnel.address import Address
from tunnel.aead import Opener, Sealer
from tunnel.buffers import MAX_PAYLOAD
from tunnel.errors import ProtocolError, RecordError, Replayed, Truncated
from tunnel.keys import METHODS
from tunnel.session import ForwardSession, ServerSession, SocksSession
from tunnel.socks import SUCCEEDED, reply, request

PLAIN = pattern(1 << 20)
TARGET = Address("example.com", 443)
ANSWERS = b"\5\0" + reply(SUCCEEDED)  # what a SOCKS5 client hears of a connection that was made


def same_at_the_front(one: bytes | bytearray, other: bytes | bytearray) -> int:
    """How many bytes both begin with."""
    if (size := min(len(one), len(other))) == 0 or one[:size] == other[:size]:
        return size
    low, high = 0, size  # they agree up to `low`, and not up to `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle)
    return low


class Channel:
    """A sealer and an opener with a stream between them, for anybody to meddle with."""

    def __init__(self, method: str, head: bytes = b"") -> None:
        self.sealer, self.opener = Sealer(SECRETS[method], head), Opener(SECRETS[method])
        self.salt_size = METHODS[method].salt_size
        self.plain = bytearray(head)
        self.flying = bytearray()
        self.got = bytearray()
        self.error: ProtocolError | None = None
        self._honest = bytearray()  # all that the sealer has made
        self._delivered = bytearray()  # all that the opener was given
        self._ends = [(0, 0)]  # of its records: in `_honest`, in `plain`

    # the sealer's side
    def write(self, size: int) -> None:
        """At most `size` bytes into the sealer, as much as it has room for."""
        room = self.sealer.get_buffer()
        assert len(room), "nothing can be written: the sealer offers no room"
        place = len(self.plain)
        part = PLAIN[place % 251 :][: min(size, len(room))]
        room[: len(part)] = part
        self.plain += part
        self._made(self.sealer.buffer_updated(len(part)))

    def write_nothing(self) -> None:
        self._made(self.sealer.buffer_updated(0))

    def release_sealer(self) -> None:
        self.sealer.release()

    def _made(self, view: memoryview) -> None:
        sealed_end, plain_end = self._ends[-1]
        if view and not sealed_end:
            sealed_end = self.salt_size
        left = len(self.plain) - plain_end if view else 0
        while left:
            size = min(left, MAX_PAYLOAD)
            sealed_end, plain_end, left = sealed_end + 34 + size, plain_end + size, left - size
            self._ends.append((sealed_end, plain_end))
        self.flying += view
        self._honest += view
        assert len(self._honest) == self._ends[-1][0], "a record has another size than the format says"

    # in between
    def flip(self, place: int, mask: int) -> None:
        if self.flying:
            self.flying[place % len(self.flying)] ^= mask or 1

    def remove(self, place: int, size: int) -> None:
        if self.flying:
            place %= len(self.flying)
            del self.flying[place : place + size]

    def insert(self, place: int, forged: bytes) -> None:
        place %= len(self.flying) + 1
        self.flying[place:place] = forged

    def repeat(self, place: int, size: int) -> None:
        place %= len(self.flying) + 1
        self.insert(place, bytes(self.flying[place : place + size]))

    # the opener's side
    def read(self, size: int) -> None:
        """At most `size` of the bytes in flight into the opener."""
        if not self.flying:
            return
        room = self.opener.get_buffer()
        assert len(room), "nothing can be read: the opener offers no room"
        part = self.flying[: min(size, len(room))]
        del self.flying[: len(part)]
        room[: len(part)] = part
        self._delivered += part
        self._opened(lambda: self.opener.buffer_updated(len(part)))

    def read_nothing(self) -> None:
        self._opened(lambda: self.opener.buffer_updated(0))

    def release_opener(self) -> None:
        self.opener.release()

    def _opened(self, step: Callable[[], memoryview]) -> None:
        error: ProtocolError | None = None
        try:
            self.got += step()
        except ProtocolError as raised:
            error = raised
        assert self.error in (None, error), "after an error the flow is dead: it raises the same again"
        self.error = error
        assert self.plain.startswith(self.got), "something came out that did not go in"

    # the truth
    def is_true(self) -> None:
        """After each step: what came out was in whole records before the first changed byte."""
        honest = same_at_the_front(self._honest, self._delivered)
        whole = max(plain for sealed, plain in self._ends if sealed <= honest)
        assert len(self.got) <= whole, "something came out that had not arrived yet, or was forged"
        if self.error is None:
            assert len(self.got) == whole, "a whole record has arrived and did not come out"

    def end(self) -> None:
        """Everything arrives, and the stream ends. It must be whole, or be called broken."""
        self._made(self.sealer.eof())
        while self.flying and self.error is None:
            self.read(1 << 20)
            self.is_true()
        self._opened(self.opener.eof)
        if self.error is None:
            clean = {0, self.salt_size, *(sealed for sealed, _ in self._ends)}
            assert len(self._delivered) in clean, "a stream that was cut passes for a whole one"
            honest = self._honest.startswith(self._delivered)
            # A salt authenticates nothing by itself, and SIP004 marks no end.
            assert honest or len(self._delivered) == self.salt_size, "a changed stream passes for a whole one"
        else:
            assert isinstance(self.error, RecordError | Truncated)
            untouched = self._honest == self._delivered
            assert not untouched, f"an honest stream is called broken: {self.error}"
        self.is_true()


class Talk:
    """Both ends of a tunnel, run step by step; `cuts` says how many bytes each read may get."""

    def __init__(self, method: str, socks: bool, cuts: Iterator[int], seen: bool = False) -> None:
        """`seen`: the server has seen this client's salt before."""
        secret = SECRETS[method]
        client = SocksSession(secret) if socks else ForwardSession(secret, TARGET)
        server = ServerSession(secret, lambda _: not seen)
        self.pair = pair = ConnectionPair(client, server, lambda: max(1, next(cuts)))
        self._seen = seen
        self.up = Direction(pair.application, pair.target)
        self.down = Direction(pair.target, pair.application, ANSWERS if socks else b"")
        self._up_wire: Wire = pair.server.accepted.reads  # sealed, from end to end
        self._down_wire: Wire = pair.server.accepted.writes
        self._forged = False
        self._broken: Direction | None = None
        if socks:
            pair.application.send(request(TARGET))

    def say(self, upward: bool, size: int) -> None:
        (self.up if upward else self.down).say(size)

    def finish(self, upward: bool) -> None:
        """FIN from the application or the target."""
        (self.up if upward else self.down).finish()

    def client_turns(self) -> None:
        self.pair.client.turn()

    def server_turns(self) -> None:
        self.pair.server.turn()

    def patience_ends(self) -> None:
        self.pair.client.patience_is_over()

    def flip(self, upward: bool, place: int, mask: int) -> None:
        """Changes a sealed byte that is on its way."""
        wire = self._up_wire if upward else self._down_wire
        if wire.flying:
            wire.flying[place % len(wire.flying)] ^= mask or 1
            self._forged = True

    def break_off(self, upward: bool, size: int) -> None:
        """The last thing that happens: the sealed connection loses its last bytes, and ends with a FIN."""
        wire = self._up_wire if upward else self._down_wire
        relay = self.pair.server if upward else self.pair.client
        if size and wire.flying:
            del wire.flying[-size:]
            wire.ended = True
            self._broken = self.up if upward else self.down
            while relay.turn():
                self.is_true()
        self.is_true()

    def is_true(self) -> None:
        """After each step."""
        pair, up, down = self.pair, self.up, self.down
        up.hear()
        down.hear()
        assert up.said.startswith(up.heard), "the target got what the application did not send"
        assert down.said.startswith(down.heard), "the application got what the target did not send"
        assert all(address == TARGET for address in pair.dialled_to), "dialled to where nobody wanted to go"
        assert not (self._seen and pair.dialled_to), "a replayed request was served"
        for error in (pair.client.error, pair.server.error):
            assert error is None or isinstance(error, ProtocolError)
            assert error is None or self._meddled, f"ended for no reason: {error}"
        for direction in (up, down):
            whole = direction.heard == direction.said
            assert whole or not direction.ended or direction is self._broken, "a FIN makes a part look whole"

    def settle(self) -> None:
        """Both say all that they have to say. Where nobody has meddled, everything arrives."""
        for direction in (self.up, self.down):
            direction.finish()
        self.pair.settle()
        self.is_true()
        if not self._meddled:
            assert self.up.ended, "the target waits for an end that does not come"
            assert self.down.ended, "the application waits for an end that does not come"
        if self._seen and not self._forged:
            assert isinstance(self.pair.server.error, Replayed)

    @property
    def _meddled(self) -> bool:
        return self._forged or self._seen or self._broken is not None


class Direction:
    """From one loose end of the tunnel to the other."""

    def __init__(self, speaker: Plug, listener: Plug, answers: bytes = b"") -> None:
        """`answers`: what the tunnel itself says to the listener first."""
        self._speaker, self._listener = speaker, listener
        self.said, self.heard = bytearray(answers), bytearray()

    @property
    def ended(self) -> bool:
        return self._listener.reads.ended

    def say(self, size: int) -> None:
        if not self._speaker.writes.ended:
            part = PLAIN[len(self.said) % 251 :][:size]
            self.said += part
            self._speaker.send(part)

    def finish(self) -> None:
        self._speaker.end()

    def hear(self) -> None:
        self.heard += self._listener.recv()
