"""Names for loops: getaddrinfo in a few threads, since it blocks and has no non-blocking form.

    loop --resolve--> [ asked ] --> thread: dial.addresses() --> [ answered ] --eventfd--> loop: deliver
              `- a literal: answered at once

The way of libuv's `uv_getaddrinfo` (threadpool.c, async.c): work goes to a small pool, and a number
written to a descriptor that the loop watches says that answers are there. The descriptor is an
eventfd, or a pipe on systems that have none.

Rules: started by the first name, so a server of literals has no threads. One thread is enough, and each
name tries to start those that are missing; without any, its client is refused. Whoever asked waits for the
connect timeout and not longer, so a name that has waited in the queue for that time is not looked up any
more: else names that take long keep the threads busy after those who asked have gone. Callbacks run in the
loop's thread only. Threads come from `_thread`, since importing `threading` is dear (tunnel/log.py).
"""

from __future__ import annotations

import _thread
import errno
import os
import sys
import time
from _queue import Empty, SimpleQueue
from collections.abc import Callable

from models._server import Server
from tunnel.address import Address
from tunnel.dial import Dial, SockAddr

THREADS = 4  # as libuv's default pool
ONE = (1).to_bytes(8, sys.byteorder)  # what an eventfd takes (eventfd(2))

Found = list[SockAddr] | OSError
OnFound = Callable[[Found], None]


def addresses_of(dial: Dial, target: Address) -> Found:
    """`dial.addresses` with its error as a value, as a callback wants it."""
    try:
        return dial.addresses(target)
    except OSError as error:
        return error


def wakeup_descriptors() -> tuple[int, int]:
    """One to read from and one to write to; with eventfd they are the same."""
    if not hasattr(os, "eventfd"):
        return os.pipe()
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    return fd, fd


class Resolver:
    """Addresses of targets, for one loop."""

    def __init__(self, server: Server, watch: Callable[[int, Callable[[], None]], None]) -> None:
        """`watch(fd, callback)`: how the loop calls back when `fd` is readable. May raise OSError."""
        self._server = server
        self._watch = watch
        self._asked: SimpleQueue[tuple[Address, OnFound, float]] = SimpleQueue()  # until when (monotonic)
        self._answered: SimpleQueue[tuple[OnFound, Found]] = SimpleQueue()
        self._woken = self._wake = -1
        self._threads = 0

    def resolve(self, target: Address, on_found: OnFound) -> None:
        """`on_found` gets the addresses to try, or the OSError: at once for a literal."""
        dial = self._server.service.dial
        if dial.literal(target):
            on_found(addresses_of(dial, target))
            return
        if self._threads < THREADS:
            try:
                self._start()
            except OSError as error:  # no descriptor for it, or no thread; the next name may find one
                on_found(error)
                return
        self._asked.put((target, on_found, time.monotonic() + dial.timeout))

    def _start(self) -> None:
        """What is missing of it. Raises OSError if there is not the least that is needed."""
        if self._wake < 0:
            self._open()
        try:
            while self._threads < THREADS:
                _thread.start_new_thread(self._work, ())
                self._threads += 1
        except RuntimeError as error:
            if not self._threads:
                raise OSError(None, str(error)) from None

    def _open(self) -> None:
        woken, wake = wakeup_descriptors()
        try:
            self._watch(woken, self._deliver)
        except OSError:
            for fd in {woken, wake}:
                os.close(fd)
            raise
        self._woken, self._wake = woken, wake

    def _deliver(self) -> None:
        """Calls back with the answers that have come."""
        os.read(self._woken, 4096)
        while True:
            try:
                on_found, found = self._answered.get_nowait()
            except Empty:
                return
            on_found(found)

    def _work(self) -> None:
        while True:
            target, on_found, until = self._asked.get()
            if time.monotonic() < until:
                found = addresses_of(self._server.service.dial, target)
            else:
                found = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            self._answered.put((on_found, found))
            os.write(self._wake, ONE)
