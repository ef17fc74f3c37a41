"""SOCKS5, the server's half: what it answers, what it refuses, and that a cut changes neither."""

from __future__ import annotations

import errno
import socket
from itertools import combinations, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.core.feeding import SECRETS, feed
from tunnel.address import Address, pack
from tunnel.errors import HandshakeError, Truncated
from tunnel.session import SocksSession
from tunnel.socks import SocksError, request

GREETING = b"\5\1\0"
CHOSEN = b"\5\0"
CONNECT = b"\5\1\0"
TARGET = Address("example.com", 443)
REQUEST = CONNECT + pack(TARGET)
TARGETS = [Address("192.0.2.7", 1), Address("2001:db8::7", 65535), TARGET]


def refusal(code: int) -> bytes:
    return bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])


class Conversation:
    """A SocksSession that a client has talked to, in reads that end at `cuts`."""

    def __init__(self, said: bytes, cuts: tuple[int, ...] = ()) -> None:
        self.session = SocksSession(SECRETS["aes-128-gcm"])
        self.answers = b""
        self.error: HandshakeError | None = None
        places = (0, *cuts, len(said))
        try:
            for start, end in pairwise(places):
                self.answers += b"".join(feed(self.session.opening, said[start:end]))
                if self.session.target is not None:
                    self.unread = said[end:]
                    return
        except HandshakeError as error:
            self.error = error
            self.answers += self.session.answer(error)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("greeting", [b"\5\1\0", b"\5\2\0\2", b"\5\3\2\1\0", b"\5\xff" + bytes(255)])
def test_a_request_names_its_target_and_gets_no_answer_before_it_is_dialled(
    greeting: bytes, target: Address
) -> None:
    heard = Conversation(greeting + CONNECT + pack(target))
    assert heard.session.target == target
    assert heard.answers == CHOSEN
    assert heard.session.answer(None) == refusal(0)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_a_client_says_is_written_as_the_document_says(target: Address) -> None:
    assert request(target) == GREETING + CONNECT + pack(target)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_cuts_anywhere_change_nothing(target: Address) -> None:
    said = GREETING + CONNECT + pack(target)
    for cuts in combinations(range(1, len(said)), 2):
        heard = Conversation(said, cuts)
        assert heard.session.target == target
        assert heard.answers == CHOSEN
    bytewise = Conversation(said, tuple(range(1, len(said))))
    assert (bytewise.session.target, bytewise.answers) == (target, CHOSEN)


def test_no_prefix_of_a_request_is_taken_for_one() -> None:
    said = GREETING + REQUEST
    for size in range(len(said)):
        heard = Conversation(said[:size])
        assert heard.session.target is None
        assert heard.answers == (CHOSEN if size >= len(GREETING) else b"")


def test_the_greeting_is_answered_as_soon_as_it_is_whole() -> None:
    """A client that waits for the answer must get it, whatever else could still come."""
    session = SocksSession(SECRETS["aes-128-gcm"])
    assert [bytes(part) for part in feed(session.opening, GREETING, (1,))] == [CHOSEN]


@given(st.binary(min_size=1, max_size=3000), st.sets(st.integers(1, 3024), max_size=5))
def test_early_data_goes_to_the_tunnel_and_is_not_lost(early: bytes, cuts: set[int]) -> None:
    """curl and browsers send their first request without waiting for the SOCKS reply."""
    said = GREETING + REQUEST + early
    heard = Conversation(said, tuple(sorted(cut for cut in cuts if cut < len(said))))
    assert heard.session.target == TARGET
    assert heard.answers == CHOSEN
    sealed = bytes(heard.session.up.buffer_updated(0))
    opened = open_stream(sealed)
    assert opened + heard.unread == pack(TARGET) + early
    assert heard.session.patience == (0 if opened != pack(TARGET) else pytest.approx(0.010))


def open_stream(sealed: bytes) -> bytes:
    from tests.core import wire

    key = wire.master_key("hehe", 16)
    return b"".join(record.payload for record in wire.parse("aes-128-gcm", key, sealed))


# Refusals

