"""Somebody else's server in a rig: shadowsocks-libev, go-shadowsocks2."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from compare.peers import PEERS, Listen
from tests.harness.places import free_place
from tests.harness.process import Place, Program, Tunnel
from tests.harness.rig import SERVE, Rig
from tests.harness.stream import Stream
from tests.harness.tree import holdings, wait_until
from tests.harness.wire import Credentials

CREDENTIALS = Credentials("aes-128-gcm", "correct-horse")  # one of them takes it in a URI


class PeerProgram(Tunnel):
    """In a Tunnel's place. What it logs is its own affair: nothing is waited for, nothing is found."""

    def __init__(self, directory: Path, name: str) -> None:
        peer, place = PEERS[name], free_place("127.0.0.1")
        if shutil.which(peer.program) is None:
            pytest.skip(f"{peer.program} is not on PATH: {peer.get}")
        folder = directory / f"{name}-{place.port}"
        folder.mkdir()
        listen = Listen(place.port, CREDENTIALS.method, CREDENTIALS.password, str(folder))
        Program.__init__(self, peer.command(listen), os.environ)
        self.places = [place]
        try:
            wait_until(self._accepts, 10.0, f"{peer.program} accepts")
        except BaseException:
            self.kill()
            raise

    def _accepts(self) -> bool:
        assert self.running, f"{self.command[0]} has ended:\n{self.log()}"
        return listens(self.place)

    def wait_for_lines(self, regex: str, count: int = 1, within: float = 5.0, start: int = 0) -> list[str]:
        del regex, within, start
        return [""] * count


def listens(place: Place) -> bool:
    """Without a connection, which some of them would remember."""
    table = Path("/proc/net/tcp").read_text()
    return f":{place.port:04X} 00000000:0000 0A" in table


class PeerRig(Rig):
    """Its server between two ends that the test holds."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(directory, name, SERVE, credentials=CREDENTIALS)

    def start(self, directory: Path, *_words: str, **_options: Any) -> Tunnel:
        return PeerProgram(directory, self.model)

    def settles(self, within: float = 3.0) -> None:
        """Its threads are its language's own."""
        base = self.baseline
        assert base is not None

        def back() -> bool:
            now = holdings(self.pid)
            return now.descriptors <= base.descriptors and not now.zombies

        try:
            wait_until(back, within, "")
        except AssertionError:
            raise AssertionError(f"holds {holdings(self.pid)}, it began with {base}") from None

    def transfer(self, size: int = 20_000, within: float = 2.0) -> None:
        """Both ways, and the client ends first: they do not pass a FIN on and wait for the other."""
        near = self.near(first=b"transfer")
        while (far := self.far()).receive_exactly(8) != b"transfer":
            far.close()
        for sender, receiver in ((near, far), (far, near)):
            content = os.urandom(size)
            sender.send(content)
            assert receiver.receive_exactly(size) == content
        near.close()
        far.close()
        del within


def outcome_of(stream: Stream, within: float) -> str:
    """How it ends, in a word."""
    return stream.how_it_ends(within)
