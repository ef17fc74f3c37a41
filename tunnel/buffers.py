"""Buffers that grow with the traffic, and that an idle connection does not own.

A flow reads into a buffer of its present size class. A read that fills it moves the flow one class
up, a read that leaves it nearly empty one class down: a chat costs 4 KiB, a download earns 256 KiB
a system call. What is given back lies on a free list, last in first out, so that the next taker
finds it still in the processor's cache.

Rules: whoever takes a buffer gives it back once; nobody touches it afterwards. The lists are
bounded; `list.append` and `list.pop` are atomic, so threads share them without a lock.
"""

from __future__ import annotations

MAX_PAYLOAD = 0x3FFF  # bytes in one record (aead.py)
# Bytes that a read may fill. Whole records: a full read of 256 KiB would end in a record of 16 bytes.
SIZES = (4 * 1024, 2 * MAX_PAYLOAD, 16 * MAX_PAYLOAD)
LARGEST = len(SIZES) - 1
ROOM = 1024  # bytes beyond: 17 records' lengths and tags, the salt, the address header
KEPT = (64, 64, 32)  # free buffers kept of each class, 10 MiB in all

_free: tuple[list[memoryview], ...] = tuple([] for _ in SIZES)


def take(size_class: int) -> memoryview:
    """A buffer of SIZES[size_class] + ROOM bytes with arbitrary content."""
    try:
        return _free[size_class].pop()
    except IndexError:
        return memoryview(bytearray(SIZES[size_class] + ROOM))


def give(size_class: int, buffer: memoryview) -> None:
    """Takes back what `take(size_class)` returned."""
    free = _free[size_class]
    if len(free) < KEPT[size_class]:
        free.append(buffer)


def next_class(size_class: int, read: int, filled: int) -> int:
    """The size class for the next read, after one of `read` bytes that left `filled` in the buffer."""
    if filled >= SIZES[size_class]:
        return min(size_class + 1, LARGEST)
    if size_class and read < SIZES[size_class - 1] // 2:
        return size_class - 1
    return size_class
