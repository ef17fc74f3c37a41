"""Rows 21 to 24: targets that do not answer, names, and places that users may not go to."""

from __future__ import annotations

import itertools
import os
import select
import socket
import time

from tests.conformance import test_places as places
from tests.faults.case import Case
from tests.faults.network import AAAA, NameServer, Network, always, silence
from tests.faults.peers import both_ways
from tests.faults.rows import BLOCKING_POOLS, COLUMNS, LOOPS, PEERS, POOLS_OF_THREADS, row
from tests.harness.places import BlackHole, free_place
from tests.harness.process import Place
from tests.harness.rig import Rig
from tests.harness.stream import exchange

LIMITED = (*BLOCKING_POOLS, *POOLS_OF_THREADS)  # to as many clients as there are workers
CONNECT = 1.0  # seconds, by option
HELD = "a dial holds a worker for the connect timeout"  # a look-up is part of it
ENDED = ("FIN", "RST")
EXECUTOR = min(32, 4 + (os.cpu_count() or 1))  # threads of asyncio's own for names, at most
RESOLVER = 1.0  # seconds, times a try for each family; see network.RESOLV_CONF


@row(21, quick=("prethread-queue",), peers=PEERS)
def test_black_hole(case: Case) -> None:
    """Nine clients ask for a listener with a full queue; the connect timeout is 1 s by option."""
    rig = case.make("--connect-timeout", str(CONNECT))
    clients = 1 if case.subject == "iterative" else 9
    held = case.subject in LIMITED
    with BlackHole() as hole:
        started = time.monotonic()
        waiting = [rig.near(target=hole) for _ in range(clients)]
        if not held and clients > 1:
            rig.transfer(within=0.9)
        for near in waiting:
            assert near.how_it_ends(4.0) in ENDED, f"no connect timeout within {4 * CONNECT:g} s"
        took = time.monotonic() - started
        rounds = 2 if held else 1
        assert rounds * CONNECT * 0.9 < took < rounds * CONNECT + 1.0, f"given up after {took:.1f} s"
    if held:
        case.note(HELD)
    if clients == 1:
        case.note("a dial holds up all others: its lesson")
    case.reason("cannot connect to .*: Connection timed out", clients)


@row(22, peers=PEERS)
def test_names_that_fail_or_hang(case: Case) -> None:
    """A stub name server in a network namespace: no such name, then no answer at all (resolv.conf: 1 s) for
    nine clients, one more than a pool has workers; names and literals meanwhile, names afterwards."""
    with (
        Network(),
        NameServer(case.directory, {"good.test": always("127.0.0.1"), "hangs.test": silence}) as dns,
    ):
        rig = case.make("--connect-timeout", "1", resolves=True, prefix=dns.prefix)
        none = rig.near(target=("none.test", 80))
        assert none.how_it_ends(1.0) in ENDED, "a name that does not exist"
        held = case.subject in LIMITED or case.subject == "iterative"
        started = time.monotonic()
        hanging = [rig.near(target=("hangs.test", 80)) for _ in range(2)]
        if not held:
            by_name(rig)
            assert time.monotonic() - started < 0.95, "two names that hang hold up another one"
        if case.subject != "iterative":
            hanging += [rig.near(target=("hangs.test", 80)) for _ in range(7)]
        if not held:
            for _ in range(3):
                rig.transfer(within=0.9)
            assert time.monotonic() - started < 0.95, "names that hang hold up others"
        for near in hanging:
            assert near.how_it_ends(5 * RESOLVER) in ENDED, (
                f"a name that hangs is not given up in {5 * RESOLVER:g} s"
            )
        took = time.monotonic() - started
        assert took < 2 * RESOLVER + 1.5, f"nine names that hang took {took:.1f} s"
        by_name(rig)
        if case.subject in COLUMNS["asyncio"]:
            assert rig.baseline
            rig.baseline = rig.baseline._replace(threads=rig.baseline.threads + EXECUTOR)
        if case.subject in LIMITED:
            case.note(HELD)
        elif case.subject == "iterative":
            case.note("a name server that hangs holds up all others: its lesson")
        elif case.subject in LOOPS:
            case.note("a loop has a few threads for names: as many that hang hold up other names")
        case.reason("cannot connect to (none|hangs).test:80: ", 1 + len(hanging))
        case.look()


def by_name(rig: Rig) -> None:
    near = rig.near(target=("good.test", rig.far_place.port))
    far = rig.far()
    both_ways(near, far, 1000)
    near.close()
    far.close()


