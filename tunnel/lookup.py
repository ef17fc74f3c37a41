"""Names for who blocks: getaddrinfo in a thread of its own, since nothing ends it in time.

    dial --> thread: addresses() --> [ found ] --> dial goes on
      `- waits, with a sign of life each second, for the connect timeout at most

getaddrinfo takes as long as resolv.conf lets it: 10 s for each name server, where that says nothing. When
the time is over the thread is left behind, and ends when getaddrinfo does. A thread for each name, and no
pool of them: a process that looks nothing up has none, also when it forks (models/_copy.py).

Rules: imported by the first name, since literals need none of it. MOST threads at once in a process, with
those that were left behind; who finds no room waits for some, in the same time.
"""

from __future__ import annotations

import _thread
import errno
import os
import time
from _queue import Empty, SimpleQueue
from collections.abc import Callable
from typing import Generic, TypeVar

from tunnel.address import Address

MOST = 32  # threads
BEATS = 1.0  # seconds between signs of life

Found = TypeVar("Found")
Item = TypeVar("Item")


class Lookups(Generic[Found]):
    """Looks names up by `addresses(target)`, which may block for longer than anybody waits."""

    def __init__(self, addresses: Callable[[Address], Found]) -> None:
        self._addresses = addresses
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(MOST):
            self._room.put(None)

    def find(self, target: Address, seconds: float, sign_of_life: Callable[[], None]) -> Found:
        """What `addresses` returns. Raises what it raises, or OSError for want of time, or of a thread."""
        until = time.monotonic() + seconds
        answer: SimpleQueue[Found | Exception] = SimpleQueue()
        take(self._room, until, sign_of_life)
        try:
            _thread.start_new_thread(self._work, (target, answer))
        except RuntimeError as error:
            self._room.put(None)
            raise OSError(None, str(error)) from None
        found = take(answer, until, sign_of_life)
        if isinstance(found, Exception):
            try:
                raise found
            finally:
                del found  # it has this frame in its traceback: a cycle
        return found

    def _work(self, target: Address, answer: SimpleQueue[Found | Exception]) -> None:
        try:
            answer.put(self._addresses(target))
        except Exception as error:  # noqa: BLE001 - raised again by who waits
            answer.put(error)
        finally:
            self._room.put(None)


def take(queue: SimpleQueue[Item], until: float, sign_of_life: Callable[[], None]) -> Item:
    """The next item. Raises TimeoutError, in the words of connect(2), at that time (monotonic seconds)."""
    while (left := until - time.monotonic()) > 0:
        try:
            return queue.get(timeout=min(left, BEATS))
        except Empty:
            sign_of_life()
    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
