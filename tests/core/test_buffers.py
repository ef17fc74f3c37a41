"""Buffers: they grow with the traffic, are lent and given back, and an idle flow owns none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import wire
from tests.core.feeding import ALL_AT_ONCE, SECRETS, feed, handed_on, passed, plans, watched_buffers
from tunnel import buffers
from tunnel.aead import Opener, Sealer
from tunnel.buffers import KEPT, LARGEST, ROOM, SIZES, give, next_class, take
from tunnel.flow import Flow

SECRET = SECRETS["aes-256-gcm"]
MAKERS: list[Callable[[], Flow]] = [lambda: Sealer(SECRET), lambda: Opener(SECRET)]
BOTH_FLOWS = pytest.mark.parametrize("make", MAKERS, ids=["sealer", "opener"])
SEALED = passed(Sealer(SECRET), bytes(2_000_000))


def data_for(flow: Flow) -> bytes:
    return SEALED if isinstance(flow, Opener) else bytes(2_000_000)


@pytest.fixture(autouse=True)
def empty_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts with nothing on the free lists, and leaves nothing there."""
    monkeypatch.setattr(buffers, "_free", tuple([] for _ in SIZES))


# The free lists


@pytest.mark.parametrize("size_class", range(len(SIZES)))
def test_what_is_given_back_is_lent_again_last_in_first_out(size_class: int) -> None:
    first, second = take(size_class), take(size_class)
    assert first is not second
    give(size_class, first)
    give(size_class, second)
    assert take(size_class) is second
    assert take(size_class) is first


@pytest.mark.parametrize("size_class", range(len(SIZES)))
def test_a_free_list_is_bounded(size_class: int) -> None:
    taken = [take(size_class) for _ in range(KEPT[size_class] + 20)]
    for buffer in taken:
        give(size_class, buffer)
    kept = [take(size_class) for _ in range(len(taken))]
    reused = {id(buffer) for buffer in kept} & {id(buffer) for buffer in taken}
    assert len(reused) == KEPT[size_class]


def test_all_free_lists_together_keep_less_than_eleven_mebibytes() -> None:
    assert sum(kept * (size + ROOM) for kept, size in zip(KEPT, SIZES, strict=True)) < 11 * 2**20


@pytest.mark.parametrize("size", SIZES[1:])
def test_a_full_read_is_whole_records(size: int) -> None:
    assert size % wire.MAX_PAYLOAD == 0, "or each full read would end in a record of a few bytes"


def test_the_room_holds_what_sealing_the_largest_read_adds() -> None:
    records = -(-SIZES[LARGEST] // wire.MAX_PAYLOAD)
    assert records * (2 + 2 * wire.TAG) + max(wire.KEY_SIZES.values()) <= ROOM


# The next size


@pytest.mark.parametrize(
    ("now", "read", "filled", "then"),
    [
        (0, SIZES[0], SIZES[0], 1),
        (0, SIZES[0] - 1, SIZES[0] - 1, 0),
        (0, 1, SIZES[0], 1),
        (0, 1, 1, 0),
        (1, SIZES[1], SIZES[1], 2),
        (1, SIZES[0] // 2, SIZES[0] // 2, 1),
        (1, SIZES[0] // 2 - 1, 20_000, 0),
        (2, SIZES[2], SIZES[2], 2),
        (2, SIZES[1] // 2, SIZES[1], 2),
        (2, 1, 1, 1),
    ],
)
def test_a_filling_read_is_followed_by_a_larger_one_and_a_small_one_by_a_smaller(
    now: int, read: int, filled: int, then: int
) -> None:
    assert next_class(now, read, filled) == then


@BOTH_FLOWS
def test_a_download_earns_the_largest_reads(make: Callable[[], Flow]) -> None:
    flow = make()
    data, offset = data_for(flow), 0
    offers: list[int] = []
    while len(offers) < 6:
        buffer = flow.get_buffer()
        offers.append(len(buffer))
        buffer[:] = data[offset : offset + len(buffer)]
        offset += len(buffer)
        flow.buffer_updated(len(buffer))
    slack = 0x3FFF + 2 + 2 * wire.TAG if isinstance(flow, Opener) else 0  # a record that was cut off
    for offer, size in zip(offers, (SIZES[0], SIZES[1], *[SIZES[2]] * 4), strict=True):
        assert size - slack <= offer <= size


@BOTH_FLOWS
def test_a_quiet_flow_falls_back_to_the_smallest_reads(make: Callable[[], Flow]) -> None:
    flow, far_end = make(), Sealer(SECRET)
    download, *chat = [passed(far_end, bytes(size)) for size in (600_000, 10, 10, 10)]
    passed(flow, download)
    assert len(flow.get_buffer()) > SIZES[1]
    for message in chat:
        passed(flow, message)
    assert len(flow.get_buffer()) == SIZES[0]


# Who owns what


@BOTH_FLOWS
def test_a_new_flow_owns_nothing(make: Callable[[], Flow]) -> None:
    with watched_buffers() as lent:
        make()
        assert not lent.lent


@given(st.sampled_from(MAKERS), st.integers(0, 1_000_000), plans)
def test_a_released_flow_owns_nothing_however_the_stream_was_cut(
    make: Callable[[], Flow], size: int, plan: Sequence[int]
) -> None:
    with watched_buffers() as lent:
        flow = make()
        for _ in feed(flow, data_for(flow)[:size], plan):
            assert len(lent.lent) <= 2, "one for input, one for output"
        flow.release()
        assert not lent.lent
        flow.release()  # twice is no mistake


@BOTH_FLOWS
def test_release_after_an_error_gives_all_back(make: Callable[[], Flow]) -> None:
    with watched_buffers() as lent:
        flow = make()
        handed_on(flow, bytes(5000), (1000,))
        flow.release()
        assert not lent.lent


@BOTH_FLOWS
def test_a_returned_view_is_valid_until_the_next_get_buffer_whatever_others_do(
    make: Callable[[], Flow],
) -> None:
    """Growing and shrinking change buffers between two reads: the view in between must outlive that."""
    flow, others = make(), [make() for _ in range(3)]
    data, offset = data_for(flow), 0
    for asked in (SIZES[0], SIZES[1], SIZES[2], 500, 500, SIZES[0], SIZES[1]):
        buffer = flow.get_buffer()
        part = data[offset : offset + min(asked, len(buffer))]
        offset += len(part)
        buffer[: len(part)] = part
        view = flow.buffer_updated(len(part))
        before = bytes(view)
        for other in others:
            handed_on(other, b"\xff" * 100_000, ALL_AT_ONCE)
            other.release()
        assert bytes(view) == before


@BOTH_FLOWS
def test_the_unfinished_part_survives_a_release(make: Callable[[], Flow]) -> None:
    flow = make()
    data = data_for(flow)[:30_000]
    whole = passed(make(), data) if isinstance(flow, Opener) else None
    out = bytearray()
    with watched_buffers():
        for offset in range(0, len(data), 611):
            out += passed(flow, data[offset : offset + 611])
            flow.release()
    if whole is not None:
        assert out == whole
    else:
        assert passed(Opener(SECRET), bytes(out)) == data


@BOTH_FLOWS
def test_a_read_always_has_room(make: Callable[[], Flow]) -> None:
    """recv_into an empty buffer returns 0, which reads as the peer's end."""
    flow = make()
    data = data_for(flow)
    for offset in range(20_000):
        buffer = flow.get_buffer()
        assert len(buffer) > 0
        buffer[0] = data[offset]
        flow.buffer_updated(1)