CLOSED = (
    "127.0.0.1",
    "::1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "0.0.0.0",
    "::",
    "10.1.2.3",
    "100.64.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "fe80::1",
    "fd00::1",
)
OWN = "9.9.9.10"  # public, on the server's machine, and not allowed by name


@row(23, quick=("epoll",), peers=PEERS)
def test_denied_destinations(case: Case) -> None:
    """13 closed literals, a public address of the server's own, a name that turns to 127.0.0.1 at the second
    question; connections are counted by the kernel of a network namespace."""
    if case.is_peer:
        goes_to_loopback(case)
        return
    answers = itertools.chain([["9.9.9.9"]], itertools.repeat(["127.0.0.1"]))
    names = {
        "turns.test": lambda kind: [] if kind == AAAA else next(answers),
        "both.test": always("127.0.0.1", "::1"),
    }
    with Network() as network, NameServer(case.directory, names) as dns:
        for own in ("8.8.4.4", OWN):
            network.run("ip", "address", "add", f"{own}/32", "dev", "lo")
        network.run("ip", "route", "add", "default", "dev", "lo")
        words = ("--allow", "8.8.4.4/32", "--connect-timeout", "0.5")
        rig = case.make(*words, listen=["0.0.0.0:0"], far_host="8.8.4.4", resolves=True, prefix=dns.prefix)
        with socket.create_server(("0.0.0.0", 0)) as closed:
            port = closed.getsockname()[1]
            before, asked = network.dialled(), 0
            for host in (*CLOSED, OWN, "both.test"):
                near = rig.near(target=(host, port))
                asked += 1
                assert near.how_it_ends(2.0) in ENDED, host
            assert network.dialled() - before == asked, "a connection was begun that is not the client's own"
            for _ in range(3):
                near = rig.near(target=("turns.test", port))
                asked += 1
                assert near.how_it_ends(3.0) in ENDED
            assert network.dialled() - before == asked + 1, "9.9.9.9 is dialled, once, and nobody else"
            assert not select.select([closed], [], [], 0)[0], "somebody came to 127.0.0.1 or to itself"
        kinds = [kind for name, kind in dns.asked if name == "turns.test"]
        assert sorted(kinds) == [1] * 3 + [AAAA] * 3, "a name is resolved once for each client"
        case.reason("cannot connect to ", asked)
        case.look()


def goes_to_loopback(case: Case) -> None:
    """They have no list of closed destinations but one that their user writes."""
    with Network() as network, socket.create_server(("127.0.0.1", 0)) as closed:
        rig = case.make()
        before = network.dialled()
        rig.near(target=closed.getsockname()).how_it_ends(0.5)
        assert network.dialled() - before == 1, "without being told otherwise it connects to 127.0.0.1"
        case.look()


@row(24, quick=("fork",), peers=PEERS)
def test_ipv6_alone_and_both_stacks(case: Case) -> None:
    """A listener on ::1 and a target on ::1; [::] for both families, with and without 0.0.0.0 beside it."""
    rig = case.make(listen=["[::1]:0"], far_host="::1")
    rig.transfer(100_000)
    case.look()
    if case.is_peer:
        return
    places.test_dual_stack_listener_takes_ipv4_and_ipv6(case.make)
    port = free_place("0.0.0.0").port
    both = case.make("--allow", "127.0.0.0/8", listen=[f"[::]:{port}", f"0.0.0.0:{port}"], warm=False)
    for host in ("::1", "127.0.0.1"):
        near, far = both.open(place=Place(host, port))
        exchange(near, far, 1000)
        near.close()
        far.close()


@row(24, quick=("thread",), peers=PEERS)
def test_dead_aaaa(case: Case) -> None:
    """A name with an AAAA where packets are lost, or nobody listens, and an A where the target is."""
    names = {"lost.test": always("fd00::1", "127.0.0.1"), "refused.test": always("::1", "127.0.0.1")}
    with Network() as network, NameServer(case.directory, names) as dns:
        for own in ("fd00::1/128", "10.1.2.3/32"):  # without the second, libev's getaddrinfo knows no IPv4
            network.run("ip", "address", "add", own, "dev", "lo")
        network.drop("ip6 daddr fd00::1 tcp dport != 53")
        rig = case.make("--connect-timeout", "0.5", resolves=True, prefix=dns.prefix)
        for name in names:
            started = time.monotonic()
            near = rig.near(target=(name, rig.far_place.port))
            far = rig.far()
            both_ways(near, far, 1000)
            took = time.monotonic() - started
            assert took < 1.5, f"{name} takes {took:.1f} s"
            near.close()
            far.close()
        assert ("lost.test", AAAA) in dns.asked
        case.look()
