"""How many connections there may be: of the whole server, and of one source.

    reserve a place -- none: accepting pauses, the listener's queue holds who comes
        |
     accept  -->  has its source too many? -- yes: closed at once
        |
     claim   -->  the place is the client's, until its connection is closed, or drained and then closed

    memfd "tunnel-limits", mapped by all processes of a server; made when there is a limit for the first time
    +--------+--------------------+----------------------+-----------------------+
    | header | taken: 1 byte each | source: 64 bits each | owner: 32 bits, a pid |    65,536 places
    +--------+--------------------+----------------------+-----------------------+
      places that were ever in use, connections refused

A place without a source is one that an accept is waiting with. A source is an IPv4 address, or the /64
that an IPv6 address is in: whoever has one of its addresses has all of them. What is remembered is a hash,
which another run of the program would not find again.

Rules: a place is taken under a record lock of fcntl, which a process that dies gives back, and a lock
between the threads of one process; it is given back without any, by its owner, or by whoever reaps its owner.
So what a killed worker held is free again. Without limits, a connection costs one comparison here.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import sys
import time
from _thread import allocate_lock
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EUSERS
from struct import Struct

from tunnel.connection import adopt
from tunnel.log import log
from tunnel.replay import LOCKED, UNLOCKED

NAME = "tunnel-limits"
PLACES = 1 << 16
MAGIC = b"unplimit"
COUNTS, COUNTS_AT = Struct("=IxxxxQ"), len(MAGIC)  # places that were ever in use, connections refused
TAKEN_AT = mmap.PAGESIZE
SOURCES_AT = TAKEN_AT + PLACES
OWNERS_AT = SOURCES_AT + 8 * PLACES
SIZE = OWNERS_AT + 4 * PLACES
FREE, TAKEN = 0, 1
SELDOM = 10.0  # seconds between two lines that a crowd of clients causes


class Full(OSError):
    """There are as many connections as there may be."""

    def __init__(self, total: int) -> None:
        super().__init__(EUSERS, f"{total} connections are open")


class Refused(BlockingIOError):
    """Who came was sent away again. Others may wait: who is told of clients only once must ask again.

    To all others it is as if nobody had come. None of them goes on by itself, since a client that
    connects again and again would keep it from everything else.
    """


class Place:
    """What one connection takes of the limits, until `leave`."""

    __slots__ = ("_index", "_table")

    def __init__(self, table: Table | None, index: int) -> None:
        self._table = table
        self._index = index

    def leave(self) -> None:
        """Gives it back; a second time it does nothing."""
        if self._table is not None:
            self._table.free(self._index)
            self._table = None

    def keep(self) -> Place:
        """The place, for somebody else: this one gives nothing back any more."""
        kept, self._table = Place(self._table, self._index), None
        return kept


class Table:
    """The places. Made before the first fork that is to share them."""

    def __init__(self) -> None:
        self._fd = os.memfd_create(NAME)
        try:
            os.ftruncate(self._fd, SIZE)
            self._memory = memory = mmap.mmap(self._fd, SIZE)
        except BaseException:  # no memory for it: the next reload tries again
            os.close(self._fd)
            raise
        memory[: len(MAGIC)] = MAGIC
        view = memoryview(memory)
        self._taken = view[TAKEN_AT:SOURCES_AT]
        self._sources = view[SOURCES_AT:OWNERS_AT].cast("Q")
        self._owners = view[OWNERS_AT:SIZE].cast("I")
        self._threads = allocate_lock()

    def take(self, most: int) -> int | None:
        """A place of this process's, unless `most` are taken."""
        with self._threads:
            fcntl.fcntl(self._fd, fcntl.F_SETLKW, LOCKED)
            try:
                used, refused = COUNTS.unpack_from(self._memory, COUNTS_AT)
                if self._memory[TAKEN_AT : TAKEN_AT + used].count(TAKEN) >= most:
                    return None
                index = self._memory.find(b"\0", TAKEN_AT, SOURCES_AT) - TAKEN_AT
                self._owners[index] = os.getpid()
                self._taken[index] = TAKEN
                if index >= used:
                    COUNTS.pack_into(self._memory, COUNTS_AT, index + 1, refused)
                return index
            finally:
                fcntl.fcntl(self._fd, fcntl.F_SETLK, UNLOCKED)

    def enter(self, index: int, source: int, most: int | None) -> bool:
        """The place is this source's now; False if it has `most` already: then the place stays as it was."""
        if most is None:
            self._sources[index] = source
            return True
        with self._threads:
            fcntl.fcntl(self._fd, fcntl.F_SETLKW, LOCKED)
            try:
                used, refused = COUNTS.unpack_from(self._memory, COUNTS_AT)
                sources = self._memory[SOURCES_AT : SOURCES_AT + 8 * used]
                if sources.count(source.to_bytes(8, sys.byteorder)) >= most:
                    COUNTS.pack_into(self._memory, COUNTS_AT, used, refused + 1)
                    return False
                self._sources[index] = source
                return True
            finally:
                fcntl.fcntl(self._fd, fcntl.F_SETLK, UNLOCKED)

    def give(self, index: int, pid: int) -> None:
        """That process has it from now on."""
        self._owners[index] = pid

    def free(self, index: int) -> None:
        self._sources[index] = 0
        self._taken[index] = FREE

    def free_all_of(self, pid: int) -> None:
        """That process has ended."""
        used, _ = COUNTS.unpack_from(self._memory, COUNTS_AT)
        for index, owner in enumerate(self._owners[:used]):
            if owner == pid and self._taken[index]:
                self.free(index)


