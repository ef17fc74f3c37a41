"""Where a server listens, and where it goes: IPv4, IPv6, names, several listeners."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.conformance.conftest import MakeRig
from tests.harness.places import free_place
from tests.harness.process import Place
from tests.harness.rig import FORWARD, LOCAL, SERVE
from tests.harness.stream import exchange

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
    (tmp_path / "sitecustomize.py").write_text(SLOW_NAME_SERVER)  # in the server's process, at its start
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    # The time for the handshake is over before the name is there, and no business of the look-up any more.
    rig = make_rig("--handshake-timeout", "0.8", resolves=True, environment=environment)
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
