"""What a new connection costs in user space, without the noise: instructions, cache misses, system calls.

    python docs/experiments/connection_cost.py [MODEL ...]       iterative, unless others are named

Each model runs `tunnel serve` under valgrind's callgrind, once for 100 connections and once for 300, each
with a small request and reply; the difference is what 200 connections cost, without start and end. The
simulated caches have the sizes of this machine's. A third run, under strace, counts system calls in the
same way. A pool's children would be counted one by one, so this is for models of one process.

Instructions are not time: a server that has slept wakes up with cold caches, and pays for each line of
code it comes by. Printed in docs/performance.md.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from tunnel.address import Address
from tunnel.config import new_password
from tunnel.keys import DEFAULT_METHOD, METHODS, Secret
from tunnel.session import ForwardSession

FEW, MANY = 100, 300  # connections
PASSWORD = new_password()
SECRET = Secret.from_password(METHODS[DEFAULT_METHOD], PASSWORD)
# What `compare` gives a server that does not listen on loopback: its users may go to one network.
SERVE = [sys.executable, "-m", "tunnel", "serve", "--allow=127.0.0.0/8", "--password-file=/dev/stdin"]
COLUMNS = ("instructions", "I1 misses", "D1 misses", "system calls")


def main() -> None:
    for program in ("valgrind", "strace"):
        if not shutil.which(program):
            sys.exit(f"connection_cost: {program} is not installed")
    target = socket.create_server(("127.0.0.1", 0), backlog=512)
    threading.Thread(target=answer, args=(target,), daemon=True).start()
    print(f"{'':12}" + "".join(f"{column:>14}" for column in COLUMNS))
    for model in sys.argv[1:] or ["iterative"]:
        few, many = (measure(model, number, Address(*target.getsockname())) for number in (FEW, MANY))
        costs = [(b - a) / (MANY - FEW) for a, b in zip(few, many, strict=True)]
        print(f"{model:12}" + "".join(f"{cost:14.1f}" if cost < 100 else f"{cost:14.0f}" for cost in costs))


def measure(model: str, number: int, target: Address) -> list[int]:
    """What a server's whole life cost with so many connections, in the order of COLUMNS."""
    with tempfile.TemporaryDirectory() as place:
        counts, calls = Path(place, "counts"), Path(place, "calls")
        serve(
            ["valgrind", "--tool=callgrind", "--cache-sim=yes", f"--callgrind-out-file={counts}"],
            model,
            number,
            target,
        )
        serve(["strace", "-f", "-c", "-U", "calls,name", "-o", str(calls)], model, number, target)
        return [*totals(counts.read_text()), system_calls(calls.read_text())]


def serve(under: Sequence[str], model: str, number: int, target: Address) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*under, *SERVE, f"--model={model}", f"--listen=0.0.0.0:{port}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdin
        assert server.stderr
        server.stdin.write(PASSWORD)
        server.stdin.close()
        while "listens on" not in (line := server.stderr.readline()):
            if not line:
                sys.exit(f"connection_cost: {' '.join(command)}: does not start")
        for _ in range(number):
            talk(port, target)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        os.kill(int(children[0]) if children else server.pid, signal.SIGTERM)  # valgrind is the server itself
        server.stderr.read()


def talk(port: int, target: Address) -> None:
    """One connection through the server: a request of 64 bytes, a reply of 100."""
    session = ForwardSession(SECRET, target)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        session.up.get_buffer()[:64] = bytes(64)
        sock.sendall(session.up.buffer_updated(64))
        while sock.recv(4096):
            pass


def answer(target: socket.socket) -> None:
    while True:
        accepted, _ = target.accept()
        with accepted:
            accepted.recv(64)
            accepted.sendall(bytes(100))


def totals(text: str) -> list[int]:
    """Instructions and first-level misses of a callgrind file, which names its columns."""
    lines = dict(
        line.partition(": ")[::2] for line in text.splitlines() if line.startswith(("events: ", "summary: "))
    )
    of = dict(zip(lines["events"].split(), map(int, lines["summary"].split()), strict=True))
    return [of["Ir"], of["I1mr"], of["D1mr"] + of["D1mw"]]


def system_calls(text: str) -> int:
    """The number in the last line of strace's table."""
    return int(text.splitlines()[-1].split()[0])


if __name__ == "__main__":
    main()
