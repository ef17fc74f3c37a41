"""Addresses that do not serve: closed, or silent."""

from __future__ import annotations

import random
import socket

from tests.harness.process import Place, waiting_for_accept

PORTS = 20_000, 32_000  # below those that Linux chooses itself (ip_local_port_range)


def closed_place() -> Place:
    """A port where nobody listens."""
    return free_place("127.0.0.1")


def free_place(*hosts: str) -> Place:
    """The first host, and a port that is free on all of them and that the kernel gives to nobody else."""
    for _ in range(20):
        port = random.randrange(*PORTS)
        try:
            for host in hosts:
                with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
                    sock.bind((host, port))
        except OSError:
            continue
        return Place(hosts[0], port)
    raise AssertionError("no port is free on all hosts")


class BlackHole:
    """Where a connection is neither made nor refused: a listener whose queue is full."""

    def __init__(self) -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        self._sockets = [listener]
        self.place = Place(*listener.getsockname())

    def __enter__(self) -> Place:
        for _ in range(8):
            sock = socket.socket()
            self._sockets.append(sock)
            sock.settimeout(0.1)
            try:
                sock.connect(self.place)
            except TimeoutError:  # the machine may be slow, and the queue still empty
                if waiting_for_accept(self.place):
                    return self.place
        raise AssertionError("the queue of a listener does not fill up")

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()
