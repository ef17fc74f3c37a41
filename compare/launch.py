"""Starts a program on given cores, and ends it should its parent be killed.

    compare --fork, exec--> this --exec--> the server itself, with the same pid

What exec keeps is set here, between fork and exec, in a process that has one thread: the cores, a
clean signal mask, and PR_SET_PDEATHSIG, which sends SIGINT ("at once") when compare dies without
having been able to stop anything. The measured program is then exactly what a user would run.

    python -I -S launch.py PARENT CORES GROUP TOLD PROGRAM ARGUMENT...

    PARENT: its pid     CORES: such as 0 or 0,2     GROUP: path of a cgroup.procs to enter, or nothing
    TOLD: a pipe's descriptor that exec closes, which tells when the program began, or nothing
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
EX_NOT_FOUND = 127  # what a shell says


def main() -> int:
    parent, cores, group, told, program = int(sys.argv[1]), *sys.argv[2:5], sys.argv[5:]
    if told:
        os.set_inheritable(int(told), False)
    if group:
        with open(group, "w", encoding="ascii") as file:
            file.write("0")
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec would pass that on
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != parent:  # it died before prctl, and no signal will come
        return 1
    try:
        os.execvp(program[0], program)  # noqa: S606 - no shell is wanted
    except OSError as error:
        print(f"{program[0]}: {error.strerror}", file=sys.stderr)
        return EX_NOT_FOUND


if __name__ == "__main__":
    sys.exit(main())
