"""Deadlines for loops: what has waited too long.

    Clock ---- due: the first of all, or earlier
      |
      +-- Deadlines(59 s)    client, client, client ...   in the order in which they were set
      +-- Deadlines(10 s)    client ...
      `-- Deadlines(0.01 s)

All deadlines of one kind are equally long, so they expire in the order in which they were set: a queue
is all the timer there is, where others keep a heap. `due` may be too early, after a cancellation: the
loop then wakes once for nothing. That is cheaper than to look at every queue each time round. When a reload
makes a length shorter, the queue is out of order until the last of those who were set before is due: as
long as that, all of it is looked at.

Rules: a loop that has nothing due costs one comparison each time round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

Client = TypeVar("Client")


class Clock:
    """All deadlines of a loop."""

    __slots__ = ("due", "kinds", "now")

    def __init__(self) -> None:
        self.now = time.monotonic()  # as of the last look
        self.due = inf  # nothing expires before
        self.kinds: list[Deadlines] = []  # type: ignore[type-arg] # each has clients of its own kind

    def seconds_left(self) -> float:
        """From the last look until something may be due."""
        return max(0.0, self.due - self.now)

    def run(self) -> None:
        """Looks at the time, and expires what is due."""
        self.now = time.monotonic()
        if self.now >= self.due:
            for deadlines in self.kinds:
                deadlines.expire(self.now)
            self.due = min(deadlines.first(self.now) for deadlines in self.kinds)


class Deadlines(Generic[Client]):
    """Deadlines of one length (seconds), one for each client."""

    __slots__ = ("_clock", "_due", "_expired", "_length", "_mixed_until")

    def __init__(self, clock: Clock, length: float, expired: Callable[[Client], None]) -> None:
        self._length = length
        self._mixed_until = -inf  # when the last one is due that was set before a shorter length
        self._expired: Callable[[Client], None] = expired
        self._due: dict[Client, float] = {}
        self._clock = clock
        clock.kinds.append(self)

    @property
    def length(self) -> float:
        """Of those that are set from now on; the others keep what they have."""
        return self._length

    @length.setter
    def length(self, length: float) -> None:
        if length < self._length:
            self._mixed_until = max(self._mixed_until, time.monotonic() + self._length)
        self._length = length

    def set(self, client: Client) -> None:
        """Calls `expired(client)` after the time, unless it is cancelled or set again before."""
        due = time.monotonic() + self._length
        self._due.pop(client, None)  # or it would keep its place in the queue
        self._due[client] = due
        self._clock.due = min(due, self._clock.due)

    def cancel(self, client: Client) -> None:
        self._due.pop(client, None)

    def first(self, now: float) -> float:
        if now < self._mixed_until:
            return min(self._due.values(), default=inf)
        for due in self._due.values():
            return due
        return inf

    def expire(self, now: float) -> None:
        overdue = []
        for client, due in self._due.items():
            if due <= now:
                overdue.append(client)
            elif now >= self._mixed_until:
                break
        for client in overdue:
            if self._due.pop(client, None) is not None:  # none: an earlier one has cancelled it
                self._expired(client)
