"""Where users may go, from outside: what is denied is never dialled, and a denied name never looked up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance.conftest import MakeRig
from tests.harness.process import Place
from tests.harness.rig import SERVE, Rig
from tests.harness.stream import exchange

pytestmark = pytest.mark.ends(SERVE)
NAME_SERVER = """
import os, socket
answer = socket.getaddrinfo
ADDRESSES = {
    "in.open.test": ["127.0.0.1"],
    "two.open.test": ["127.0.0.9", "127.0.0.1"],
    "denied.open.test": ["127.0.0.1"],
    "other.test": ["127.0.0.1"],
}

def getaddrinfo(host, port, *args, **kwargs):
    name = host.decode() if isinstance(host, bytes) else host
    if not str(name).endswith(".test"):
        return answer(host, port, *args, **kwargs)
    with open(os.environ["ASKED"], "a") as file:
        file.write(name + "\\n")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in ADDRESSES[name]]

socket.getaddrinfo = getaddrinfo
"""
RULES = ("--allow", "*.open.test", "--deny", "denied.open.test", "--deny", "127.0.0.9")


def refused(rig: Rig, host: str, shown: str = "") -> None:
    before = len(rig.tunnel.lines)
    near = rig.near(target=(host, rig.far_place.port), place=Place("::1", rig.place.port))
    assert near.how_it_ends(2.0) in ("FIN", "RST")
    rig.tunnel.wait_for_lines(f"cannot connect to .*{shown or host} is closed to users", start=before)


def test_rules_hold_for_names_before_they_are_looked_up_and_for_every_address(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NAME_SERVER)  # in the server's process, at its start
    asked = tmp_path / "asked"
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "ASKED": str(asked)}
    rig = make_rig(*RULES, listen=["[::]:0"], environment=environment, warm=False)
    for name in ("in.open.test", "two.open.test"):
        near = rig.near(target=(name, rig.far_place.port), place=Place("::1", rig.place.port))
        far = rig.far()
        exchange(near, far, 1000)
        near.close()
        far.close()
    refused(rig, "denied.open.test")
    refused(rig, "DENIED.open.test")
    refused(rig, "other.test", "127.0.0.1")
    refused(rig, "127.0.0.1")
    assert set(asked.read_text().split()) == {"in.open.test", "two.open.test", "other.test"}
    rig.listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        rig.listener.accept()


@pytest.mark.only("iterative", "prefork", "select", "epoll", "trampoline", "asyncio", "tornado")
def test_what_is_denied_is_denied_to_this_machines_own_users_too(make_rig: MakeRig) -> None:
    rig = make_rig("--deny", "127.0.0.9", "--deny", "*", resolves=True)
    for host in ("127.0.0.9", "localhost"):
        near = rig.near(target=(host, rig.far_place.port))
        assert near.how_it_ends(2.0) in ("FIN", "RST")
        rig.tunnel.wait_for_lines(f"cannot connect to .*{host} is closed to users")
    rig.is_healthy()
