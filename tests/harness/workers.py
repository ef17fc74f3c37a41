"""Every worker of a pool, where the kernel or the model would give all clients to a few of them.

    blocking pools      who has a client has no time for another: as many clients as there are workers
    loops, one listener whoever has one is stopped (SIGSTOP), and the next client goes to another worker
    loops, their own    the kernel deals by port: clients come until all have one

Rules: nobody is left stopped. Whom a client came to is read from the kernel, not believed.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from models import MODELS
from tests.harness.rig import Rig
from tests.harness.stream import Stream
from tests.harness.tree import child_pids, stop, wait_until

MANY = 400  # clients after which every one of eight listeners has had one, but for a chance of 10^-22
ACCEPTED = 5.0  # seconds
TABLE = Path("/proc/thread-self/net/tcp")
ESTABLISHED = "01"


def servers_of(rig: Rig) -> dict[int, int]:
    """The pid of the worker that holds it, by the port of each client."""
    clients = {}
    for line in TABLE.read_text().splitlines()[1:]:
        _, here, there, state, *more = line.split()
        if state == ESTABLISHED and here.endswith(f":{rig.place.port:04X}"):
            clients[f"socket:[{more[5]}]"] = int(there.rpartition(":")[2], 16)
    found = {}
    for pid in child_pids(rig.pid):
        with contextlib.suppress(FileNotFoundError):  # one that was asked to end, or a client that left
            for fd in os.scandir(f"/proc/{pid}/fd"):
                if client := clients.get(os.readlink(fd.path)):
                    found[client] = pid
    return found


def holders_of(rig: Rig, streams: Collection[Stream]) -> list[int]:
    """The workers that have them, once all have been accepted."""
    ports = [stream.sock.getsockname()[1] for stream in streams]
    wait_until(lambda: servers_of(rig).keys() >= set(ports), ACCEPTED, "workers have accepted all clients")
    servers = servers_of(rig)
    return [servers[port] for port in ports]


def takes_turns(rig: Rig) -> bool:
    """Loops that share a listener: one of them may take all clients, and must be stopped for others to."""
    model = MODELS[rig.model]
    return rig.workers > 1 and model.family == "loop" and not model.reuse_port


def one_in_each(rig: Rig, connect: Callable[[], Stream]) -> list[Stream]:
    """A client in every worker, some of which may have more; all of them stay."""
    streams: list[Stream] = []
    if takes_turns(rig):
        with contextlib.ExitStack() as stopped:
            for _ in range(rig.workers):
                streams.append(connect())
                stopped.enter_context(stands_still(*holders_of(rig, streams[-1:])))
    while len(streams) < MANY and len(set(holders_of(rig, streams))) < rig.workers:
        streams += [connect() for _ in range(rig.workers)]
    assert set(holders_of(rig, streams)) == set(child_pids(rig.pid)), "some of the workers have no client"
    return streams


@contextlib.contextmanager
def stands_still(pid: int) -> Iterator[None]:
    stop(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def alone(rig: Rig, pid: int) -> Iterator[None]:
    """The only one of its pool that can do anything."""
    with contextlib.ExitStack() as stopped:
        for other in child_pids(rig.pid):
            if other != pid:
                stopped.enter_context(stands_still(other))
        yield
