"""What a row takes from the machine: root, programs. Without them it skips, and says so."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {
    "nft": "nftables",
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}


def lacking(what: str) -> None:
    """Skips; where CI=true, what should be there fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            lacking(f"{program} is not on PATH: apt-get install {PACKAGES.get(program, program)}")


def require_root(what: str) -> None:
    if os.geteuid():
        pytest.skip(f"only root can have {what}")
