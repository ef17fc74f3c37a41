"""A lock between processes that the kernel keeps for them: fcntl's, on a file without a name.

    lock file <-- F_SETLKW -- one process has it, the others sleep
                              it ends, however it ends: the kernel gives the lock to the next

Rules: made before the fork. There is no such call with a timeout, so a timer interrupts it once a
second: a waiter must show that it lives, and must be able to stop. It stops as a blocked accept does
(_stop.py): Python repeats the interrupted call, and then the descriptor is another file, which nobody
else locks. (An flock on an inherited descriptor would exclude nobody: all share one.)
Source: UNP 30.7; fcntl(2), setitimer(2).
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from types import FrameType

SLICE = 1.0  # seconds


class FileLock:
    """Excludes other processes."""

    def __init__(self) -> None:
        self._fd = nameless()

    def acquire(self, keep_waiting: Callable[[], bool]) -> bool:
        """Locks; False if `keep_waiting()`, asked once a slice, has said no."""

        def look(_number: int, _frame: FrameType | None) -> None:
            if not keep_waiting():
                nobodys = nameless()
                os.dup2(nobodys, self._fd, inheritable=False)
                os.close(nobodys)

        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, SLICE, SLICE)
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if keep_waiting():
            return True
        self.release()  # it may be long until this process ends
        return False

    def release(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)


def nameless() -> int:
    """A descriptor of a file that no directory knows."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tunnel-lock")
    import tempfile  # noqa: PLC0415 - and with it random, which seeds itself anew in every child

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
