"""Where a server listens, and where it goes: IPv4, IPv6, names, several listeners."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.conformance.conftest import MakeRig
from tests.harness.places import free_place
from tests.harness.process import Place
from tests.harness.rig import FORWARD, LOCAL, SERVE, Rig
from tests.harness.stream import exchange
from tests.harness.tree import wait_until

SLOW_NAME_SERVER = """
import socket, time
answer = socket.getaddrinfo

def getaddrinfo(host, *args, **kwargs):
    if host in (b"slow.test", "slow.test"):
        time.sleep(1.0)
        host = "127.0.0.1"
    return answer(host, *args, **kwargs)

socket.getaddrinfo = getaddrinfo
"""


# few.test has as many addresses as are tried, many.test one more. The last one is the target's.
NAMES_OF_MANY = """
import socket
answer = socket.getaddrinfo

def getaddrinfo(host, port, *args, **kwargs):
    sizes = {b"few.test": 8, b"many.test": 9}
    if host not in sizes:
        return answer(host, port, *args, **kwargs)
    hosts = [f"127.0.9.{n}" for n in range(1, sizes[host])] + ["127.0.0.1"]
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in hosts]

socket.getaddrinfo = getaddrinfo
"""
# Names that hang until there is a file "go"; each is written down when somebody begins to look it up.
NAMES_THAT_HANG = """
import os, socket, time
answer, here = socket.getaddrinfo, os.path.dirname(__file__)

def getaddrinfo(host, *args, **kwargs):
    if host != b"hangs.test":
        return answer(host, *args, **kwargs)
    with open(here + "/asked", "a") as file:
        file.write(".")
    while not os.path.exists(here + "/go"):
        time.sleep(0.01)
    raise socket.gaierror(-2, "it was worth waiting for")

