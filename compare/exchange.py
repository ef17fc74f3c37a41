"""What the generator and the target say to one another, through whatever server is between them.

    generator                                                  target
       | magic 4 | tag 4 | up 8 | down 8 |  `up` bytes of pattern  -->  verifies
    verifies  <--  | magic 4 | tag 4 | wrong 8 |  `down` bytes of pattern

With the magic BOTH the bytes down flow while those up do, and the head of the reply comes last.

Every scenario is made of this one exchange: a bulk transfer has a large `up` or `down`, a ping has
small ones, a short connection has one exchange, a long one has many. Nobody has to close to mark
an end, since not every server passes a half-close on.

The pattern is one random block, repeated. Where it starts depends on the tag, and its period is a
prime, so that a byte which is lost, doubled, swapped or out of another exchange is a wrong byte.

Rules: every byte is compared, by memcmp and without a copy (`bytes.startswith` of a memoryview).
"""

from __future__ import annotations

import random
import struct

REQUEST = struct.Struct(">4sIQQ")  # magic, tag, bytes up, bytes down
REPLY = struct.Struct(">4sIQ")  # magic, tag, place of the first wrong byte or ALL_RIGHT
MAGIC = b"UNPx"
BOTH = b"UNPd"  # instead of MAGIC in a request: both ways at the same time
ALL_RIGHT = 2**64 - 1

PERIOD = 65_521  # bytes; prime
CHUNK = 256 * 1024  # most bytes of pattern that `pattern` returns at once
SLACK = 4096  # a flow's output may be a little longer than its input

_block = random.Random("UNP").randbytes(PERIOD)
_pattern = (_block * (CHUNK // PERIOD + 3))[: PERIOD + CHUNK + SLACK]
_view = memoryview(_pattern)


def start_up(tag: int) -> int:
    """Where in the pattern the bytes up begin."""
    return tag * 40_503 % PERIOD


def start_down(tag: int) -> int:
    """Where in the pattern the bytes down begin."""
    return (tag * 40_503 + PERIOD // 2) % PERIOD


def pattern(place: int, size: int) -> memoryview:
    """At most CHUNK bytes of the pattern from `place` on."""
    start = place % PERIOD
    return _view[start : start + min(size, CHUNK)]


def first_wrong(view: memoryview, place: int) -> int | None:
    """The index of the first byte that differs from the pattern at `place`; None if all are right."""
    start = place % PERIOD
    if _pattern.startswith(view, start):
        return None
    expected = _view[start : start + len(view)]
    return next(index for index, (got, right) in enumerate(zip(view, expected, strict=False)) if got != right)
