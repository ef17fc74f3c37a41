"""Both ends of ours together, as a user has them: SOCKS5 client, tunnel local, tunnel serve, target."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import socks
from tests.harness.process import Tunnel
from tests.harness.rig import DEFAULT
from tests.harness.stream import Task
from tests.harness.targets import CONTENT, Target, digest_of_rest, short_digest

MB = 1_000_000
SIZE = 20 * MB


@pytest.fixture(scope="session")
def target() -> Iterator[Target]:
    with Target() as target:
        yield target


@pytest.fixture
def proxy(model: str, tmp_path: Path) -> Iterator[Tunnel]:
    server = Tunnel(tmp_path, "serve", model, DEFAULT)
    try:
        there = {"server": server.place.host, "server_port": server.place.port}
        local = Tunnel(tmp_path, "local", model, DEFAULT, config=there)
        try:
            yield local
        finally:
            local.kill()
    finally:
        server.kill()


def test_client_ends_first_and_then_is_answered(proxy: Tunnel, target: Target) -> None:
    with socks.connect(proxy.place, target.place) as sock:
        sock.sendall(b"SINK\n")
        sock.sendall(CONTENT[:SIZE])
        sock.shutdown(socket.SHUT_WR)
        assert socks.receive_exactly(sock, 64).decode() == short_digest(SIZE)
        assert sock.recv(1) == b""


def test_target_ends_first_and_then_gets_everything(proxy: Tunnel, target: Target) -> None:
    with socks.connect(proxy.place, target.place) as sock:
        sock.sendall(b"FIRST\n")
        assert socks.receive_exactly(sock, 5) == b"first"
        assert sock.recv(1) == b""
        sock.sendall(CONTENT[:SIZE])
        sock.shutdown(socket.SHUT_WR)
        assert target.digests.get(timeout=10) == short_digest(SIZE)


def test_echo_of_everything_to_the_last_byte(proxy: Tunnel, target: Target) -> None:
    with socks.connect(proxy.place, ("localhost", target.place.port)) as sock:
        sock.sendall(b"ECHO\n")

        def send() -> None:
            sock.sendall(CONTENT[:SIZE])
            sock.shutdown(socket.SHUT_WR)

        sending = Task(send)
        assert digest_of_rest(sock) == short_digest(SIZE)
        sending.result()
