"""CPU time and memory of a server: all of its processes, the dead ones included.

    server (pid)                     CPU: clock_getcpuclockid(3), nanoseconds, exited threads included
      |-- worker ...                      the same for each live descendant
      `-- children that have ended       cutime + cstime of whoever reaped them (proc_pid_stat(5))

What the kernel gives: the CPU clock of a live process is exact to the nanosecond. Reaped children are
exact inside the kernel but shown in ticks of 10 ms (USER_HZ), rounded down, so a difference of two
readings is off by up to two ticks: `TICK`. User and system are told apart by which of them a timer
interrupt happens to hit (CONFIG_TICK_CPU_ACCOUNTING), so the sum is exact and the split is a poll.
What a thread or a process does after its own last account, some 4 us of its end, only a cgroup sees:
measured beside cpuacct.usage, all models agree to 0.1%, but `thread` by -2% and `fork` by -0.5%, and
those for new connections only.

Memory is PSS (smaps_rollup): a page shared by n processes counts 1/n in each, so the sum over a tree
is what the tree takes. `private` is what only one process has: what another worker like it would cost.
A thread's stack is the mapping that its stack pointer lies in (proc_pid_syscall(5), smaps): how large a
stack is, or what it is called, differs from one C library to the next.

Rules: only /proc and clocks are read, nothing is traced; a reading that raced with a process that
ended is taken again.
"""

from __future__ import annotations

import os
import re
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from compare.interrupt import Interrupt

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds
CPUCLOCK_SCHED = 2  # <linux/posix-timers.h>: the scheduler's own count of a process's run time
QUIET = 0.0003  # seconds of CPU between two looks, at most, of a server that does nothing
LOOKS = 0.02  # seconds between two looks
SWITCHES = re.compile(r"ctxt_switches:\s*(\d+)")  # in /proc/PID/task/TID/status: voluntary, then not
MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")  # of a line in /proc/PID/smaps that begins one
ATTEMPTS = 100  # a reading that fails as often did not race, it cannot be had

Found = TypeVar("Found")


class Usage(NamedTuple):
    """CPU seconds of a tree so far."""

    cpu: float  # user and system
    user: float  # by ticks: for its share of the sum only
    system: float
    processes: int  # alive


class Activity(NamedTuple):
    """What a tree has made the kernel do so far."""

    voluntary: int  # context switches: it waited. Of threads and processes that live
    involuntary: int  # it was taken off its core
    minor: int  # page faults without I/O; those of threads and reaped children that ended included
    major: int


class Settled(NamedTuple):
    usage: Usage
    quiet: bool  # False: still busy when patience ended


def cpu_clock(pid: int) -> float:
    """CPU seconds of one live process, all its threads. Raises OSError when there is no such process."""
    return time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED) / 1e9


def descendants(root: int) -> list[int]:
    """The live processes of a tree, root first. Raises OSError when one ended meanwhile."""
    found = [root]
    for pid in found:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    return found


def consistent(look: Callable[[int], Found], root: int) -> Found:
    """What `look` sees of a tree, once no process ended while it looked.

    Raises ProcessLookupError when the root is no more, OSError when /proc cannot be read at all.
    """
    for _ in range(ATTEMPTS):
        try:
            return look(root)
        except OSError as error:
            if not os.path.exists(f"/proc/{root}/task"):
                raise ProcessLookupError(f"process {root} has ended") from None
            failure = error
    raise failure


def usage(root: int) -> Usage:
    """CPU of the tree at this moment. Raises as `consistent` does."""
    return consistent(_usage, root)


def pss(root: int) -> int:
    """Bytes of memory of the tree. Raises as `consistent` does."""
    return consistent(lambda pid: sum(map(_pss, descendants(pid))), root)


def private(pid: int) -> int:
    """Bytes of one process that it shares with nobody. Raises OSError when it ended meanwhile."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Private_"))


def stacks(root: int) -> int | None:
    """Bytes (PSS) of the stacks of all threads but each process's first; None if that cannot be read."""
    try:
        return consistent(lambda pid: sum(map(_stacks, descendants(pid))), root)
    except PermissionError:
        return None


def activity(root: int) -> Activity:
    """Context switches and page faults of the tree at this moment. Raises as `consistent` does."""
    return consistent(_activity, root)


def _stat(pid: int) -> list[str]:
    """proc_pid_stat(5) from its third field on."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def _activity(root: int) -> Activity:
    voluntary = involuntary = minor = major = 0
    for pid in descendants(root):
        minflt, cminflt, majflt, cmajflt = map(int, _stat(pid)[7:11])
        minor += minflt + cminflt
        major += majflt + cmajflt
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/status", encoding="utf-8", errors="replace") as file:
                switches = SWITCHES.findall(file.read())
            voluntary += int(switches[0])
            involuntary += int(switches[1])
    return Activity(voluntary, involuntary, minor, major)


def _usage(root: int) -> Usage:
    cpu = user = system = 0.0
    pids = descendants(root)
    for pid in pids:
        fields = _stat(pid)
        utime, stime, cutime, cstime = (int(field) * TICK for field in fields[11:15])
        cpu += cpu_clock(pid) + cutime + cstime
        user += utime + cutime
        system += stime + cstime
    return Usage(cpu, user, system, len(pids))


def settle(interrupt: Interrupt, root: int, patience: float = 3.0, at_most: int | None = None) -> Settled:
    """Waits until the tree does nothing and has no more than `at_most` processes."""
    deadline = time.monotonic() + patience
    now = usage(root)
    while True:
        interrupt.wait(None, LOOKS)
        before, now = now, usage(root)
        busy = now.cpu - before.cpu > QUIET or now.processes != before.processes
        if not busy and (at_most is None or now.processes <= at_most):
            return Settled(now, True)
        if time.monotonic() > deadline:
            return Settled(now, False)


def _pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")  # a zombie has no memory map


def _stacks(pid: int) -> int:
    threads = [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]
    pointers = sorted(_stack_pointer(pid, thread) for thread in threads if thread != pid)
    if not pointers:
        return 0
    total, inside = 0, False
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            if mapping := MAPPING.match(line):
                start, end = (int(address, 16) for address in mapping.groups())
                inside = bisect_left(pointers, start) < bisect_left(pointers, end)
            elif inside and line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def _stack_pointer(pid: int, thread: int) -> int:
    """0 of a thread that runs at this moment: only one that waits has it shown."""
    with open(f"/proc/{pid}/task/{thread}/syscall", encoding="ascii") as file:
        words = file.read().split()
    return int(words[-2], 16) if len(words) > 1 else 0


def machine_busy() -> float:
    """CPU seconds that all cores have worked, or were kept from it by the hypervisor (steal)."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + softirq + steal) * TICK
