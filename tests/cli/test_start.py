"""Servers that start as a user starts them: first steps, which setting wins, logs, and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from models import MODELS
from tests.cli.running import (
    LOG_LINE,
    ROOT,
    WATCHDOG,
    Running,
    Sealed,
    command,
    echo,
    environment,
    private,
    watchdog,
)
from tests.core import wire
from tunnel import config, gather
from tunnel.address import Address
from tunnel.cli import build_parser
from tunnel.config import format_uri, parse_uri

PASSWORD = "s3cr3t-horse-battery"
EVERY_MODEL = pytest.mark.parametrize("model", MODELS)


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    return private(tmp_path / "password", PASSWORD + "\n")


def round_trip(server: Running, password: str) -> bool:
    """True if a client with that password gets its words back through the server."""
    with echo() as port:
        client = Sealed(server, password, port)
        client.send(b"hello")
        client.socket.shutdown(socket.SHUT_WR)
        with client.socket:
            return client.received() == b"hello"


# First steps


def test_without_any_configuration_a_server_says_what_to_do_next() -> None:
    with Running("serve") as server:
        server.prints_until("try it")
        ended = server.end()
    uri = re.search(r"^  server   (ss://\S+)$", ended.out, re.MULTILINE)
    client = re.search(r"^  client   (.*)$", ended.out, re.MULTILINE)
    curl = re.search(r"^  try it   (.*)$", ended.out, re.MULTILINE)
    assert uri
    assert client
    assert curl
    values = parse_uri(uri[1])
    assert (values["server"], values["server_port"]) == (["127.0.0.1"], server.port)
    assert values["method"] == server.method
    assert client[1] == f"echo '{uri[1]}' | tunnel local --server -"
    assert "socks5h://127.0.0.1:1080" in curl[1]
    assert "in the place of" not in ended.out
    assert ended.complaints == []
    assert uri[1] not in ended.err, "logs are kept; a password must not be in them"


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_a_server_on_every_address_says_to_put_one_there(host: str) -> None:
    with Running("serve", "--listen", f"{host}:0", listen=False) as server:
        server.prints_until("try it")
        assert f"put this machine's address in the place of {host}.\n" in server.out


def test_every_start_has_a_password_of_its_own() -> None:
    printed = set()
    for _ in range(2):
        with Running("serve") as server:
            server.prints_until("try it")
            printed.add(re.sub(r":\d+", "", server.end().out))
    assert len(printed) == 2


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_printed_lines_work_when_they_are_pasted(tmp_path: Path) -> None:
    """The lines as they are, with ports that are free, and `tunnel` on PATH."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "tunnel").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tunnel "$@"\n')
    (bin_ / "tunnel").chmod(0o755)
    env = environment() | {"PATH": f"{bin_}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    web = HTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    server = subprocess.Popen(
        ["tunnel", "serve", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
    )
    client: subprocess.Popen[bytes] | None = None
    try:
        assert server.stdout
        with watchdog(server):
            printed = b"".join(iter(server.stdout.readline, b"\n"))
            while b"try it" not in printed:
                line = server.stdout.readline()
                assert line
                printed += line
        lines = dict(re.findall(r"^  (client|try it)   (.*)$", printed.decode(), re.MULTILINE))
        paste = f"{lines['client']} --listen 127.0.0.1:0"
        client = subprocess.Popen(
            ["sh", "-c", paste], stderr=subprocess.PIPE, env=env, start_new_session=True
        )
        assert client.stderr
        with watchdog(client):
            listens = b""
            while b"listens on" not in listens:
                listens = client.stderr.readline()
                assert listens
        local = re.search(rb"127\.0\.0\.1:(\d+)", listens)
        assert local
        curl = lines["try it"].replace("1080", local[1].decode())
        curl = curl.replace("http://example.com/", f"http://127.0.0.1:{web.server_port}/")
        got = subprocess.run(
            ["sh", "-c", f"{curl} --silent --noproxy ''"],
            capture_output=True,
            env=env,
            timeout=WATCHDOG,
            check=False,
        )
        assert got.stdout == b"hello"
    finally:
        server.kill()
        server.communicate()
        if client is not None:
            os.killpg(client.pid, signal.SIGKILL)
            client.communicate()
        web.shutdown()
        web.server_close()


def test_where_a_server_listens_unless_told() -> None:
    assert gather.listen_places(config.SERVE, {}) == [Address("127.0.0.1", 8388)]
    assert gather.listen_places(config.LOCAL, {}) == [Address("127.0.0.1", 1080)]
    assert gather.listen_places(config.FORWARD, {}) == [Address("127.0.0.1", 1080)]


def test_where_a_file_of_libev_makes_each_end_listen() -> None:
    values = {"server": ["::", "0.0.0.0"], "server_port": 443, "local_address": "::1", "local_port": 9}
    assert gather.listen_places(config.SERVE, values) == [Address("::", 443), Address("0.0.0.0", 443)]
    assert gather.listen_places(config.LOCAL, values) == [Address("::1", 9)]


def test_a_server_may_listen_in_several_places(password_file: str) -> None:
    words = ("serve", "--password-file", password_file, "--listen", "127.0.0.2:0")
    with Running(*words) as server:
        server.lines_until("listens on 127.0.0.1:")
        for host, port in re.findall(r"listens on ([\d.]+):(\d+)", server.err):
            server.host, server.port = host, int(port)
            assert round_trip(server, PASSWORD)


# Which setting wins


def test_a_flag_wins_over_the_file(tmp_path: Path) -> None:
    path = private(
        tmp_path / "config.json",
        {
            "server": "192.0.2.1",
            "server_port": 1,
            "method": "aes-128-gcm",
            "model": "fork",
            "password": "another",
            "log_format": "json",
            "timeout": 0.001,
        },
    )
    password = private(tmp_path / "password", PASSWORD)
    words = (
        "--method",
        "chacha20-ietf-poly1305",
        "--model",
        "select",
        "--log-format",
        "text",
        "--timeout",
        "9",
    )
    with Running("serve", "--config", path, "--password-file", password, *words) as server:
        assert server.host == "127.0.0.1"
        assert server.method == "chacha20-ietf-poly1305"
        assert re.search(r" select\[\d+\] ", server.err)
        assert round_trip(server, PASSWORD)


def test_what_no_flag_says_comes_from_the_file(tmp_path: Path) -> None:
    path = private(
        tmp_path / "config.json",
        {"method": "aes-128-gcm", "model": "select", "password": PASSWORD, "listen": "127.0.0.1:0"},
    )
    with Running("serve", "--config", path, listen=False) as server:
        assert server.method == "aes-128-gcm"
        assert re.search(r" select\[\d+\] ", server.err)
        assert round_trip(server, PASSWORD)


def test_a_password_file_wins_over_the_files_key(tmp_path: Path) -> None:
    import base64

    path = private(tmp_path / "config.json", {"key": base64.b64encode(bytes(32)).decode()})
    password = private(tmp_path / "password", PASSWORD)
    with Running("serve", "--config", path, "--password-file", password) as server:
        assert round_trip(server, PASSWORD)


def test_a_key_in_the_file_is_the_key_itself(tmp_path: Path) -> None:
    import base64

    key = wire.master_key(PASSWORD, 16)
    content = {"method": "aes-128-gcm", "key": base64.b64encode(key).decode()}
    with Running("serve", "--config", private(tmp_path / "config.json", content)) as server:
        assert round_trip(server, PASSWORD)


def test_a_uri_wins_over_the_file(tmp_path: Path) -> None:
    """Server, port, method and password all come from the URI, or no answer comes back."""
    config_file = private(
        tmp_path / "config.json",
        {"server": "192.0.2.1", "server_port": 1, "method": "aes-128-gcm", "password": "another"},
    )
    password = private(tmp_path / "password", PASSWORD)
    with echo() as port, Running("serve", "--password-file", password, "--method", "aes-256-gcm") as server:
        uri = format_uri("aes-256-gcm", PASSWORD, Address(server.host, server.port))
        words = ("forward", "--config", config_file, "--server", "-", "--target", f"127.0.0.1:{port}")
        with Running(*words, given=uri.encode()) as client, client.connect() as sock:
            sock.sendall(b"hello")
            assert sock.recv(100) == b"hello"


@pytest.mark.parametrize("how", ["standard input", "a file", "an argument"])
def test_a_uri_comes_from_standard_input_a_file_or_an_argument(how: str, tmp_path: Path) -> None:
    password = private(tmp_path / "password", PASSWORD)
    with echo() as port, Running("serve", "--password-file", password) as server:
        uri = format_uri(server.method, PASSWORD, Address(server.host, server.port))
        argument = {
            "standard input": "-",
            "a file": private(tmp_path / "uri", uri + "\n"),
            "an argument": uri,
        }[how]
        given = uri.encode() + b"\n" if how == "standard input" else b""
        words = ("forward", "--server", argument, "--target", f"127.0.0.1:{port}")
        with Running(*words, given=given) as client, client.connect() as sock:
            sock.sendall(b"hello")
            assert sock.recv(100) == b"hello"


# Logs


def provoke(server: Running) -> None:
    """One bad handshake, which has to be told."""
    with server.connect() as sock:
        sock.sendall(bytes(100))
        server.lines_until("handshake failed")


def test_json_log_lines_parse_from_the_first_to_the_last(tmp_path: Path, password_file: str) -> None:
    path = private(tmp_path / "config.json", {"fast_open": True})
    words = (
        "--config",
        path,
        "--password-file",
        password_file,
        "--log-format",
        "json",
        "--log-level",
        "debug",
    )
    with Running("serve", *words) as server:
        provoke(server)
        ended = server.end()
    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert len(lines) >= 4
    for line in lines:
        assert {"time", "level", "model", "pid", "message"} <= set(line)
        assert line["model"] == config.DEFAULT_MODEL
    assert [line["level"] for line in lines if "fast_open" in line["message"]] == ["warning"]
    assert any("handshake failed" in line["message"] and line["subject"] for line in lines)


def test_text_log_lines_all_have_one_form(password_file: str) -> None:
    with Running("serve", "--password-file", password_file, "--log-level", "debug") as server:
        provoke(server)
        ended = server.end()
    assert all(LOG_LINE.fullmatch(line) for line in ended.err.splitlines())
    assert ended.code == 0


def test_a_quiet_log_tells_of_failures_only(password_file: str) -> None:
    """There is no line to wait for, so the server is asked by a connection."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"127.0.0.1:{free.getsockname()[1]}"
    words = ("serve", "--password-file", password_file, "--listen", place, "--log-level", "error")
    process = subprocess.Popen(command(*words), stderr=subprocess.PIPE, env=environment())
    with watchdog(process):
        host, _, port = place.rpartition(":")
        while process.poll() is None:
            try:
                socket.create_connection((host, int(port)), WATCHDOG).close()
                break
            except ConnectionRefusedError:
                continue
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=WATCHDOG)
    assert (process.returncode, err) == (0, b"")


def test_an_unknown_key_in_the_file_is_a_warning_in_the_log(tmp_path: Path) -> None:
    path = private(tmp_path / "config.json", {"password": PASSWORD, "pasword": "x", "fast_open": True})
    with Running("serve", "--config", path) as server:
        assert server.err.count(" warning ") == 2
        assert f'{path}: "pasword"' in server.err
        assert f'{path}: "fast_open"' in server.err


def test_udp_that_the_file_asks_for_is_a_warning_since_there_is_none(tmp_path: Path) -> None:
    path = private(tmp_path / "config.json", {"password": PASSWORD, "mode": "tcp_and_udp"})
    with Running("serve", "--config", path) as server:
        assert re.search(r" warning .*UDP is not relayed", server.err)


def warnings_of(tmp_path: Path, command: str, content: object, *words: str) -> list[str]:
    """What a command would log, from a file and flags."""
    path = private(tmp_path / "config.json", content)
    arguments = build_parser().parse_args([command, "--config", path, *words])
    return gather.Gatherer(command, arguments).read()[1]


USELESS = {
    "workers": ("serve", {}, ["--workers", "4"], "thread has no pool: workers"),
    "workers, in a file": ("serve", {"workers": 4}, [], "thread has no pool: workers"),
    "max-requests": ("serve", {}, ["--max-requests", "4"], "thread has no pool of processes: max_requests"),
    "heartbeat": (
        "serve",
        {"model": "prethread", "heartbeat": 30},
        [],
        "prethread has no pool of processes: heartbeat",
    ),
    "relay": ("serve", {"model": "poll"}, ["--relay", "poll"], "poll is a loop: relay"),
    "a tunnel's target": ("serve", {}, ["--target", "h:1"], "only service relay has a target: target"),
    "an echo's target": (
        "serve",
        {"target": "h:1"},
        ["--service", "echo"],
        "only service relay has a target: target",
    ),
    "a proxy's target": ("local", {"target": "h:1"}, [], "only tunnel forward has a target: target"),
    "a relay's rule": (
        "serve",
        {"target": "h:1"},
        ["--service", "relay", "--allow", "::1"],
        "service relay is no tunnel: allow",
    ),
    "an echo's rule": ("serve", {"deny": "::1"}, ["--service", "echo"], "service echo is no tunnel: deny"),
    "an echo's salts": (
        "serve",
        {"replay_file": "f"},
        ["--service", "echo"],
        "service echo is no tunnel: replay_file",
    ),
    "a proxy's rule": ("local", {"allow": "::1"}, [], "tunnel local is a client end: allow"),
    "a proxy's service": ("local", {"service": "echo"}, [], "tunnel local is a client end: service"),
    "a proxy's salts": ("forward", {"replay_file": "f"}, [], "tunnel forward is a client end: replay_file"),
}


@pytest.mark.parametrize(("command", "content", "words", "said"), USELESS.values(), ids=USELESS)
def test_what_has_no_effect_is_a_warning(
    command: str, content: object, words: list[str], said: str, tmp_path: Path
) -> None:
    assert warnings_of(tmp_path, command, content, *words) == [f"{said} has no effect"]


@pytest.mark.parametrize(
    ("command", "content", "words"),
    [
        ("serve", {"model": "prefork", "workers": 2, "max_requests": 9, "heartbeat": 9, "relay": "poll"}, []),
        ("serve", {"allow": "::1", "deny": "::2", "service": "tunnel", "replay_file": "f"}, []),
        ("serve", {"target": "h:1"}, ["--service", "relay"]),
        ("forward", {"target": "h:1"}, []),
    ],
)
def test_what_has_an_effect_is_no_warning(
    command: str, content: object, words: list[str], tmp_path: Path
) -> None:
    assert warnings_of(tmp_path, command, content, *words) == []


def test_a_password_for_what_is_not_encrypted_is_a_warning(tmp_path: Path, password_file: str) -> None:
    words = ("--service", "echo", "--password-file", password_file)
    said = ["service echo encrypts nothing: password_file has no effect"]
    assert warnings_of(tmp_path, "serve", {}, *words) == said


def test_warnings_are_in_the_log(password_file: str) -> None:
    words = ("--model", "thread", "--workers", "4", "--password-file", password_file)
    with Running("serve", *words) as server:
        assert re.search(r" warning .*thread has no pool", server.err)


def test_a_configuration_that_others_can_read_is_a_warning_on_loopback(tmp_path: Path) -> None:
    path = private(tmp_path / "config.json", {"password": PASSWORD})
    os.chmod(path, 0o644)
    with Running("serve", "--config", path) as server:
        assert re.search(rf" warning .*{re.escape(path)}: others can read it", server.err)


def test_a_full_disk_behind_the_log_stops_nothing(password_file: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = (
        "serve",
        "--password-file",
        password_file,
        "--listen",
        f"127.0.0.1:{port}",
        "--log-level",
        "debug",
    )
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(command(*words), stderr=full, env=environment())
    with watchdog(process):
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), WATCHDOG).close()
                break
            except ConnectionRefusedError:
                continue
        process.send_signal(signal.SIGTERM)
        assert process.wait(WATCHDOG) == 0


# Ctrl-C


@EVERY_MODEL
@pytest.mark.parametrize("command", ["serve", "local"])
def test_a_stop_as_soon_as_it_listens_is_a_stop(command: str, model: str, tmp_path: Path) -> None:
    """Between the log line and the first accept a server is still getting ready."""
    uri = format_uri("aes-256-gcm", PASSWORD, Address("127.0.0.1", 9))
    secret = {
        "serve": ("--password-file", private(tmp_path / "password", PASSWORD)),
        "local": ("--server", private(tmp_path / "uri", uri)),
    }
    with Running(command, "--model", model, *secret[command]) as server:
        ended = server.end(signal.SIGTERM)
    assert ended.code == 0
    assert "stopped" in ended.err
    assert "replaced" not in ended.err


@EVERY_MODEL
def test_ctrl_c_ends_at_once_and_without_a_traceback(model: str, password_file: str) -> None:
    """With a connection in the middle of a transfer, for which SIGTERM would wait."""
    with echo() as port, Running("serve", "--model", model, "--password-file", password_file) as server:
        client = Sealed(server, PASSWORD, port)
        client.send(b"hello")
        assert client.socket.recv(1), "the transfer runs"
        family = server.family()
        ended = server.end(signal.SIGINT)
        client.socket.close()
    assert ended.code == -signal.SIGINT
    assert "Traceback" not in ended.err
    assert ended.complaints == []
    assert not [pid for pid in family if Path(f"/proc/{pid}/exe").exists()], "a child was left"


# Run by Python first, where it is on the path: from the moment that the file is there, Ctrl-C strikes between
# the return of fork in the parent and whatever the parent does next.
STRIKES = """
import os, signal
fork = os.fork
def struck():
    pid = fork()
    if pid and os.path.exists({armed!r}):
        os.kill(os.getpid(), signal.SIGINT)
    return pid
os.fork = struck
"""


def test_ctrl_c_in_the_moment_of_a_fork_leaves_no_child(tmp_path: Path, password_file: str) -> None:
    armed = tmp_path / "armed"
    (tmp_path / "sitecustomize.py").write_text(STRIKES.format(armed=str(armed)))
    words = ("serve", "--model", "fork", "--password-file", password_file)
    with (
        echo() as port,
        Running(*words, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as server,
    ):
        assert round_trip(server, PASSWORD), "the rehearsal is over"
        armed.touch()
        client = Sealed(server, PASSWORD, port)
        with client.socket:
            client.send(b"hello")
            ended = server.ended()
    assert ended.code == -signal.SIGINT
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "words", [["local", "--server"], ["serve", "--password-file"], ["serve", "--config"]]
)
def test_ctrl_c_while_it_still_reads_its_settings_is_no_traceback(words: list[str], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    process = subprocess.Popen(command(*words, str(pipe)), stderr=subprocess.PIPE, env=environment())
    with watchdog(process), open(pipe, "wb"):  # opens once the other end reads
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=WATCHDOG)
    assert process.returncode == -signal.SIGINT
    assert err == b""
