"""--user and --group: the port is bound by root, clients are served by somebody who may do little."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cryptography
import pytest

from models import MODELS
from tests.cli.running import (
    ROOT,
    UNPRIVILEGED,
    Running,
    Sealed,
    command,
    echo,
    environment,
    needs_unprivileged,
    private,
    tunnel,
)
from tests.harness.tree import is_alive, wait_until

PASSWORD = "s3cr3t"
USER = "nobody"


def everybody_can_read(path: str) -> bool:
    real = Path(path).resolve()
    return all(part.stat().st_mode & 0o005 for part in (real, *real.parents))


def open_python() -> str | None:
    """A Python of this version that everybody can run, with its library; this one may be root's own."""
    ask = "import os, sys; print(*sys.version_info[:2], os.__file__, sep='\\n')"
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            told = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False).stdout
            *version, library = told.split()
            if tuple(map(int, version)) == sys.version_info[:2] and everybody_can_read(library):
                return python
    return None


PYTHON = open_python() if os.geteuid() == 0 else None
PACKAGES = str(Path(cryptography.__file__).parent.parent)
needs_root = pytest.mark.skipif(
    PYTHON is None or not (everybody_can_read(str(ROOT / "tunnel")) and everybody_can_read(PACKAGES)),
    reason="only root can become somebody else, who must be able to read Python, its packages and this tree",
)
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


def run(*words: str, listen: bool = True) -> Running:
    """A server that gives something up."""
    path = f"{ROOT}{os.pathsep}{PACKAGES}"
    return Running("serve", *words, listen=listen, env={"PYTHONPATH": path}, python=PYTHON or "")


def low_port() -> int:
    for port in random.sample(range(600, 1024), 424):  # others look for one at the same time
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no low port is free")


def rights(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


def assert_given_up(*pids: int) -> None:
    entry = pwd.getpwnam(USER)
    for pid in pids:
        now = rights(pid)
        assert now["Uid"] == [str(entry.pw_uid)] * 4
        assert now["Gid"] == [str(entry.pw_gid)] * 4
        assert now["Groups"] == [str(entry.pw_gid)]
        assert now["NoNewPrivs"] == ["1"]
        assert {now[f"Cap{kind}"][0].strip("0") for kind in ("Eff", "Prm", "Inh", "Amb")} == {""}


def works(server: Running, port: int) -> None:
    client = Sealed(server, PASSWORD, port)
    client.send(b"hello")
    client.socket.shutdown(socket.SHUT_WR)
    assert client.received() == b"hello"
    client.socket.close()


def owned(path: str) -> str:
    os.chown(path, pwd.getpwnam(USER).pw_uid, -1)
    return path


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that everybody may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@needs_root
@pytest.mark.parametrize("model", MODELS)
def test_every_process_has_given_up_what_binding_needed(model: str, tmp_path: Path) -> None:
    path = private(tmp_path / "password", PASSWORD)
    words = ("--model", model, "--user", USER, "--password-file", path, "--listen", f"127.0.0.1:{low_port()}")
    with echo() as port, run(*words, listen=False) as server:
        client = Sealed(server, PASSWORD, port)
        client.send(b"hello")
        assert client.socket.recv(1)
        assert_given_up(*server.family())
        client.socket.close()
        assert server.end().code == 0


@needs_root
@pytest.mark.parametrize("model", ["thread", "prefork", "epoll"])
def test_a_reload_reads_what_that_user_may_read(model: str, open_path: Path) -> None:
    path = owned(private(open_path / "password", PASSWORD))
    with (
        echo() as port,
        run("--model", model, "--user", USER, "--password-file", path) as server,
    ):
        os.kill(server.pid, signal.SIGHUP)
        server.lines_until("configuration read again")
        works(server, port)
        os.chown(path, 0, 0)
        os.kill(server.pid, signal.SIGHUP)
        server.lines_until(f"configuration not read again: {path}: Permission denied")
        works(server, port)
        assert_given_up(*server.family())


@needs_root
def test_what_a_reload_could_not_read_is_said_at_the_start(tmp_path: Path) -> None:
    path = private(tmp_path / "password", PASSWORD)
    with run("--user", USER, "--password-file", path) as server:
        assert re.search(f" warning .*{re.escape(path)}: nobody cannot read it, so a reload", server.err)


@needs_root
@pytest.mark.parametrize("model", ["thread", "prefork"])
def test_a_new_program_takes_the_low_port_over_without_root(model: str, open_path: Path) -> None:
    path = owned(private(open_path / "password", PASSWORD))
    words = ("--model", model, "--user", USER, "--password-file", path, "--listen", f"127.0.0.1:{low_port()}")
    with echo() as port, run(*words, listen=False) as server:
        os.kill(server.pid, signal.SIGUSR2)
        server.lines_until("new program is")
        found = re.search(r"new program is (\d+)", server.err)
        assert found
        pid = int(found[1])
        try:
            server.lines_until("stopped")
            works(server, port)
            assert_given_up(pid)
        finally:
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not is_alive(pid), 5.0, "the new program ends when it is told to")


