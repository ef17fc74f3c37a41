"""shadowsocks-libev's programs (Debian package shadowsocks-libev), started like ours."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.harness.places import free_place
from tests.harness.process import Place, Program
from tests.harness.tree import wait_until
from tests.harness.wire import Credentials

PROGRAMS = ("ss-server", "ss-local", "ss-tunnel")


def require(*programs: str) -> None:
    """Without the peer: fails where CI=true, since it should be there, and skips loudly elsewhere."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        text = f"{', '.join(missing)} not on PATH: install the Debian package shadowsocks-libev, and curl"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)


class Libev(Program):
    """One of PROGRAMS, accepting connections."""

    def __init__(self, directory: Path, program: str, credentials: Credentials, **settings: object) -> None:
        place = free_place("127.0.0.1")
        own = "server_port" if program == "ss-server" else "local_port"
        values = {"method": credentials.method, "password": credentials.password, "timeout": 60, **settings}
        values[own] = place.port
        values["server" if program == "ss-server" else "local_address"] = place.host
        path = directory / f"{program}-{place.port}.json"
        path.write_text(json.dumps(values))
        super().__init__([program, "-c", str(path)])
        self.place: Place = place
        try:
            wait_until(self._accepts, 10.0, f"{program} accepts")  # it writes its log through a buffer
        except BaseException:
            self.kill()
            raise

    def _accepts(self) -> bool:
        assert self.running, f"{self.command[0]} has ended:\n{self.log()}"
        with socket.socket() as sock:
            return sock.connect_ex(self.place) == 0
