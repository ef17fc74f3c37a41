"""Log lines: one `write` each, as text or JSON, to standard error.

    2026-11-23T07:30:00.123Z warning prefork[4242] 127.0.0.1:5000: wrong tag on the length of record 0

Why not the standard library's `logging`: importing it imports `threading`, whose at-fork handlers
touch 130 more pages in every child; `fork` pays 0.4 ms of CPU per connection for it
(docs/performance.md). A single write below PIPE_BUF is atomic, so processes share the file.

Rules: a line never ends a connection: what cannot be written is counted, by all processes together, and
the count is logged when writing works again. Peers' text is escaped. No secret is passed here.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

LEVELS = ("debug", "info", "warning", "error")


class Lost:
    """How many lines nobody could write: of this process, or of all that are forked after `share`.

    Then it is an eventfd, whose number the kernel adds to and takes away in one step each. Who is killed
    between taking it and writing it down takes it along.
    """

    __slots__ = ("_fd", "_own")

    def __init__(self) -> None:
        self._fd = -1
        self._own = 0

    def share(self) -> None:
        """Without an eventfd (not on Linux, or no descriptor is left) each process counts its own."""
        if self._fd < 0 and hasattr(os, "eventfd"):
            with suppress(OSError):
                self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def add(self, lines: int) -> None:
        if self._fd < 0:
            self._own += lines
        else:
            with suppress(OSError):  # 2**64 - 2 are lost already
                os.eventfd_write(self._fd, lines)

    def take(self) -> int:
        """The number, which is 0 from now on."""
        if self._fd < 0:
            lines, self._own = self._own, 0
            return lines
        try:
            return os.eventfd_read(self._fd)
        except OSError:  # EAGAIN: none
            return 0


class Log:
    """Where lines go and which are wanted. One per process tree; children inherit it."""

    __slots__ = ("_path", "as_json", "fd", "lost", "name", "threshold")

    def __init__(self) -> None:
        self.fd = 2
        self._path: str | None = None
        self.name = "tunnel"
        self.as_json = False
        self.threshold = LEVELS.index("info")
        self.lost = Lost()

    def configure(self, name: str, level: str, as_json: bool) -> None:
        """`name` is what the line is signed with, next to the pid: the model's."""
        self.name, self.threshold, self.as_json = name, LEVELS.index(level), as_json

    def open(self, path: str | None) -> None:
        """Lines go to this file from now on, appended; None: to standard error. Raises OSError.

        The descriptor stays: another thread may be about to write to it, and a client have it next.
        """
        if path != self._path:
            if path is None:
                os.dup2(2, self.fd, inheritable=False)
            else:
                self._begin(path)
            self._path = path

    def reopen(self) -> None:
        """Opens the file again, which somebody has moved away (SIGUSR1); if that fails, keeps the old one."""
        if self._path is not None:
            try:
                self._begin(self._path)
            except OSError as error:
                self.error(f"cannot open {self._path} again: {error.strerror}")

    def _begin(self, path: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self.fd == 2:
            self.fd = fd
        else:
            os.dup2(fd, self.fd, inheritable=False)
            os.close(fd)

    def debug(self, text: str, subject: str = "") -> None:
        if self.threshold <= 0:
            self._write(0, text, subject)

    def info(self, text: str, subject: str = "") -> None:
        if self.threshold <= 1:
            self._write(1, text, subject)

    def warning(self, text: str, subject: str = "") -> None:
        if self.threshold <= 2:
            self._write(2, text, subject)

    def error(self, text: str, subject: str = "") -> None:
        self._write(3, text, subject)

    def _write(self, level: int, text: str, subject: str) -> None:
        lost = self.lost.take()
        if lost:
            lines = "1 line before this one was" if lost == 1 else f"{lost} lines before this one were"
            text = f"{text} ({lines} lost)"
        line = self._format(level, text, subject).encode("utf-8", "backslashreplace")
        try:
            os.write(self.fd, line)
        except OSError:
            self.lost.add(lost + 1)  # a full disk or a closed pipe must not cost a connection

    def _format(self, level: int, text: str, subject: str) -> str:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03}Z"
        if self.as_json:
            import json  # noqa: PLC0415 - 8 ms at start that text logging need not pay

            fields = {"time": stamp, "level": LEVELS[level], "model": self.name, "pid": os.getpid()}
            if subject:
                fields["subject"] = subject
            return json.dumps(fields | {"message": text}) + "\n"
        subject = f" {subject}:" if subject else ""
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        return f"{stamp} {LEVELS[level]} {self.name}[{os.getpid()}]{subject} {shown}\n"


log = Log()


def describe(error: Exception) -> str:
    """An error in the words that a log line needs."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def peer_name(sock: object) -> str:
    """`host:port` of a connected socket's far end, for a log line; `-` when it is gone already."""
    try:
        host, port = sock.getpeername()[:2]  # type: ignore[attr-defined]
    except OSError:
        return "-"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
