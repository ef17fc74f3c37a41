"""Bytes into a Flow, cut as no network ever would, and an eye on its buffers.

A plan is what a reader does next, over and over: an integer reads at most so many bytes, RELEASE
gives the flow's buffers back, IDLE asks it for something without having read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle

import pytest
from hypothesis import strategies as st

from tunnel import buffers, flow
from tunnel.errors import ProtocolError
from tunnel.flow import Flow
from tunnel.keys import METHODS, Secret

RELEASE, IDLE = -1, -2
ALL_AT_ONCE = (2**30,)  # every read fills what the flow offers
SECRETS = {name: Secret.from_password(method, "hehe") for name, method in METHODS.items()}
EVERY_CLASS = [size + off for size in buffers.SIZES for off in (-1, 0, 1)]
RECORD_EDGES = [1, 2, 16, 17, 18, 19, 32, 33, 34, 35, 50, 0x3FFE, 0x3FFF, 0x4000, 0x3FFF + 34]

methods = st.sampled_from(sorted(METHODS))
steps = st.one_of(st.sampled_from([1, RELEASE, IDLE, *RECORD_EDGES, *EVERY_CLASS]), st.integers(1, 300_000))
plans = st.lists(steps, min_size=1, max_size=12).filter(lambda plan: max(plan) > 0)


def feed(subject: Flow, data: bytes, plan: Sequence[int] = ALL_AT_ONCE) -> Iterator[bytes]:
    """Puts all of `data` through, and yields what comes out of each read that gives something."""
    offset = 0
    for position, step in enumerate(cycle(plan)):
        if offset == len(data):
            return
        if step == RELEASE:
            subject.release()
            continue
        if step == IDLE:
            made = subject.buffer_updated(0)
        else:
            # Tiny steps over a large stream would be a million reads: each thousandth doubles them.
            longer = step << min(position // 1000, 20)
            buffer = subject.get_buffer()
            assert len(buffer) > 0, "nothing could be read: the flow offers no room"
            part = data[offset : offset + min(longer, len(buffer))]
            buffer[: len(part)] = part
            offset += len(part)
            made = subject.buffer_updated(len(part))
        if made:
            yield bytes(made)


def passed(subject: Flow, data: bytes, plan: Sequence[int] = ALL_AT_ONCE) -> bytes:
    """All that comes out for `data`, without what `eof` may add."""
    return b"".join(feed(subject, data, plan))


def handed_on(subject: Flow, data: bytes, plan: Sequence[int]) -> tuple[bytes, ProtocolError | None]:
    """What came out before the stream ended or an error did, and that error."""
    out = bytearray()
    try:
        for part in feed(subject, data, plan):
            out += part
        out += subject.eof()
    except ProtocolError as error:
        return bytes(out), error
    return bytes(out), None


class Lent:
    """The buffers that flows have taken and not given back."""

    def __init__(self) -> None:
        self.lent: dict[int, tuple[int, memoryview]] = {}

    def take(self, size_class: int) -> memoryview:
        buffer = memoryview(bytearray(b"\xa5" * (buffers.SIZES[size_class] + buffers.ROOM)))
        self.lent[id(buffer.obj)] = size_class, buffer
        return buffer

    def give(self, size_class: int, buffer: memoryview) -> None:
        taken_as, _ = self.lent.pop(id(buffer.obj), (None, buffer))
        assert taken_as is not None, "a buffer was given back twice, or was never taken"
        assert taken_as == size_class, "a buffer was given back to another size's list"
        buffer[:] = b"\x5a" * len(buffer)  # whoever still looks at it will notice


@contextmanager
def watched_buffers() -> Iterator[Lent]:
    """Every buffer that a flow takes holds rubbish, and again once it was given back."""
    lent = Lent()
    with pytest.MonkeyPatch.context() as patch:
        for module in (buffers, flow):
            patch.setattr(module, "take", lent.take)
            patch.setattr(module, "give", lent.give)
        yield lent
