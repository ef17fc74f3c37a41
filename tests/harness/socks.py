"""A SOCKS5 client (RFC 1928), as much of it as CONNECT needs."""

from __future__ import annotations

import socket

from tests.harness.stream import PATIENCE
from tests.harness.wire import address_header, address_size


class Refused(Exception):
    """The proxy answered with something other than 'succeeded'."""

    def __init__(self, code: int) -> None:
        super().__init__(f"SOCKS5 reply {code}")
        self.code = code


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = sock.recv(size - len(received))
        if not part:
            raise ConnectionError(f"proxy closed after {received!r}")
        received += part
    return received


def connect(proxy: tuple[str, int], target: tuple[str, int], receive_buffer: int = 0) -> socket.socket:
    """A connection to `target` through `proxy`. Raises Refused."""
    sock = socket.socket(socket.AF_INET6 if ":" in proxy[0] else socket.AF_INET)
    try:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE)
        sock.connect(proxy)
        sock.sendall(b"\x05\x01\x00")
        assert receive_exactly(sock, 2) == b"\x05\x00"
        request(sock, target)
        read_reply(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def request(sock: socket.socket, target: tuple[str, int]) -> None:
    sock.sendall(b"\x05\x01\x00" + address_header(*target))


def read_reply(sock: socket.socket) -> None:
    """Reads the answer to a request. Raises Refused."""
    head = receive_exactly(sock, 5)
    assert head[0] == 5
    receive_exactly(sock, 3 + address_size(head[3:]) - 5)
    if head[1]:
        raise Refused(head[1])
