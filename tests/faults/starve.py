"""A server that can have no more processes, threads or memory, by a control group of the test's own; or no
more descriptors, by prlimit.

    with Group("pids", rig.pid) as group:       the server and its children are in it
        group.tasks(3)                          no more than three processes and threads
    with descriptors_left(rig.pid, 1, 0):       one more for the server, none for each of its children

Rules: the group holds the server under test and nobody else, and is removed with it. It takes root, and
a cgroup of version 1 or 2 that has the controller.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from tests.faults.tools import lacking, require_root
from tests.harness.tree import members, wait_until

ROOT = Path("/sys/fs/cgroup")
_numbers = itertools.count(1)


class Group:
    """Of one controller: pids or memory."""

    def __init__(self, controller: str, pid: int = 0) -> None:
        require_root("a control group of its own")
        self._second = not (ROOT / controller / "cgroup.procs").exists()
        self._parent = ROOT if self._second else ROOT / controller
        if self._second:
            try:
                (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
            except OSError as error:
                lacking(f"no control group with {controller} can be made: {error.strerror}")
        self._path = self._parent / f"faults-{os.getpid()}-{next(_numbers)}"
        try:
            self._path.mkdir()
        except OSError as error:
            lacking(f"no control group can be made: {error.strerror}")
        for process in members(pid) if pid else ():
            self._write("cgroup.procs", process.pid)
        # For a server that is yet to start: the shell enters, and becomes it.
        self.prefix = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._path / "cgroup.procs")]

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        """Whoever is in it goes on outside."""

        def empty() -> bool:
            for pid in self._read("cgroup.procs").split():
                with contextlib.suppress(ProcessLookupError):
                    (self._parent / "cgroup.procs").write_text(pid)
            with contextlib.suppress(OSError):
                self._path.rmdir()
            return not self._path.exists()

        wait_until(empty, 5.0, f"{self._path} is empty")

    def tasks(self, most: int | None) -> None:
        """Processes and threads; None: as many as they like."""
        self._write("pids.max", "max" if most is None else most)

    def tasks_now(self) -> int:
        return int(self._read("pids.current"))

    def memory(self, most: int | None) -> None:
        """Bytes."""
        if self._second:
            self._write("memory.max", "max" if most is None else most)
        else:
            self._write("memory.limit_in_bytes", -1 if most is None else most)

    def memory_now(self) -> int:
        return int(self._read("memory.current" if self._second else "memory.usage_in_bytes"))

    def killed(self) -> int:
        """How many the kernel has killed for want of memory."""
        lines = self._read("memory.events" if self._second else "memory.oom_control").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def _read(self, name: str) -> str:
        return (self._path / name).read_text()

    def _write(self, name: str, value: object) -> None:
        (self._path / name).write_text(str(value))


@contextlib.contextmanager
def descriptors_left(pid: int, server: int, children: int) -> Iterator[None]:
    """So many numbers are left to each process that is there now; afterwards as many as before."""
    most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    for process in members(pid):
        leave(process.pid, server if process.pid == pid else children)
    try:
        yield
    finally:
        for process in members(pid):  # and those that have inherited it
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, most)


def leave(pid: int, free: int) -> None:
    """A limit is no count: no number from it on is given out. Those that have one keep it."""
    used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    unused = (number for number in itertools.count() if number not in used)
    first_forbidden = next(itertools.islice(unused, free, None))
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_forbidden, most))
