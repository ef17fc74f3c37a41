"""Who does what: one slot for each worker, thread or loop, in memory that all of them share.

    memfd "tunnel-scoreboard"       mapped once, inherited by fork; `tunnel status` opens it through /proc
    +--------+-----------------+--------+--------+--------+---
    | header | states          | slot 0 | slot 1 | slot 2 | ...
    +--------+-----------------+--------+--------+--------+---
      who      a byte a slot,    pid, tid, connections, bytes each way,
               side by side      since when in this state, last sign of life

The states lie side by side, so that "does anybody wait for a client?" is one look at a few bytes. A
worker that takes a client while nobody else waits tells its master with a SIGCHLD: look after your
children. So a pool grows when it must, and not a second later. Process titles follow at their leisure.

Rules: a slot has one writer at a time: whoever starts its owner, then the owner. Readers lock nothing:
a number is written whole, two numbers may be of different moments. No such fact lives anywhere else.
"""

from __future__ import annotations

import mmap
import os
import signal
from _thread import RLock, get_native_id
from contextlib import suppress
from math import inf
from operator import add
from struct import Struct
from time import monotonic, time
from typing import NamedTuple

from models._title import set_title

FREE, IDLE, LOCK, ACCEPT, HANDSHAKE, DIAL, RELAY, DRAIN = range(8)
STATES = (
    "free",
    "idle",
    "waiting for the lock",
    "in accept",
    "handshake",
    "dialling",
    "relaying",
    "draining",
)
SHOWN = {IDLE: "idle", LOCK: "lock", ACCEPT: "accept", RELAY: "relay", DRAIN: "drain"}  # in titles
WAITING = (ACCEPT, LOCK, IDLE)  # for a client
WAITING_BYTES = tuple(bytes([state]) for state in WAITING)

NAME = "tunnel-scoreboard"
SLOTS = 1024  # 64 KiB; more workers, threads or children than that work unseen
MAGIC = b"unpt\3\0\0\0"
HEADER = Struct("=8sIIdQQQQ32s16s")  # magic, slots, pid, started, then TOTALS, model, command
TOTALS, TOTALS_AT = Struct("=QQQQ"), 24  # within HEADER: connections, up, down, drained
SLOT = Struct("=IIQQQdd?7xQ")  # pid, tid, connections, up, down, since, beat, leaving, drained
OWNER = Struct("=II")  # where SLOT begins
WORD = 8  # bytes; the rest of SLOT in words, up to DRAINED
CONNECTIONS, UP, DOWN, SINCE, BEAT, LEAVING, DRAINED = range(1, 8)
ALIGN = 64  # bytes; no two owners write to one cache line
TITLE_EVERY = 1.0  # seconds; to set a title costs as much as to enter ten states


def size_of(slots: int) -> int:
    """Bytes of a board."""
    return up_to_line(HEADER.size) + up_to_line(slots) + slots * ALIGN