class Seldom:
    """A warning that many clients may be the cause of, and that is not written for each of them."""

    def __init__(self) -> None:
        self._unsaid = 0
        self._again_at = 0.0  # monotonic

    def warn(self, text: str, subject: str = "") -> None:
        now = time.monotonic()
        if now < self._again_at:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} such lines were left out before this one)" if self._unsaid else ""
        log.warning(text + more, subject)
        self._unsaid, self._again_at = 0, now + SELDOM


def read_counts(memory: mmap.mmap) -> tuple[int, int]:
    """Connections that are open, and that were refused; for who looks from outside."""
    used, refused = COUNTS.unpack_from(memory, COUNTS_AT)
    with memoryview(memory) as view, view[SOURCES_AT:OWNERS_AT] as raw, raw.cast("Q") as sources:
        return sum(map(bool, sources[:used].tolist())), refused


class Limits:
    """The limits of one server, as its processes and their threads ask for them."""

    def __init__(self, total: int | None = None, per_source: int | None = None) -> None:
        self.on = False
        self._table: Table | None = None
        self._held: dict[int, int] = {}  # places of connections that nobody has claimed yet, by descriptor
        self._refusals, self._pauses = Seldom(), Seldom()
        self.change(total, per_source)

    def change(self, total: int | None, per_source: int | None) -> None:
        """By a reload. What was accepted before there was any limit is not counted."""
        on = bool(total or per_source)
        if on and self._table is None:
            self._table = Table()
        self.total, self._per_source = total or PLACES, per_source
        self.on = on  # last: other threads accept meanwhile, and look at this first

    def accept(self, listener: socket.socket) -> socket.socket:
        """accept(2), of whoever may come. Raises Full, Refused, and OSError of accept."""
        assert self._table
        index = self._table.take(self.total)
        if index is None:
            raise Full(self.total)
        try:
            fd, address = listener._accept()  # type: ignore[attr-defined] # see tunnel/connection.py
            accepted = adopt(fd)
            most = self._per_source
            if not self._table.enter(index, source_of(address[0]), most):
                accepted.close()
                self._refusals.warn(f"client refused: its source has {most} connections already", address[0])
                raise Refused
        except BaseException:
            self._table.free(index)
            raise
        self._held[accepted.fileno()] = index
        return accepted

    def claim(self, fd: int) -> Place:
        """The place of a connection that was accepted here; whoever claims it makes sure that it is left."""
        index = self._held.pop(fd, None)
        return NOWHERE if index is None else Place(self._table, index)

    def give(self, fd: int, pid: int) -> int:
        """A child serves this connection: its number, for `take_over`, which a fork does not need."""
        index = self._held.pop(fd, None)
        if index is None or self._table is None:
            return NO_PLACE
        self._table.give(index, pid)
        return index

    @contextmanager
    def passing(self, fd: int, pid: int) -> Iterator[bytes]:
        """The same for a child that is sent the connection, with this. If it cannot be, all stays here."""
        number = self.give(fd, pid)
        try:
            yield number.to_bytes(4, "big")
        except OSError:
            self.take_over(fd, number)
            raise

    def take_over(self, fd: int, number: int) -> None:
        """In the child that was passed the connection, or in whoever could not pass it on."""
        if number != NO_PLACE and self._table is not None:
            self._table.give(number, os.getpid())
            self._held[fd] = number

    def bury(self, pid: int) -> None:
        """A child has been reaped."""
        if self._table is not None:
            self._table.free_all_of(pid)

    def say_full(self) -> None:
        self._pauses.warn(f"accepting pauses: {self.total} connections are open, as many as there may be")


NO_PLACE = 0xFFFFFFFF
NOWHERE = Place(None, NO_PLACE)


def source_of(host: str) -> int:
    """64 bits, above 0, for an IPv4 address or the /64 of an IPv6 one."""
    if ":" not in host:
        source = socket.inet_pton(socket.AF_INET, host)
    else:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        source = packed[12:] if packed.startswith(bytes(10) + b"\xff\xff") else packed[:8]
    return hash(source) % (1 << 64) or 1
