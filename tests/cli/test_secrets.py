"""A password is in no argument, no environment, no log and no message of any process."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from models import MODELS
from tests.cli.running import Running, Sealed, echo, private
from tests.core import wire
from tests.harness.tree import child_pids, is_alive, wait_until
from tunnel.address import Address
from tunnel.config import format_uri, secret_of
from tunnel.session import ForwardSession, ServerSession

PASSWORD = "s3cr3t-horse-battery"
EVERY_MODEL = pytest.mark.parametrize("model", MODELS)


def spellings(method: str, place: Address | None = None) -> list[str]:
    """Everything that would give the password away."""
    key = wire.master_key(PASSWORD, wire.KEY_SIZES[method])
    userinfo = base64.urlsafe_b64encode(f"{method}:{PASSWORD}".encode()).decode().rstrip("=")
    spelt = [PASSWORD, userinfo, base64.b64encode(key).decode(), key.hex(), repr(key)[2:-1]]
    return spelt + ([format_uri(method, PASSWORD, place)] if place else [])


def public(pid: int) -> str:
    """What every user of the machine, or the same one, can see of a process."""
    return "".join(
        Path(f"/proc/{pid}/{name}").read_bytes().decode("latin-1") for name in ("cmdline", "environ", "comm")
    )


def is_named(pid: int) -> bool:
    """Arguments or title are there. While a title is put in their place there is neither, for a moment."""
    return "tunnel" in public(pid)


def assert_hidden(server: Running, *pids: int) -> None:
    """Processes that have ended meanwhile show nothing."""
    for pid in pids:
        try:
            wait_until(partial(is_named, pid), 5.0, "the program's name is shown")
            seen = public(pid)
        except (FileNotFoundError, ProcessLookupError):
            assert not is_alive(pid)
            continue
        for spelt in spellings(server.method):
            assert spelt not in seen


@pytest.mark.parametrize("how", ["standard input", "a file", "an argument", "an argument with =", "capitals"])
def test_a_uri_is_in_no_processs_arguments_or_environment(how: str, tmp_path: Path) -> None:
    uri = format_uri("aes-256-gcm", PASSWORD, Address("127.0.0.1", 9))
    words, given = {
        "standard input": (["--server", "-"], uri.encode()),
        "a file": (["--server", private(tmp_path / "uri", uri)], b""),
        "an argument": (["--server", uri], b""),
        "an argument with =": ([f"--server={uri}"], b""),
        "capitals": (["--server", uri.replace("ss://", "SS://")], b""),
    }[how]
    with Running("local", "--model", "prefork", "--workers", "2", *words, given=given) as client:
        assert_hidden(client, *client.family())
        ended = client.end()
    for spelt in spellings("aes-256-gcm", Address("127.0.0.1", 9)):
        assert spelt not in ended.err + ended.out


def test_an_argument_is_moved_away_with_a_word_of_warning() -> None:
    uri = format_uri("aes-256-gcm", PASSWORD, Address("127.0.0.1", 9))
    with Running("local", "--server", uri) as client:
        (warning,) = client.end().complaints
    assert "--server -" in warning


@EVERY_MODEL
def test_a_running_server_hides_its_password_in_every_process(model: str, tmp_path: Path) -> None:
    """With a client, so that the models with a child for each have one."""
    path = private(tmp_path / "password", PASSWORD)
    with echo() as port, Running("serve", "--model", model, "--password-file", path) as server:
        client = Sealed(server, PASSWORD, port)
        client.send(b"hello")
        assert client.socket.recv(1)
        family = server.family()
        assert len(family) > 1 or model not in ("fork", "prefork")
        assert_hidden(server, *family)
        client.socket.close()


@EVERY_MODEL
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_password_is_in_no_output_however_much_is_logged(
    model: str, log_format: str, tmp_path: Path
) -> None:
    """A good client, one with another password, one that speaks HTTP, one that asks for what is closed."""
    path = private(tmp_path / "config.json", {"password": PASSWORD, "unknown": PASSWORD})
    words = ("--model", model, "--config", path, "--log-level", "debug", "--log-format", log_format)
    with echo() as port, Running("serve", *words) as server:
        good = Sealed(server, PASSWORD, port)
        good.send(b"hello")
        good.socket.shutdown(socket.SHUT_WR)
        assert good.received() == b"hello"
        good.socket.close()
        Sealed(server, "another", port).socket.close()
        server.lines_until("handshake failed")
        with server.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n" * 3)
        refused = Sealed(server, PASSWORD, 1)
        server.lines_until("cannot connect")
        refused.socket.close()
        ended = server.end()
    assert "Traceback" not in ended.err
    for spelt in spellings(server.method):
        assert spelt not in ended.out
        assert spelt not in ended.err


@pytest.mark.parametrize("model", ["thread", "prefork"])
def test_a_program_that_takes_over_is_told_no_secret_where_others_look(model: str) -> None:
    """Also of a server whose password is in no file, so that the old program must tell the new one."""
    uri = format_uri("aes-256-gcm", PASSWORD, Address("127.0.0.1", 9))
    with Running("local", "--model", model, "--server", "-", given=uri.encode()) as client:
        os.kill(client.pid, signal.SIGUSR2)
        client.lines_until("new program is")
        found = re.search(r"new program is (\d+)", client.err)
        assert found
        pid = int(found[1])
        try:
            assert_hidden(client, pid)
            client.lines_until("stopped")
            assert_hidden(client, pid, *child_pids(pid))
        finally:
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not is_alive(pid), 5.0, "the new program ends when it is told to")
    for spelt in spellings("aes-256-gcm"):
        assert spelt not in client.err + client.out


@pytest.mark.parametrize("model", [name for name, chosen in MODELS.items() if "fork" in chosen.copies])
def test_a_child_that_copies_one_direction_hides_it_too(model: str, tmp_path: Path) -> None:
    path = private(tmp_path / "password", PASSWORD)
    words = ("--model", model, "--relay", "fork", "--password-file", path)
    with echo() as port, Running("serve", *words) as server:
        client = Sealed(server, PASSWORD, port)
        client.send(b"hello")
        assert client.socket.recv(1)
        assert len(server.family()) > 1
        assert_hidden(server, *server.family())
        client.socket.close()


def test_nothing_that_holds_a_secret_shows_it() -> None:
    """In a traceback with locals, in a debugger's line, in an error that quotes what it got."""
    secret = secret_of({"method": "aes-256-gcm", "password": PASSWORD}, "here")
    session = ServerSession(secret)
    seals = ForwardSession(secret, Address("example.com", 80))
    shown = [repr(each) for each in (secret, session, session.up, session.down, seals, seals.up)]
    for text in [*shown, str(secret), f"{secret}"]:
        for spelt in spellings("aes-256-gcm"):
            assert spelt not in text
