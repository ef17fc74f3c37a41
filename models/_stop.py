"""How a server ends: the same two signals for every model.

    SIGTERM           stop accepting, let transfers finish within the grace time, exit 0
    SIGTERM again     at once
    SIGINT, SIGQUIT   at once
    SIGALRM           the grace time is over: what still runs is cut, exit 0

The first SIGTERM puts a dead socket in the listener's place (dup2). A blocked accept is restarted by
Python (PEP 475), on the dead socket, and fails: the model's loop ends between two connections and
never within one. An exception thrown from the handler could not promise that: it may strike just
after accept has returned, and lose the connection.

Rules: handlers only set state and make system calls; a model asks `requested` or reads `fileno()`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterable, Sequence
from types import FrameType

from tunnel.log import log


class Stop:
    """The state of ending. Signals arrive once `install` has been called."""

    def __init__(self, listeners: Sequence[socket.socket], grace: float) -> None:
        self.requested = False
        self.grace = grace  # seconds
        self.children: set[int] = set()  # pids that must not outlive an end at once
        self._listeners = listeners
        self.pid = 0  # of the process that the signals are meant for
        self._parent = 0
        self._wakeup: tuple[socket.socket, socket.socket] | None = None

    def install(self, parent: int = 0) -> None:
        """Handles the signals in this process, which ends also when `parent` has (0: it has none).

        A child ignores the signals until it calls this itself.
        """
        self.pid = os.getpid()
        self._parent = parent
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGALRM, self._on_grace_over)
        signal.signal(signal.SIGINT, self._on_quick)
        signal.signal(signal.SIGQUIT, self._on_quick)

    def asked(self) -> bool:
        """`requested`, or the parent has gone: nobody would replace or end this process any more."""
        if self._parent and os.getppid() != self._parent:
            self.requested = True
        return self.requested

    def fileno(self) -> int:
        """A descriptor that becomes readable with every signal: for loops."""
        if self._wakeup is None:
            self._wakeup = socket.socketpair()
            for end in self._wakeup:
                end.setblocking(False)
            signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
        return self._wakeup[0].fileno()

    def clear_wakeup(self) -> None:
        """Empties `fileno()` after a signal was seen."""
        if self._wakeup is not None:
            self._wakeup[0].recv(1024)

    def close_listeners(self) -> None:
        """Stops accepting in this process. The descriptors stay taken, by a dead socket."""
        with socket.socket() as dead:
            for listener in self._listeners:
                os.dup2(dead.fileno(), listener.fileno(), inheritable=False)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            self.requested = True
            return  # a child of `fork`; its parent got the signal too, and decides
        if self.requested:
            if not self._parent:  # a worker hears it from its master and from who signals the group
                self._on_quick(number, frame)
            return
        self.requested = True
        self.close_listeners()
        signal.setitimer(signal.ITIMER_REAL, self.grace)
        if not self._parent:
            log.info(f"stopping: transfers have {self.grace:g} s to finish")

    def _on_grace_over(self, _number: int, _frame: FrameType | None) -> None:
        log.warning(f"grace time of {self.grace:g} s is over: what still runs is cut")
        kill_all(self.children)
        os._exit(0)

    def _on_quick(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            return
        kill_all(self.children)
        die_by(number)


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL to each of these children, of which some may be reaped meanwhile."""
    for pid in tuple(pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def die_by(number: int) -> None:
    """Ends this process by the signal itself, so that its parent sees what happened."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
