"""What an input means: bytes that choose, and the part of the core that gets them.

    input    07 | 03 | 0c 00 | ...            a byte or two for each choice, the rest as it is
    raw      its rest is what the peer or the user has sent: opener, socks, header, config, uri, flags, judge
    programs its rest says what to do next, step by step: records, sessions (machines.py)

`python -m tests.fuzz.run NAME` feeds them. Each returns if all is right, and raises if not: whatever the
core raises other than what it promises, or an AssertionError.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import ipaddress
import os
from collections.abc import Callable
from itertools import chain, pairwise, repeat

from cryptography.exceptions import InvalidTag

from tests.core import wire
from tests.core.feeding import RELEASE, SECRETS, handed_on
from tests.core.test_records import KEYS
from tests.fuzz.machines import Channel, Talk
from tunnel import address, config
from tunnel.aead import Opener
from tunnel.cli import build_parser
from tunnel.errors import ConfigError, HandshakeError, ModelMissing, ProtocolError, RecordError, Truncated
from tunnel.gather import Gatherer, listen_places, server_places
from tunnel.judge import Judge, unwrap
from tunnel.session import ServerSession, SocksSession
from tunnel.socks import SocksError

LONG = 1 << 14  # more than any of these needs to show all that it can do
SIZES = (1, 2, 16, 17, 18, 33, 34, 35, 50, 300, 4095, 4096, 4097, 0x3FFF, 0x4000, 32 * 1024, 1 << 18)


class Choices:
    """An input, taken apart from the front. When it is used up, it chooses 0."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def __bool__(self) -> bool:
        return self._place < len(self._content)

    def byte(self) -> int:
        self._place += 1
        return self._content[self._place - 1] if self._place <= len(self._content) else 0

    def word(self) -> int:
        return self.byte() << 8 | self.byte()

    def size(self) -> int:
        """A size that matters to somebody, or any small one."""
        chosen = self.byte()
        return SIZES[chosen] if chosen < len(SIZES) else chosen

    def take(self, size: int) -> bytes:
        start, self._place = self._place, self._place + size
        return self._content[start : start + size]

    def method(self) -> str:
        return wire.METHOD_NAMES[self.byte() % 3]

    def plan(self) -> list[int]:
        """How somebody reads, as tests/core/feeding.py has it."""
        steps = [self.size() for _ in range(1 + self.byte() % 4)]
        return [*steps, RELEASE] if self.byte() & 1 else steps

    def rest(self) -> bytes:
        return self.take(LONG)


# Raw: what a peer sends


def opener(content: bytes) -> None:
    """A sealed stream, in any pieces; a second implementation says what is in it."""
    choices = Choices(content)
    method, plan, stream = choices.method(), choices.plan(), choices.rest()
    plain, ending = opened_elsewhere(method, stream)
    out, error = handed_on(Opener(SECRETS[method]), stream, plan)
    assert plain.startswith(out), "something came out that nobody sealed"
    assert type(error) is (ending or type(None)), f"{error!r}, where {ending} was right"
    assert ending is RecordError or out == plain, "something that was sealed did not come out"


def opened_elsewhere(method: str, stream: bytes) -> tuple[bytes, type[ProtocolError] | None]:
    """The plaintext of a stream's whole records, and what is wrong behind them."""
    salt_size = wire.KEY_SIZES[method]
    if len(stream) < salt_size:
        return b"", Truncated if stream else None
    other, place, plain = wire.Wire(method, KEYS[method], stream[:salt_size]), salt_size, b""
    counter = 0
    while place < len(stream):
        end = place + 2 + wire.TAG
        if end > len(stream):
            return plain, Truncated
        try:
            length = int.from_bytes(other.open(counter, stream[place:end]), "big")
            place, end = end, end + length + wire.TAG
            if not 1 <= length <= wire.MAX_PAYLOAD:
                return plain, RecordError
            if end > len(stream):
                return plain, Truncated
            plain += other.open(counter + 1, stream[place:end])
        except InvalidTag:
            return plain, RecordError
        place, counter = end, counter + 2
    return plain, None


