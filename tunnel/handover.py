"""SIGUSR2: the listeners go to a program that is started anew, and nothing is dropped.

    old program --posix_spawn--> new program                  the listeners are never closed in between
        |   descriptors, what cannot be read again  ------->  |
        |   <------------ one byte, once it is ready to accept |     both over one socket pair
        `- stops, lets its transfers finish, and ends          `- goes on

If the new program cannot start, it says why, and the old one sees its end of the pair close and goes
on as before. A transfer may then take as long as it takes: the grace time is for those who wait.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tunnel.config import HANDOVER
from tunnel.log import log


class Left(NamedTuple):
    """What the old program leaves to the new one."""

    listeners: Sequence[tuple[str, Sequence[int]]]  # each place as text, and its descriptors
    salts: int | None  # the descriptor of what was seen, see replay.py
    uri: str | None
    password: str | None


class Handover:
    """In the new program."""

    def __init__(self) -> None:
        self._old = socket.socket(fileno=int(os.environ.pop(HANDOVER)))
        self._old.set_inheritable(False)
        with self._old.makefile(encoding="utf-8") as words:
            self.left = Left(*json.load(words))

    def complete(self) -> None:
        """The new program is ready: the old one may end. It may have been killed meanwhile."""
        with contextlib.suppress(ConnectionError):
            self._old.send(b"\0")
        self._old.close()


def hand_over(left: Left, on_complete: Callable[[], None], on_failure: Callable[[], None]) -> None:
    """Starts the program anew. Success or failure is acted upon when it is known.

    Raises OSError or RuntimeError where that cannot be: then there is no new program.
    """
    mine, theirs = socket.socketpair()
    try:
        with theirs:
            pid = spawn(left, mine, theirs)
        try:
            _thread.start_new_thread(wait, (pid, mine, on_complete, on_failure))
        except RuntimeError:  # nobody would hear that it is ready: two would serve
            os.kill(pid, signal.SIGKILL)
            reap(pid)
            raise
    except BaseException:
        mine.close()
        raise
    log.info(f"new program is {pid}: it takes over when it is ready")


def spawn(left: Left, mine: socket.socket, theirs: socket.socket) -> int:
    """The pid of a new program that has `theirs`. Raises OSError."""
    mine.sendall(json.dumps(left).encode())
    mine.shutdown(socket.SHUT_WR)
    keep = [theirs.fileno(), *(fd for _, fds in left.listeners for fd in fds)]
    if left.salts is not None:
        keep.append(left.salts)
    return os.posix_spawn(
        sys.executable,
        sys.orig_argv,
        os.environ | {HANDOVER: str(theirs.fileno())},
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in keep],
        setsigmask=(),
    )


def wait(
    pid: int, new: socket.socket, on_complete: Callable[[], None], on_failure: Callable[[], None]
) -> None:
    """Until the new program is ready, or has ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
    ready = b""
    with new, contextlib.suppress(ConnectionError):  # a reset: it ended before it had read our words
        ready = new.recv(1)
    if ready:
        on_complete()
        return
    reap(pid)
    on_failure()
    log.error(f"new program {pid} has ended before it was ready: this one goes on")


def reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # a handler of SIGCHLD was first
        os.waitpid(pid, 0)
