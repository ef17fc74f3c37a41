"""A pool's master that waits for descriptors as well as for signals.

    signals, blocked -- let in while it waits --> handler: a list, and a byte in the wake-up descriptor
                                                                           |
    listeners, channels ---------------------------------------> [ poll ] <'  --> callbacks

Rules: a signal is let in only within `wait`, so a callback is never interrupted and a fork never has one
half taken. None is lost between the look at the list and the poll: its byte is there already.
"""

from __future__ import annotations

import select
import signal
import time
from collections import deque
from collections.abc import Callable

from models._master import MASTER_SIGNALS, Pool
from models._server import Server


class WatchfulPool(Pool):
    """`watch` says which descriptors, and what to call when they are readable."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._signals: deque[int] = deque()
        self._poller = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self.watch(server.stop.fileno(), server.stop.clear_wakeup)
        for number in MASTER_SIGNALS:
            signal.signal(number, lambda number, _frame: self._signals.append(number))

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._poller.register(fd, select.POLLIN)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Also for one that is not watched."""
        if self._callbacks.pop(fd, None):
            self._poller.unregister(fd)

    def prepare(self) -> None:
        """Called before each poll, and before a signal is acted upon: the time to change what is watched,
        and to pass on what has come, for the signal may send everybody home."""

    def wait(self, seconds: float) -> int | None:
        # fig: wait for everything
        until = time.monotonic() + seconds
        self.prepare()
        while not self._signals and (left := until - time.monotonic()) > 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, MASTER_SIGNALS)
            ready: list[tuple[int, int]] = []
            try:
                ready = self._poller.poll(left * 1000)
            except OSError as error:
                self.server.accept.sit_out(error, "waiting pauses")
            signal.pthread_sigmask(signal.SIG_BLOCK, MASTER_SIGNALS)
            for fd, _ in ready:
                if callback := self._callbacks.get(fd):
                    callback()
            self.prepare()
        return self._signals.popleft() if self._signals else None
        # end fig
