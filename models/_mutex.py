"""A mutex between processes that survives the death of its holder: pthread's own, through ctypes.

    shared anonymous memory (mmap, inherited by fork)
    +-----------------+
    | pthread_mutex_t |  PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST
    +-----------------+
        ^ uncontended: one compare-and-swap, no system call; contended: futex(2)

A holder that dies leaves the mutex to the next locker with EOWNERDEAD: it marks the mutex consistent,
and goes on. Python's `multiprocessing.Lock` is a POSIX semaphore: a dead holder locks everybody out.

Rules: made before the fork. Waiting is cut into slices, because a signal's handler runs in Python only
between two calls, and a waiter must be able to stop and to show that it lives.
Source: pthread_mutexattr_setrobust(3), UNP vol. 2, 7.7 (and what POSIX has added since).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable
from functools import partial

PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST = 1, 1  # <pthread.h>
MUTEX_SIZE, ATTRIBUTES_SIZE = 64, 64  # bytes; glibc and musl need 40 and 4 to 8
SLICE = 1.0  # seconds


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class RobustMutex:
    """Excludes other processes. Raises OSError where the system has no such mutex."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._mutex = ctypes.byref((ctypes.c_char * MUTEX_SIZE).from_buffer(self._memory))
        libc = ctypes.CDLL(None)
        try:
            lock = libc.pthread_mutex_clocklock
        except AttributeError:  # musl: a wall clock that is set back makes waiters deaf for as long
            self._clock = time.CLOCK_REALTIME
            self._timedlock = partial(libc.pthread_mutex_timedlock, self._mutex)
        else:
            self._clock = time.CLOCK_MONOTONIC
            self._timedlock = partial(lock, self._mutex, self._clock)
        self._unlock = libc.pthread_mutex_unlock
        self._consistent = libc.pthread_mutex_consistent
        attributes = ctypes.byref((ctypes.c_char * ATTRIBUTES_SIZE)())
        check(libc.pthread_mutexattr_init(attributes))
        check(libc.pthread_mutexattr_setpshared(attributes, PTHREAD_PROCESS_SHARED))
        check(libc.pthread_mutexattr_setrobust(attributes, PTHREAD_MUTEX_ROBUST))
        check(libc.pthread_mutex_init(self._mutex, attributes))

    def acquire(self, keep_waiting: Callable[[], bool]) -> bool:
        """Locks; False if `keep_waiting()`, asked once a slice, has said no."""
        while keep_waiting():
            deadline = time.clock_gettime(self._clock) + SLICE
            until = Timespec(int(deadline), int(deadline % 1 * 1e9))
            code = self._timedlock(ctypes.byref(until))
            if code == errno.EOWNERDEAD:
                code = self._consistent(self._mutex)
            if code != errno.ETIMEDOUT:
                check(code)
                return True
        return False

    def release(self) -> None:
        check(self._unlock(self._mutex))


def check(code: int) -> None:
    """pthread functions return their error instead of setting errno."""
    if code:
        raise OSError(code, os.strerror(code))
