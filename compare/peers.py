"""Other people's Shadowsocks servers, measured beside the models wherever they are on PATH.

    libev    ss-server         C, an epoll loop            password in a file
    rust     ssserver          Rust, tokio                 password in a file
    go       go-shadowsocks2   Go, goroutines              password in its arguments
    v2ray    v2ray             Go, goroutines              password in a file
    pproxy   pproxy            Python, asyncio             password in its arguments

Rules: each is started as its own manual says, with one stream cipher setting and nothing tuned; the
password goes into a file that only we can read where the program takes one. Ours is no secret, and
the test says which of them would show theirs.
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

GO_METHODS = {
    "aes-128-gcm": "AEAD_AES_128_GCM",
    "aes-256-gcm": "AEAD_AES_256_GCM",
    "chacha20-ietf-poly1305": "AEAD_CHACHA20_POLY1305",
}
VERSION = 10.0  # seconds that a program has to tell its version


class Listen(NamedTuple):
    """What a peer is told."""

    port: int
    method: str
    password: str
    folder: str  # for its config file
    address: str = "127.0.0.1"


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


def write(listen: Listen, config: object) -> str:
    """The path of a config file that only we can read."""
    path = os.path.join(listen.folder, "config.json")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(config, file)
    return path


def shadowsocks_config(listen: Listen) -> dict[str, object]:
    """What shadowsocks-libev began, and others read."""
    return {
        "server": listen.address,
        "server_port": listen.port,
        "password": listen.password,
        "method": listen.method,
    }


def libev(listen: Listen) -> list[str]:
    path = write(listen, shadowsocks_config(listen))
    return ["ss-server", "-s", listen.address, "-p", str(listen.port), "-m", listen.method, "-c", path]


def rust(listen: Listen) -> list[str]:
    return ["ssserver", "-c", write(listen, shadowsocks_config(listen))]


def go(listen: Listen) -> list[str]:
    uri = f"ss://{GO_METHODS[listen.method]}:{listen.password}@{listen.address}:{listen.port}"
    return ["go-shadowsocks2", "-s", uri]


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
        ),
        Peer(
            "rust",
            "ssserver",
            "shadowsocks-rust, on tokio",
            rust,
            ("--version",),
            "cargo install shadowsocks-rust",
        ),
        Peer(
            "go",
            "go-shadowsocks2",
            "a goroutine for each direction",
            go,
            (),
            "go install github.com/shadowsocks/go-shadowsocks2@latest",
            fin=False,
            shows_password=True,
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
            "pip install pproxy",
            shows_password=True,
        ),
    )
}


def found() -> list[str]:
    """The names of those that are on PATH."""
    return [peer.name for peer in PEERS.values() if shutil.which(peer.program)]


def listing() -> str:
    """A line for each: where it is and which version, or how to get it."""
    rows = []
    for peer in PEERS.values():
        path = shutil.which(peer.program)
        state = f"{path}, version {version(peer.name)}" if path else f"not found: {peer.get}"
        rows.append([peer.name, state])
    return tabulate(rows, ["ROW", ""], tablefmt="plain", disable_numparse=True)


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
