"""Other people's servers that can be measured beside the models, where they are on PATH.

    PEERS: row --> program --> found, and which version --> or how to get it

Rules: nothing is installed here; a peer that is not there costs one line and nothing else.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import NamedTuple

from tabulate import tabulate

VERSION = re.compile(r"\d+(?:\.\d+)+\S*")
PATIENCE = 10.0  # seconds that a program has to say its version
UNKNOWN = "unknown"


class Peer(NamedTuple):
    """One of them."""

    row: str  # its name in reports
    program: str  # on PATH
    name: str
    get: str  # how to get it
    ask: tuple[str, ...] | None  # the arguments that make it say its version; None: it cannot

    def path(self) -> str | None:
        return shutil.which(self.program)

    def version(self) -> str:
        """Its version, or UNKNOWN; what it says may be on either stream."""
        if self.ask is None:
            return UNKNOWN
        try:
            done = subprocess.run(
                [self.program, *self.ask],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return UNKNOWN
        found = VERSION.search(done.stdout + done.stderr)
        return found[0] if found else UNKNOWN


PEERS = {
    peer.row: peer
    for peer in (
        Peer("libev", "ss-server", "shadowsocks-libev", "apt-get install shadowsocks-libev", ("-h",)),
        Peer("rust", "ssserver", "shadowsocks-rust", "cargo install shadowsocks-rust", ("--version",)),
        Peer(
            "go",
            "go-shadowsocks2",
            "go-shadowsocks2",
            "go install github.com/shadowsocks/go-shadowsocks2@latest",
            None,
        ),
        Peer("v2ray", "v2ray", "v2ray", "apt-get install v2ray", ("version",)),
        Peer("pproxy", "pproxy", "pproxy", "pip install pproxy", ("--version",)),
    )
}


def found() -> dict[str, str]:
    """Version by row, of those that are here."""
    return {row: peer.version() for row, peer in PEERS.items() if peer.path()}


def listing() -> str:
    rows = []
    for row, peer in PEERS.items():
        path = peer.path()
        rows.append(
            [row, peer.name, f"{path}, version {peer.version()}" if path else f"not found: {peer.get}"]
        )
    return tabulate(rows, ["ROW", "PEER", ""], tablefmt="plain", disable_numparse=True)
