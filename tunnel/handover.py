"""SIGUSR2: the listeners go to a program that is started anew, and nothing is dropped.

    old program --posix_spawn--> new program                 the listeners are never closed in between
        |   pipe: descriptors, what cannot be read again  -->  |
        |   <-- SIGTERM, once it is ready to accept ---------- |
        `- lets its transfers finish, and ends                 `- goes on

If the new program cannot start, it says why, and the old one goes on as before.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tunnel.address import Address
from tunnel.config import HANDOVER
from tunnel.log import log


class Handover(NamedTuple):
    """What the old program leaves to the new one."""

    pid: int
    listeners: dict[str, int]  # the place as text: its descriptor
    uri: str | None
    password: str | None

    def complete(self) -> None:
        """The new program is ready: the old one may end."""
        os.kill(self.pid, signal.SIGTERM)


def received() -> Handover:
    """What was left to this program, which a handover has started."""
    with open(int(os.environ.pop(HANDOVER)), encoding="utf-8") as pipe:
        return Handover(*json.load(pipe))


def hand_over(
    places: Sequence[Address], listeners: Sequence[socket.socket], uri: str | None, password: str | None
) -> None:
    """Starts the program anew. Its success or failure is logged when it is known."""
    left = Handover(
        os.getpid(),
        {str(place): listener.fileno() for place, listener in zip(places, listeners, strict=True)},
        uri,
        password,
    )
    reading, writing = os.pipe()
    os.write(writing, json.dumps(left).encode())
    os.close(writing)
    keep = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (reading, *left.listeners.values())]
    try:
        pid = os.posix_spawn(
            sys.executable,
            sys.orig_argv,
            os.environ | {HANDOVER: str(reading)},
            file_actions=keep,
            setsigmask=(),
            setsigdef=[signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU],
        )
    except OSError as error:
        log.error(f"cannot start the new program: {error.strerror}")
    else:
        log.info(f"new program is {pid}: it takes over when it is ready")
        _thread.start_new_thread(watch, (pid,))
    finally:
        os.close(reading)


def watch(pid: int) -> None:
    """Waits for the new program, in case it ends before this one does."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return  # a handler of SIGCHLD was first
    log.error(f"new program ended with {os.waitstatus_to_exitcode(status)}: this one goes on")
