"""A server as a user starts it: a process, its log, its signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import NamedTuple

from tests.harness.wire import Credentials

START = 15.0  # seconds that a start may take on a busy machine
LISTENS = re.compile(r"listens on (?:\[(?P<v6>[^\]]+)\]|(?P<v4>[^:\s]+)):(?P<port>\d+)")


class Place(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Program:
    """A process in a session of its own, whose standard error is read as it comes."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.command = command
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
            env=dict(environment) if environment is not None else None,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def log(self) -> str:
        with self._news:
            return "\n".join(self.lines)

    def matching(self, regex: str, start: int = 0) -> list[str]:
        with self._news:
            return [line for line in self.lines[start:] if re.search(regex, line)]

    def forget(self, lines: Sequence[str]) -> None:
        """They belong to no test."""
        with self._news:
            self.lines = [line for line in self.lines if line not in lines]

    def wait_for_lines(self, regex: str, count: int = 1, within: float = 5.0, start: int = 0) -> list[str]:
        """The lines that match, once there are `count` of them since line number `start`."""
        deadline = time.monotonic() + within
        with self._news:
            while True:
                found = [line for line in self.lines[start:] if re.search(regex, line)]
                if len(found) >= count:
                    return found
                left = deadline - time.monotonic()
                ended = not self._reader.is_alive()
                if left <= 0 or ended:
                    said = f"{count} lines like {regex!r}: {len(found)} within {within:g} s, in this log:"
                    raise AssertionError("\n".join([said, *self.lines]))
                self._news.wait(min(left, 0.2))

    def signal(self, number: Signals) -> None:
        self._process.send_signal(number)

    def terminate(self) -> None:
        self.signal(SIGTERM)

    def signal_group(self, number: Signals) -> None:
        """To the process and all that it started."""
        os.killpg(self.pid, number)

    def wait(self, within: float) -> int:
        """The exit code, as subprocess gives it; fails if it does not come in time.

        By then the log is whole, unless a child has outlived it and could still write.
        """
        try:
            code = self._process.wait(within)
            self._reader.join(1)
            return code
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within:g} s:\n{self.log()}") from None

    def kill(self) -> None:
        """Ends the process and everything that it started. Always works."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, SIGKILL)
        self._process.wait(10)
        self._reader.join(5)
        if self._process.stderr is not None:
            self._process.stderr.close()


class Tunnel(Program):
    """`tunnel serve`, `local` or `forward`, up and listening."""

    def __init__(
        self,
        directory: Path,
        command: str,
        model: str,
        credentials: Credentials,
        *arguments: str,
        config: Mapping[str, object] | None = None,
        listen: Sequence[str] = ("127.0.0.1:0",),
        listeners: int = 0,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """`prefix`: a command that replaces itself by ours, such as setpriv or unshare."""
        directory.mkdir(parents=True, exist_ok=True)
        settings = {"method": credentials.method, "password": credentials.password, **(config or {})}
        path = directory / f"{command}-{model}-{time.monotonic_ns()}.json"
        path.write_text(json.dumps(settings))
        path.chmod(0o600)
        words = [sys.executable, "-m", "tunnel", command, f"--model={model}", "--config", str(path)]
        for place in listen:
            words += ["--listen", place]
        super().__init__([*prefix, *words, *arguments], environment)
        try:
            expected = listeners or len(listen)
            found = self.wait_for_lines(r"listens on ", expected, within=START)
        except BaseException:
            self.kill()
            raise
        self.places = [self.place_of(line) for line in found]

    @staticmethod
    def place_of(line: str) -> Place:
        match = LISTENS.search(line)
        assert match, line
        return Place(match["v6"] or match["v4"], int(match["port"]))

    @property
    def place(self) -> Place:
        return self.places[0]


def waiting_for_accept(place: Place) -> int:
    """How many connections are in the listener's queue."""
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[1].endswith(f":{place.port:04X}") and fields[3] == "0A":
            return int(fields[4].partition(":")[2], 16)
    return 0
