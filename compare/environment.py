"""The machine and the software that a result belongs to, and what of it makes figures doubtful.

    capture --> Result.environment --> doubts: sentences, for the run's start and every report
                                   `--> unlike: what two results do not share, for `compare diff`

Rules: nothing is changed here, only read; what cannot be read is left out or said to be unknown; a
hostname, a user's name and paths stay at home.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import ssl
import time
from collections.abc import Mapping, Sequence
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
LOOPS = ("uvloop", "tornado", "setproctitle", "psutil")  # what a model may run on
LIMITS = {"processes": resource.RLIMIT_NPROC, "address_space": resource.RLIMIT_AS}
UNKNOWN = "unknown"
STEADY = ("performance", UNKNOWN)  # governors that leave the clock alone, or are the host's business
CROWDED = 0.5  # load average of a core
STOLEN = 0.01  # of the cores' time
SAME_MACHINE = {  # what figures depend on; the key, and its name for people
    "cpu": "processor",
    "cores": "cores",
    "kernel": "kernel",
    "governor": "governor",
    "pinned": "pinning",
    "python": "Python",
    "cryptography": "cryptography",
    "openssl_of_cryptography": "OpenSSL",
    "cpu_source": "source of CPU times",
    "generators": "machines that make the load",
}


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
        "pinned": {name: list(numbers) for name, numbers in cores._asdict().items()},
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libc": " ".join(platform.libc_ver()).strip() or UNKNOWN,
        "cryptography": package("cryptography"),
        "loops": {name: found for name in LOOPS if (found := package(name)) != UNKNOWN},
        "openssl_of_cryptography": openssl_of_cryptography(),
        "openssl_of_python": ssl.OPENSSL_VERSION,
        "unp_tunnel": package("unp-tunnel"),
        "revision": revision(),
        "peers": {name: peers.version(name) for name in peers.found()},
        "peer_notes": peers.notes(),
        "sysctl": {name.replace("/", "."): read(f"/proc/sys/{name}") for name in SYSCTLS},
        "open_files": [soft, hard],
        "limits": {name: list(resource.getrlimit(which)) for name, which in LIMITS.items()},
        "cpu_quota": read("/sys/fs/cgroup/cpu.max"),
        "clock": read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "turbo": read("/sys/devices/system/cpu/cpufreq/boost"),
        "steal_seconds": 0.0,  # of all cores, during the run
    }


def doubts(env: Mapping[str, Any], elapsed: float = 0.0) -> list[str]:
    """What makes this machine's figures doubtful. Nothing is tuned: whose machine it is, decides."""
    found = []
    governor, cores = env.get("governor", UNKNOWN), env.get("cores", 1)
    if governor not in STEADY:
        found.append(f"The frequency governor is {governor}: the clock changes with the load.")
    if cores < 2:
        found.append("One core: server, generator and target share it; only CPU times mean something.")
    load = env.get("load_average", [0.0])[0]
    if load > CROWDED * cores:
        found.append(f"The load average was {load:g} before the run: others were at work.")
    stolen = env.get("steal_seconds", 0.0)
    if elapsed and stolen > STOLEN * elapsed * cores:
        part = 100 * stolen / (elapsed * cores)
        found.append(f"The hypervisor kept the cores from us for {part:.1f}% of the time (steal).")
    quota = env.get("cpu_quota", UNKNOWN)
    if quota not in (UNKNOWN, "") and not quota.startswith("max"):
        found.append(f"A quota limits the CPU (cpu.max: {quota}): samples may have been throttled.")
    if str(env.get("revision", "")).endswith("-dirty"):
        found.append(f"The source had changes that are not committed (revision {env['revision']}).")
    found += [f"{name}: {note}." for name, note in env.get("peer_notes", {}).items()]
    found += [f"Resumed: {note}" for note in env.get("resumed", ())]
    return found


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What two environments do not share, of what figures depend on."""
    return [
        f"{name}: {one.get(key, UNKNOWN)} and {other.get(key, UNKNOWN)}"
        for key, name in SAME_MACHINE.items()
        if json.dumps(one.get(key)) != json.dumps(other.get(key))
    ]


def resumed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The environment of a run that goes on: the first one's, and what has changed since."""
    changed = [*unlike(before, now)]
    if before.get("revision") != now["revision"]:
        changed.append(f"revision: {before.get('revision', UNKNOWN)} and {now['revision']}")
    note = f"{now['started']}, {'not as before: ' + '; '.join(changed) if changed else 'as before'}."
    return {"steal_seconds": 0.0, **before, "resumed": [*before.get("resumed", ()), note]}


def stolen() -> float:
    """Seconds, of all cores since boot, that the hypervisor gave to somebody else."""
    with open("/proc/stat", encoding="ascii") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


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
    described = peers.said_by("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12")
    return described or UNKNOWN


def command_line(words: Sequence[str]) -> list[str]:
    """The command as anybody can repeat it: without the folder that the program lies in, nor --out's."""
    kept, before = ["compare"], ""
    for word in words:
        if "--out" not in (before, word.partition("=")[0]):
            kept.append(word)
        before = word
    return kept
