"""SIGUSR2 that fails: the server goes on, says why in one line, and the next one works."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.cli.running import ROOT, Running, private
from tests.harness.tree import holdings, wait_until
from tunnel import handover
from tunnel.handover import Left, hand_over

MODELS = pytest.mark.parametrize("model", ["thread", "fork", "prefork", "poll"])


def start(model: str, directory: Path) -> Running:
    """What lies in `directory` is found first by every Python that is started from now on."""
    password = private(directory / "password", "a password")
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
        hand_over(Left({}, None, None, None), pytest.fail, pytest.fail)
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], os.WNOHANG)