@needs_root
def test_files_that_come_later_are_that_users(open_path: Path) -> None:
    place = open_path / "var"
    place.mkdir()
    owned(str(place))
    path = private(open_path / "password", PASSWORD)
    words = ["--user", USER, "--group", "0", "--password-file", path, "--replay-file", str(place / "salts")]
    with run(*words) as server:
        assert (place / "salts").stat().st_uid == pwd.getpwnam(USER).pw_uid
        assert rights(server.pid)["Gid"] == ["0"] * 4, "--group wins over the user's own"
        assert rights(server.pid)["Groups"] == ["0"]


@needs_root
def test_that_user_itself_may_say_so_too(open_path: Path) -> None:
    """As a supervisor that drops the rights itself leaves it, and as a new program finds it."""
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv to become somebody else")
    path = owned(private(open_path / "password", PASSWORD))
    words = ("serve", "--user", USER, "--password-file", path, "--listen", "127.0.0.1:0")
    gid = str(pwd.getpwnam(USER).pw_gid)
    prefix = ["setpriv", "--reuid", USER, "--regid", gid, "--clear-groups"]
    with subprocess.Popen(
        command(*words, prefix=prefix, python=PYTHON or ""),
        stderr=subprocess.PIPE,
        env=environment() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{PACKAGES}"},
    ) as process:
        assert process.stderr
        assert b"listens on" in process.stderr.readline()
        assert rights(process.pid)["NoNewPrivs"] == ["1"]
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    "words", [("--user", "nobody-at-all"), ("--group", "none-at-all"), ("--user", "1" * 30)]
)
def test_somebody_unknown_is_a_mistake(words: tuple[str, str]) -> None:
    ended = tunnel("serve", "--listen", "127.0.0.1:0", *words)
    assert ended.code == os.EX_CONFIG
    (line,) = ended.complaints
    assert f"{words[0].strip('-')} {words[1]!r} is not known here: expected" in line


@needs_unprivileged
def test_only_root_becomes_somebody_else() -> None:
    prefix = UNPRIVILEGED and [*UNPRIVILEGED, "--reuid", "daemon"]
    ended = tunnel("serve", "--listen", "127.0.0.1:0", "--user", USER, prefix=prefix)
    assert ended.code == os.EX_NOPERM
    (line,) = ended.complaints
    assert "cannot become nobody: expected to be started by root" in line


@pytest.mark.parametrize("command_", ["local", "forward"])
def test_a_uri_file_that_others_can_read_is_refused_where_others_can_reach(
    command_: str, tmp_path: Path
) -> None:
    path = private(tmp_path / "uri", "ss://YWVzLTI1Ni1nY206c2VjcmV0@127.0.0.1:9")
    Path(path).chmod(0o644)
    words = [command_, "--server", path, *(["--target", "example.com:80"] if command_ == "forward" else [])]
    ended = tunnel(*words, "--listen", "0.0.0.0:0")
    assert ended.code == os.EX_CONFIG
    (line,) = ended.complaints
    assert f"{path}: others can read it: expected a file that is yours alone (chmod 600)" in line
    with subprocess.Popen(
        command(*words, "--listen", "127.0.0.1:0"), stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stderr
        assert f"{path}: others can read it" in process.stderr.readline(), "on loopback, a warning"
        process.terminate()


def test_a_file_that_others_have_come_to_read_is_not_read_again(tmp_path: Path) -> None:
    path = private(tmp_path / "config.json", {"password": PASSWORD})
    with Running("serve", "--config", path, "--listen", "0.0.0.0:0", listen=False) as server:
        Path(path).chmod(0o644)
        os.kill(server.pid, signal.SIGHUP)
        server.lines_until(f"configuration not read again: {path}: others can read it")
