"""Signals: the same ones with the same meaning for every model, as nginx and gunicorn have them.

    SIGTERM           stop accepting, let transfers finish within the grace time, exit 0
    SIGTERM again     at once
    SIGINT, SIGQUIT   at once
    SIGALRM           the grace time is over: what still runs is cut, exit 0
    SIGHUP            read the configuration again; clients that are there keep what they have
    SIGUSR1           open the log file again
    SIGUSR2           start the program anew on the same listeners; once it runs, it ends this one

SIGTERM to a program that is handing over, or has handed over, is the first one: its transfers then have
the grace time, instead of all the time that they want.

The first SIGTERM puts a dead socket in the listener's place (dup2). A blocked accept is restarted by
Python (PEP 475), on the dead socket, and fails: the model's loop ends between two connections and
never within one. An exception thrown from the handler could not promise that: it may strike just
after accept has returned, and lose the connection.

Rules: handlers change state between two steps of the main thread; a model asks `requested` or reads
`fileno()`. A pool's master blocks these signals and takes them one by one (_master.py). What is cut is
reset on both sides, or a part would pass for the whole: by each process itself, to which its parent says so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from types import FrameType
from typing import NamedTuple

from models._direction import reset_on_close
from tunnel.log import log


class Renewal(NamedTuple):
    """What the command line can do again while the server runs. Both log what they did."""

    reload: Callable[[], bool]  # SIGHUP: False if the new configuration is wrong and the old one stays
    upgrade: Callable[[], None]  # SIGUSR2


# Ctrl-C reaches a whole process group; what it means is decided by the master.
MASTERS_OWN = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
CUT = signal.SIGVTALRM  # to a child: end, now, and reset your connections (SIGALRM is prefork-fcntl's own)
LAST_CHANCE = 1.0  # seconds that it has for that
SEND_HOME = signal.SIGUSR2  # from a master to a worker: others serve from now on, all of its clients may stay


class Stop:
    """The state of ending. Signals arrive once `install` has been called."""

    def __init__(self, listeners: Sequence[socket.socket], grace: float, renewal: Renewal) -> None:
        self.requested = False  # accept no more
        self.terminated = False  # somebody has said SIGTERM, and may say it again
        self.impatient = False  # nor wait for those who have not even said where to go
        self.grace = grace  # seconds
        self.renewal = renewal
        self.children: Collection[int] = ()  # pids that must not outlive an end at once
        self.spared: Callable[[], Collection[int]] = tuple  # descriptors that no end at once resets
        self.close: Callable[[], None] = self.close_listeners  # how this process stops accepting
        self.on_leaving: Callable[[], None] = lambda: None  # a worker tells its master: I accept no more
        self._is_ready = False  # a new program has just said so
        self._listeners = listeners
        self._dead = socket.socket()  # made now, for there may be no descriptor left when it is needed
        self.pid = 0  # of the process that the signals are meant for
        self._parent = 0
        self._wakeup: tuple[socket.socket, socket.socket] | None = None

    def install(self, parent: int = 0) -> None:
        """Handles the signals in this process, which ends also when `parent` has (0: it has none).

        A child ignores the signals until it calls this itself.
        """
        self.pid = os.getpid()
        self._parent = parent
        self._wakeup = None  # a parent's; this process makes its own
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGALRM, self._on_grace_over)
        signal.signal(CUT, self._on_grace_over)
        signal.signal(signal.SIGINT, self._on_quick)
        signal.signal(signal.SIGQUIT, self._on_quick)
        signal.signal(signal.SIGUSR1, self._on_reopen)
        if parent:
            for number in MASTERS_OWN:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(SEND_HOME, self._on_send_home)
            return
        signal.signal(signal.SIGHUP, self._on_reload)
        signal.signal(signal.SIGUSR2, self._on_upgrade)
        for number in (signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, self._on_resize)

    def asked(self) -> bool:
        """`requested`, or the parent has gone: nobody would replace or end this process any more."""
        if self._parent and os.getppid() != self._parent:
            self.requested = self.impatient = True
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
        for listener in self._listeners:
            os.dup2(self._dead.fileno(), listener.fileno(), inheritable=False)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            self.requested = self.impatient = True
            return  # a child of `fork`; its parent got the signal too, and decides
        if self.terminated and not self._parent:
            self._on_quick(number, frame)
            return
        self.impatient = self.terminated = True
        if not self.requested:  # a worker may hear it twice: from its master and from who signals the group
            self.retire()
        elif not self._parent:  # a new program has taken over; the children have not been told to end
            signal_all(self.children, signal.SIGTERM)
        if not self._parent:
            self.begin_grace()

    def _on_send_home(self, _number: int, _frame: FrameType | None) -> None:
        if os.getpid() == self.pid and not self.requested:
            self.retire()

    def retire(self) -> None:
        """Accepts no more, and ends when its clients have left."""
        self.requested = True
        self.close()
        self.on_leaving()

    def begin_grace(self) -> None:
        """SIGALRM comes when the grace time is over."""
        self.terminated = True
        log.info(f"stopping: transfers have {self.grace:g} s to finish")
        signal.setitimer(signal.ITIMER_REAL, self.grace)

    def hand_over(self) -> None:
        """The new program is ready. May be called from any thread."""
        self._is_ready = True
        os.kill(self.pid, SEND_HOME)

    def takes_leave(self) -> bool:
        """Asked with each SIGUSR2: is it the one that says that the new program is ready?"""
        if not self._is_ready:
            return False
        self._is_ready = False
        return True

    def say_handed_over(self) -> None:
        """Once this program accepts no more."""
        if self.terminated:
            log.info("the new program has taken over")
        else:
            log.info("stopping: the new program has taken over, transfers may finish")

    def _on_reload(self, _number: int, _frame: FrameType | None) -> None:
        if os.getpid() == self.pid and not self.requested:
            self.renewal.reload()

    def _on_upgrade(self, _number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            return
        if self.takes_leave():
            if not self.requested:
                self.retire()
            self.say_handed_over()
        elif not self.requested:
            self.renewal.upgrade()

    def _on_reopen(self, _number: int, _frame: FrameType | None) -> None:
        log.reopen()

    def _on_resize(self, number: int, _frame: FrameType | None) -> None:
        log.warning(f"{signal.Signals(number).name}: this model has no pool to change")

    def _on_grace_over(self, _number: int, _frame: FrameType | None) -> None:
        if os.getpid() == self.pid and not self._parent:
            log.warning(f"grace time of {self.grace:g} s is over: what still runs is cut")
            end_all(self.children)
        reset_connections(self.spared())
        os._exit(0)

    def _on_quick(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            return
        end_all(self.children)
        reset_connections(self.spared())
        die_by(number)


def signal_all(pids: Iterable[int], number: int) -> None:
    """A signal to each of these children, of which some may be reaped meanwhile."""
    for pid in tuple(pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end_all(pids: Iterable[int]) -> None:
    """Ends these children, and waits for them. SIGKILL is for those who cannot do it themselves."""
    left = list(pids)
    signal_all(left, CUT)
    until = time.monotonic() + LAST_CHANCE
    while left := [pid for pid in left if not has_ended(pid)]:
        if time.monotonic() > until:
            signal_all(left, signal.SIGKILL)
        time.sleep(0.002)


def has_ended(pid: int) -> bool:
    """And has been reaped."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # by somebody else
        return True


def reset_connections(spared: Collection[int]) -> None:
    """All TCP connections of this process will end with RST (UNP 7.5), however it ends.

    It has the kernel tell which they are, since in every model somebody else would know.
    """
    for fd in open_descriptors():
        try:
            sock = socket.socket(fileno=fd)
        except OSError:  # no socket
            continue
        with contextlib.suppress(OSError):  # it has been closed by another thread
            if fd not in spared and is_connection(sock):
                reset_on_close(sock)
        sock.detach()


def is_connection(sock: socket.socket) -> bool:
    """No listener, which another program may share, and whose clients would inherit what is set."""
    is_tcp = sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6)
    return is_tcp and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def open_descriptors() -> Iterable[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # not on Linux, or no descriptor is left to read that
        return range(os.sysconf("SC_OPEN_MAX"))


def die_by(number: int) -> None:
    """Ends this process by the signal itself, so that its parent sees what happened."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
