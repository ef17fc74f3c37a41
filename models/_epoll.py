"""A poller over epoll, for pools of loops: each process has its own, made after the fork.

The plainest use of epoll, level-triggered, one entry for each descriptor. The model `epoll` shows what
libuv makes of it.
"""

from __future__ import annotations

import contextlib
import errno
import select

from models._loop import Poller
from models._server import RESOURCE_PAUSE

ENDS = select.EPOLLHUP | select.EPOLLERR


class Epoll(Poller):
    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        self._events: dict[int, int] = {}  # as epoll knows them
        self._untold: set[int] = set()  # what it had no memory for
        self.flags = 0  # more, for what is watched for the first time

    def changed(self, fd: int) -> None:
        events = select.EPOLLIN if fd in self.readers else 0
        events |= select.EPOLLOUT if fd in self.writers else 0
        before = self._events.get(fd, 0)
        if events == before:
            return
        if not events:
            with contextlib.suppress(OSError):  # what is gone is not watched
                self._epoll.unregister(fd)
            del self._events[fd]
            return
        try:
            if before:
                self._epoll.modify(fd, events)
            else:
                self._epoll.register(fd, events | self.flags)
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.ENOSPC):
                raise
            self._untold.add(fd)  # one client waits, and the others go on
        else:
            self._events[fd] = events

    def wait(self, seconds: float) -> None:
        if self._untold:
            again, self._untold = self._untold, set()
            for fd in again:
                self.changed(fd)
            seconds = min(seconds, RESOURCE_PAUSE)
        # fig: wait
        for fd, events in self._epoll.poll(seconds):
            if events & (select.EPOLLIN | ENDS) and (callback := self.readers.get(fd)):
                callback()
            if events & (select.EPOLLOUT | ENDS) and (callback := self.writers.get(fd)):
                callback()
        # end fig
