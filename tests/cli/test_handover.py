"""SIGUSR2 that fails: the server goes on, says why in one line, and the next one works."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.running import LISTENS, ROOT, Running, private, serves
from tests.harness.tree import holdings, is_alive, wait_until
from tunnel import handover
from tunnel.handover import Left, hand_over

PASSWORD = "a password"
MODELS = pytest.mark.parametrize("model", ["thread", "fork", "prefork", "poll"])


def start(model: str, directory: Path) -> Running:
    """What lies in `directory` is found first by every Python that is started from now on."""
    password = private(directory / "password", PASSWORD)
    words = ["serve", "--model", model, "--password-file", password]
    return Running(*words, env={"PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)])})


def takes_over(server: Running) -> None:
    server.err = ""
    os.kill(server.pid, signal.SIGUSR2)
    server.lines_until("new program is ")
    found = re.search(r"new program is (\d+)", server.err)
    assert found
    server.lines_until("the new program has taken over")
    os.kill(int(found[1]), signal.SIGTERM)
    ended = server.ended()
    assert ended.code == 0
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("model", ["poll", "prefork-reuseport"])
def test_each_of_two_listeners_at_one_place_goes_to_the_new_program(model: str, tmp_path: Path) -> None:
    path = private(tmp_path / "config", {"password": PASSWORD, "listen": ["127.0.0.1:0", "127.0.0.1:0"]})
    with Running("serve", "--config", path, "--model", model, listen=False) as server, taken_over(server):
        ports = {int(port) for _, port, _ in LISTENS.findall(server.err)}
        assert len(ports) == 2
        for server.port in ports:
            serves(server, PASSWORD)


def test_a_place_that_the_new_program_is_not_to_have_is_closed(tmp_path: Path) -> None:
    both = {"password": PASSWORD, "listen": ["127.0.0.1:0", "127.0.0.2:0"]}
    path = private(tmp_path / "config", both)
    with Running("serve", "--config", path, "--model", "poll", listen=False) as server:
        private(tmp_path / "config", both | {"listen": ["127.0.0.1:0", "127.0.0.3:0"]})
        with taken_over(server):
            ports = {host: int(port) for host, port, _ in LISTENS.findall(server.err)}
            serves(server, PASSWORD)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", ports["127.0.0.2"]))
            server.host, server.port = "127.0.0.3", ports["127.0.0.3"]
            serves(server, PASSWORD)


@contextmanager
def taken_over(server: Running) -> Iterator[None]:
    """The old program has ended; the new one is there until the end."""
    os.kill(server.pid, signal.SIGUSR2)
    server.lines_until("the new program has taken over")
    (new,) = (int(pid) for pid in re.findall(r"new program is (\d+)", server.err))
    try:
        wait_until(lambda: not is_alive(server.pid), 3.0, "the old program has ended")
        yield
    finally:
        os.kill(new, signal.SIGKILL)


def all_waited_for(server: Running) -> None:
    """A client's process of `fork` may still be on its way out."""
    wait_until(lambda: holdings(server.pid).zombies == 0, 2.0, "no zombie")


@MODELS
def test_new_program_that_dies_before_it_has_read_a_word(model: str, tmp_path: Path) -> None:
    with start(model, tmp_path) as server:
        dies = tmp_path / "sitecustomize.py"
        dies.write_text("import os; os._exit(3)")
        os.kill(server.pid, signal.SIGUSR2)
        server.lines_until("has ended before it was ready: this one goes on")
        all_waited_for(server)
        dies.unlink()
        takes_over(server)


@MODELS
def test_sigusr2_without_a_descriptor_left(model: str, tmp_path: Path) -> None:
    with start(model, tmp_path) as server:
        with server.connect() as client:  # when it has been served, the server has opened all that it needs
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        opened = max(int(fd.name) for fd in Path(f"/proc/{server.pid}/fd").iterdir())
        limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (opened + 1, limits[1]))
        os.kill(server.pid, signal.SIGUSR2)
        server.lines_until("cannot start the new program: Too many open files: this one goes on")
        all_waited_for(server)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        takes_over(server)


def test_new_program_that_nobody_could_wait_for_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def start_nothing(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    pids = []
    spawn = handover.spawn

    def watched(left: Left, mine: socket.socket, theirs: socket.socket) -> int:
        pids.append(spawn(left, mine, theirs))
        return pids[0]

    monkeypatch.setattr("_thread.start_new_thread", start_nothing)
    monkeypatch.setattr(handover, "spawn", watched)
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", "import signal; signal.pause()"])
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(RuntimeError, match="new thread"):
        hand_over(Left([], None, None, None), pytest.fail, pytest.fail)
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], os.WNOHANG)
