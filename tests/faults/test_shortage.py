"""Rows 25 to 31: descriptors, processes, threads and memory run out, or somebody sees to it."""

from __future__ import annotations

import os
import resource
import select
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from tests.conformance import test_crowds as crowds
from tests.conformance.test_workers import server_of
from tests.faults.case import Case
from tests.faults.rows import ONE_CLIENT, PEERS, POOLS, POOLS_OF_THREADS, row
from tests.faults.starve import Group, descriptors_left
from tests.faults.tools import lacking
from tests.harness.process import Place, waiting_for_accept
from tests.harness.rig import Rig
from tests.harness.stream import Sealed, Stream, exchange, pattern
from tests.harness.targets import Target
from tests.harness.tree import child_pids, cpu_seconds, is_alive, memory, wait_until
from tests.harness.wire import address_header

LEFT = ((0, 0), (1, 1), (2, 2))  # descriptors: to the server itself, to each of its children
PASSED_ON = ((0, 0), (1, 1), (1, 0), (2, 2))  # where a child gets one with each client
RESTS = 0.3  # seconds of looking at a server without descriptors
RUN_OUT = "Too many open files"
ANSWER = b"there"
ASKED = b"ECHO\n" + ANSWER  # of Target
IDLE = 10_000  # connections
IDLE_KB = 20  # of a server's memory for each of them, at most
ENDED = ("FIN", "RST")
MB = 1_000_000


@row(25, quick=("poll", "sigio"), peers=PEERS, cannot=ONE_CLIENT)
def test_out_of_descriptors(case: Case) -> None:
    """prlimit leaves each process of the server 0, then 1, then 2 descriptors: accept, the target's socket, a
    duplicate fail. Beside a live connection three clients each, and one that was accepted before: they wait
    and are served, or get a line and an end."""
    rig = case.make()
    near, far = rig.open()
    ended: list[str] = []
    with Target() as target:
        for server, children in PASSED_ON if case.subject == "prefork-fdpass" else LEFT:
            came_of: dict[Stream, str] = {}
            early, last_byte = asking(rig, target.place)
            rig.steady()
            with descriptors_left(rig.pid, server, children):
                late = [rig.near(target=target.place, first=ASKED) for _ in range(3)]
                listen_to(late, came_of, 0.3)
                if not server:
                    rests(rig)
                early.sock.sendall(last_byte)
                listen_to([early], came_of, 1.0)
                for sender, receiver in ((near, far), (far, near)):
                    sender.send(pattern(50_000))
                    assert receiver.receive_exactly(50_000) == pattern(50_000), "a live connection"
            listen_to([early, *late], came_of, 3.0)
            assert len(came_of) == 4, "there are descriptors again, and a client is not served"
            ended += came_of.values()
            for client in came_of:
                client.close()
    exchange(near, far, 300_000)
    dropped = ended.count("FIN") + ended.count("RST")
    assert dropped, "nobody was dropped: there were descriptors"
    case.reason(crowds.SAID + RUN_OUT, 1, 2 * (1 + rig.workers))
    least = (
        1 if case.subject == "epoll" else dropped
    )  # one line stands for all whom its EMFILE trick turns away
    case.reason(f"(cannot connect to .*|client dropped): {RUN_OUT}", least, dropped)


def rests(rig: Rig) -> None:
    """Each process asks again 50 times a second whether there are descriptors: that, and no more."""
    used = []
    for _ in range(2):
        before = cpu_seconds(rig.pid)
        time.sleep(RESTS)
        used.append(cpu_seconds(rig.pid) - before)
    assert min(used) < RESTS / 5, f"{min(used):.2f} s of CPU in {RESTS:g} s without descriptors"


def asking(rig: Rig, target: Place) -> tuple[Sealed, bytes]:
    """A client that has been accepted, and what it has yet to say of its request."""
    client = Sealed(rig.connect(), rig.credentials)
    rig.keep(client)
    request = client.outgoing.seal(address_header(*target) + ASKED)
    client.sock.sendall(request[:-1])
    wait_until(lambda: not waiting_for_accept(rig.place), 3.0, "it has been accepted")
    return client, request[-1:]


def listen_to(clients: Sequence[Stream], came_of: dict[Stream, str], within: float) -> None:
    """Adds what came of each: "served", "FIN" or "RST"; nothing of who still waits."""
    deadline = time.monotonic() + within
    for client in clients:
        left = max(0.0, deadline - time.monotonic())
        if client in came_of or not select.select([client.sock], [], [], left)[0]:
            continue
        try:
            came = client.receive_exactly(len(ANSWER)) if client.sock.recv(1, socket.MSG_PEEK) else b""
        except ConnectionResetError:
            came_of[client] = "RST"
        else:
            assert came in (b"", ANSWER)
            came_of[client] = "served" if came else "FIN"


@contextmanager
def no_more_tasks(rig: Rig, more: int = 0) -> Iterator[None]:
    """The server gets `more` processes and threads, and then EAGAIN."""
    with Group("pids", rig.pid) as group:
        group.tasks(group.tasks_now() + more)
        yield
        group.tasks(None)