def up_to_line(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


class Entry(NamedTuple):
    """A slot as a reader sees it."""

    number: int
    state: int
    pid: int
    tid: int
    connections: int
    up: int  # bytes, accepted to dialled
    down: int
    since: float  # monotonic seconds, of the state
    beat: float  # monotonic seconds, of the last sign of life
    leaving: bool  # accepts no more, and ends with its last client
    drained: int  # failed handshakes


class Totals(NamedTuple):
    """The header: the server, and what its slots that have ended did."""

    slots: int
    pid: int
    started: float  # seconds since the epoch
    connections: int
    up: int
    down: int
    drained: int
    model: str
    command: str


class Scoreboard:
    """The board of one server. Made before the first fork."""

    def __init__(self, model: str, command: str, slots: int = SLOTS) -> None:
        size = size_of(slots)
        self._fd = os.memfd_create(NAME) if hasattr(os, "memfd_create") else -1
        if self._fd >= 0:
            os.ftruncate(self._fd, size)
        board = Board(mmap.mmap(self._fd, size), slots)
        board.memory[: HEADER.size] = HEADER.pack(
            MAGIC, slots, os.getpid(), time(), 0, 0, 0, 0, model.encode(), command.encode()
        )
        self.board = board
        self._lock = RLock()  # a handler of SIGCHLD may give back what the main thread is about to take

    def take(self) -> Slot:
        """A slot for somebody who is about to start: it counts as waiting from here on.

        When all are taken, the slot is one that nobody sees.
        """
        board = self.board
        with self._lock:
            number = board.memory.find(bytes([FREE]), board.states, board.states + board.slots)
            unseen = number < 0
            slot = (
                Slot(Board(mmap.mmap(-1, mmap.PAGESIZE), 1), 0)
                if unseen
                else Slot(board, number - board.states)
            )
            slot.begin()
        return slot

    def give_back(self, slot: Slot) -> None:
        """The slot's owner has ended; its counts go into the totals."""
        memory = self.board.memory
        served = slot.entry()
        with self._lock:
            counts = TOTALS.unpack_from(memory, TOTALS_AT)
            more = served.connections, served.up, served.down, served.drained
            TOTALS.pack_into(memory, TOTALS_AT, *map(add, counts, more))
        slot.enter(FREE)

    def forget(self, slot: Slot) -> None:
        """The same for an owner that nobody should hear of."""
        slot.enter(FREE)

    def waiting(self) -> int:
        """How many wait for a client."""
        return self.board.waiting()


class Board:
    """The memory itself, for writers and readers."""

    def __init__(self, memory: mmap.mmap, slots: int) -> None:
        self.memory = memory
        self.slots = slots
        self.states = up_to_line(HEADER.size)
        self.first = self.states + up_to_line(slots)
        words = memoryview(memory)
        self.counts = words.cast("Q")
        self.times = words.cast("d")

    def waiting(self) -> int:
        states = self.memory[self.states : self.states + self.slots]
        return sum(states.count(state) for state in WAITING)

    def anybody_waits(self) -> bool:
        """True if somebody waits for a client."""
        find, first = self.memory.find, self.states
        end = first + self.slots
        for state in WAITING_BYTES:  # noqa: SIM110 - each client asks; a generator would be half of it
            if find(state, first, end) >= 0:
                return True
        return False

    def totals(self) -> Totals:
        _, slots, pid, started, connections, up, down, drained, *names = HEADER.unpack_from(self.memory)
        return Totals(slots, pid, started, connections, up, down, drained, *map(text, names))

    def entries(self) -> list[Entry]:
        """The slots in use."""
        return [self.entry(number) for number in range(self.slots) if self.memory[self.states + number]]

    def entry(self, number: int) -> Entry:
        fields = SLOT.unpack_from(self.memory, self.first + number * ALIGN)
        return Entry(number, self.memory[self.states + number], *fields)


def text(field: bytes) -> str:
    return field.rstrip(b"\0").decode()


class Slot:
    """What its owner writes: in which state it is, and what it has moved."""

    __slots__ = (
        "_at",
        "_beat",
        "_board",
        "_connections",
        "_counts",
        "_down",
        "_drained",
        "_memory",
        "_since",
        "_state_at",
        "_times",
        "_title_at",
        "_titles",
        "_up",
        "master",
        "number",
        "seat",
        "watched",
    )

    def __init__(self, board: Board, number: int) -> None:
        self._board = board
        self._memory = board.memory
        self._state_at = board.states + number
        self._at = at = board.first + number * ALIGN
        self._counts, self._times = board.counts, board.times
        self._connections, self._up, self._down, self._since, self._beat, self._drained = (
            at // WORD + word for word in (CONNECTIONS, UP, DOWN, SINCE, BEAT, DRAINED)
        )
        self.number = number
        self._titles: dict[int, str] = {}  # by state
        self._title_at = inf  # monotonic seconds; when to set it next
        self.seat = 0  # of a pool's worker: which of them it is; its successor gets the same
        self.watched = False  # somebody kills the owner if it gives no sign of life
        self.master = 0  # pid that wants to know when nobody waits any more

    def begin(self) -> None:
        """Before the owner exists: the slot is taken, and counts as waiting."""
        now = monotonic()
        SLOT.pack_into(self._memory, self._at, 0, 0, 0, 0, 0, now, now, False, 0)
        self._memory[self._state_at] = IDLE

    def own(self, title: str | None = None, master: int = 0) -> None:
        """In the owner, as soon as it runs. `title`: its process's, shown with its state (ps).

        The state there is at most a second old; `tunnel status` has it at once.
        """
        self.master = master
        if title:
            self._titles = {state: f"{title} [{word}]" for state, word in SHOWN.items()}
            self._title_at = 0.0
        OWNER.pack_into(self._memory, self._at, os.getpid(), get_native_id())

    def enter(self, state: int) -> None:
        """From now on the owner is in `state`."""
        self._memory[self._state_at] = state
        times = self._times
        times[self._since] = times[self._beat] = now = monotonic()
        if now >= self._title_at:
            self._set_title(now)

    def beat(self) -> None:
        """The owner lives, in the same state as before."""
        self._times[self._beat] = now = monotonic()
        if now >= self._title_at:
            self._set_title(now)

    def _set_title(self, now: float) -> None:
        if title := self._titles.get(self._memory[self._state_at]):
            set_title(title)
            self._title_at = now + TITLE_EVERY

    def leave(self) -> None:
        """The owner accepts no more."""
        self._memory[self._at + LEAVING * WORD] = True

    def leaves(self) -> bool:
        """As its master sees it."""
        return bool(self._memory[self._at + LEAVING * WORD])

    def accepted(self, state: int = HANDSHAKE) -> None:
        """One more connection. The last one to take a client calls for another worker."""
        self._counts[self._connections] += 1
        self.enter(state)
        if self.master and not self._board.anybody_waits():
            with suppress(ProcessLookupError):  # it has been killed; this client is served all the same
                os.kill(self.master, signal.SIGCHLD)

    def count_up(self, n: int) -> None:
        """So many bytes more from accepted to dialled. One writer: who copies this way."""
        self._counts[self._up] += n

    def count_down(self, n: int) -> None:
        """So many bytes more from dialled to accepted. One writer: who copies this way."""
        self._counts[self._down] += n

    def drained(self) -> None:
        """A client whose handshake has failed is left to the drain."""
        self._counts[self._drained] += 1

    def moved(self) -> int:
        """Bytes so far, either way, by every process that counts in this slot."""
        return self._counts[self._up] + self._counts[self._down]

    def entry(self) -> Entry:
        """As a reader sees it."""
        return self._board.entry(self.number)
