"""Timers of any length, for a scheduler: a heap, and a dictionary of those that still count.

    set --> number --> heap of (due, number)        the first one due is on top
                `----> {number: who}                cancel takes it out here, and only here

Rules: a cancelled timer stays in the heap until it is due, or until most of the heap is such: taking it
out of the middle costs more than it is worth, keeping all of them for ever would cost memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

Who = TypeVar("Who")
FEW = 64  # cancelled timers, not worth clearing away


class Timers(Generic[Who]):
    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []  # monotonic seconds, number
        self._who: dict[int, Who] = {}
        self._numbers = count(1)

    def set(self, seconds: float, who: Who) -> int:
        """A number for `cancel`, above 0."""
        number = next(self._numbers)
        self._who[number] = who
        heappush(self._heap, (time.monotonic() + seconds, number))
        return number

    def cancel(self, number: int) -> None:
        """It may be over, or cancelled already."""
        self._who.pop(number, None)
        if len(self._heap) > FEW + 2 * len(self._who):
            self._heap = sorted(entry for entry in self._heap if entry[1] in self._who)

    def seconds_left(self, most: float) -> float:
        """Until the first is due, at most so many."""
        return max(0.0, min(most, self._heap[0][0] - time.monotonic())) if self._heap else most

    def due(self) -> Iterator[Who]:
        """Those whose time has come, each once."""
        while self._heap and self._heap[0][0] <= time.monotonic():
            number = heappop(self._heap)[1]
            if number in self._who:
                yield self._who.pop(number)