@row(26, quick=("fork",))
def test_fork_fails(case: Case) -> None:
    """A pids cgroup with no room left: for a client's child, or for the successor of a killed worker."""
    rig = case.make()
    near, far = rig.open()
    if case.subject in POOLS:
        with Group("pids", rig.pid) as group:
            group.tasks(1)
            holder = server_of(rig, near)
            victim = next(pid for pid in child_pids(rig.pid) if pid != holder)
            os.kill(victim, 9)
            rig.tunnel.wait_for_lines("cannot start a worker: Resource temporarily unavailable")
            exchange(near, far, MB)
            if case.subject != "prefork-reuseport":
                rig.transfer()
            group.tasks(None)
        wait_until(lambda: len(child_pids(rig.pid)) == rig.workers, 5.0, "the killed worker has a successor")
        case.reason("cannot start a worker", 1, 8)
        case.reason(f"worker {victim} was killed")
        return
    with no_more_tasks(rig):
        dropped = [rig.silent() for _ in range(3)]
        for stream in dropped:
            assert stream.how_it_ends(1.0) in ENDED
        exchange(near, far, MB)
    case.reason("client dropped: cannot fork: Resource temporarily unavailable", len(dropped))


@row(27, quick=("thread",))
def test_thread_does_not_start(case: Case) -> None:
    """A pids cgroup: no room for a client's thread, for one of its two, or for all of a pool."""
    if case.subject in POOLS_OF_THREADS:
        with Group("pids") as group:
            group.tasks(6)
            rig = case.make(workers=8, prefix=group.prefix, warm=False)
            rig.tunnel.wait_for_lines("pool has 5 threads of 8: can't start new thread")
            case.watch(rig)
            for stream in [rig.silent() for _ in range(3)]:
                stream.sock.sendall(pattern(100))  # the drain would be a thread, too
                assert stream.how_it_ends(1.0) in ENDED
            group.tasks(None)
            case.reason("handshake failed", 3)
            case.reason("connection to None cut: can't start new thread", 3)
            case.look()
        return
    rig = case.make()
    near, far = rig.open()
    with no_more_tasks(rig):
        for stream in [rig.silent() for _ in range(3)]:
            assert stream.how_it_ends(1.0) in ENDED
        exchange(near, far, MB)
    case.reason("client dropped: can't start new thread", 3)
    if case.subject == "thread":  # which needs two
        with no_more_tasks(rig, 1):
            half = rig.near()
            rig.far()
            assert half.how_it_ends(1.0) in ENDED
        case.reason("cut: can't start new thread")


@row(28, quick=("select",))
def test_descriptor_1024(case: Case) -> None:
    """1,050 silent clients, and two that ask for a target when no number below 1024 is left."""
    crowds.test_descriptor_1024_of_select_is_refused_in_a_clear_line(case.make)
    case.reason("client refused: select cannot watch descriptor 1024 ", 1, 1100)
    case.reason("cannot connect to .*: .*select cannot watch descriptor 1024", 2)


@row(29, peers=PEERS, cannot={"select": "it watches 1,024 descriptors at most: its lesson"})
def test_ten_thousand_idle_connections(case: Case) -> None:
    """10,000 clients that have said nothing, then a transfer among them; twice, to one process."""
    own = resource.getrlimit(resource.RLIMIT_NOFILE)
    if own[1] < IDLE + 500:
        lacking(f"{own[1]} descriptors are all that a process may have here (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (own[1], own[1]))
    try:
        # Each worker keeps the memory of its own largest crowd, and the kernel shares out a crowd anew each
        # time: a pool grows for some rounds, and loses nothing. With one, the second time tells a leak.
        workers = 1 if case.model and case.model.master else 0
        rig = case.make("--handshake-timeout", "600", workers=workers)
        before = memory(rig.pid)
        grown = []
        for _ in range(2):  # what the first ones have left is enough for the second ones
            idle = [rig.silent() for _ in range(IDLE)]
            rig.transfer(within=3.0)
            grown.append(memory(rig.pid) - before)
            rig.idles(1.0, part=0.05)  # poll(2) is given each of them whenever it is called: once a second
            for stream in idle:
                stream.close()
            rig.settles(within=10.0)
        each = grown[0] / 1000 / IDLE
        assert each < IDLE_KB, f"{each:.1f} KB for each"
        assert grown[1] < 1.1 * grown[0] + MB, f"{grown[0] / MB:.0f} MB, then {grown[1] / MB:.0f} MB"
        case.note(f"{each:.1f} KB each")
        case.allow_growth(max(grown))  # it is free, but the process keeps it
        case.look()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, own)


@row(30, quick=("trampoline",), peers=PEERS)
def test_flood_past_the_backlog(case: Case) -> None:
    """A backlog of 2 by option and 30 connects at once; then everything as usual."""
    crowds.test_flood_beyond_the_backlog_is_recovered_from(case.make)


@row(31)
def test_out_of_memory(case: Case) -> None:
    """A memory cgroup with 2 MB left (`fork`: 30 MB), and clients that need more, until the kernel kills."""
    with Group("memory") as group:
        rig = case.make(prefix=group.prefix)
        group.memory(group.memory_now() + (30 if case.subject == "fork" else 2) * MB)
        streams: list[Stream] = []
        deadline = time.monotonic() + 10.0
        while not group.killed() and time.monotonic() < deadline:
            streams.append(rig.near())
            with suppress(OSError):
                streams.append(rig.far())
                streams[-1].push(pattern(MB), 5 * MB, 0.05)
        group.memory(None)
        assert group.killed(), "nobody was killed"
        for stream in streams:
            stream.close()
        assert is_alive(rig.pid), "the server itself was killed"
        if rig.workers:
            wait_until(lambda: len(child_pids(rig.pid)) == rig.workers, 8.0, "who was killed has a successor")
        case.reason("was killed by SIGKILL", 1 if rig.workers else 0, 8)
        case.reason("client dropped: cannot fork|cannot start a worker|cut: ", 0, 100)
        case.look()
