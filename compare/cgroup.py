"""The kernel's own account of a server's CPU: a control group of its own, where one can be made.

    /sys/fs/cgroup/.../compare-PID-N        cgroup.procs  <-- launch.py enters before it becomes the server
                                            cpu.stat      --> usage_usec: all that ever ran in it

What has ended stays counted, to the microsecond, and needs nobody to reap it: cpu.stat is exact
where /proc shows reaped children in ticks of 10 ms. Each cgroup of version 2 has it, whatever
controllers are on. It takes a cgroup2 mount that we can write to: root's, or one delegated to us.
Elsewhere tree.py's clocks are what is used.

Rules: only directories of our own are made, and removed; nothing is limited, no controller is turned on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

_numbers = itertools.count(1)
GONE = 1.0  # seconds that killed processes have to leave their group


def home() -> Path | None:
    """The directory of our own group in a cgroup2 mount; None where there is none."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    places = [fields[1] for fields in map(str.split, mounts) if fields[2] == "cgroup2"]
    own = [line[3:] for line in groups if line.startswith("0::")]
    return Path(places[0] + own[0]) if places and own else None


class Group:
    """A control group for one server. `make` gives None where none can be had; `remove` it in the end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def make(cls) -> Group | None:
        parent = home()
        if parent is None:
            return None
        group = cls(parent / f"compare-{os.getpid()}-{next(_numbers)}")
        try:
            group._path.mkdir()
        except OSError:
            return None
        if os.access(group.procs, os.W_OK) and group.cpu() is not None:
            return group
        group.remove()
        return None

    @property
    def procs(self) -> str:
        """What a process writes itself into."""
        return str(self._path / "cgroup.procs")

    def cpu(self) -> float | None:
        """CPU seconds of everything that has run in it."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = (self._path / "cpu.stat").read_text(encoding="ascii").split()
            return int(words[words.index("usage_usec") + 1]) / 1e6
        return None

    def remove(self) -> None:
        """Its processes have been killed; the last may take a moment to go."""
        deadline = time.monotonic() + GONE
        while True:
            try:
                self._path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                if time.monotonic() > deadline:
                    return
                time.sleep(0.005)
            else:
                return


def cpu_source() -> str:
    """Where the CPU of a server comes from on this machine."""
    group = Group.make()
    if group is None:
        return "clocks and rusage in /proc"
    group.remove()
    return "cgroup cpu.stat"
