"""strace, attached to all that a server runs as, with one call that fails.

with Injection(pids, "recvfrom", "ECONNRESET", when=2) as injection:
    ...the second recvfrom of each process and thread fails...
injection.count
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from types import TracebackType
from typing import NamedTuple

import pytest

ATTACH = 10.0  # seconds that strace may take on a busy machine
QUIET = 0.04  # seconds without a call
UNFINISHED = "<unfinished ...>"


def needs_strace() -> None:
    """Skips where strace is not there (in CI, where it should be, that is a failure), or may not trace."""
    if shutil.which("strace") is None:
        why_not = "no strace: apt-get install strace"
        if os.environ.get("CI") == "true":
            pytest.fail(why_not)
        pytest.skip(why_not)
    if not may_trace():
        pytest.skip("strace may not trace here")


@cache
def may_trace() -> bool:
    return not subprocess.run(
        ["strace", "-o", "/dev/null", "true"], capture_output=True, check=False
    ).returncode


def tasks(pid: int) -> set[int]:
    """The threads of this process; none if it has just ended, as a client's child does."""
    try:
        return {int(task) for task in os.listdir(f"/proc/{pid}/task")}
    except FileNotFoundError:
        return set()


class Failed(NamedTuple):
    """A call that was made to fail, as strace writes it: `123 recvfrom(7<TCP:[...]>, ...) = -1 ...`."""

    line: str

    @property
    def name(self) -> str:
        return self.line.partition(" ")[2].strip().partition("(")[0]

    @property
    def on_tcp(self) -> bool:
        """Not on a pipe, a file or a socket pair, which the program has for itself."""
        return re.match(r"\d+ +\w+\(\d+<TCP", self.line) is not None


def whole(lines: Sequence[str]) -> Iterator[str]:
    """A line a call, also where another task's came between its beginning and its end."""
    begun: dict[str, str] = {}
    for line in lines:
        task, _, rest = line.partition(" ")
        if rest.endswith(UNFINISHED):
            begun[task] = line.removesuffix(UNFINISHED)
        elif "resumed>" in rest and task in begun:
            yield begun.pop(task) + rest.partition("resumed>")[2]
        else:
            yield line


class Injection:
    """While it is entered, call number `when` of every process and thread fails, counted from now on; all
    of them with "1+".

    Without an error it only counts: `busiest_of` says how often.
    """

    def __init__(self, pids: Sequence[int], calls: str, error: str = "", when: int | str = 1) -> None:
        inject = ["-e", f"inject={calls}:error={error}:when={when}"] if error else []
        self._out = tempfile.NamedTemporaryFile("r", prefix="strace-")  # noqa: SIM115 - closed at the end
        there = {pid: tasks(pid) for pid in pids}
        self._tasks = set().union(*there.values())
        who = [word for pid in pids if there[pid] for word in ("-p", str(pid))]
        self._strace = subprocess.Popen(
            ["strace", "-f", "-yy", "-e", f"trace={calls}", *inject, "-o", self._out.name, *who],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def __enter__(self) -> Injection:
        """Returns once every one of them is traced."""
        deadline = time.monotonic() + ATTACH
        while not all(traced(task) for task in self._tasks):
            assert self._strace.poll() is None, f"strace has ended: {self._said()}"
            assert time.monotonic() < deadline, "strace does not get hold of the server"
            time.sleep(0.002)  # nothing signals an attach to others
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait_for_quiet()
        self._strace.send_signal(signal.SIGINT)  # it lets go of everybody
        try:
            self._strace.communicate(timeout=ATTACH)
        except subprocess.TimeoutExpired:
            self._strace.kill()
            self._strace.communicate()
        with self._out as out:
            self.lines = out.read().splitlines()

    def _wait_for_quiet(self) -> None:
        """A call that strace has begun to spoil when it lets go fails with ENOSYS, which nobody ordered."""
        size, since, latest = -1, 0.0, time.monotonic() + 2
        while time.monotonic() < latest:
            now = os.path.getsize(self._out.name)
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > QUIET:
                return
            time.sleep(0.005)

    def _said(self) -> str:
        return self._strace.communicate()[1]

    @property
    def failed(self) -> list[Failed]:
        """The calls that were made to fail."""
        return [Failed(line) for line in whole(self.lines) if "(INJECTED)" in line]

    def busiest_of(self, names: Sequence[str]) -> int:
        """The most calls of these names that any process or thread has begun."""
        made: dict[str, int] = {}
        for line in self.lines:
            task, _, call = line.partition(" ")
            if call.strip().partition("(")[0] in names and "resumed>" not in call:
                made[task] = made.get(task, 0) + 1
        return max(made.values(), default=0)


def traced(task: int) -> bool:
    """True if somebody traces it, or it has ended."""
    try:
        with open(f"/proc/{task}/status") as status:
            return re.search(r"^TracerPid:\t0$", status.read(), re.MULTILINE) is None
    except (FileNotFoundError, ProcessLookupError):
        return True
