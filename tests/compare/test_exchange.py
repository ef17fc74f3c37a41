"""The pattern and its verification: nothing that is not the right byte in the right place passes."""

from __future__ import annotations

import pytest

from compare.exchange import CHUNK, PERIOD, REQUEST, first_wrong, pattern, start_down, start_up
from compare.target import Connection


def test_pattern_is_right_everywhere() -> None:
    for place in (0, 1, PERIOD - 1, PERIOD, 10**9):
        assert first_wrong(pattern(place, CHUNK), place) is None
        assert len(pattern(place, CHUNK)) == CHUNK


def test_each_changed_byte_is_found_where_it_is() -> None:
    for index in (0, 1, 4095, 99_999):
        changed = bytearray(pattern(77, 100_000))
        changed[index] ^= 0x80
        assert first_wrong(memoryview(changed), 77) == index


def test_lost_doubled_and_swapped_bytes_are_found() -> None:
    whole = bytes(pattern(0, 65_000))
    for damaged in (whole[1:], whole[:100] + whole[99:], whole[16_383:32_766] + whole[:16_383]):
        assert first_wrong(memoryview(damaged), 0) is not None


def test_another_exchange_is_another_pattern() -> None:
    starts = [start_up(tag) for tag in range(1000)] + [start_down(tag) for tag in range(1000)]
    assert len(set(starts)) == len(starts)


def answer_to(pieces: list[bytes]) -> bytes:
    """What the target would send, without a socket."""
    connection = Connection.__new__(Connection)
    Connection.__init__(connection, None)  # type: ignore[arg-type]
    for piece in pieces:
        connection.received(memoryview(piece))
    return bytes(connection.pending)


@pytest.mark.parametrize("size", [1, 7, 24, 25, 4096])
def test_target_understands_however_it_is_cut(size: int) -> None:
    tag, up, down = 5, 3000, 10
    whole = REQUEST.pack(b"UNPx", tag, up, down) + bytes(pattern(start_up(tag), up))
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    answer = answer_to(pieces)
    assert answer.startswith(b"UNPx\0\0\0\5" + b"\xff" * 8)
    assert answer[16:] == bytes(pattern(start_down(tag), down))


def test_target_tells_the_first_wrong_byte() -> None:
    tag, up = 9, 3000
    sent = bytearray(pattern(start_up(tag), up))
    sent[1234] ^= 1
    sent[2000] ^= 1
    answer = answer_to([REQUEST.pack(b"UNPx", tag, up, 0) + sent[:1000], bytes(sent[1000:])])
    assert int.from_bytes(answer[8:16], "big") == 1234


def test_target_refuses_what_is_no_request() -> None:
    with pytest.raises(ValueError, match="not a request"):
        answer_to([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
