"""What the rehearsal saves: page faults and CPU of a `fork` server per connection, with and without.

    python docs/experiments/rehearsal.py

Starts `tunnel serve --model=fork` with models._rehearsal.REHEARSALS at 0, 1 and 10, opens connections one
after the other, each with a small request and reply, and reads the kernel's counts for the server and
its reaped children (/proc/PID/stat, proc(5)). The first line is what the same process pays for a child
that exits at once. Printed in docs/performance.md.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tunnel.address import Address
from tunnel.config import new_password
from tunnel.keys import DEFAULT_METHOD, METHODS, Secret
from tunnel.session import ForwardSession

CONNECTIONS = 300
PASSWORD = new_password()
SERVER = """
import gc, os, sys
import models.fork, models._rehearsal
from tunnel.cli import main

def fork_and_wait(server):
    models._rehearsal.rehearse(server, models.fork.serve_in_child)
    gc.freeze()
    while accepted := server.accept(server.scoreboard.take()):
        for _ in range(int(sys.argv[3])):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        accepted.close()

if sys.argv[1] == "bare":
    models.fork.serve = fork_and_wait
else:
    models._rehearsal.REHEARSALS = int(sys.argv[1])
sys.exit(main(["serve", "--model=fork", "--listen=127.0.0.1:" + sys.argv[2], "--password-file=/dev/stdin"]))
"""


def main() -> None:
    target = socket.create_server(("127.0.0.1", 0), backlog=512)
    threading.Thread(target=answer, args=(target,), daemon=True).start()
    print(f"{'rehearsals':>10}{'faults/child':>14}{'faults/parent':>15}{'us/connection':>15}")
    for rehearsals in ("bare", "0", "1", "10"):
        parent, child, micros = measure(rehearsals, Address(*target.getsockname()))
        print(f"{rehearsals:>10}{child:14.0f}{parent:15.0f}{micros:15.0f}")


def measure(rehearsals: str, target: Address) -> tuple[float, float, float]:
    """Page faults of parent and child, and CPU microseconds, for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reading, writing = os.pipe()
    os.write(writing, PASSWORD.encode())
    os.close(writing)
    command = [sys.executable, "-c", SERVER, rehearsals, str(port), str(CONNECTIONS)]
    with subprocess.Popen(command, stdin=reading, stderr=subprocess.PIPE, text=True) as server:
        os.close(reading)
        assert server.stderr is not None
        while "listens on" not in server.stderr.readline():
            pass
        before = counts(server.pid)
        if rehearsals == "bare":
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.recv(1)
        else:
            for _ in range(CONNECTIONS):
                talk(port, target)
        after = settled(server.pid)
        server.terminate()
    parent, child, micros = ((b - a) / CONNECTIONS for a, b in zip(before, after, strict=True))
    return parent, child, micros


def counts(pid: int) -> tuple[int, int, float]:
    """Minor faults of a process and of its reaped children, and the CPU microseconds of both."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))
    return int(fields[7]), int(fields[8]), ticks * 1e6 / os.sysconf("SC_CLK_TCK")


def settled(pid: int) -> tuple[int, int, float]:
    """The counts once all children have been reaped."""
    while Path(f"/proc/{pid}/task/{pid}/children").read_text():
        time.sleep(0.01)
    return counts(pid)


def talk(port: int, target: Address) -> None:
    """One connection through the server: a request of 1 byte, a reply of 100."""
    session = ForwardSession(Secret.from_password(METHODS[DEFAULT_METHOD], PASSWORD), target)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        session.up.get_buffer()[0] = 1
        sock.sendall(session.up.buffer_updated(1))
        while sock.recv(4096):
            pass


def answer(target: socket.socket) -> None:
    while True:
        accepted, _ = target.accept()
        with accepted:
            accepted.recv(1)
            accepted.sendall(bytes(100))


if __name__ == "__main__":
    main()
