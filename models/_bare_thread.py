"""A thread without ceremony, for models that start one or two for each client.

    start ----> the caller goes on at once
      `-------> work --> ended ----> join

`threading.Thread.start` waits until the new thread has said that it runs: two switches, and two
handovers of the interpreter lock, before either does anything. It makes an event, a condition and two
locks for that, and enters the thread in a register that nobody here asks. This is the rest of it: the
work, and one lock that is held until the work is done (docs/performance.md says what that saves).

Rules: as a daemon thread, it never keeps the process from ending. What gets out of the work is a
mistake of ours: it is shown, and the thread ends.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock, stack_size, start_new_thread
from collections.abc import Callable

STACK = 256 * 1024  # bytes. glibc keeps 40 MiB of stacks for the next threads: 160 of these, 5 of 8 MiB

stack_size(STACK)


class BareThread:
    """Not started yet, so that it can be written down somewhere first."""

    __slots__ = ("_ended", "ident")

    def __init__(self) -> None:
        self._ended = allocate_lock()  # held from `start` to the end
        self.ident = 0  # as signal.pthread_kill wants it

    def start(self, work: Callable[..., None], *args: object) -> None:
        """Does `work(*args)` in a new thread. Raises OSError if there can be none (pthread_create(3))."""
        self._ended.acquire()
        try:
            self.ident = start_new_thread(self._run, (work, args))
        except RuntimeError as error:
            self._ended.release()
            raise OSError(None, str(error)) from None

    def runs(self) -> bool:
        return self._ended.locked()

    def join(self) -> None:
        """Waits for the end. Signal handlers run meanwhile."""
        with self._ended:
            pass

    def _run(self, work: Callable[..., None], args: tuple[object, ...]) -> None:
        try:
            work(*args)
        except BaseException:  # noqa: BLE001 - shown
            sys.excepthook(*sys.exc_info())
        finally:
            self._ended.release()
