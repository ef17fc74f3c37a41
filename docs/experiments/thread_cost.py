"""What a thread for each client costs: switches, page faults and CPU of `thread`, started in three ways.

    python docs/experiments/thread_cost.py

Starts `tunnel serve --model=thread` with its threads as they are, with stacks of 8 MiB, and as
`threading.Thread` starts them; then `--model=prethread`, which starts none. Opens connections, one or twenty
at a time, each with a small request and reply. The server itself says at its end what it has spent
(getrusage(2): threads that have ended are in it); a run without connections is subtracted. Printed in
docs/performance.md.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from typing import NamedTuple

from tunnel.address import Address
from tunnel.config import new_password
from tunnel.keys import DEFAULT_METHOD, METHODS, Secret
from tunnel.session import ForwardSession

CONNECTIONS = 600
PASSWORD = new_password()
SERVER = """
import _thread, resource, sys, threading
from tunnel.cli import main
import models._bare_thread as bare

def with_ceremony(self, work, *args):
    self._ended.acquire()
    threading.Thread(target=self._run, args=(work, args), daemon=True).start()

way, model, port = sys.argv[1:]
if way == "threading.Thread":
    bare.BareThread.start = with_ceremony
if way != "as it is":
    _thread.stack_size(8 * 1024 * 1024)
code = main(["serve", "--model=" + model, "--listen=127.0.0.1:" + port, "--password-file=/dev/stdin"])
spent = resource.getrusage(resource.RUSAGE_SELF)
print(spent.ru_nvcsw, spent.ru_minflt, spent.ru_utime + spent.ru_stime)
"""


class Spent(NamedTuple):
    switches: float
    faults: float
    seconds: float


def main() -> None:
    target = socket.create_server(("127.0.0.1", 0), backlog=512)
    threading.Thread(target=answer, args=(target,), daemon=True).start()
    print(f"{'at once':8}{'model':10}{'threads':20}{'switches':>10}{'faults':>10}{'us/connection':>15}")
    for at_once in (1, 20):
        for model, way in (
            ("thread", "threading.Thread"),
            ("thread", "stacks of 8 MiB"),
            ("thread", "as it is"),
            ("prethread", "as it is"),
        ):
            nothing = spent(model, way, 0, at_once, Address(*target.getsockname()))
            all_of_it = spent(model, way, CONNECTIONS, at_once, Address(*target.getsockname()))
            each = Spent(*((b - a) / CONNECTIONS for a, b in zip(nothing, all_of_it, strict=True)))
            row = f"{each.switches:10.1f}{each.faults:10.1f}{each.seconds * 1e6:15.0f}"
            print(f"{at_once:<8}{model:10}{way:20}{row}")


def spent(model: str, way: str, connections: int, at_once: int, target: Address) -> Spent:
    """What a server spends on so many connections, its start and end included."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reading, writing = os.pipe()
    os.write(writing, PASSWORD.encode())
    os.close(writing)
    command = [sys.executable, "-c", SERVER, way, model, str(port)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=reading, stdout=pipe, stderr=pipe, text=True) as server:
        os.close(reading)
        assert server.stderr is not None
        assert server.stdout is not None
        while "listens on" not in server.stderr.readline():
            pass
        for _ in range(connections // at_once):
            talk(port, target, at_once)
        server.send_signal(signal.SIGTERM)
        return Spent(*map(float, server.stdout.read().split()))


def talk(port: int, target: Address, at_once: int) -> None:
    """Connections that are there at once: for each a request of 1 byte, a reply of 100."""
    secret = Secret.from_password(METHODS[DEFAULT_METHOD], PASSWORD)
    clients = []
    for _ in range(at_once):
        session = ForwardSession(secret, target)
        client = socket.create_connection(("127.0.0.1", port))
        session.up.get_buffer()[0] = 1
        client.sendall(session.up.buffer_updated(1))
        clients.append(client)
    for client in clients:
        with client:
            while client.recv(4096):
                pass


def answer(target: socket.socket) -> None:
    while True:
        accepted, _ = target.accept()
        with accepted:
            accepted.recv(1)
            accepted.sendall(bytes(100))


if __name__ == "__main__":
    main()
