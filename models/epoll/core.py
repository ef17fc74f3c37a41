"""The loop: libuv's src/unix/core.c.

    alive? --> pending --> io_poll --> timers --+        alive: a handle is open
      ^                                         |
      `-----------------------------------------'

    watchers        {descriptor: watcher}
    watcher_queue   those whose wish the kernel has not been told yet
    pending_queue   those to be called in the next round, without waiting for the kernel
    handles         streams and listeners that are open

Rules: io_start and io_stop make no system call; io_poll does, for all of them at once. A callback never
runs within the call that asked for it: it comes from the loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from models._deadlines import Clock
from models.epoll.linux import POLLIN, POLLOUT, io_poll, platform_invalidate_fd, platform_loop_init

if TYPE_CHECKING:
    import select

    from models.epoll.stream import Stream


class Watcher:
    """uv__io_t: a descriptor, what is wanted of it, and a callback that gets the watcher itself."""

    __slots__ = ("cb", "events", "fd", "pevents")

    def __init__(self, cb: Callable[[Any, int], None], fd: int) -> None:
        self.cb = cb
        self.fd = fd
        self.pevents = self.events = 0


class Loop:
    """uv_loop_t."""

    backend: select.epoll

    def __init__(self) -> None:
        self.watchers: dict[int, Watcher] = {}
        self.watcher_queue: dict[Watcher, None] = {}
        self.pending_queue: dict[Watcher, None] = {}
        self.handles: set[Stream] = set()
        self.timers = Clock()
        self.emfile_fd = spare_descriptor()
        platform_loop_init(self)

    # fig: run
    def run(self) -> None:
        """uv_run, until the last handle is closed."""
        while self.handles:
            self.run_pending()
            io_poll(self, self.backend_timeout())
            self.timers.run()
        # end fig

    def backend_timeout(self) -> float:
        """Seconds that io_poll may wait."""
        if self.pending_queue or not self.handles:
            return 0.0
        return self.timers.seconds_left()

    def run_pending(self) -> None:
        if self.pending_queue:
            queue, self.pending_queue = self.pending_queue, {}
            for w in queue:
                w.cb(w, POLLOUT)

    def io_start(self, w: Watcher, events: int) -> None:
        """`events` are wanted of the watcher from the next io_poll on."""
        w.pevents |= events
        if w.events != w.pevents:
            self.watcher_queue[w] = None
            self.watchers[w.fd] = w

    def io_stop(self, w: Watcher, events: int) -> None:
        """`events` are not wanted any more. If none is, the kernel hears of it at the next event."""
        w.pevents &= ~events
        if w.pevents:
            self.watcher_queue[w] = None
        else:
            self.watcher_queue.pop(w, None)

    def io_close(self, w: Watcher) -> None:
        """Before its descriptor is closed, or somebody else's."""
        self.io_stop(w, POLLIN | POLLOUT)
        self.pending_queue.pop(w, None)
        if w.fd in self.watchers:
            platform_invalidate_fd(self, w.fd)

    def io_feed(self, w: Watcher) -> None:
        """Calls it in the next round, as if it had become writable."""
        self.pending_queue[w] = None


def spare_descriptor() -> int:
    """For `emfile_trick`. -1 if there is none left."""
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
