"""A bare fork, exit and wait of the process that the model `fork` serves from: the floor under it.

    python -m compare.forks serve --model=fork --config FILE     `tunnel`, but that os.fork is ours
        accept --> os.fork --> FORKS times: fork, the child exits at once, wait
                                  `--> one line of JSON on standard output, and the end

The image is the model's own, at the very moment in which it forks for a client: imported, rehearsed and
frozen by its own code, with a client accepted. What a connection costs beyond this is what serving it
costs a child: pages that are written to, and the work itself.

Rules: nothing of the model is imported here or copied; its own call of os.fork is what is waited for.
CPU is getrusage's, which has children that were waited for to the microsecond.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from tunnel.cli import main

MODEL = "models.fork"  # whose call of os.fork it is
FORKS = 100
WARM_UP = 10  # forks that do not count: the parent's own pages are copied once


class Spent(NamedTuple):
    """CPU seconds and page faults of this process and of the children that it has waited for."""

    cpu: float
    faults_minor: int
    faults_major: int


def spent() -> Spent:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Spent(
        sum(usage.ru_utime + usage.ru_stime for usage in both),
        sum(usage.ru_minflt for usage in both),
        sum(usage.ru_majflt for usage in both),
    )


def measure(fork: Callable[[], int], forks: int) -> dict[str, float]:
    before = spent()
    for _ in range(forks):
        pid = fork()
        if pid == 0:
            os._exit(os.EX_OK)
        os.waitpid(pid, 0)
    return {"count": forks} | {
        name: now - then for name, now, then in zip(Spent._fields, spent(), before, strict=True)
    }


def fork() -> int:
    """What the model calls when it has a client; its rehearsal's fork is none of ours."""
    if sys._getframe(1).f_globals["__name__"] == MODEL:
        instead()
    return really_fork()


def instead() -> NoReturn:
    """The measurement, in the place of a child for a client."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # its handler would wait for our children
    measure(really_fork, WARM_UP)
    print(json.dumps(measure(really_fork, FORKS)), flush=True)
    os._exit(os.EX_OK)


really_fork = os.fork

if __name__ == "__main__":
    os.fork = fork
    sys.exit(main(sys.argv[1:]))
