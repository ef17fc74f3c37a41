"""Somebody else's server in a rig: shadowsocks-libev, go-shadowsocks2.

Rules: what comes out is recorded, not judged. Where a row is about what only ours can be told (an option, a
line of the log), it is tried as far as it can be seen from outside, or NOT_FOR_PEERS says why it cannot be.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from compare.peers import PEERS, Listen
from tests.harness.places import free_place
from tests.harness.process import Place, Program, Tunnel
from tests.harness.rig import SERVE, Rig
from tests.harness.stream import Stream, Task, pattern, sha256
from tests.harness.tree import holdings, members, wait_until
from tests.harness.wire import Credentials

NOT_FOR_PEERS = {  # by row
    42: dict.fromkeys(("libev", "go"), "SIGHUP ends it: it reads no configuration again"),
    44: dict.fromkeys(("libev", "go"), "its log cannot be turned elsewhere while it runs"),
    45: {"libev": "its deadline is a minute: not waited for", "go": "it has no deadline for a handshake"},
    47: {"go": "it takes no configuration file"},
}
WRONG: Mapping[str, Mapping[str, object] | None] = {  # what ours are asked, as far as they have it too
    "server_port": {"server_port": "http"},
    "method": {"method": "rc4-md6"},
    "password": {"password": ""},
    "no JSON": None,
}
ENDS = 1.0  # seconds after which a program that has not ended goes on
CREDENTIALS = Credentials("aes-128-gcm", "correct-horse")  # one of them takes it in a URI


class PeerProgram(Tunnel):
    """In a Tunnel's place. What it logs is its own affair: nothing is waited for, nothing is found."""

    def __init__(
        self, directory: Path, name: str, host: str = "127.0.0.1", prefix: Sequence[str] = ()
    ) -> None:
        peer, place = PEERS[name], free_place(host)
        if shutil.which(peer.program) is None:
            pytest.skip(f"{peer.program} is not on PATH: {peer.get}")
        folder = directory / f"{name}-{place.port}"
        folder.mkdir()
        address = f"[{host}]" if ":" in host and name == "go" else host  # as a URI has it
        listen = Listen(place.port, CREDENTIALS.method, CREDENTIALS.password, str(folder), address)
        Program.__init__(self, [*prefix, *peer.command(listen)], os.environ)
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
    table = Path("/proc/thread-self/net", "tcp6" if ":" in place.host else "tcp").read_text()
    lines = [line.split() for line in table.splitlines()]
    return any(line[1].endswith(f":{place.port:04X}") and line[3] == "0A" for line in lines)


class PeerRig(Rig):
    """Its server between two ends that the test holds."""

    def __init__(self, directory: Path, name: str, **options: Any) -> None:
        ours = {key: options[key] for key in ("listen", "far_host", "prefix") if key in options}
        super().__init__(directory, name, SERVE, credentials=CREDENTIALS, **ours)

    def start(
        self,
        directory: Path,
        *_words: str,
        listen: Sequence[str] = (),
        prefix: Sequence[str] = (),
        **_options: Any,
    ) -> Tunnel:
        host = listen[0].rpartition(":")[0].strip("[]")
        return PeerProgram(directory, self.model, host, prefix)

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


def sigterm_in_a_transfer(rig: Rig) -> None:
    """Does it wait for the rest of one?"""
    near, far = rig.open()
    near.send(pattern(50_000))
    assert far.receive_exactly(50_000) == pattern(50_000)
    rig.tunnel.terminate()
    try:
        wait_until(lambda: not rig.tunnel.running, ENDS, "")
    except AssertionError:
        both_ways(near, far, 50_000)
        rig.close_streams()
    else:
        raise AssertionError(f"it cuts the transfer and exits with {rig.tunnel.wait(0)}")
    assert rig.tunnel.wait(2.0) == 0


def port_in_use(rig: Rig) -> None:
    """The same command once more."""
    code, lines = ends_with(rig.tunnel.command)
    assert isinstance(code, int), f"a taken port: {code}"
    assert code, "a taken port: it exits with 0"
    said = [line for line in lines if "in use" in line]
    assert len(said) == 1, f"a taken port: {len(said)} lines say so"
    assert str(rig.place.port) in said[0], "a taken port: it does not say which"


def configuration_errors(name: str, directory: Path) -> None:
    """The same mistakes, in its own file: what it says, and how it ends."""
    codes, named = [], 0
    for number, (key, wrong) in enumerate(WRONG.items()):
        folder = directory / f"wrong-{number}"
        folder.mkdir()
        port = free_place("127.0.0.1").port
        command = PEERS[name].command(Listen(port, CREDENTIALS.method, CREDENTIALS.password, str(folder)))
        path = folder / "config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps(settings | wrong) if wrong is not None else "password: x")
        # What the command line says comes before the file: these are in the file alone.
        code, lines = ends_with([command[0], "-c", str(path)])
        codes.append(f"{key}: {code}")
        named += any(path.name in line and key in line for line in lines)
    ended = ", ".join(codes)
    assert named == len(WRONG), f"{named} of {len(WRONG)} mistakes are named with file and key ({ended})"
    assert all(code.endswith(f" {os.EX_CONFIG}") for code in codes), ended


def ends_with(command: Sequence[str]) -> tuple[int | str, list[str]]:
    """Its exit code and its lines, if it ends."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ENDS, check=False)
    except subprocess.TimeoutExpired:
        return "it does not end", []
    return done.returncode, (done.stdout + done.stderr).splitlines()


def secrets(rig: Rig) -> None:
    """What other users of the machine can read."""
    for process in members(rig.pid):
        shown = Path(f"/proc/{process.pid}/cmdline").read_text()
        assert CREDENTIALS.password not in shown, "the password is in its arguments"
        assert CREDENTIALS.password not in Path(f"/proc/{process.pid}/environ").read_text()


def both_ways(near: Stream, far: Stream, size: int) -> None:
    """Peers do not pass a FIN on and wait, so the end is not asked for."""
    up, down = pattern(size, 1), pattern(size, 2)
    sending = [Task(lambda: near.send(up)), Task(lambda: far.send(down))]
    reading = Task(lambda: near.receive_exactly(size))
    assert sha256(far.receive_exactly(size)) == sha256(up)
    received = reading.result()
    assert isinstance(received, bytes)
    assert sha256(received) == sha256(down)
    for task in sending:
        task.result()
