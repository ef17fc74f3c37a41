"""SIGHUP: what a reload changes, what it says that it cannot, and that a failure changes nothing."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.running import ROOT, Running, private, serves
from tests.harness.tree import wait_until

PASSWORD = "correct horse"
PIDFD_GETFD = 438  # pidfd_getfd(2), on every architecture


def reload(server: Running, expected: str = "configuration read again") -> list[str]:
    """What it says."""
    server.err = ""
    os.kill(server.pid, signal.SIGHUP)
    server.lines_until(expected)
    return server.err.splitlines()


def named(lines: list[str]) -> list[str]:
    """The keys that take a restart."""
    found = [re.search(r"warning [\w-]+\[\d+\] (.*): another value takes a restart$", line) for line in lines]
    (line,) = filter(None, found)
    return line[1].split(", ")


def keys_marked() -> set[str]:
    page = (ROOT / "docs" / "configuration.md").read_text()
    return {key for line in page.splitlines() if "*r*" in line for key in re.findall(r"^\| `(\w+)`", line)}


def test_reload_names_every_key_that_takes_a_restart(tmp_path: Path) -> None:
    content = {"password": PASSWORD, "server": "127.0.0.1", "server_port": 65001}
    path = private(tmp_path / "config", content)
    changed = {
        "model": "fork",
        "backlog": 7,
        "user": "nobody",
        "group": "nogroup",
        "replay_file": str(tmp_path / "replay"),
        "grace": 1,
        "nofile": 100,
        "listen": ["127.0.0.1:0", "[::1]:0"],
        "server": "::1",
        "server_port": 65002,
    }
    with Running("serve", "--config", path, "--model", "poll") as server:
        private(tmp_path / "config", content | changed)
        # Its flags say where it listens, and by which model: there nothing has changed.
        assert set(named(reload(server))) == {"backlog", "user", "group", "replay_file", "grace", "nofile"}
        private(tmp_path / "config", content)
        assert len(reload(server)) == 1, "all is as it was at the start"
    content["listen"] = "127.0.0.1:0"
    path = private(tmp_path / "config", content)
    with Running("serve", "--config", path, listen=False) as server:
        private(tmp_path / "config", content | changed)
        for _ in range(2):  # it is so until the restart
            names = named(reload(server))
            assert set(names) == keys_marked() - {"local_address", "local_port"}
            assert len(names) == len(set(names))


def test_reload_of_a_client_end_names_where_it_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    content = {"password": PASSWORD, "server": "192.0.2.1", "local_address": "127.0.0.1", "local_port": port}
    path = private(tmp_path / "config", content)
    with Running("local", "--config", path, listen=False) as server:
        private(tmp_path / "config", content | {"server": "192.0.2.2", "server_port": 1})
        assert len(reload(server)) == 1, "a reload changes where it dials"
        private(tmp_path / "config", content | {"local_address": "::1", "local_port": 65001})
        names = named(reload(server))
        assert names == ["local_address", "local_port"]
        assert set(names) <= keys_marked()


@pytest.mark.parametrize("model", ["thread", "prefork"])
def test_reload_without_memory_for_its_limits_changes_nothing(model: str, tmp_path: Path) -> None:
    content = {"password": PASSWORD}
    path = private(tmp_path / "config", content)
    with Running("serve", "--config", path, "--model", model) as server:
        serves(server, PASSWORD)
        private(tmp_path / "config", {"password": "another", "max_connections": 100, "log_level": "error"})
        taken = {int(fd.name) for fd in Path(f"/proc/{server.pid}/fd").iterdir()}
        _, second, *_ = (fd for fd in range(len(taken) + 2) if fd not in taken)
        limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        # One is enough to read the file; the table of the limits takes two.
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (second, limits[1]))
        (line,) = reload(server, "configuration not read again: Too many open files")
        assert " error " in line
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        assert {int(fd.name) for fd in Path(f"/proc/{server.pid}/fd").iterdir()} == taken
        serves(server, PASSWORD)
        private(tmp_path / "config", content | {"max_connections": 100})
        reload(server)
        serves(server, PASSWORD)


@pytest.mark.parametrize(("model", "number"), [("poll", "HUP"), ("prefork", "HUP"), ("poll", "USR2")])
def test_no_delay_that_is_changed_is_that_of_the_next_client(model: str, number: str, tmp_path: Path) -> None:
    content = {"password": PASSWORD, "no_delay": True}
    path = private(tmp_path / "config", content)
    with Running("serve", "--config", path, "--model", model) as server:
        with server.connect() as client:
            assert accepted_option(server.family, client)
        private(tmp_path / "config", content | {"no_delay": False})
        if number == "HUP":
            reload(server)
            pids = server.family
        else:
            os.kill(server.pid, signal.SIGUSR2)
            server.lines_until("the new program has taken over")
            (new,) = (int(pid) for pid in re.findall(r"new program is (\d+)", server.err))
            pids = [server.pid, new].copy  # they share the listener for a moment
        with server.connect() as client:
            assert not accepted_option(pids, client)
        if number == "USR2":
            os.kill(new, signal.SIGKILL)


def accepted_option(pids: Callable[[], list[int]], client: socket.socket) -> int:
    """TCP_NODELAY of the other end, which one of these processes is about to accept."""
    found: list[int] = []

    def look() -> bool:
        for pid in pids():
            for theirs in sockets_of(pid):
                with theirs, suppress(OSError):  # not connected
                    if theirs.getpeername() == client.getsockname():
                        found.append(theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        return bool(found)

    wait_until(look, 3.0, "it has been accepted")
    return found[0]


def sockets_of(pid: int) -> Iterator[socket.socket]:
    """Duplicates of what a process of ours has."""
    libc = ctypes.CDLL(None)
    try:
        names, watched = os.listdir(f"/proc/{pid}/fd"), os.pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return
    for name in names:
        fd = libc.syscall(PIDFD_GETFD, watched, int(name), 0)
        if fd >= 0:
            try:
                yield socket.socket(fileno=fd)
            except OSError:  # no socket
                os.close(fd)
    os.close(watched)
