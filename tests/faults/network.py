"""A network of the test's own, and a name server in it that answers as it is told.

    with Network():                     a network namespace: this thread's sockets, and its processes
        with NameServer(...) as names:  127.0.0.1:53 there
            Rig(..., prefix=names.prefix)   sees it in /etc/resolv.conf, by a mount namespace

Rules: nothing of the machine's own network or files is changed. It takes root.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.faults.tools import lacking, require, require_root

CLONE_NEWNET = 0x40000000  # <sched.h>
A, AAAA = 1, 28
NO_SUCH_NAME = 3
RESOLV_CONF = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"
Answer = Callable[[int], "list[str] | None"]  # of a question's type; None: says nothing at all


class Network:
    """A network with a loopback interface and nothing else."""

    def __init__(self) -> None:
        require_root("a network of its own")
        require("ip")

    def __enter__(self) -> Network:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._call("unshare", CLONE_NEWNET)
        except OSError as error:
            os.close(self._home)
            lacking(f"no network namespace can be made: {os.strerror(error.errno or 0)}")
        try:
            self.run("ip", "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._call("setns", self._home, CLONE_NEWNET)
        os.close(self._home)

    def _call(self, name: str, *arguments: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc[name](*arguments):
            raise OSError(ctypes.get_errno(), name)

    def run(self, *command: str) -> None:
        """A kernel may have been built without what it asks for."""
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lacking(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")

    def drop(self, match: str) -> None:
        """Packets of this kind are lost on their way in."""
        require("nft")
        for line in (
            "add table inet faults",
            "add chain inet faults in { type filter hook input priority 0; }",
            f"add rule inet faults in {match} drop",
        ):
            self.run("nft", line)

    def dialled(self) -> int:
        """How many connections were begun here since it was made."""
        lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
        names, values = (line for line in lines if line[0] == "Tcp:")
        return int(values[names.index("ActiveOpens")])


class NameServer:
    """Answers A and AAAA."""

    def __init__(self, directory: Path, names: Mapping[str, Answer]) -> None:
        require("unshare")
        self.asked: list[tuple[str, int]] = []
        self._names = names
        path = directory / "resolv.conf"
        path.write_text(RESOLV_CONF)
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        self.prefix = ["unshare", "--mount", "sh", "-c", script, str(path)]
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        self._socket.settimeout(0.2)
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join(5)
        self._socket.close()

    def _run(self) -> None:
        while not self._ended:
            try:
                question, client = self._socket.recvfrom(2000)
            except TimeoutError:
                continue
            if answer := self._answer(question):
                self._socket.sendto(answer, client)

    def _answer(self, packet: bytes) -> bytes | None:
        labels, place = [], 12
        while size := packet[place]:
            labels.append(packet[place + 1 : place + 1 + size].decode())
            place += 1 + size
        kind = int.from_bytes(packet[place + 1 : place + 3], "big")
        name = ".".join(labels)
        self.asked.append((name, kind))
        addresses = self._names[name](kind) if name in self._names else []
        if addresses is None:
            return None
        code = 0 if name in self._names else NO_SUCH_NAME
        head = packet[:2] + (0x8180 | code).to_bytes(2, "big") + b"\0\1" + len(addresses).to_bytes(2, "big")
        records = b""
        for address in addresses:
            raw = socket.inet_pton(socket.AF_INET if kind == A else socket.AF_INET6, address)
            records += (
                b"\xc0\x0c" + kind.to_bytes(2, "big") + b"\0\1\0\0\0\0" + len(raw).to_bytes(2, "big") + raw
            )
        return head + bytes(4) + packet[12 : place + 5] + records


def always(*addresses: str) -> Answer:
    """The same ones for whoever asks."""
    return lambda kind: [address for address in addresses if (":" in address) == (kind == AAAA)]


def silence(_kind: int) -> None:
    """No answer."""