def header(content: bytes) -> None:
    """What somebody with the key seals into the opening of a request: an address, or something else."""
    choices = Choices(content)
    method, plan = choices.method(), choices.plan()
    pieces = [choices.size() for _ in range(1 + choices.byte() % 3)]
    plain = choices.rest()[:2000]
    records, place = [], 0
    for size in chain(pieces, repeat(0x3FFF)):
        if place < len(plain):
            records.append(plain[place : place + size])
            place += size
        else:
            break
    stream = wire.Wire(method, KEYS[method], bytes(wire.KEY_SIZES[method])).stream(records)
    session = ServerSession(SECRETS[method])
    out, error = b"", None
    try:
        for offset, size in reads(len(stream), plan):
            if session.target is not None:
                break
            session.opening.get_buffer()[:size] = stream[offset : offset + size]
            out += session.opening.buffer_updated(size)
        if session.target is None:
            session.opening.eof()
    except ProtocolError as raised:
        error = raised
    assert out == b"", "a probe learns from whatever is sent"
    assert session.answer(error) == b""
    try:
        meant = address.unpack(plain)
    except HandshakeError:
        assert isinstance(error, HandshakeError)
        assert session.target is None
        return
    if meant is None:
        assert session.target is None
        assert isinstance(error, Truncated) or not plain
        return
    assert error is None
    assert session.target == meant[0]
    early = bytes(session.up.buffer_updated(0))
    assert plain[meant[1] :].startswith(early), "payload that came with the header was lost or changed"
    assert str(session.target).isprintable()
    packs_or_refuses(session.target)


def packs_or_refuses(place: address.Address) -> None:
    """A target goes to the resolver, or it is refused; and what was packed is read again as the same."""
    try:
        packed = address.pack(place)
    except HandshakeError:
        return
    again = address.unpack(packed)
    assert again is not None
    assert again[1] == len(packed)
    assert address.pack(again[0]) == packed


def reads(total: int, plan: list[int]) -> list[tuple[int, int]]:
    """Offset and size of each read of a stream of `total` bytes."""
    steps, offset = [step for step in plan if step > 0], 0
    found: list[tuple[int, int]] = []
    while offset < total:
        size = min(steps[len(found) % len(steps)], 4096, total - offset)
        found.append((offset, size))
        offset += size
    return found


def socks(content: bytes) -> None:
    """What a SOCKS5 client says, in one piece and in others: both must sound the same."""
    choices = Choices(content)
    cuts = sorted({choices.byte() for _ in range(1 + choices.byte() % 5)})
    said = choices.rest()[:2000]
    in_one, in_pieces = heard(said, []), heard(said, [cut for cut in cuts if 0 < cut < len(said)])
    assert in_one[:3] == in_pieces[:3]
    target, answers, reason, early = in_one
    assert answers[:2] in (b"", b"\5\0", b"\5\xff")
    if target is not None:
        assert not reason
        assert answers == b"\5\0"
        packed = wire.parse("aes-128-gcm", KEYS["aes-128-gcm"], early)
        travels = b"".join(record.payload for record in packed)
        assert travels.startswith(address.pack(target))
        assert said.endswith(travels[len(address.pack(target)) :])


def heard(said: bytes, cuts: list[int]) -> tuple[address.Address | None, bytes, str, bytes]:
    """Target, answers, the reason of a refusal, and the first bytes of the tunnel."""
    session = SocksSession(SECRETS["aes-128-gcm"])
    answers, reason = b"", ""
    try:
        for start, end in pairwise([0, *cuts, len(said)]):
            session.opening.get_buffer()[: end - start] = said[start:end]
            answers += session.opening.buffer_updated(end - start)
            if session.target is not None:
                return session.target, answers, "", bytes(session.up.buffer_updated(0))
        with contextlib.suppress(Truncated):
            session.opening.eof()
    except SocksError as error:
        reason = str(error)
        answers += session.answer(error)
    return session.target, answers, reason, b""


def judge(content: bytes) -> None:
    """Any range that a user opens and any address that a name turns out to have."""
    choices = Choices(content)
    packed, text = choices.take(16).ljust(16, b"\0"), choices.rest().decode("utf-8", "surrogateescape")
    try:
        court = Judge([text] if text else [], lambda _: False)
    except ConfigError as error:
        one_line(error, repr(text))
        return
    literal = address.ipv6_text(packed)
    assert address.ipv6_bytes(literal) == packed
    inner = unwrap(ipaddress.ip_address(literal))
    assert court.allows(literal) == court.allows(str(inner)) == court.allows(f"{literal}%eth0")
    if not text and isinstance(inner, ipaddress.IPv4Address):
        assert not (court.allows(literal) and (inner.is_private or inner.is_loopback or inner.is_multicast))


# Raw: what a user writes


SCRATCH = os.memfd_create("configuration")
SCRATCH_PATH = f"/proc/self/fd/{SCRATCH}"


def configuration(content: bytes) -> None:
    """A JSON file, and what a server would make of it."""
    os.ftruncate(SCRATCH, 0)
    os.pwrite(SCRATCH, content, 0)
    try:
        values, warnings = config.read_file(SCRATCH_PATH)
        usable(values)
    except ConfigError as error:
        one_line(error, SCRATCH_PATH, "no ", "key for", "method")
        return
    assert set(values) <= set(config.FIELDS)
    assert all(warning.startswith(SCRATCH_PATH) for warning in warnings)


