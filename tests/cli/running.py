"""The `tunnel` command as a user starts it: a process, what it prints, and how it ends.

`tunnel(...)` runs a command to its end. `Running(...)` is a server that is up: it waits for the log
line that says so, and never for time. A watchdog ends what hangs, so that a test fails instead.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import pytest

import tunnel as package
from tests.core import wire

ROOT = Path(package.__file__).parent.parent
WATCHDOG = 15.0  # seconds; nothing here takes one
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info|warning|error) [\w-]+\[\d+\] ?.*")
LISTENS = re.compile(r"listens on (\[[^\]]+\]|[\d.]+):(\d+), method ([\w-]+)")
# Root may do everything; a mistake that needs somebody lesser is made without capabilities.
UNPRIVILEGED = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []
needs_unprivileged = pytest.mark.skipif(
    bool(UNPRIVILEGED) and shutil.which("setpriv") is None, reason="root, and no setpriv to become less"
)


def environment() -> dict[str, str]:
    """This process's, with this tree's code in front, and nothing that changes what is printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COLUMNS"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}


def command(*words: str, prefix: Sequence[str] = (), python: str = sys.executable) -> list[str]:
    return [*prefix, python, "-m", "tunnel", *words]


class Ended(NamedTuple):
    """A command that has come to its end."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """What standard error said, but for log lines."""
        return [line for line in self.err.splitlines() if not LOG_LINE.fullmatch(line)]


def tunnel(*words: str, given: bytes = b"", prefix: Sequence[str] = ()) -> Ended:
    ended = subprocess.run(
        command(*words, prefix=prefix),
        input=given,
        capture_output=True,
        env=environment(),
        timeout=WATCHDOG,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode(errors="backslashreplace"))


@contextmanager
def watchdog(process: subprocess.Popen[bytes]) -> Iterator[None]:
    timer = threading.Timer(WATCHDOG, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Running:
    """A server that listens. Use it as a context; `end` tells how it ended and what it had printed."""

    def __init__(
        self,
        *words: str,
        given: bytes = b"",
        listen: bool = True,
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        place = ("--listen", "127.0.0.1:0") if listen else ()
        self._process = subprocess.Popen(
            command(*words, *place, python=python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment() | dict(env or {}),
        )
        assert self._process.stdin
        assert self._process.stderr
        self.pid = self._process.pid
        self.out = self.err = ""
        with watchdog(self._process):
            self._process.stdin.write(given)
            self._process.stdin.close()
            self._process.stdin = None  # communicate() would flush it
            while not (listens := LISTENS.search(self.err)):
                line = self._process.stderr.readline()
                if not line:
                    self.kill()
                    pytest.fail(f"it ended before it listened:\n{self.err}")
                self.err += line.decode()
        self.host, self.port, self.method = listens[1].strip("[]"), int(listens[2]), listens[3]

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        for stream in (self._process.stdout, self._process.stderr):
            if stream and not stream.closed:
                stream.close()
        self._process.wait()

    def lines_until(self, text: str) -> None:
        """Reads standard error until a line contains `text`."""
        assert self._process.stderr
        with watchdog(self._process):
            while text not in self.err:
                line = self._process.stderr.readline()
                assert line, f"it ended before it said {text!r}:\n{self.err}"
                self.err += line.decode()

    def prints_until(self, text: str) -> None:
        """Reads standard output until a line contains `text`."""
        assert self._process.stdout
        with watchdog(self._process):
            while text not in self.out:
                line = self._process.stdout.readline()
                assert line, f"it ended before it printed {text!r}:\n{self.out}"
                self.out += line.decode()

    def end(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        self._process.send_signal(number)
        return self.ended()

    def ended(self) -> Ended:
        """Waits until it has, and with it everybody who could still write to its standard error."""
        out, err = self._process.communicate(timeout=WATCHDOG)
        self.out += out.decode()
        self.err += err.decode()
        return Ended(self._process.returncode, self.out, self.err)

    def family(self) -> list[int]:
        """The pids of the server and of all its descendants."""
        pids = [self.pid]
        for pid in pids:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                pids += [int(child) for child in children.read_text().split()]
        return pids

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), WATCHDOG)


class Sealed:
    """A client of `tunnel serve`, by the tests' own codec; its target is 127.0.0.1:`port`."""

    def __init__(self, server: Running, password: str, port: int) -> None:
        self._key = wire.master_key(password, wire.KEY_SIZES[server.method])
        self._wire = wire.Wire(server.method, self._key, os.urandom(len(self._key)))
        self._counter = 0
        self.method = server.method
        self.socket = server.connect()
        header = b"\1\x7f\0\0\1" + port.to_bytes(2, "big")
        self.socket.sendall(self._wire.salt)
        self.send(header)

    def send(self, payload: bytes) -> None:
        self.socket.sendall(self._wire.record(self._counter, payload))
        self._counter += 2

    def received(self) -> bytes:
        """All that comes until the end."""
        stream = bytearray()
        while part := self.socket.recv(65536):
            stream += part
        return b"".join(record.payload for record in wire.parse(self.method, self._key, bytes(stream)))


@contextmanager
def echo() -> Iterator[int]:
    """The port of a target that sends back what it gets, until it gets no more."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(WATCHDOG)

    def serve() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            with accepted, suppress(ConnectionError):
                while part := accepted.recv(65536):
                    accepted.sendall(part)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(WATCHDOG)


def private(path: Path, content: str | bytes | object) -> str:
    """Writes a file that only its owner can read; what is neither text nor bytes becomes JSON."""
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.touch(0o600)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def serves(server: Running, password: str) -> None:
    """Five bytes, there and back."""
    with echo() as port:
        client = Sealed(server, password, port)
        client.send(b"hello")
        client.socket.shutdown(socket.SHUT_WR)
        with client.socket:
            assert client.received() == b"hello"
