"""Salts that were seen, so that a recorded stream is worth nothing to whoever sends it again.

    shared memory (a memfd, or a file): inherited by fork, handed over by SIGUSR2
    +--------+-------+------------------------+-------+------------------------+
    | header | front | generation 0: the rest | front | generation 1: the rest |
    +--------+-------+------------------------+-------+------------------------+
      |        `- room for 2^16 salts   `- with the front, for 2^21
      `- turns (which one is filled), salts in that one, replays so far

A salt is 64 bits of itself, in the line of eight that other 64 bits of it choose, or in the next line with
room. The first 2^15 salts of a generation go into its front: anywhere in all of it, each of thousands would
make a page of its own, and touch it in each worker. Both generations are asked, one is filled; after 2^20
salts the other one is emptied and filled instead. So the last 1,048,576 salts are always known, and at most
twice as many. A fresh salt is taken for a replay with a probability below 10^-17: somebody else's must agree
in 64 bits and share its line.

Rules: check and add are one step, under a record lock of fcntl, which a process that dies gives back, and
a lock between the threads of one process. Nothing is kept but bits of salts, which are no secret. Pages
that no salt has come to take no memory; all of them would be 32 MiB.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
import sys
from _thread import allocate_lock
from struct import Struct

from tunnel.errors import ConfigError

GENERATION = 1 << 20  # salts
LINES = 1 << 18  # of a generation: it is half full at most
FRONT, FRONT_LINES = 1 << 15, 1 << 13  # the same of its front
LINE = Struct("=8Q")
SLOT = Struct("=Q")
SALT = Struct("=QQ")  # its first 16 bytes; others have 32
PIECE = 256 << 10  # bytes of a generation that are emptied at once
MAGIC = b"unpsalt\3"
COUNTS, COUNTS_AT = Struct("=IIQ"), len(MAGIC)  # turns from one generation to the other, salts in it, replays


def flock(kind: int) -> bytes:
    """fcntl(2)'s struct, of the whole file. fcntl.lockf makes it for each call, and takes twice as long."""
    if sys.platform == "linux":
        return struct.pack("hhqqi", kind, os.SEEK_SET, 0, 0, 0)
    return struct.pack("qqihh", 0, 0, 0, kind, os.SEEK_SET)  # as the BSDs have it


LOCKED, UNLOCKED = flock(fcntl.F_WRLCK), flock(fcntl.F_UNLCK)
FIRST = mmap.PAGESIZE
SIZE = FIRST + 2 * LINES * LINE.size


class SaltMemory:
    """All processes and threads of a server share one. Raises OSError, or ConfigError for a wrong file."""

    def __init__(self, path: str | None = None, fd: int | None = None) -> None:
        """`path`: kept there over a restart. `fd`: of one that another program has made."""
        self._fd = fd if fd is not None else new_descriptor(path)
        os.set_inheritable(self._fd, False)
        self._threads = allocate_lock()
        with self._threads:
            fcntl.fcntl(self._fd, fcntl.F_SETLKW, LOCKED)
            try:
                self._memory = self._map(path)
            finally:
                fcntl.fcntl(self._fd, fcntl.F_SETLK, UNLOCKED)

    def _map(self, path: str | None) -> mmap.mmap:
        size = os.fstat(self._fd).st_size
        begun = size in (len(MAGIC), SIZE) and os.pread(self._fd, len(MAGIC), 0) == MAGIC
        if size and not begun:
            raise ConfigError(f"{path}: holds something else: expected a file of --replay-file, or none")
        if not begun:
            os.pwrite(self._fd, MAGIC, 0)  # first, so that who is killed here leaves a file to go on with
        if path:
            os.posix_fallocate(self._fd, 0, SIZE)  # a page that the disk has no room for is a SIGBUS
        elif size != SIZE:
            os.ftruncate(self._fd, SIZE)
        return mmap.mmap(self._fd, SIZE)

    def fileno(self) -> int:
        return self._fd

    def add(self, salt: bytes) -> bool:
        """Remembers it; False if it was remembered already."""
        mark, place = SALT.unpack_from(salt)
        mark = mark or 1  # 0 is room
        fd = self._fd
        with self._threads:
            fcntl.fcntl(fd, fcntl.F_SETLKW, LOCKED)
            try:
                return self._add(mark, place)
            finally:
                fcntl.fcntl(fd, fcntl.F_SETLK, UNLOCKED)

    def _add(self, mark: int, place: int) -> bool:
        memory = self._memory
        turns, salts, replays = COUNTS.unpack_from(memory, COUNTS_AT)
        filled = turns & 1
        room = self._room(filled, salts, mark, place)
        # Until the first turn the other one is empty: a look at it would only make pages of it.
        if room is None or (turns and self._room(1 - filled, GENERATION, mark, place) is None):
            COUNTS.pack_into(memory, COUNTS_AT, turns, salts, replays + 1)
            return False
        if salts >= GENERATION:
            filled = 1 - filled
            if turns:
                self._empty(filled)
            turns, salts = turns + 1, 0
            room = self._room(filled, salts, mark, place)
            assert room is not None
        SLOT.pack_into(memory, room, mark)
        COUNTS.pack_into(memory, COUNTS_AT, turns, salts + 1, replays)
        return True

    def _room(self, generation: int, salts: int, mark: int, place: int) -> int | None:
        """Where there is room for it, in a generation with so many salts; None if it is there already."""
        first = generation * LINES
        room = self._in_lines(first, FRONT_LINES, mark, place)
        if room is None or salts < FRONT:
            return room
        return self._in_lines(first + FRONT_LINES, LINES - FRONT_LINES, mark, place)

    def _in_lines(self, first: int, lines: int, mark: int, place: int) -> int | None:
        line = place % lines
        while True:
            at = FIRST + (first + line) * LINE.size
            marks = LINE.unpack_from(self._memory, at)
            if mark in marks:
                return None
            if not marks[-1]:
                return at + marks.index(0) * SLOT.size
            line = (line + 1) % lines

    def _empty(self, generation: int) -> None:
        """With zeros. Who gives its pages back gives up what a file has reserved (see `_map`)."""
        size = LINES * LINE.size
        start = FIRST + generation * size
        zeros = bytes(PIECE)
        for at in range(start, start + size, PIECE):
            end = min(at + PIECE, start + size)
            self._memory[at:end] = zeros[: end - at]

    @property
    def replays(self) -> int:
        """How many salts came again."""
        return replays_in(self._memory)


def replays_in(memory: mmap.mmap) -> int:
    """How many salts came again; for who looks from outside."""
    return int(COUNTS.unpack_from(memory, COUNTS_AT)[2])


def new_descriptor(path: str | None) -> int:
    if path is not None:
        return open_private(path)
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tunnel-salts")
    import tempfile  # noqa: PLC0415

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def open_private(path: str) -> int:
    """Raises OSError; ConfigError for a file that others have a hand in. Who may write to it can make it
    forget, or cut it short under a running server; who may read it can lock it, and all would wait."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        said = "is no file: expected a file of --replay-file, or none"
    elif status.st_uid != os.geteuid():
        said = "belongs to somebody else: expected a file of this user's, or none"
    elif status.st_mode & 0o077:
        said = "others can open it: expected a file that is yours alone (chmod 600)"
    else:
        return fd
    os.close(fd)
    raise ConfigError(f"{path}: {said}")
