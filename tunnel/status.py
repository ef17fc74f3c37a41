"""`tunnel status`: the scoreboard of a running server, read from outside.

    /proc/PID/fd/N -> /memfd:tunnel-scoreboard    opened read-only: the kernel says whose servers we may see
                      /memfd:tunnel-salts         how many replays there were (or the --replay-file)
                      /memfd:tunnel-limits        how many were refused
    /proc/net/tcp                                 the depth of the accept queue (rx_queue of a listener)

Rules: looking costs the server nothing; it is not asked, stopped or told.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import socket
import stat
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from models import _limits
from models._scoreboard import MAGIC, NAME, STATES, Board, Entry, Totals, size_of
from tunnel import replay
from tunnel.address import Address

EVERY = 1.0  # seconds, of --watch
LISTEN = "0A"  # the state of a listening socket in /proc/net/tcp


class Listener(NamedTuple):
    """A listening socket, and how many connections wait in its queue for accept."""

    host: str
    port: int
    queue: int

    @property
    def place(self) -> Address:
        return Address(self.host, self.port)


class Found(NamedTuple):
    """A running server: its scoreboard, and the process that made it."""

    pid: int
    board: Board
    listeners: list[Listener]
    replays: int  # salts that came again
    open: int | None  # connections, where there are limits
    refused: int  # that --max-per-source did not admit


def print_status(arguments: argparse.Namespace) -> int:
    """Shows one server, or all that match. Returns an exit code."""
    while True:
        servers = [server for server in find() if matches(server, arguments)]
        if not servers:
            print(
                "tunnel status: no such server of yours is running (without options it shows all that are)",
                file=sys.stderr,
            )
            return os.EX_UNAVAILABLE
        if arguments.watch and not arguments.json:
            print("\033[H\033[J", end="")
        for server in servers:
            print(json.dumps(as_json(server)) if arguments.json else as_text(server), flush=True)
        if not arguments.watch:
            return os.EX_OK
        time.sleep(EVERY)


def matches(server: Found, arguments: argparse.Namespace) -> bool:
    pids = {server.pid, *(entry.pid for entry in server.board.entries())}
    places = {listener.place for listener in server.listeners}
    return (
        (arguments.pid is None or arguments.pid in pids)
        and (arguments.port is None or arguments.port in {place.port for place in places})
        and (arguments.socket is None or arguments.socket in places)
    )


def find() -> Iterator[Found]:
    """The servers whose memory this user may read, each once, under the process that made the board."""
    queues = accept_queues()
    for name in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        board = board_of(name)
        if board is not None and board.totals().pid == int(name):
            yield Found(int(name), board, listeners_of(name, queues), *counts_of(name))


def board_of(pid: str) -> Board | None:
    for fd, target in descriptors(pid):
        if NAME in target:
            memory = mapped(pid, fd, MAGIC)
            if memory and len(memory) >= size_of(0) and len(memory) == size_of(slots := slots_in(memory)):
                return Board(memory, slots)
            return None  # of another version, which has another layout
    return None


def slots_in(memory: mmap.mmap) -> int:
    return Board(memory, 0).totals().slots


def counts_of(pid: str) -> tuple[int, int | None, int]:
    """Replays, connections that are open and that were refused, as the server remembers them."""
    replays, open_, refused = 0, None, 0
    for fd, target in descriptors(pid):
        if target.startswith("/") and (memory := mapped(pid, fd, replay.MAGIC, replay.SIZE)):
            replays = replay.replays_in(memory)
        elif _limits.NAME in target and (memory := mapped(pid, fd, _limits.MAGIC)):
            open_, refused = _limits.read_counts(memory)
    return replays, open_, refused


def mapped(pid: str, fd: str, magic: bytes, size: int = 0) -> mmap.mmap | None:
    """A server's memory, unless it is something else, of another version, or only just being made."""
    try:
        status = os.stat(path := f"/proc/{pid}/fd/{fd}")
        if not stat.S_ISREG(status.st_mode) or not status.st_size or size not in (0, status.st_size):
            return None
        with open(path, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except OSError:
        return None
    return memory if memory[: len(magic)] == magic else None


def descriptors(pid: str) -> Iterator[tuple[str, str]]:
    """Descriptor and what it leads to; nothing of a process that has gone or is not ours."""
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            yield fd, os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return


def accept_queues() -> dict[str, Listener]:
    """Every listening socket of this network namespace, by its inode."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                lines = file.readlines()[1:]
        except FileNotFoundError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == LISTEN:
                host, _, port = fields[1].partition(":")
                queue = fields[4].partition(":")[2]
                found[fields[9]] = Listener(host_of(host), int(port, 16), int(queue, 16))
    return found


def host_of(words: str) -> str:
    """The literal of an address as /proc/net/tcp has it: 32-bit words, each in the machine's order."""
    packed = struct.pack(f"!{len(words) // 8}I", *struct.unpack(f"={len(words) // 8}I", bytes.fromhex(words)))
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def listeners_of(pid: str, queues: dict[str, Listener]) -> list[Listener]:
    """Each once, although a loop has more than one descriptor for it."""
    links = dict.fromkeys(target for _, target in descriptors(pid) if target.startswith("socket:["))
    inodes = (link[len("socket:[") : -1] for link in links)
    return [queues[inode] for inode in inodes if inode in queues]


def sums(server: Found) -> tuple[Totals, list[Entry], int, int, int, int]:
    """The header, the slots, and connections, bytes and failed handshakes of both together."""
    totals, entries = server.board.totals(), server.board.entries()
    return (
        totals,
        entries,
        totals.connections + sum(entry.connections for entry in entries),
        totals.up + sum(entry.up for entry in entries),
        totals.down + sum(entry.down for entry in entries),
        totals.drained + sum(entry.drained for entry in entries),
    )


def as_json(server: Found) -> dict[str, Any]:
    totals, entries, connections, up, down, drained = sums(server)
    now = time.monotonic()
    return {
        "pid": server.pid,
        "command": totals.command,
        "model": totals.model,
        "started": totals.started,
        "listeners": [listener._asdict() for listener in server.listeners],
        "connections": connections,
        "up": up,
        "down": down,
        "drained": drained,
        "replays": server.replays,
        "open": server.open,
        "refused": server.refused,
        "slots": [
            {
                "slot": entry.number,
                "pid": entry.pid,
                "tid": entry.tid,
                "state": STATES[entry.state],
                "leaving": entry.leaving,
                "seconds": round(now - entry.since, 3),
                "connections": entry.connections,
                "up": entry.up,
                "down": entry.down,
                "drained": entry.drained,
            }
            for entry in entries
        ],
    }


def as_text(server: Found) -> str:
    from tabulate import tabulate  # noqa: PLC0415

    totals, entries, connections, up, down, drained = sums(server)
    now = time.monotonic()
    queues: Counter[Address] = Counter()  # several listeners may share a place
    for listener in server.listeners:
        queues[listener.place] += listener.queue
    places = ", ".join(f"{place} ({queue} in the accept queue)" for place, queue in queues.items())
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(totals.started))
    rows = [
        (
            entry.number,
            entry.pid,
            entry.tid,
            STATES[entry.state] + ", leaving" * entry.leaving,
            f"{now - entry.since:.1f}",
            entry.connections,
            f"{entry.up / 1e6:.1f}",
            f"{entry.down / 1e6:.1f}",
        )
        for entry in entries
    ]
    headers = ("slot", "pid", "tid", "state", "for s", "connections", "MB up", "MB down")
    noun = "connection" if connections == 1 else "connections"
    return (
        f"tunnel {totals.command}, model {totals.model}, pid {server.pid}, since {since}: "
        f"{places or 'not listening'}\n"
        f"{connections} {noun}, {up / 1e6:.1f} MB up, {down / 1e6:.1f} MB down\n"
        f"handshakes failed and drained: {drained}, replays among them: {server.replays}"
        + (f"; open: {server.open}, refused: {server.refused}" if server.open is not None else "")
        + "\n\n"
        + tabulate(rows, headers, disable_numparse=True, colalign=("right",) * 3 + ("left",) + ("right",) * 4)
        + "\n"
    )
