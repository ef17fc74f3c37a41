"""Epoll itself: libuv's src/unix/linux.c.

    io_start, io_stop --> watcher_queue --+
                                          v
    io_poll:  epoll_ctl ADD or MOD for each, epoll_wait, then the callback of each ready watcher
                                                                 `- nobody's any more: epoll_ctl DEL

    w.pevents   what its owner wants          w.events   what the kernel has been told

Differs from libuv: io_stop leaves `events` as it is, so that a watcher which is stopped and started again
costs no system call. (There it costs two: ADD, which fails with EEXIST, and MOD.)

Rules: level-triggered, so nothing is lost by reading less than there is. A descriptor that is about to be
closed is taken out first: closing one of two descriptors of the same socket would leave it in.
"""

from __future__ import annotations

import contextlib
import errno
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.epoll.core import Loop

POLLIN, POLLOUT = select.EPOLLIN, select.EPOLLOUT
POLLERR, POLLHUP = select.EPOLLERR, select.EPOLLHUP  # come unasked
ENDS = POLLERR | POLLHUP
MOST_EVENTS = 1024  # that one call returns
RETRY = 0.1  # seconds until a watcher that the kernel has no memory for is tried again


def platform_loop_init(loop: Loop) -> None:
    loop.backend = select.epoll()


# fig: io_poll
def io_poll(loop: Loop, timeout: float) -> None:
    """Tells the kernel what has changed, waits, and calls the watchers that are ready."""
    backend, watchers = loop.backend, loop.watchers
    if loop.watcher_queue:
        queue, loop.watcher_queue = loop.watcher_queue, {}
        for w in queue:
            try:
                if w.events == 0:
                    backend.register(w.fd, w.pevents)
                elif w.events != w.pevents:
                    backend.modify(w.fd, w.pevents)
                w.events = w.pevents
            except OSError as error:
                if error.errno not in (errno.ENOMEM, errno.ENOSPC):
                    raise
                loop.watcher_queue[w] = None  # one client waits, where libuv aborts
                timeout = min(timeout, RETRY)
    for fd, events in backend.poll(timeout, MOST_EVENTS):
        ready = watchers.get(fd)
        if ready is None or not ready.pevents:  # nobody wants to hear of it any more
            platform_invalidate_fd(loop, fd)
        # No events told to the kernel: this number was somebody else's when it became ready.
        elif ready.events and (wanted := events & (ready.pevents | ENDS)):
            ready.cb(ready, wanted)
    # end fig


def platform_invalidate_fd(loop: Loop, fd: int) -> None:
    """No more events of this descriptor."""
    w = loop.watchers.pop(fd, None)
    if w is None or w.events:
        with contextlib.suppress(OSError):  # closed already
            loop.backend.unregister(fd)
    if w is not None:
        w.events = 0
