"""What a row takes from the machine: root, programs, namespaces. Without them it skips, and says so.

Where CI=true, a program that is not installed is a failure: `make test` installs them. What the kernel does
not give is none.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

PACKAGES = {
    "nft": "nftables",
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}


def lacking(what: str) -> NoReturn:
    """The kernel, or whoever set its limits, does not give it."""
    pytest.skip(what)


def not_installed(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            not_installed(f"{program} is not on PATH: apt-get install {PACKAGES.get(program, program)}")


def require_root(what: str) -> None:
    if os.geteuid():
        pytest.skip(f"only root can have {what}")
