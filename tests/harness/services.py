"""`tunnel serve --service NAME`, up and listening; it has no key."""

from __future__ import annotations

import socket
import sys

from tests.harness.process import LISTENS, START, Place, Program
from tests.harness.stream import Stream


class Service(Program):
    """One of the book's services under a model."""

    def __init__(self, model: str, name: str, *arguments: str) -> None:
        words = ["serve", f"--model={model}", "--service", name, "--listen", "127.0.0.1:0", *arguments]
        super().__init__([sys.executable, "-m", "tunnel", *words])
        self._opened: list[Stream] = []
        try:
            (line,) = self.wait_for_lines(r"listens on ", within=START)
            assert line.endswith(f", service {name}"), line
        except BaseException:
            self.kill()
            raise
        match = LISTENS.search(line)
        assert match
        self.place = Place(match["v4"], int(match["port"]))

    def connect(self, receive_buffer: int = 0) -> Stream:
        """A new client, closed with the service at the latest."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(self.place)
        stream = Stream(sock)
        self._opened.append(stream)
        return stream

    def close(self) -> None:
        for stream in self._opened:
            stream.close()
        self.kill()
