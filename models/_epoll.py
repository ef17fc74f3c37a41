"""A poller over epoll, for pools of loops: each process has its own, made after the fork.

The plainest use of epoll, level-triggered, one entry for each descriptor. It hears of changes just before
it waits, since half of them have been undone by then: a new connection then costs five epoll_ctl, where
telling at once costs eight. The model `epoll` shows what libuv makes of it.
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
        self._stale: set[int] = set()  # of these it may have to hear something else
        self._untold: set[int] = set()  # for these it had no memory
        self.flags = 0  # more, for what is watched for the first time

    def changed(self, fd: int) -> None:
        if self.flags:
            self._tell(fd)
        else:
            self._stale.add(fd)

    def forget(self, fd: int) -> None:
        super().forget(fd)
        self._tell(fd)

    def _tell(self, fd: int) -> None:
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
        # fig: wait
        while self._stale:
            self._tell(self._stale.pop())
        if self._untold:
            self._stale, self._untold = self._untold, self._stale
            seconds = min(seconds, RESOURCE_PAUSE)
        for fd, events in self._epoll.poll(seconds):
            if events & (select.EPOLLIN | ENDS) and (callback := self.readers.get(fd)):
                callback()
            if events & (select.EPOLLOUT | ENDS) and (callback := self.writers.get(fd)):
                callback()
        # end fig
