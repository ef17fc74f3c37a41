"""Poll: as select, with a list of descriptors instead of three bit masks.

    +------------------------ the only thread ------------------------+
    |   {fd: events}   registered once, changed when a client stalls  |
    |                      |                                          |
    |   +--> poll() --> [(fd, events) ...] --> call back each         |
    |   `-------------------------------------------'                 |
    +-----------------------------------------------------------------+

UNP 6.11, with the poll of 6.10.

Differs from `select`: no limit on descriptors' numbers, and hang-ups and errors come as events of their
own, asked for or not. So a descriptor nobody waits for is taken out, or its hang-up would come back
at once, for ever.
Good when: there are more than a thousand descriptors, on any UNIX.
Breaks when: they are many and idle: the kernel still walks through all of them on each call.
"""

from __future__ import annotations

import select

from models._loop import Loop, Poller
from models._server import Server

ENDS = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Poll(Poller):
    def __init__(self) -> None:
        super().__init__()
        self._poll = select.poll()
        self._events: dict[int, int] = {}  # as poll knows them

    def changed(self, fd: int) -> None:
        events = (select.POLLIN if fd in self.readers else 0) | (select.POLLOUT if fd in self.writers else 0)
        if events == self._events.get(fd, 0):
            return
        if events:
            self._poll.register(fd, events)
            self._events[fd] = events
        else:
            self._poll.unregister(fd)
            del self._events[fd]

    def wait(self, seconds: float) -> None:
        # fig: wait
        for fd, events in self._poll.poll(seconds * 1000):
            if events & (select.POLLIN | ENDS) and (callback := self.readers.get(fd)):
                callback()
            if events & (select.POLLOUT | ENDS) and (callback := self.writers.get(fd)):
                callback()
        # end fig


def serve(server: Server) -> None:
    slot = server.scoreboard.take()
    slot.own("tunnel: poll")
    Loop(server, Poll(), slot).run()
