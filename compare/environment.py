"""The machine and the software that a result belongs to.

Rules: nothing is changed here, only read; what cannot be read is left out or said to be unknown; a
hostname, a user's name and paths stay at home.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import compare
from compare import peers
from compare.bench import Cores

CRYPTO_FLAGS = ("aes", "vaes", "pclmulqdq", "vpclmulqdq", "avx2", "avx512f", "sha_ni")  # x86
SYSCTLS = (
    "net/core/somaxconn",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/ip_local_port_range",
)
UNKNOWN = "unknown"


def capture(cores: Cores, command_line: Sequence[str]) -> dict[str, Any]:
    """What a reader must know to repeat a run, or to see why it came out as it did."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    model, flags = processor()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": list(command_line),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": model,
        "cpu_flags": flags,
        "cores": len(os.sched_getaffinity(0)),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "hypervisor": "hypervisor" in cpuinfo("flags").split(),
        "pinned": {"server": cores.server, "generator": cores.generator, "target": cores.target},
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cryptography": package("cryptography"),
        "openssl_of_cryptography": openssl_of_cryptography(),
        "openssl_of_python": ssl.OPENSSL_VERSION,
        "unp_tunnel": package("unp-tunnel"),
        "revision": revision(),
        "peers": {name: peers.version(name) for name in peers.found()},
        "sysctl": {name.replace("/", "."): read(f"/proc/sys/{name}") for name in SYSCTLS},
        "open_files": [soft, hard],
    }


def read(path: str) -> str:
    try:
        return " ".join(Path(path).read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return UNKNOWN


def cpuinfo(name: str) -> str:
    """The first value of that name in /proc/cpuinfo."""
    match = re.search(
        rf"^{name}\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
    )
    return match[1] if match else ""


def processor() -> tuple[str, list[str]]:
    """The processor's name, and those of its abilities that ciphers use."""
    abilities = (cpuinfo("flags") or cpuinfo("Features")).split()
    return cpuinfo("model name") or platform.machine(), [flag for flag in CRYPTO_FLAGS if flag in abilities]


def package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return UNKNOWN


def openssl_of_cryptography() -> str:
    """The OpenSSL that seals and opens: cryptography brings one of its own."""
    from cryptography.hazmat.backends.openssl.backend import backend  # noqa: PLC0415 - only for this line

    return backend.openssl_version_text()


def revision() -> str:
    """The git revision of the source that runs, if it is a checkout."""
    folder = Path(compare.__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return UNKNOWN
    described = run("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12")
    return described or UNKNOWN


def run(*program: str) -> str:
    """What a program says, on either stream."""
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip()


def command_line() -> list[str]:
    """The command as a user can repeat it: without the folder that the program lies in."""
    return ["compare", *sys.argv[1:]]