def usable(values: config.Values) -> None:
    """What start.py makes of checked values. Raises ConfigError."""
    for command in (config.SERVE, config.LOCAL):
        for place in listen_places(command, values):
            assert str(place).isprintable()
    config.secret_of(values, SCRATCH_PATH)
    server_places(values)


def uri(content: bytes) -> None:
    """What somebody pastes where an ss:// URI belongs."""
    text = content.decode("utf-8", "surrogateescape")
    try:
        values = config.parse_uri(text)
    except ConfigError as error:
        one_line(error, "server URI")
        return
    config.secret_of(values, "here")
    written = config.format_uri(
        values["method"], values["password"], address.Address(values["server"][0], values["server_port"])
    )
    host: str = values["server"][0]
    if host.isascii() and host.isprintable() and not set(host) & set("[]@/?#\\% "):
        assert config.parse_uri(written) == values


PARSER = build_parser()


def flags(content: bytes) -> None:
    """A command line, a word a line; and where it is one, the values that it gives."""
    words = [line.decode("utf-8", "surrogateescape") for line in content.split(b"\n")[:12]]
    said, printed = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            arguments = PARSER.command_line(words)
    except SystemExit as left:
        code = left.code
    else:
        code = None
        if arguments.command in (config.SERVE, config.LOCAL, config.FORWARD):
            gathered(arguments)
    assert code in (None, os.EX_OK, os.EX_USAGE)
    assert code != os.EX_USAGE or said.getvalue().startswith("tunnel")


def gathered(arguments: argparse.Namespace) -> None:
    """The values, unless a file of this machine would have to be read for them."""
    files = (arguments.config, arguments.password_file, getattr(arguments, "server", None))
    if any(file is not None and not file.startswith("ss://") for file in files):
        return
    try:
        values, _ = Gatherer(arguments.command, arguments).read()
        usable(values)
    except (ConfigError, ModelMissing) as error:
        one_line(error)


def one_line(error: Exception, *beginnings: str) -> None:
    """A complaint is for a person: one line, that begins with what is wrong."""
    text = str(error)
    assert text
    assert len(text.splitlines()) == 1, f"not one line: {text!r}"
    assert not beginnings or text.startswith(beginnings), text


# Programs


def records(content: bytes) -> None:
    """A story about a Channel."""
    choices = Choices(content)
    channel = Channel(choices.method(), choices.take(choices.byte()))
    steps: tuple[Callable[[], None], ...] = (
        lambda: channel.write(choices.size()),
        lambda: channel.read(choices.size()),
        channel.write_nothing,
        channel.read_nothing,
        channel.release_sealer,
        channel.release_opener,
        lambda: channel.flip(choices.word(), choices.byte()),
        lambda: channel.remove(choices.word(), choices.size()),
        lambda: channel.repeat(choices.word(), choices.size()),
        lambda: channel.insert(choices.word(), choices.take(1 + choices.byte() % 40)),
    )
    play(choices, steps, channel.is_true)
    channel.end()


def sessions(content: bytes) -> None:
    """A story about a Talk."""
    choices = Choices(content)
    method, kind = choices.method(), choices.byte()
    pieces = [choices.size() for _ in range(1 + choices.byte() % 6)]
    talk = Talk(method, bool(kind & 1), chain(pieces * 40, repeat(1 << 20)), seen=kind & 6 == 6)
    steps: tuple[Callable[[], None], ...] = (
        talk.client_turns,
        talk.server_turns,
        lambda: talk.say(True, min(choices.size(), 5000)),
        lambda: talk.say(False, min(choices.size(), 5000)),
        talk.patience_ends,
        lambda: talk.finish(True),
        lambda: talk.finish(False),
        lambda: talk.flip(bool(choices.byte() & 1), choices.word(), choices.byte()),
    )
    play(choices, steps, talk.is_true)
    if kind & 8:
        talk.break_off(bool(kind & 16), 1 + kind // 32)
    else:
        talk.settle()


def play(choices: Choices, steps: tuple[Callable[[], None], ...], holds: Callable[[], None]) -> None:
    """At most 60 steps, and what must hold after each."""
    for _ in range(60):
        if not choices:
            return
        steps[choices.byte() % len(steps)]()
        holds()


HARNESSES: dict[str, Callable[[bytes], None]] = {
    "opener": opener,
    "header": header,
    "socks": socks,
    "judge": judge,
    "config": configuration,
    "uri": uri,
    "flags": flags,
    "records": records,
    "sessions": sessions,
}