socket.getaddrinfo = getaddrinfo
"""


def with_names(directory: Path, script: str) -> dict[str, str]:
    """The environment of a server whose getaddrinfo is that one, from its start."""
    (directory / "sitecustomize.py").write_text(script)
    path = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


@pytest.mark.ends(SERVE, LOCAL, FORWARD)
@pytest.mark.costly
def test_ipv6_on_both_sides(make_rig: MakeRig) -> None:
    rig = make_rig(listen=["[::1]:0"], far_host="::1")
    near, far = rig.open()
    exchange(near, far, 1_000_000)
    rig.is_healthy()


@pytest.mark.ends(SERVE)
def test_target_by_name(make_rig: MakeRig) -> None:
    rig = make_rig(resolves=True)
    for _ in range(3):
        near = rig.near(target=("localhost", rig.far_place.port))
        far = rig.far()
        exchange(near, far, 100_000)
    rig.is_healthy()


@pytest.mark.ends(LOCAL, FORWARD)
@pytest.mark.costly
def test_server_by_name(make_rig: MakeRig) -> None:
    first = make_rig(warm=False)
    rig = make_rig(server=Place("localhost", first.far_place.port), warm=False, resolves=True)
    near = rig.near()
    far = first.far()
    exchange(near, far, 100_000)


@pytest.mark.two_clients
@pytest.mark.ends(SERVE)
def test_name_server_that_is_slow_keeps_nobody_else_waiting(make_rig: MakeRig, tmp_path: Path) -> None:
    # The time for the handshake is over before the name is there, and no business of the look-up any more.
    rig = make_rig(
        "--handshake-timeout", "0.8", resolves=True, environment=with_names(tmp_path, SLOW_NAME_SERVER)
    )
    started = time.monotonic()
    slow = rig.near(target=("slow.test", rig.far_place.port), first=b"slow")
    for _ in range(3):
        rig.transfer(within=0.9)
    assert time.monotonic() - started < 0.95, "the others were served while the name was looked up"
    far = rig.far()
    assert time.monotonic() - started > 0.95
    assert far.receive_exactly(4) == b"slow"
    exchange(slow, far, 1000)
    rig.is_healthy()


@pytest.mark.ends(SERVE)
@pytest.mark.only("thread", "epoll", "trampoline", "asyncio", "tornado")
def test_name_of_many_addresses_is_given_up_after_some(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(resolves=True, environment=with_names(tmp_path, NAMES_OF_MANY))
    few = rig.near(target=("few.test", rig.far_place.port))
    exchange(few, rig.far(), 1000)
    many = rig.near(target=("many.test", rig.far_place.port))
    assert many.how_it_ends(5.0) in ("FIN", "RST")
    rig.tunnel.wait_for_lines("cannot connect to many.test")


@pytest.mark.ends(SERVE)
@pytest.mark.only("select", "epoll", "trampoline", "asyncio")
def test_names_that_nobody_waits_for_any_more_are_not_looked_up(make_rig: MakeRig, tmp_path: Path) -> None:
    """Or who asks for a thousand names that hang stops all names for hours, and need not even stay."""
    clients = 60
    environment = with_names(tmp_path, NAMES_THAT_HANG)
    rig = make_rig("--connect-timeout", "0.3", resolves=True, environment=environment)
    for _ in range(clients):
        rig.near(target=("hangs.test", 80))
    rig.tunnel.wait_for_lines("cannot connect to hangs.test", clients)
    (tmp_path / "go").touch()
    rig.close_streams()
    wait_until(lambda: is_resolved(rig), 5.0, "other names are looked up again")
    assert len((tmp_path / "asked").read_text()) < clients / 2, "only those that were begun in time"


@pytest.mark.ends(SERVE)
@pytest.mark.only("iterative", "fork", "prefork", "thread", "asyncio")
def test_name_that_hangs_costs_its_client_the_connect_timeout(make_rig: MakeRig, tmp_path: Path) -> None:
    """Whatever resolv.conf says; nor is a worker killed that waits for it."""
    environment = with_names(tmp_path, NAMES_THAT_HANG)
    rig = make_rig("--connect-timeout", "0.3", resolves=True, environment=environment)
    started = time.monotonic()
    for _ in range(2):
        assert rig.near(target=("hangs.test", 80)).how_it_ends(5.0) in ("FIN", "RST")
    assert 0.55 < time.monotonic() - started < 2.0
    rig.tunnel.wait_for_lines("cannot connect to hangs.test:80: Connection timed out", 2)
    assert is_resolved(rig)
    (tmp_path / "go").touch()
    rig.is_healthy()


def is_resolved(rig: Rig) -> bool:
    near = rig.near(target=("localhost", rig.far_place.port), first=b"there")
    if near.how_it_ends(1.0) != "open":
        return False
    with closing(rig.far()) as far:
        return far.receive_exactly(5) == b"there"


@pytest.mark.ends(SERVE)
def test_every_listener_of_a_list_serves(make_rig: MakeRig) -> None:
    hosts = ["127.0.0.1", "127.0.0.2", "::1"]
    port = free_place(*hosts).port
    rig = make_rig(listen=[], listeners=3, config={"server": hosts, "server_port": port})
    assert [place.host for place in rig.tunnel.places] == hosts
    for _ in range(2):
        for place in rig.tunnel.places:
            near, far = rig.open(place=place)
            exchange(near, far, 50_000)
            near.close()
            far.close()
    rig.is_healthy()


@pytest.mark.ends(LOCAL, FORWARD)
@pytest.mark.costly
def test_every_listen_flag_serves(make_rig: MakeRig) -> None:
    rig = make_rig(listen=["127.0.0.1:0", "[::1]:0"])
    for _ in range(2):
        for place in rig.tunnel.places:
            near, far = rig.open(place=place)
            exchange(near, far, 50_000)
            near.close()
            far.close()
    rig.is_healthy()


@pytest.mark.ends(SERVE)
def test_several_listeners_idle_and_stop_like_one(make_rig: MakeRig) -> None:
    rig = make_rig(listen=["127.0.0.1:0", "127.0.0.2:0"])
    rig.idles(0.3)
    near, far = rig.open(place=rig.tunnel.places[1])
    rig.tunnel.terminate()
    rig.tunnel.wait_for_lines("stopping")
    exchange(near, far, 1_000_000)
    assert rig.tunnel.wait(2.0) == 0


@pytest.mark.ends(SERVE)
def test_dual_stack_listener_takes_ipv4_and_ipv6(make_rig: MakeRig) -> None:
    rig = make_rig("--allow", "127.0.0.0/8", listen=["[::]:0"], warm=False)
    for host in ("::1", "127.0.0.1"):
        near, far = rig.open(place=Place(host, rig.place.port))
        exchange(near, far, 1000)
        near.close()
        far.close()


@pytest.mark.ends(SERVE)
def test_listener_that_others_can_reach_goes_to_no_loopback(make_rig: MakeRig) -> None:
    rig = make_rig(listen=["[::]:0"], warm=False)
    for target in (rig.far_place, ("::ffff:127.0.0.1", rig.far_place.port)):
        near = rig.near(target=target, place=Place("::1", rig.place.port))
        assert near.how_it_ends(2.0) in ("FIN", "RST")
    rig.tunnel.wait_for_lines("cannot connect to .*closed to users", 2)
    rig.listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        rig.listener.accept()
