"""Sessions end to end over a fake link: what a client's application sends is what the target gets."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import wire
from tests.core.feeding import SECRETS, feed, handed_on, methods, passed, watched_buffers
from tests.core.link import ConnectionPair, Cut, Plug, Relay, bytewise, cable, whole
from tests.core.test_socks import CHOSEN, GREETING, REQUEST, TARGET, refusal
from tunnel.address import Address, pack
from tunnel.aead import Sealer
from tunnel.errors import HandshakeError, ProtocolError, RecordError, Truncated
from tunnel.flow import Flow
from tunnel.session import FIRST_PAYLOAD_WAIT, ForwardSession, ServerSession, Session, SocksSession

TARGETS = [Address("192.0.2.7", 25), Address("2001:db8::7", 443), Address("x" * 255, 1)]
EVERY_METHOD = pytest.mark.parametrize("method", wire.METHOD_NAMES)
CUTS = pytest.mark.parametrize("cut", [whole, bytewise], ids=["whole", "bytewise"])
BIG = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def rubbish_in_buffers() -> Iterator[None]:
    """Nobody may look at a buffer before it was filled or after it was given back."""
    with watched_buffers():
        yield


def forward(method: str = "aes-128-gcm", cut: Cut = whole, target: Address = TARGET) -> ConnectionPair:
    secret = SECRETS[method]
    return ConnectionPair(ForwardSession(secret, target), ServerSession(secret), cut)


def socks(method: str = "aes-128-gcm", cut: Cut = whole, early: bytes = b"") -> ConnectionPair:
    """A pair whose application has asked for TARGET and heard that it is connected."""
    secret = SECRETS[method]
    pair = ConnectionPair(SocksSession(secret), ServerSession(secret), cut)
    pair.application.send(GREETING + REQUEST + early)
    pair.settle(patience_over=False)
    assert pair.application.recv() == CHOSEN + refusal(0)
    return pair


BOTH_CLIENTS = pytest.mark.parametrize("connect", [forward, socks])


def plain_of(method: str, sealed: bytes) -> list[bytes]:
    key = wire.master_key("hehe", wire.KEY_SIZES[method])
    return [record.payload for record in wire.parse(method, key, sealed)]


# Through both ends


@CUTS
@EVERY_METHOD
@BOTH_CLIENTS
def test_both_directions_carry_what_was_sent(
    connect: Callable[[str, Cut], ConnectionPair], method: str, cut: Cut
) -> None:
    pair = connect(method, cut)
    size = 500 if cut is bytewise else len(BIG)
    assert pair.to_target(BIG[:size]) == BIG[:size]
    assert pair.dialled_to == [TARGET]
    assert pair.to_application(BIG[:size]) == BIG[:size]
    assert pair.to_target(b"again") == b"again"


@given(
    methods,
    st.sampled_from(TARGETS),
    st.lists(st.integers(1, 5000), min_size=1, max_size=8),
    st.lists(st.tuples(st.booleans(), st.integers(1, 30_000)), max_size=10),
)
def test_any_conversation_in_any_pieces_arrives(
    method: str, target: Address, pieces: list[int], talk: list[tuple[bool, int]]
) -> None:
    sizes = cycle(pieces)
    pair = forward(method, lambda: next(sizes), target)
    for upward, size in talk:
        said = BIG[:size]
        assert (pair.to_target if upward else pair.to_application)(said) == said
    pair.application.end()
    pair.target.end()
    pair.settle()
    assert pair.dialled_to == [target]
    assert pair.application.reads.ended
    assert pair.target.reads.ended
    assert pair.client.error is pair.server.error is None


@EVERY_METHOD
def test_the_wire_carries_the_header_in_front_and_the_reply_carries_none(method: str) -> None:
    pair = forward(method)
    pair.to_target(b"question")
    pair.to_application(b"answer")
    assert b"".join(plain_of(method, pair.wire.writes.sent)) == pack(TARGET) + b"question"
    assert b"".join(plain_of(method, pair.wire.reads.sent)) == b"answer"
    size = wire.KEY_SIZES[method]
    assert pair.wire.writes.sent[:size] != pair.wire.reads.sent[:size], "each direction has its own salt"


@BOTH_CLIENTS
def test_a_half_closed_connection_still_brings_the_answer(connect: Callable[[], ConnectionPair]) -> None:
    pair = connect()
    assert pair.to_target(b"all I have to say") == b"all I have to say"
    pair.application.end()
    pair.settle()
    assert pair.target.reads.ended
    assert not pair.application.reads.ended
    assert pair.to_application(BIG) == BIG
    pair.target.end()
    pair.settle()
    assert pair.application.reads.ended


@BOTH_CLIENTS
def test_a_target_that_closes_first_still_gets_the_rest(connect: Callable[[], ConnectionPair]) -> None:
    pair = connect()
    pair.settle()
    assert pair.to_application(b"bye") == b"bye"
    pair.target.end()
    pair.settle()
    assert pair.application.reads.ended
    assert not pair.target.reads.ended
    assert pair.to_target(BIG) == BIG


def test_an_application_that_says_nothing_and_ends_still_reaches_the_target() -> None:
    pair = forward()
    pair.application.end()
    pair.settle()
    assert pair.dialled_to == [TARGET]
    assert pair.target.reads.ended
    assert pair.to_application(b"hello") == b"hello"


# Patience


def test_the_header_waits_a_moment_and_shares_the_first_payloads_segment() -> None:
    pair = forward()
    pair.settle(patience_over=False)
    assert pair.wire.writes.sent == b"", "the header went alone while there was still patience"
    pair.to_target(b"first payload")
    (first, *_) = pair.wire.writes.writes
    assert plain_of("aes-128-gcm", first) == [pack(TARGET) + b"first payload"]


@BOTH_CLIENTS
def test_a_server_that_speaks_first_is_heard(connect: Callable[[], ConnectionPair]) -> None:
    """SMTP, FTP, SSH: the application waits for the target, so the header must go alone."""
    pair = connect()
    pair.settle(patience_over=True)
    assert pair.dialled_to == [TARGET]
    assert pair.to_application(b"220 ready\r\n") == b"220 ready\r\n"
    assert pair.to_target(b"EHLO\r\n") == b"EHLO\r\n"
    assert plain_of("aes-128-gcm", pair.wire.writes.sent) == [pack(TARGET), b"EHLO\r\n"]


def test_patience_is_ten_milliseconds_at_the_client_end_and_none_elsewhere() -> None:
    secret = SECRETS["aes-128-gcm"]
    assert pytest.approx(0.010) == FIRST_PAYLOAD_WAIT
    assert ForwardSession(secret, TARGET).patience == FIRST_PAYLOAD_WAIT
    assert socks().client.session.patience == FIRST_PAYLOAD_WAIT
    assert ServerSession(secret).patience == 0


def test_early_data_needs_no_patience_and_shares_the_headers_segment() -> None:
    pair = socks(early=b"GET /")
    assert pair.client.session.patience == 0
    assert plain_of("aes-128-gcm", pair.wire.writes.writes[0]) == [pack(TARGET) + b"GET /"]
    assert pair.target.recv() == b"GET /"


@pytest.mark.parametrize("size", [1, 4000, 4091, 4092, 4096])
def test_early_data_up_to_a_whole_read_arrives(size: int) -> None:
    pair = socks(early=BIG[:size])
    pair.settle()
    assert pair.target.recv() == BIG[:size]
    assert pair.to_target(b"and on") == b"and on"


# The server's opening


@pytest.mark.parametrize("pieces", [1, 2, 3, 100])
@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize("target", TARGETS, ids=["IPv4", "IPv6", "name"])
def test_a_header_in_tiny_records_is_put_together(target: Address, cut: Cut, pieces: int) -> None:
    said = pack(target) + b"payload"
    parts = [said[i : i + pieces] for i in range(0, len(said), pieces)]
    stream = wire.Wire("aes-128-gcm", wire.master_key("hehe", 16), bytes(16)).stream(parts)
    client, accepted = cable(cut)
    dialled, at_target = cable()
    asked: list[Address] = []

    def dial(to: Address) -> Plug:
        asked.append(to)
        return dialled

    relay = Relay(ServerSession(SECRETS["aes-128-gcm"]), accepted, dial)
    client.send(stream)
    client.end()
    while relay.turn():
        pass
    assert asked == [target]
    assert at_target.recv() == b"payload"
    assert at_target.reads.ended
    assert relay.error is None


def opening(*payloads: bytes, forge: int | None = None) -> tuple[ServerSession, ProtocolError | None]:
    """A ServerSession that has read one record for each payload, and what that raised."""
    stream = bytearray(wire.Wire("aes-128-gcm", wire.master_key("hehe", 16), bytes(16)).stream(payloads))
    if forge is not None:
        stream[forge] ^= 1
    session = ServerSession(SECRETS["aes-128-gcm"])
    try:
        for _ in feed(session.opening, bytes(stream), (1,)):
            pytest.fail("a server answered before it had dialled")
    except ProtocolError as error:
        return session, error
    return session, None


MALFORMED = {
    "address type 0": b"\0",
    "address type 2": b"\2\0\0\0\0\0\x50",
    "address type 0x13": b"\x13\0\0\0\0\0\x50",
    "empty name": b"\3\0\0\x50",
    "NUL in a name": b"\3\3a\0b\0\x50",
    "port 0": b"\1\x7f\0\0\1\0\0",
}


@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_header_is_refused_silently(header: bytes) -> None:
    session, error = opening(header)
    assert isinstance(error, HandshakeError)
    assert session.target is None
    assert session.answer(error) == b"", "a probe learns from whatever is sent"


@pytest.mark.parametrize("split", [False, True], ids=["one record", "bytewise records"])
@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED)
def test_after_a_malformed_header_no_good_one_is_believed(header: bytes, split: bool) -> None:
    parts = [bytes([byte]) for byte in header] if split else [header]
    wire_ = wire.Wire("aes-128-gcm", wire.master_key("hehe", 16), bytes(16))
    session = ServerSession(SECRETS["aes-128-gcm"])
    _, error = handed_on(session.opening, wire_.stream(parts), (2**30,))
    assert isinstance(error, HandshakeError)
    _, again = handed_on(session.opening, wire_.record(2 * len(parts), pack(TARGET)), (2**30,))
    assert isinstance(again, ProtocolError)
    assert session.target is None


@pytest.mark.parametrize("byte", range(16 + 34 + len(pack(TARGET))))
def test_a_flipped_bit_in_the_request_names_no_target(byte: int) -> None:
    session, error = opening(pack(TARGET), forge=byte)
    assert isinstance(error, RecordError)
    assert session.target is None
    assert session.answer(error) == b""


def test_a_client_that_stops_inside_the_header_is_truncated() -> None:
    header = pack(TARGET)
    for size in range(1, len(header)):
        session, error = opening(header[:size])
        assert error is None
        assert session.target is None
        with pytest.raises(Truncated, match="address header"):
            session.opening.eof()


def test_a_client_that_stops_inside_a_record_of_the_header_is_truncated() -> None:
    sealed = passed(ForwardSession(SECRETS["aes-128-gcm"], TARGET).up, b"x")
    for size in set(range(1, len(sealed))) - {16}:
        session = ServerSession(SECRETS["aes-128-gcm"])
        assert handed_on(session.opening, sealed[:size], (2**30,))[0] == b""
        with pytest.raises(Truncated):
            session.opening.eof()


def test_a_client_that_says_nothing_has_just_left() -> None:
    assert not ServerSession(SECRETS["aes-128-gcm"]).opening.eof()


def test_an_unknown_password_reaches_nothing() -> None:
    stranger = SECRETS["aes-256-gcm"].from_password(SECRETS["aes-256-gcm"].method, "another")
    pair = ConnectionPair(ForwardSession(stranger, TARGET), ServerSession(SECRETS["aes-256-gcm"]))
    pair.application.send(b"let me in")
    pair.settle()
    assert pair.dialled_to == []
    assert isinstance(pair.server.error, RecordError)
    assert pair.wire.reads.sent == b""


def test_a_forgery_in_mid_stream_ends_the_relay_and_hands_nothing_on() -> None:
    pair = forward()
    assert pair.to_target(b"good") == b"good"
    pair.application.send(b"evil")
    pair.client.turn()
    pair.server.accepted.reads.flying[-1] ^= 1
    pair.settle()
    assert pair.target.recv() == b""
    assert isinstance(pair.server.error, RecordError)
    assert not pair.target.reads.ended, "a clean end would make the part look like the whole"


def test_a_reply_that_is_cut_off_is_truncated_at_the_client_end() -> None:
    pair = forward()
    pair.settle()
    pair.target.send(b"half of it")
    pair.server.turn()
    del pair.wire.reads.flying[-1:]
    pair.wire.reads.ended = True
    pair.settle()
    assert isinstance(pair.client.error, Truncated)
    assert pair.application.recv() == b""
    assert not pair.application.reads.ended


# answer()


def test_only_a_socks_client_is_told_how_the_dialling_went() -> None:
    secret = SECRETS["aes-128-gcm"]
    silent: list[Session] = [ServerSession(secret), ForwardSession(secret, TARGET)]
    for session in silent:
        for error in (None, OSError(errno.ECONNREFUSED, "refused"), HandshakeError("no")):
            assert session.answer(error) == b""


def test_a_server_that_cannot_be_reached_is_answered_in_socks() -> None:
    application, accepted = cable()

    def refuse(address: Address) -> Plug:
        raise ConnectionRefusedError(errno.ECONNREFUSED, str(address))

    relay = Relay(SocksSession(SECRETS["aes-128-gcm"]), accepted, refuse)
    application.send(GREETING + REQUEST)
    while relay.turn():
        pass
    assert application.recv() == CHOSEN + refusal(5)


# up and down


def state(flow: Flow) -> dict[str, object]:
    """All that a flow holds, with the content of its buffers."""
    names = [name for kind in type(flow).__mro__ for name in getattr(kind, "__slots__", ())]
    held = {name: getattr(flow, name) for name in names if name != "_secret"}
    return {
        name: bytes(value) if isinstance(value, memoryview | bytearray) else value
        for name, value in held.items()
    }


@BOTH_CLIENTS
def test_up_and_down_share_nothing_that_changes(connect: Callable[[], ConnectionPair]) -> None:
    """So two threads, or two processes with a copy of the session each, may own one direction each."""
    pair = connect()
    pair.to_target(b"hello")
    pair.to_application(b"hello")
    for session in (pair.client.session, pair.server.session):
        up, down = session.up, session.down
        before = state(down)
        up_before = state(up)
        assert handed_on(up, bytes(100_000), (1000,))
        assert state(up) != up_before
        assert state(down) == before


@pytest.mark.parametrize("kind", ["server", "forward", "socks", "forged", "address"])
def test_a_session_is_freed_without_the_garbage_collector(kind: str) -> None:
    """A process that never collects, as the forking models do, would otherwise grow with each client."""
    import gc

    secret = SECRETS["aes-128-gcm"]

    def one_client() -> None:
        session: Session
        if kind == "forward":
            session = ForwardSession(secret, TARGET)
        else:
            session = SocksSession(secret) if kind == "socks" else ServerSession(secret)
            said = GREETING + REQUEST if kind == "socks" else passed(ForwardSession(secret, TARGET).up, b"x")
            if kind in ("forged", "address"):
                said = bytes(100) if kind == "forged" else passed(Sealer(secret), b"\7")
                for content in (said, b"x"):
                    with contextlib.suppress(ProtocolError):
                        list(feed(session.opening, content))
                return
            assert b"".join(feed(session.opening, said)) == (CHOSEN if kind == "socks" else b"")
        session.up.buffer_updated(0)

    one_client()
    gc.collect()
    gc.disable()
    try:
        one_client()
        assert gc.collect() == 0
    finally:
        gc.enable()
