"""Other people's Shadowsocks servers and clients, measured beside ours wherever they are on PATH.

    row      server            its client        what it is            password
    libev    ss-server         ss-local          C, an epoll loop      in a file
    rust     ssserver          sslocal           Rust, tokio           in a file
    go       go-shadowsocks2   the same          Go, goroutines        in its arguments
    v2ray    v2ray             not measured      Go, goroutines        in a file
    pproxy   pproxy            not measured      Python, asyncio       in its arguments

Rules: each is started as its own manual says, and at its best: `no_delay` is set for libev and rust, whose
default is off. Without it Nagle's algorithm waits for the delayed acknowledgement of the other side:
44 ms p99 and 4 MB/s with 16 KB replies on ten connections, which nobody who runs them would put up with.
Go's and asyncio's sockets have it on, and so have ours. Nothing else is tuned. The password goes into a
file that only we can read where the program takes one. Ours is no secret, and the test says which of
them would show theirs.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import NamedTuple

from tabulate import tabulate

from tunnel.config import LOCAL, SERVE

GO_METHODS = {
    "aes-128-gcm": "AEAD_AES_128_GCM",
    "aes-256-gcm": "AEAD_AES_256_GCM",
    "chacha20-ietf-poly1305": "AEAD_CHACHA20_POLY1305",
}
VERSION = 10.0  # seconds that a program has to tell its version
HAS = (
    "import sys; from importlib.util import find_spec as found;"
    " print(*(found(name) is not None for name in sys.argv[1:]))"
)


class Listen(NamedTuple):
    """What a peer is told."""

    port: int
    method: str
    password: str
    folder: str  # for its config file
    address: str = "127.0.0.1"
    server: int | None = None  # of a client: the port of the server that it leads to, on that address


class Client(NamedTuple):
    """The other end of a peer: a SOCKS5 proxy."""

    program: str
    command: Callable[[Listen], list[str]]


class Peer(NamedTuple):
    """How a peer is found and started."""

    name: str  # of its row
    program: str
    summary: str
    command: Callable[[Listen], list[str]]
    version: tuple[str, ...]  # arguments that make it tell its version
    get: str  # how to get it
    fin: bool = True  # it passes a FIN on; others close seconds after it
    shows_password: bool = False  # in its arguments: it has no other way
    client: Client | None = None  # None: it is not measured

    def program_of(self, end: str) -> str | None:
        """What is started at that end."""
        if end == SERVE:
            return self.program
        return self.client.program if self.client else None


def write(listen: Listen, config: object) -> str:
    """The path of a config file that only we can read."""
    path = os.path.join(listen.folder, "config.json")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(config, file)
    return path


def shadowsocks_config(listen: Listen) -> dict[str, object]:
    """What shadowsocks-libev began, and others read; of a client where there is a server to lead to."""
    here: dict[str, object] = {"server": listen.address, "server_port": listen.port}
    if listen.server is not None:
        here = {
            "server": listen.address,
            "server_port": listen.server,
            "local_address": listen.address,
            "local_port": listen.port,
        }
    return {**here, "password": listen.password, "method": listen.method, "no_delay": True}


def libev(listen: Listen) -> list[str]:
    path = write(listen, shadowsocks_config(listen))
    return ["ss-server", "-s", listen.address, "-p", str(listen.port), "-m", listen.method, "-c", path]


def rust(listen: Listen) -> list[str]:
    return ["ssserver", "-c", write(listen, shadowsocks_config(listen))]


def of_a_file(program: str) -> Callable[[Listen], list[str]]:
    """A client that a configuration file is enough for."""
    return lambda listen: [program, "-c", write(listen, shadowsocks_config(listen))]


def go(listen: Listen) -> list[str]:
    uri = (
        f"ss://{GO_METHODS[listen.method]}:{listen.password}@{listen.address}:{listen.server or listen.port}"
    )
    if listen.server is None:
        return ["go-shadowsocks2", "-s", uri]
    return ["go-shadowsocks2", "-c", uri, "-socks", f"{listen.address}:{listen.port}"]


def v2ray(listen: Listen) -> list[str]:
    settings = {"method": listen.method, "password": listen.password, "network": "tcp"}
    inbound = {
        "listen": listen.address,
        "port": listen.port,
        "protocol": "shadowsocks",
        "settings": settings,
    }
    config = {"log": {"loglevel": "error"}, "inbounds": [inbound], "outbounds": [{"protocol": "freedom"}]}
    how = ["-config"] if v2ray_major() == 4 else ["run", "-c"]
    return ["v2ray", *how, write(listen, config)]


def pproxy(listen: Listen) -> list[str]:
    return ["pproxy", "-l", f"ss://{listen.method}:{listen.password}@{listen.address}:{listen.port}"]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "libev",
            "ss-server",
            "shadowsocks-libev, a C program on an epoll loop",
            libev,
            ("-h",),
            "apt-get install shadowsocks-libev",
            client=Client("ss-local", of_a_file("ss-local")),
        ),
        Peer(
            "rust",
            "ssserver",
            "shadowsocks-rust, on tokio",
            rust,
            ("--version",),
            "cargo install shadowsocks-rust",
            client=Client("sslocal", of_a_file("sslocal")),
        ),
        Peer(
            "go",
            "go-shadowsocks2",
            "a goroutine for each direction",
            go,
            (),
            "go install github.com/shadowsocks/go-shadowsocks2@latest (it asks a Go module proxy)",
            fin=False,
            shows_password=True,
            client=Client("go-shadowsocks2", go),
        ),
        Peer(
            "v2ray",
            "v2ray",
            "V2Ray's Shadowsocks inbound, goroutines",
            v2ray,
            ("-version",),
            "apt-get install v2ray",
            fin=False,
        ),
        Peer(
            "pproxy",
            "pproxy",
            "Python, asyncio streams",
            pproxy,
            ("--version",),
            "pip install pproxy pycryptodome, in a venv without uvloop",
            shows_password=True,
        ),
    )
}


def found(end: str = SERVE) -> list[str]:
    """The names of those that are on PATH, at that end."""
    programs = {peer.name: peer.program_of(end) for peer in PEERS.values()}
    return [name for name, program in programs.items() if program and shutil.which(program)]


def listing() -> str:
    """A line for each: where it is and which version, or how to get it; below, what is wrong with it."""
    rows = []
    for peer in PEERS.values():
        path = shutil.which(peer.program)
        state = f"{path}, version {version(peer.name)}" if path else f"not found: {peer.get}"
        client = peer.program_of(LOCAL)
        end = "-" if client is None else shutil.which(client) or f"{client} not found"
        rows.append([peer.name, end, state])
    table = tabulate(rows, ["ROW", "CLIENT", "SERVER"], tablefmt="plain", disable_numparse=True)
    return "\n".join([table, *(f"{name}: {note}" for name, note in notes().items())])


def notes() -> dict[str, str]:
    """What makes a peer that is here slower than it is, or keeps it from starting."""
    path = shutil.which("pproxy")
    return {"pproxy": wrong} if path and (wrong := wrong_with_pproxy(path)) else {}


def wrong_with_pproxy(path: str) -> str | None:
    """Asked of the Python that its script names: what that finds, pproxy uses."""
    try:
        with open(path, encoding="utf-8", errors="replace") as script:
            interpreter = script.readline().removeprefix("#!").strip()
    except OSError:
        return None
    said = said_by(interpreter, "-c", HAS, "Crypto", "uvloop").split()
    if said[1:] == ["True"]:
        return "uvloop is beside it, with which pproxy 2.7.9 does not start: use a venv without it"
    if said[:1] == ["False"]:
        slow = "pycryptodome is missing, so its ciphers are plain Python, 30 times slower"
        return f"{slow}: pip install pycryptodome"
    return None


def version(name: str) -> str:
    """What a peer says of its version; "unknown" where it does not."""
    peer = PEERS[name]
    said = said_by(peer.program, *peer.version) if peer.version else ""
    match = re.search(r"\d+\.\d+[.\w]*", said)
    return match[0] if match else "unknown"


@functools.cache
def v2ray_major() -> int:
    """4 is started by -config, 5 by run."""
    match = re.search(r"V2Ray (\d+)\.", said_by("v2ray", "-version"))
    return int(match[1]) if match else 5


def said_by(*program: str) -> str:
    """What a program says, on either stream."""
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=VERSION, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip()
