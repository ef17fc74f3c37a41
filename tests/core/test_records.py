"""SIP004 records: what a Sealer makes, what an Opener takes, and what it must never hand on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import example, given
from hypothesis import strategies as st

from tests.core import wire
from tests.core.feeding import (
    ALL_AT_ONCE,
    IDLE,
    RELEASE,
    SECRETS,
    feed,
    handed_on,
    methods,
    passed,
    plans,
    watched_buffers,
)
from tunnel.aead import Opener, Sealer
from tunnel.buffers import MAX_PAYLOAD
from tunnel.errors import ProtocolError, RecordError, Truncated

EVERY_METHOD = pytest.mark.parametrize("method", wire.METHOD_NAMES)
KEYS = {method: wire.master_key("hehe", size) for method, size in wire.KEY_SIZES.items()}
ONE_BYTE_READS = (1, RELEASE, IDLE, 1)
PAYLOADS = (b"GET / HTTP/1.1\r\n", b"x", bytes(range(256)))  # three records, of 294 + salt + 34 each


def pattern(size: int) -> bytes:
    """Bytes in which a lost, doubled or moved part shows."""
    return b"".join(i.to_bytes(4, "big") for i in range(size // 4 + 1))[:size]


def far_end(method: str, salt: bytes | None = None) -> wire.Wire:
    """The other implementation, with the key that SECRETS has."""
    size = wire.KEY_SIZES[method]
    return wire.Wire(method, KEYS[method], salt or bytes(range(size)))


# What a sealer makes


@given(methods, st.integers(0, 700_000), plans)
@example("aes-256-gcm", 3 * 256 * 1024, ALL_AT_ONCE)
@example("chacha20-ietf-poly1305", 300, ONE_BYTE_READS)
def test_a_sealers_output_is_the_documented_format(method: str, size: int, plan: Sequence[int]) -> None:
    plain = pattern(size)
    with watched_buffers():
        sealed = passed(Sealer(SECRETS[method]), plain, plan)
    if not plain:
        assert sealed == b"", "a salt says that somebody is there: it waits for something to say"
        return
    records = wire.parse(method, KEYS[method], sealed)
    assert b"".join(record.payload for record in records) == plain


@EVERY_METHOD
def test_one_read_becomes_one_record_of_at_most_3fff_bytes(method: str) -> None:
    sealer, plain = Sealer(SECRETS[method]), pattern(600_000)
    sealed, reads = b"", 0
    offset = 0
    while offset < len(plain):
        buffer = sealer.get_buffer()
        part = plain[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        offset += len(part)
        reads += -(-len(part) // MAX_PAYLOAD)
        sealed += sealer.buffer_updated(len(part))
    sizes = [len(record.payload) for record in wire.parse(method, KEYS[method], sealed)]
    assert len(sizes) == reads
    assert max(sizes) == MAX_PAYLOAD == 0x3FFF


@EVERY_METHOD
def test_every_sealer_has_a_salt_of_its_own(method: str) -> None:
    size = wire.KEY_SIZES[method]
    salts = {passed(Sealer(SECRETS[method]), b"x")[:size] for _ in range(100)}
    assert len(salts) == 100


@EVERY_METHOD
def test_the_salt_leaves_with_the_first_bytes_and_once(method: str) -> None:
    sealer = Sealer(SECRETS[method])
    assert not sealer.buffer_updated(0)
    first, second = feed(sealer, b"ab", (1,))
    overhead = 2 + 2 * wire.TAG
    assert len(first) == wire.KEY_SIZES[method] + overhead + 1
    assert len(second) == overhead + 1


@given(methods, st.binary(max_size=300), st.integers(1, 40_000), plans)
def test_the_head_travels_in_front_of_the_first_payload(
    method: str, head: bytes, size: int, plan: Sequence[int]
) -> None:
    with watched_buffers():
        sealer = Sealer(SECRETS[method], head)
        sealed = passed(sealer, pattern(size), [step for step in plan if step != IDLE])
    records = wire.parse(method, KEYS[method], sealed)
    assert b"".join(record.payload for record in records) == head + pattern(size)
    assert len(records[0].payload) > len(head), "the head has a record of its own"


@pytest.mark.parametrize("size", [1, 259, 4095, 4096, 4097, 32 * 1024 + 7, 0x3FFF * 3])
def test_a_head_of_any_size_leaves_alone_if_nothing_comes(size: int) -> None:
    with watched_buffers():
        sealer = Sealer(SECRETS["aes-128-gcm"], pattern(size))
        sealed = bytes(sealer.buffer_updated(0))
        assert not sealer.eof()
    records = wire.parse("aes-128-gcm", KEYS["aes-128-gcm"], sealed)
    assert b"".join(record.payload for record in records) == pattern(size)


def test_a_head_that_nobody_asked_for_leaves_with_the_end() -> None:
    sealed = bytes(Sealer(SECRETS["aes-128-gcm"], b"head").eof())
    assert [r.payload for r in wire.parse("aes-128-gcm", KEYS["aes-128-gcm"], sealed)] == [b"head"]


@EVERY_METHOD
def test_the_end_of_a_sealed_stream_adds_nothing(method: str) -> None:
    sealer = Sealer(SECRETS[method])
    assert not sealer.eof()
    passed(sealer, b"x")
    assert not sealer.eof()


# What an opener gives


@given(methods, st.lists(st.integers(1, MAX_PAYLOAD), max_size=40), plans)
@example("aes-256-gcm", [MAX_PAYLOAD] * 70, ALL_AT_ONCE)
@example("aes-128-gcm", [1, 300, 2], ONE_BYTE_READS)
@example("chacha20-ietf-poly1305", [1] * 2000, ALL_AT_ONCE)
@example("aes-128-gcm", [4096, MAX_PAYLOAD, 1, MAX_PAYLOAD], (4095, RELEASE, 1, 1, 40_000, RELEASE, IDLE, 2))
def test_any_way_of_cutting_the_stream_gives_the_same_plaintext(
    method: str, sizes: list[int], plan: Sequence[int]
) -> None:
    plain = pattern(sum(sizes))
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    stream = far_end(method).stream([plain[a:b] for a, b in pairwise(ends)])
    with watched_buffers():
        opener = Opener(SECRETS[method])
        assert passed(opener, stream, plan) == plain
        assert not opener.eof()


@given(methods, st.integers(1, 600_000), plans, plans)
def test_what_a_sealer_seals_an_opener_opens(
    method: str, size: int, sealing: Sequence[int], opening: Sequence[int]
) -> None:
    with watched_buffers():
        sealed = passed(Sealer(SECRETS[method]), pattern(size), sealing)
        assert passed(Opener(SECRETS[method]), sealed, opening) == pattern(size)


@EVERY_METHOD
def test_each_record_is_handed_on_with_its_last_byte_and_not_before(method: str) -> None:
    wire_ = far_end(method)
    stream = wire_.stream(PAYLOADS)
    ends = {record.end: record.payload for record in wire.parse(method, KEYS[method], stream)}
    opener = Opener(SECRETS[method])
    for offset in range(len(stream)):
        buffer = opener.get_buffer()
        buffer[0] = stream[offset]
        assert bytes(opener.buffer_updated(1)) == ends.get(offset + 1, b"")


@EVERY_METHOD
def test_many_records_of_one_read_come_out_at_once(method: str) -> None:
    stream = far_end(method).stream([bytes([i]) for i in range(50)])
    assert list(feed(Opener(SECRETS[method]), stream)) == [bytes(range(50))]


# What an opener refuses


@pytest.mark.parametrize(
    "plan", [ALL_AT_ONCE, ONE_BYTE_READS, (7, RELEASE)], ids=["at once", "bytewise", "odd"]
)
@EVERY_METHOD
def test_any_flipped_bit_is_caught(method: str, plan: Sequence[int]) -> None:
    stream = far_end(method).stream((b"one", b"two!"))
    allowed = (b"", b"one")
    step = 1 if plan is ALL_AT_ONCE else 5  # every byte has some bit flipped under each plan
    for bit in range(0, len(stream) * 8, step):
        forged = bytearray(stream)
        forged[bit // 8] ^= 1 << bit % 8
        out, error = handed_on(Opener(SECRETS[method]), bytes(forged), plan)
        assert isinstance(error, RecordError), f"bit {bit} was flipped, and nobody noticed"
        assert out in allowed


@given(methods, st.lists(st.integers(1, MAX_PAYLOAD), min_size=1, max_size=6), st.data(), plans)
def test_nothing_forged_is_ever_handed_on(
    method: str, sizes: list[int], data: st.DataObject, plan: Sequence[int]
) -> None:
    plain = pattern(sum(sizes))
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    stream = far_end(method).stream([plain[a:b] for a, b in pairwise(ends)])
    forged = bytearray(stream)
    place = data.draw(st.integers(0, len(stream) - 1))
    forged[place] ^= data.draw(st.integers(1, 255))
    with watched_buffers():
        out, error = handed_on(Opener(SECRETS[method]), bytes(forged), plan)
    assert isinstance(error, RecordError)
    assert plain.startswith(out)
    record_ends = [record.end for record in wire.parse(method, KEYS[method], stream)]
    whole = sum(end <= place for end in record_ends)
    assert len(out) <= ends[whole], "something from behind the forged byte came out"


@given(methods, st.binary(min_size=1, max_size=2000), plans)
def test_bytes_that_nobody_sealed_give_nothing(method: str, noise: bytes, plan: Sequence[int]) -> None:
    out, error = handed_on(Opener(SECRETS[method]), noise, plan)
    assert out == b""
    whole = len(noise) >= wire.KEY_SIZES[method] + 2 + wire.TAG
    salt_alone = len(noise) == wire.KEY_SIZES[method]
    assert isinstance(error, RecordError if whole else Truncated) or salt_alone


@EVERY_METHOD
def test_records_cannot_be_swapped_repeated_or_left_out(method: str) -> None:
    wire_ = far_end(method)
    salt, first, second = wire_.salt, wire_.record(0, b"first"), wire_.record(2, b"second")
    for forged, before in (
        (salt + second + first, b""),
        (salt + first + first, b"first"),
        (salt + second, b""),
        (salt + first + wire_.record(4, b"third"), b"first"),
    ):
        out, error = handed_on(Opener(SECRETS[method]), forged, ONE_BYTE_READS)
        assert isinstance(error, RecordError)
        assert out == before


@EVERY_METHOD
def test_another_key_opens_nothing(method: str) -> None:
    size = wire.KEY_SIZES[method]
    stranger = wire.Wire(method, bytes(size), bytes(size))
    out, error = handed_on(Opener(SECRETS[method]), stranger.stream([b"hello"]), ALL_AT_ONCE)
    assert (out, type(error)) == (b"", RecordError)


@pytest.mark.parametrize("length", [0, 0x4000, 0x4001, 0x8001, 0xC001, 0xFFFF])
@EVERY_METHOD
def test_an_impossible_length_is_refused_before_its_payload(method: str, length: int) -> None:
    wire_ = far_end(method)
    stream = wire_.stream([b"good"]) + wire_.seal(2, length.to_bytes(2, "big"))
    for plan in (ALL_AT_ONCE, ONE_BYTE_READS):
        out, error = handed_on(Opener(SECRETS[method]), stream, plan)
        assert isinstance(error, RecordError)
        assert str(length) in str(error)
        assert out in (b"", b"good")


@pytest.mark.parametrize("length", [1, 2, 0x3FFE, 0x3FFF])
@EVERY_METHOD
def test_the_smallest_and_the_largest_length_pass(method: str, length: int) -> None:
    stream = far_end(method).stream([pattern(length)])
    assert handed_on(Opener(SECRETS[method]), stream, ALL_AT_ONCE) == (pattern(length), None)


@EVERY_METHOD
def test_a_cut_off_stream_is_truncated_exactly_inside_its_salt_and_its_records(method: str) -> None:
    stream = far_end(method).stream(PAYLOADS)
    salt_size = wire.KEY_SIZES[method]
    whole = {0: b"", salt_size: b""}
    before = b""
    for record in wire.parse(method, KEYS[method], stream):
        before += record.payload
        whole[record.end] = before
    complete = b""
    for offset in range(len(stream) + 1):
        complete = whole.get(offset, complete)
        for plan in (ALL_AT_ONCE, ONE_BYTE_READS):
            out, error = handed_on(Opener(SECRETS[method]), stream[:offset], plan)
            assert out == complete
            if offset in whole:
                assert error is None, f"a clean end at {offset} is called {error}"
            else:
                assert isinstance(error, Truncated), f"a cut at {offset} went unseen"


def test_a_truncation_says_where() -> None:
    stream = far_end("aes-128-gcm").stream(PAYLOADS)
    for cut, place in ((3, "the salt"), (20, "record 0"), (len(stream) - 1, "record 2")):
        _, error = handed_on(Opener(SECRETS["aes-128-gcm"]), stream[:cut], ALL_AT_ONCE)
        assert place in str(error)


@pytest.mark.parametrize("after", [b"", b"x", far_end("aes-128-gcm").record(2, b"second")])
def test_after_an_error_the_flow_raises_it_again_whatever_comes(after: bytes) -> None:
    wire_ = far_end("aes-128-gcm")
    forged = bytearray(wire_.stream([b"first"]))
    forged[-1] ^= 1
    opener = Opener(SECRETS["aes-128-gcm"])
    with pytest.raises(RecordError) as first:
        passed(opener, bytes(forged))
    for again in (lambda: opener.buffer_updated(0), lambda: passed(opener, after or b"\0"), opener.eof):
        with pytest.raises(ProtocolError) as caught:
            again()
        assert repr(caught.value) == repr(first.value)
    opener.release()
    with pytest.raises(RecordError):
        opener.buffer_updated(0)


# The counter


STARTS = [2**8 - 2, 2**16 - 2, 2**32 - 2, 2**32, 2**63 - 2, 2**64 - 2, 2**64, 2**80 - 2, 2**95]


@pytest.mark.parametrize("start", STARTS, ids=lambda start: f"from 2^{start.bit_length()}")
@EVERY_METHOD
def test_the_counter_goes_on_past_every_power_of_two(method: str, start: int) -> None:
    """A day of traffic passes 2^32, and a mask that somebody thought harmless ends it."""
    sealer, opener = Sealer(SECRETS[method]), Opener(SECRETS[method])
    sealed = passed(sealer, b"0")
    assert passed(opener, sealed) == b"0"
    sealer._counter = opener._counter = start
    size = wire.KEY_SIZES[method]
    subkey = wire.hkdf_sha1(KEYS[method], sealed[:size], size)
    cipher = AESGCM(subkey) if method.startswith("aes") else ChaCha20Poly1305(subkey)
    for counter in range(start, start + 6, 2):
        expected = b"".join(
            cipher.encrypt((counter + i).to_bytes(12, "little"), part, None)
            for i, part in enumerate((b"\0\5", b"hello"))
        )
        assert passed(sealer, b"hello") == expected
        assert passed(opener, expected) == b"hello"


@EVERY_METHOD
def test_a_nonce_is_used_twice_for_each_record_and_never_again(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonces: list[bytes] = []
    cipher = SECRETS[method].cipher(bytes(wire.KEY_SIZES[method]))

    class Spy:
        def encrypt_into(self, nonce: bytes, *rest: object) -> int:
            nonces.append(nonce)
            return cipher.encrypt_into(nonce, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("tunnel.keys.Secret.cipher", lambda *_: Spy())
    passed(Sealer(SECRETS[method], b"head"), pattern(300_000), (1, 70_000, RELEASE))
    assert nonces == [i.to_bytes(12, "little") for i in range(len(nonces))]
    assert len(nonces) > 40
