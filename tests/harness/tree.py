"""What a process and its children hold, read from /proc through psutil."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil

POLL = 0.01  # seconds between looks; nothing signals that a descriptor was closed


class Holdings(NamedTuple):
    """Of a whole process tree. Compare field by field."""

    processes: int
    threads: int
    descriptors: int
    zombies: int


def members(pid: int) -> list[psutil.Process]:
    """The process and all its descendants that are there now."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def title_of(pid: int) -> str:
    """What ps shows as its command; nothing of one that has ended."""
    try:
        return " ".join(psutil.Process(pid).cmdline()).rstrip()
    except psutil.NoSuchProcess:
        return ""


def child_pids(pid: int) -> list[int]:
    """Direct children that are alive, oldest first."""
    try:
        children = psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []
    return sorted(child.pid for child in children if is_alive(child.pid))


def is_alive(pid: int) -> bool:
    """There, and not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def holdings(pid: int) -> Holdings:
    processes = threads = descriptors = zombies = 0
    for process in members(pid):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                zombies += 1
                continue
            threads += process.num_threads()
            descriptors += process.num_fds()
            processes += 1
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
    return Holdings(processes, threads, descriptors, zombies)


def most_descriptors(pid: int) -> int:
    """Of the process in the tree that has the most."""
    most = 0
    for process in members(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            most = max(most, process.num_fds())
    return most


def stop(pid: int) -> None:
    """SIGSTOP, and waits until it has: kill returns while the process may still accept somebody."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, 5.0, f"{pid} has stopped")


def cpu_seconds(pid: int) -> float:
    """User and system time of the tree, with the children that it has waited for."""
    total = 0.0
    for process in members(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def memory(pid: int) -> int:
    """Anonymous memory of the tree in bytes; what is shared counts once.

    Without files: what a library's pages count for changes whenever another server starts or ends.
    """
    total = 0
    for process in members(pid):
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/smaps_rollup") as file:
            total += sum(1024 * int(line.split()[1]) for line in file if line.startswith("Pss_Anon:"))
    return total


def wait_until(condition: Callable[[], bool], within: float, what: str) -> None:
    """Looks until `condition` holds; fails with `what` after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(POLL)
