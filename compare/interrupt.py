"""Ctrl-C and SIGTERM, noticed where it is safe and nowhere else.

    signal --> handler: a flag, and a byte into a pipe
    wait(fd, seconds) --> returns when fd is readable, or raises Interrupted

An exception thrown by a signal handler may strike between the fork of a server and the line that
notes its pid, and leave an orphan. So handlers here throw nothing: the run waits only by `wait`,
and only `wait` raises.

Rules: cleaning up never calls `wait`, so it cannot be cut short.
"""

from __future__ import annotations

import os
import select
import signal
import time
from types import FrameType


class Interrupted(Exception):
    """The user, or the system, wants the run to end."""


class Interrupt:
    """What the signals have said so far. One for a run; `install` once."""

    def __init__(self) -> None:
        self.requested = False
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def wait(self, fd: int | None, seconds: float) -> bool:
        """True when `fd` is readable, False after `seconds`. Raises Interrupted."""
        deadline = time.monotonic() + seconds
        watched = [self._woken] if fd is None else [self._woken, fd]
        while not self.requested:
            readable, _, _ = select.select(watched, (), (), max(0.0, deadline - time.monotonic()))
            if fd in readable:
                return True
            if not readable:
                return False
        raise Interrupted

    def close(self) -> None:
        os.close(self._woken)
        os.close(self._wake)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        os.write(self._wake, b"\0")
