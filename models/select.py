"""Select: one thread, every socket non-blocking, one system call to wait for all of them.

    +------------------------ the only thread ------------------------+
    |        readers: listener, accepted ..., dialled ...             |
    |        writers: those with something pending, or connecting     |
    |                      |                                          |
    |   +--> select(readers, writers) --> call back each that is ready|
    |   `-------------------------------------------'                 |
    +-----------------------------------------------------------------+
              names: a few helper threads, which wake select through a socket pair

UNP 6.8, with chapter 16's non-blocking connect and accept.

Differs from `thread`: nobody blocks but select, so one thread's memory serves all clients.
Good when: clients are many but few of them are busy, and the program must run anywhere.
Breaks when: a descriptor's number reaches FD_SETSIZE (1024): the set is a bit mask of that size. And
each call hands over all descriptors again, so waiting costs by clients, not by events.
"""

from __future__ import annotations

import select

from models._loop import Loop, Poller
from models._server import Server

FD_SETSIZE = 1024  # <sys/select.h>; glibc's fd_set has that many bits


class Select(Poller):
    limit = f"select cannot watch descriptor {FD_SETSIZE} and above"

    def admits(self, fd: int) -> bool:
        return fd < FD_SETSIZE

    def wait(self, seconds: float) -> None:
        # fig: wait
        readable, writable, _ = select.select(self.readers, self.writers, (), seconds)
        for fd in readable:
            if callback := self.readers.get(fd):  # an earlier one may have closed it
                callback()
        for fd in writable:
            if callback := self.writers.get(fd):
                callback()
        # end fig


def serve(server: Server) -> None:
    slot = server.scoreboard.take()
    slot.own("tunnel: select")
    Loop(server, Select(), slot).run()
