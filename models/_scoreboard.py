"""Who does what: one byte for each worker, in memory that the whole pool shares.

    slot      0      1      2      3      4    ...
           +------+------+------+------+------+---
           | BUSY | IDLE | BUSY | FREE | FREE | ...      anonymous, shared by fork (mmap(2))
           +------+------+------+------+------+---
              ^ each written by its own worker, read by the master

The master needs it to know how many workers wait for a client. A worker that takes a client while
nobody else waits says so with a SIGCHLD: look after your children. So the pool grows when it must, and
not a second later.

Rules: a slot has one writer at a time: the master while it is FREE, then its worker.
"""

from __future__ import annotations

import mmap
import os
import signal

FREE, IDLE, BUSY = b"\0", b"\1", b"\2"


class Scoreboard:
    """The slots of a pool of at most `slots` workers. Made before the first fork."""

    def __init__(self, slots: int) -> None:
        self._states = mmap.mmap(-1, slots)
        self._slots = slots

    def take(self) -> int:
        """A free slot, for a worker that is about to start: it counts as idle from here on."""
        number = self._states.find(FREE)
        self._states[number : number + 1] = IDLE
        return number

    def give_back(self, number: int) -> None:
        """The slot's worker has ended."""
        self._states[number : number + 1] = FREE

    def idle(self) -> int:
        """How many workers wait for a client."""
        return self._states[: self._slots].count(IDLE)

    def is_idle(self, number: int) -> bool:
        return self._states[number : number + 1] == IDLE

    def slot(self, number: int) -> Slot:
        """For the worker itself."""
        return Slot(self._states, number)


class Slot:
    """A worker's own slot."""

    def __init__(self, states: mmap.mmap, number: int) -> None:
        self._states = states
        self._place = slice(number, number + 1)
        self._master = os.getppid()

    def busy(self) -> None:
        """It has a client. The last one to become busy calls for another worker."""
        self._states[self._place] = BUSY
        if self._states.find(IDLE) < 0:
            os.kill(self._master, signal.SIGCHLD)

    def idle(self) -> None:
        """It waits for a client."""
        self._states[self._place] = IDLE
