"""A server that costs as little as it can, in no report as a row.

    generator ==sealed==> [ opened --> target.py's Connection --> sealed ] ==> generator
    generator ==SOCKS5==> a client that is measured ==sealed==> [ the same ]

Server and target in one process, one epoll loop, no second hop. `compare ceiling` loads it to see what
the generator could do if no server held it up; `compare run --end local` has it behind every client, as
the target (bench.py), so that all of them lead to the same, and its CPU is nobody's.

    python -m compare.null ADDRESS PORT METHOD

PORT 0: any; it is printed as one JSON line, and standard input's end is its own, as the target's is.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys

from compare.exchange import CHUNK
from compare.servers import PASSWORD
from compare.target import BACKLOG, Connection
from tunnel.errors import TunnelError
from tunnel.flow import Opening
from tunnel.keys import Secret, find_method
from tunnel.session import ServerSession

ANY = "0"  # as a port


class Client(Connection):
    """An exchange as the target has it, with the protocol around."""

    def __init__(self, sock: socket.socket, secret: Secret) -> None:
        super().__init__(sock)
        self._session = ServerSession(secret)
        self._sealed = memoryview(b"")

    def read(self) -> bool:
        """One read; False once the client has ended."""
        session = self._session
        flow = session.up if session.target else session.opening
        n = self.sock.recv_into(flow.get_buffer())
        if not n:
            return False
        plain = flow.buffer_updated(n)
        if isinstance(flow, Opening):
            plain = session.up.buffer_updated(0) if session.target else plain
        if plain:
            self.received(plain)
        return True

    def send(self) -> bool:
        """As its parent's, sealed on the way."""
        while self._sealed or self.pending:
            if not self._sealed:
                buffer = self._session.down.get_buffer()
                piece = self.pending[: len(buffer)]
                buffer[: len(piece)] = piece
                self.pending = self.pending[len(piece) :]
                self._sealed = self._session.down.buffer_updated(len(piece))
                if not self.pending and self.down_left:
                    self._next_down(CHUNK)
                elif not self.pending and self.both and not self.up_left:
                    self._end_both()
            try:
                self._sealed = self._sealed[self.sock.send(self._sealed) :]
            except BlockingIOError:
                return False
        return True


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(os.EX_OK))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # compare has been killed: end without a traceback
    address, port, method = sys.argv[1:]
    secret = Secret.from_password(find_method(method), PASSWORD)
    listener = socket.create_server((address, int(port)), backlog=BACKLOG)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    if port == ANY:
        epoll.register(sys.stdin, select.EPOLLIN)
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    clients: dict[int, Client] = {}
    while True:
        for fd, events in epoll.poll():
            if fd == sys.stdin.fileno():
                return
            if fd == listener.fileno():
                sock, _ = listener.accept()
                sock.setblocking(False)
                clients[sock.fileno()] = Client(sock, secret)
                epoll.register(sock, select.EPOLLIN)
                continue
            client = clients[fd]
            try:
                alive = not events & ~select.EPOLLOUT or client.read()
                done = client.send()
            except BlockingIOError:
                continue
            except (OSError, ValueError, TunnelError):
                alive = False
            if not alive:
                clients.pop(fd).sock.close()
                continue
            epoll.modify(fd, select.EPOLLIN if done else select.EPOLLIN | select.EPOLLOUT)


if __name__ == "__main__":
    main()