REFUSED = {
    "SOCKS4": (b"\4\1\0\x50", b"", "expected SOCKS version 5"),
    "HTTP": (b"GET / HTTP/1.1\r\n", b"", "expected SOCKS version 5"),
    "TLS": (b"\x16\3\1", b"", "expected SOCKS version 5"),
    "no method": (b"\5\0", b"\5\xff", "method 0"),
    "password only": (b"\5\1\2", b"\5\xff", "method 0"),
    "many, not ours": (b"\5\3\1\2\x80", b"\5\xff", "method 0"),
    "version 4 later": (GREETING + b"\4\1\0\1\0\0\0\0\0\x50", CHOSEN + refusal(1), "version 4"),
    "BIND": (GREETING + b"\5\2\0\1\0\0\0\0\0\x50", CHOSEN + refusal(7), "command 2"),
    "UDP ASSOCIATE": (GREETING + b"\5\3\0\1\0\0\0\0\0\x50", CHOSEN + refusal(7), "command 3"),
    "command 0": (GREETING + b"\5\0\0\1\0\0\0\0\0\x50", CHOSEN + refusal(7), "command 0"),
    "address type 2": (GREETING + b"\5\1\0\2\0\0\0\0\0\x50", CHOSEN + refusal(8), "address type 2"),
    "empty name": (GREETING + b"\5\1\0\3\0\0\x50", CHOSEN + refusal(1), "empty"),
    "port 0": (GREETING + b"\5\1\0\1\x7f\0\0\1\0\0", CHOSEN + refusal(1), "port 0"),
    "a name that IDNA refuses": (
        GREETING + b"\5\1\0\3\6\xd8\xb0.\xd8\xb0b\0\x50",
        CHOSEN + refusal(1),
        "expected 1 to 255",
    ),
    "NUL in a name": (GREETING + b"\5\1\0\3\3a\0b\0\x50", CHOSEN + refusal(1), "NUL"),
}
EVERY_REFUSAL = pytest.mark.parametrize(("said", "answers", "reason"), REFUSED.values(), ids=REFUSED)


@EVERY_REFUSAL
def test_a_refusal_carries_the_right_code_and_reason(said: bytes, answers: bytes, reason: str) -> None:
    heard = Conversation(said, tuple(range(1, len(said))))
    assert isinstance(heard.error, SocksError)
    assert reason in str(heard.error)
    assert heard.answers == answers
    assert heard.session.target is None


@EVERY_REFUSAL
def test_a_refusal_sounds_the_same_however_the_request_was_cut(
    said: bytes, answers: bytes, reason: str
) -> None:
    """Pipelined, the greeting's answer must not get lost on the way to the refusal."""
    for cut in range(1, len(said)):
        heard = Conversation(said, (cut,))
        assert reason in str(heard.error)
        assert heard.answers == answers, f"cut at {cut}"
    assert Conversation(said).answers == answers


@EVERY_REFUSAL
def test_after_a_refusal_the_opening_stays_refused(said: bytes, answers: bytes, reason: str) -> None:
    heard = Conversation(said)
    for more in (b"", b"\0", GREETING + REQUEST):
        with pytest.raises(SocksError, match=reason):
            heard.session.opening.buffer_updated(0)
        with pytest.raises(SocksError, match=reason):
            list(feed(heard.session.opening, more or b"\1"))
    assert heard.session.target is None
    assert answers == heard.answers


@pytest.mark.parametrize("size", [1, 2, 4, 6, 8, 10])
def test_a_client_that_stops_inside_its_request_is_truncated(size: int) -> None:
    heard = Conversation((GREETING + REQUEST)[:size])
    with pytest.raises(Truncated):
        heard.session.opening.eof()
    assert heard.session.answer(Truncated("")) == b""


@pytest.mark.parametrize("said", [b"", GREETING])
def test_a_client_that_stops_between_its_messages_has_just_left(said: bytes) -> None:
    assert not Conversation(said).session.opening.eof()


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (OSError(errno.ECONNREFUSED, ""), 5),
        (OSError(errno.EHOSTUNREACH, ""), 4),
        (OSError(errno.ENETUNREACH, ""), 3),
        (OSError(errno.ETIMEDOUT, ""), 6),
        (OSError(errno.EACCES, ""), 2),
        (OSError(errno.EPERM, ""), 2),
        (OSError(errno.EMFILE, ""), 1),
        (socket.gaierror(socket.EAI_NONAME, ""), 1),
        (TimeoutError(), 1),
    ],
    ids=repr,
)
def test_a_connection_that_fails_is_answered_with_why(failure: OSError, code: int) -> None:
    session = Conversation(GREETING + REQUEST).session
    assert session.answer(failure) == refusal(code)


def test_a_failure_before_there_is_a_request_is_not_answered() -> None:
    assert Conversation(GREETING).session.answer(OSError(errno.ECONNRESET, "")) == b""


starts = st.sampled_from([b"", b"\5", b"\5\1\0", b"\5\1\0\5\1\0", b"\5\1\0\5\1\0\3", b"\5\1\0\5\1\0\1"])


@given(st.builds(bytes.__add__, starts, st.binary(max_size=40)), st.sets(st.integers(1, 40), max_size=4))
@example(b"\5\1\0\5\1\0", set())
def test_any_bytes_are_understood_awaited_or_refused(noise: bytes, cuts: set[int]) -> None:
    heard = Conversation(noise, tuple(sorted(cut for cut in cuts if cut < len(noise))))
    assert heard.answers in (b"", CHOSEN, b"\5\xff") or isinstance(heard.error, SocksError)
    if heard.error:
        assert heard.session.target is None
