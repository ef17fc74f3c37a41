"""Streams and sessions that somebody cuts, forges and ends, and the truth to hold them against.

    Channel    Sealer --[ in flight ]--> Opener            what comes out has gone in, in this order
    Talk       application --> client end --[ in flight ]--> server end --> target, and back
    SocksTalk  client --[ in flight ]--> SOCKS5, then a sealed stream          what RFC 1928 asks for

The truth is what a stream loses where it was changed: every record before the first byte that is not the
sealer's must come out, and no byte after it. Nothing here knows how the core finds out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.core import wire
from tests.core.feeding import SECRETS
from tests.core.link import ConnectionPair, Plug, Wire
from tests.core.test_records import KEYS, pattern
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
        if self.error is not None:
            assert repr(error) == repr(self.error), (
                "after an error the flow is dead: it raises the same again"
            )
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


class Verdict(NamedTuple):
    """What RFC 1928 asks for, once a client has said so much."""

    answers: bytes
    refused: bool = False
    size: int = 0  # of greeting and request, once they are whole
    header: bytes = b""  # the address as it should travel


def socks_reply(code: int) -> bytes:
    return bytes([5, code, 0, 1]) + bytes(6)


def rfc1928(said: bytes) -> Verdict:
    """Sections 3 to 6, read a second time. A part is judged as soon as it says enough."""
    if said and said[0] != 5:
        return Verdict(b"", refused=True)  # no SOCKS5, so there is no answer that it would understand
    if len(said) < 2 or len(said) < 2 + said[1]:
        return Verdict(b"")
    start = 2 + said[1]
    if 0 not in said[2:start]:
        return Verdict(b"\5\xff", refused=True)
    rest = said[start:]
    if len(rest) < 4:
        return Verdict(b"\5\0")
    version, command, _, kind = rest[:4]
    code = 1 if version != 5 else 7 if command != 1 else 8 if kind not in (1, 3, 4) else 0
    if kind == 3 and len(rest) > 4 and rest[4] == 0:
        code = code or 1
    if code:
        return Verdict(b"\5\0" + socks_reply(code), refused=True)
    if kind == 3 and len(rest) < 5:
        return Verdict(b"\5\0")
    end = 4 + (1 + rest[4] if kind == 3 else 4 if kind == 1 else 16)
    if len(rest) < end + 2:
        return Verdict(b"\5\0")
    packed = rest[3:end] if kind != 3 else name_header(rest[5:end])
    port = rest[end : end + 2]
    if packed is None or port == b"\0\0":
        return Verdict(b"\5\0" + socks_reply(1), refused=True)
    return Verdict(b"\5\0", size=start + end + 2, header=packed + port)


def name_header(name: bytes) -> bytes | None:
    """A name as it travels: a literal as an address, other scripts by IDNA. None: it cannot be meant."""
    try:
        text = name.decode()
        name = name if text.isascii() else text.encode("idna")
    except UnicodeError:
        return None
    if not 1 <= len(name) <= 255 or b"\0" in name:
        return None
    if "%" not in text:  # a zone is of this machine alone
        try:
            literal = ipaddress.ip_address(text)
            return bytes([1 if literal.version == 4 else 4]) + literal.packed
        except ValueError:
            pass
    return bytes([3, len(name)]) + name


class SocksTalk:
    """What a SOCKS5 client says to a session, and what both of them hear of it."""

    def __init__(self, method: str, opening: bytes) -> None:
        self._method = method
        self._session = SocksSession(SECRETS[method])
        self._flying = bytearray(opening)
        self._arrived = bytearray()
        self._answers, self._sealed = bytearray(), bytearray()
        self._error: ProtocolError | None = None
        self._dialled: bytes | None = None  # the reply for how it went
        self._connected = False

    @property
    def can_arrive(self) -> bool:
        """While somebody dials, nothing is read; after a refusal, nobody is there."""
        return bool(self._flying) and not self._error and (self._connected or not self._session.target)

    @property
    def waits(self) -> bool:
        """Somebody should dial."""
        return self._session.target is not None and self._dialled is None

    def say(self, payload: bytes) -> None:
        self._flying += payload

    def arrive(self, size: int) -> None:
        """At most `size` of the client's bytes in one read."""
        if not self.can_arrive:
            return
        flow = self._session.up if self._connected else self._session.opening
        room = flow.get_buffer()
        part = self._flying[: min(size, len(room))]
        del self._flying[: len(part)]
        room[: len(part)] = part
        self._arrived += part
        try:
            made = flow.buffer_updated(len(part))
            (self._sealed if self._connected else self._answers).extend(made)
            flow.release()
        except ProtocolError as error:
            self._refuse(error)

    def dial(self, number: int, code: int) -> None:
        """With this errno, which RFC 1928 calls `code`; or 0, and it is connected."""
        self._dialled = socks_reply(code)
        self._answers += self._session.answer(OSError(number, "") if number else None)
        self._connected = not number
        if self._connected:
            self._sealed += self._session.up.buffer_updated(0)

    def _refuse(self, error: ProtocolError) -> None:
        self._error = error
        self._answers += self._session.answer(error)

    def is_true(self) -> None:
        """After each step."""
        right = rfc1928(bytes(self._arrived))
        assert bool(self._error) == right.refused, f"{self._error!r} where {right} was right"
        assert self._answers == right.answers + (self._dialled or b""), f"answered {bytes(self._answers)!r}"
        assert bool(self._session.target) == bool(right.size)
        if self._error:
            text = str(self._error)
            assert text, "an error without words"
            assert text.isprintable(), f"not one line for a person: {text!r}"
        if self._connected:
            stream = wire.parse(self._method, KEYS[self._method], bytes(self._sealed))
            travels = b"".join(record.payload for record in stream)
            assert travels == right.header + self._arrived[right.size :], "what travels is not what was said"

    def end(self) -> None:
        """All that was said arrives, then the FIN. In one piece it would have come to the same."""
        while self.can_arrive:
            self.arrive(1 << 20)
            self.is_true()
        whole = bytes(self._arrived)
        if self._session.target is None and not self._error:
            greeting = 2 + whole[1] if rfc1928(whole).answers else 0
            try:
                assert not self._session.opening.eof()
                assert len(whole) == greeting, "a request that was cut off passes for none"
            except Truncated:
                assert len(whole) > greeting, "a client that said nothing is called cut off"
        other = SocksTalk(self._method, whole)
        other.arrive(len(whole))
        other.is_true()
        assert str(other._error) == str(self._error), "the reason depends on how it was cut"
        assert other._session.target == self._session.target
