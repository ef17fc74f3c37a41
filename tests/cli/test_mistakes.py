"""Mistakes: one line that says what was expected, an exit code from sysexits.h, no traceback."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from models import MODELS
from tests.cli.running import UNPRIVILEGED, Ended, Running, needs_unprivileged, private, tunnel

PASSWORD = "s3cr3t-horse-battery"
URI = "ss://YWVzLTI1Ni1nY206czNjcjN0@127.0.0.1:9"
LOCAL = ["local", "--server", "-"]


def mistake(
    code: int, *said: str, words: Sequence[str], given: bytes = b"", prefix: Sequence[str] = ()
) -> Ended:
    """Runs the command; it has to complain in one line that contains all of `said`."""
    ended = tunnel(*words, given=given, prefix=prefix)
    assert "Traceback" not in ended.err
    assert len(ended.complaints) == 1, ended.err
    (line,) = ended.complaints
    assert line.startswith("tunnel")
    for part in said:
        assert part in line
    assert ended.code == code, line
    assert ended.out == ""
    return ended


USAGE = {
    "no command": ([], ["COMMAND"]),
    "an unknown command": (["serv"], ["serv", "did you mean serve?"]),
    "an unknown flag before the command": (["--verison"], ["--verison", "did you mean --version?"]),
    "an unknown flag": (["serve", "--lissten", "127.0.0.1:0"], ["--lissten", "did you mean --listen?"]),
    "an unknown flag with =": (["serve", "--pasword-file=x"], ["did you mean --password-file?"]),
    "an abbreviated flag": (["serve", "--lis", "127.0.0.1:0"], ["--lis"]),
    "another command's flag": (["local", "--target", "h:1"], ["--target"]),
    "a word too many": (["serve", "fork"], ["fork"]),
    "a flag without its value": (["serve", "--listen"], ["--listen", "expected one argument"]),
    "an unknown method": (["serve", "--method", "aes-256-gmc"], ["--method", "did you mean aes-256-gcm?"]),
    "an unknown model": (["serve", "--model", "preforc"], ["--model", "did you mean prefork?"]),
    "an unknown log level": (["serve", "--log-level", "loud"], ["--log-level", "warning"]),
    "an unknown log format": (["serve", "--log-format", "xml"], ["--log-format", "json"]),
    "another command's flag, beside one like it": (
        ["local", "--allow", "10.0.0.0/8"],
        ["(--allow is an option of tunnel serve)"],
    ),
    "a flag of the client ends": (
        ["serve", "--server", "uri"],
        ["(--server is an option of tunnel local, tunnel forward)"],
    ),
    "a flag before the command": (["--model", "fork", "serve"], ["(--model is an option of tunnel serve, "]),
    "no workers": (["serve", "--workers", "0"], ["--workers", "'0'", "1 to 10000"]),
    "more workers at least than at most": (["serve", "--workers", "4:2"], ["'4:2'", "MIN not above MAX"]),
    "a word for a number": (["serve", "--timeout", "soon"], ["--timeout", "'soon'", "seconds"]),
    "a time too long": (["serve", "--timeout", "1e7"], ["'1e7'", "seconds from 0.001 to 1000000"]),
    "a time without an end": (["serve", "--grace", "inf"], ["'inf'", "seconds from 0.001 to 1000000"]),
    "a heartbeat too short": (["serve", "--heartbeat", "1"], ["'1'", "seconds from 2 to 1000000"]),
    "a negative time": (["serve", "--grace=-1"], ["--grace", "'-1'", "seconds"]),
    "a backlog of a million": (["serve", "--backlog", "1000000"], ["--backlog", "1 to 65535"]),
    "no port to listen on": (["serve", "--listen", "localhost"], ["--listen", "'localhost'", "HOST:PORT"]),
    "port 65536": (["serve", "--listen", "127.0.0.1:65536"], ["HOST:PORT", "from 0 to 65535"]),
    "IPv6 without brackets": (["serve", "--listen", "::1:80"], ["HOST:PORT", "IPv6 as [::1]:8388"]),
    "no port to lead to": (["forward", "--target", "example.com"], ["--target", "HOST:PORT"]),
    "port 0 to lead to": (["forward", "--target", "example.com:0"], ["HOST:PORT", "from 1 to 65535"]),
    "a name too long to lead to": (
        ["forward", "--target", "x" * 256 + ":80"],
        ["--target", "1 to 255 bytes"],
    ),
    "a range that is none": (["serve", "--allow", "banana"], ["--allow", "'banana'", "10.0.0.0/8"]),
    "a range of IPv4 in IPv6": (
        ["serve", "--allow", "::ffff:10.0.0.0/104"],
        ["--allow", "'::ffff:10.0.0.0/104' is a range of IPv4 in IPv6", "the one it carries"],
    ),
    "a directory for a log": (["serve", "--log-file", "/"], ["--log-file", "'/' is a directory", "a file"]),
    "a directory for salts": (["serve", "--replay-file", "/"], ["--replay-file", "'/' is a directory"]),
    "a word for a process": (["status", "--pid", "tunnel"], ["--pid", "'tunnel'", "number of a process"]),
    "a word for a port": (["status", "--port", "http"], ["--port", "'http'", "1 to 65535"]),
    "an unknown shell": (["completion", "fish"], ["fish", "bash"]),
    "no shell": (["completion"], ["shell"]),
}


@pytest.mark.parametrize(("words", "said"), USAGE.values(), ids=USAGE)
def test_a_wrong_command_line_is_a_usage_error(words: list[str], said: list[str]) -> None:
    mistake(os.EX_USAGE, *said, words=words)


def test_a_secret_in_a_mistyped_flag_is_not_shown() -> None:
    ended = tunnel("local", f"--sever={URI}")
    assert ended.code == os.EX_USAGE
    assert "did you mean --server?" in ended.err
    assert URI not in ended.err
    assert "YWVz" not in ended.err


# Files that are not there


def test_a_configuration_that_is_not_there() -> None:
    mistake(os.EX_NOINPUT, "--config no/such.json: No such file", words=["serve", "--config", "no/such.json"])


def test_a_directory_for_a_configuration(tmp_path: Path) -> None:
    mistake(os.EX_NOINPUT, str(tmp_path), "Is a directory", words=["serve", "--config", str(tmp_path)])


def test_a_password_file_that_is_not_there() -> None:
    mistake(os.EX_NOINPUT, "--password-file no/such: ", words=["serve", "--password-file", "no/such"])


def test_a_server_of_another_scheme_is_no_file() -> None:
    mistake(os.EX_CONFIG, "ss://BASE64", words=["local", "--server", "http://192.0.2.1/"])


@pytest.mark.parametrize(
    "words", [["keygen", "--output"], ["serve", "--listen", "127.0.0.1:0", "--log-file"]]
)
def test_a_folder_that_is_not_there_to_write_to(words: list[str]) -> None:
    mistake(os.EX_CANTCREAT, f"{words[-1]} no/such: No such file", words=[*words, "no/such"])


def test_a_folder_in_a_configuration_that_is_not_there_to_write_to(tmp_path: Path) -> None:
    path = private(tmp_path / "config.json", {"listen": "127.0.0.1:0", "log_file": "no/such"})
    mistake(os.EX_CANTCREAT, "no/such", "No such file", words=["serve", "--config", path])


def test_a_server_file_that_is_not_there() -> None:
    mistake(os.EX_NOINPUT, "no/such", words=["local", "--server", "no/such"])


@needs_unprivileged
def test_a_configuration_that_may_not_be_read(tmp_path: Path) -> None:
    path = private(tmp_path / "config.json", {})
    os.chmod(path, 0)
    mistake(os.EX_NOPERM, path, "Permission denied", words=["serve", "--config", path], prefix=UNPRIVILEGED)


# Files with something wrong in them

CONTENTS = {
    "nothing": ("", ["not JSON"]),
    "no JSON": ("password: x", ["not JSON", "line 1"]),
    "JSON that ends too early": ('{"server": "::"', ["not JSON"]),
    "JSON without an end": ("[" * 100_000, []),
    "a number without an end": ("1" * 5000, []),
    "no object": ('["::"]', ["JSON object"]),
    "a wrong type": ({"server_port": "http"}, ['"server_port"', "'http'", "1 to 65535"]),
    "a port too many": ({"server_port": 65536}, ['"server_port"', "65536", "1 to 65535"]),
    "an unknown method": ({"method": "rc4-md5"}, ['"method"', "rc4-md5", "aes-256-gcm"]),
    "an unknown model": ({"model": "preforc"}, ['"model"', "preforc", "prefork"]),
    "a plugin": ({"plugin": "obfs-local"}, ['"plugin"', "not supported"]),
    "UDP alone": ({"mode": "udp_only"}, ['"mode"', "tcp_only"]),
    "a short key": ({"key": "AAAA"}, ["key", "3 bytes", "expected 32"]),
    "a key that is no base64": ({"key": "s3cr3t!"}, ["key", "base64"]),
    "an empty password": ({"password": ""}, ['"password"', "hidden"]),
    "a number for a password": ({"password": 12345}, ['"password"', "hidden"]),
    "a password that is no text": ({"password": "\ud800"}, ['"password"', "hidden"]),
    "a host that is no text": ({"server": "\ud800"}, ['"server"']),
    "a name too long to listen on": ({"server": "x" * 256}, ["listen"]),
}


@pytest.mark.parametrize(("content", "said"), CONTENTS.values(), ids=CONTENTS)
def test_a_wrong_configuration_is_named_with_file_and_key_and_what_was_expected(
    content: object, said: list[str], tmp_path: Path
) -> None:
    path = private(tmp_path / "config.json", content)
    named = [] if "listen" in said else [path]
    ended = mistake(os.EX_CONFIG, *named, *said, words=["serve", "--config", path])
    assert "s3cr3t" not in ended.err
    assert "12345" not in ended.err


@pytest.mark.parametrize("content", ["", "\n", "\n" + PASSWORD, b"\xff\xfe" + PASSWORD.encode()])
def test_a_password_file_without_a_password(content: str | bytes, tmp_path: Path) -> None:
    path = private(tmp_path / "password", content)
    ended = mistake(os.EX_CONFIG, path, words=["serve", "--password-file", path])
    assert PASSWORD not in ended.err


def test_a_password_file_that_others_can_read(tmp_path: Path) -> None:
    path = private(tmp_path / "password", PASSWORD)
    os.chmod(path, 0o644)
    ended = mistake(os.EX_CONFIG, path, "expected", words=["serve", "--password-file", path])
    assert PASSWORD not in ended.err


def test_a_configuration_that_others_can_read_is_refused_where_others_can_connect(tmp_path: Path) -> None:
    path = private(tmp_path / "config.json", {"password": PASSWORD})
    os.chmod(path, 0o644)
    words = ["serve", "--config", path, "--listen", "0.0.0.0:0"]
    ended = mistake(os.EX_CONFIG, path, "others can read it", words=words)
    assert PASSWORD not in ended.err


def test_a_replay_file_that_others_have_a_hand_in(tmp_path: Path) -> None:
    """A reader can lock it, and all would wait; a writer can make it forget."""
    path = tmp_path / "salts"
    words = ["serve", "--listen", "127.0.0.1:0", "--replay-file", str(path)]
    path.touch()
    for mode in (0o644, 0o620, 0o666):
        path.chmod(mode)
        mistake(os.EX_CONFIG, str(path), "others can open it", "chmod 600", words=words)
        assert path.stat().st_size == 0, "it is left as it was"
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 1, 1)
        mistake(os.EX_CONFIG, str(path), "belongs to somebody else", words=words)
    path.unlink()
    os.mkfifo(path, 0o600)
    mistake(os.EX_CONFIG, str(path), "is no file", words=words)


@pytest.mark.parametrize("argument", [URI.removeprefix("ss://"), URI.replace("ss://", "ss:")])
def test_a_uri_without_its_beginning_is_not_quoted_as_a_missing_file(argument: str) -> None:
    ended = mistake(os.EX_CONFIG, "ss://", words=["local", "--server", argument])
    assert "YWVz" not in ended.err


def test_a_uri_that_is_not_there_at_all(tmp_path: Path) -> None:
    mistake(os.EX_CONFIG, "standard input: first line is empty: expected", "ss://", words=LOCAL)
    path = private(tmp_path / "uri", "\n" + URI)
    mistake(os.EX_CONFIG, f"{path}: first line is empty: expected", words=["local", "--server", path])


WRONG_URIS = {
    "nothing": b"",
    "a password": PASSWORD.encode(),
    "bytes that are no text": b"\xff\xfe\x80" + PASSWORD.encode(),
    "another scheme": b"https://" + PASSWORD.encode(),
    "no port": URI.rpartition(":")[0].encode(),
    "a method that does not exist": b"ss://rot13:" + PASSWORD.encode() + b"@127.0.0.1:1",
    "a plugin": URI.encode() + b"?plugin=obfs-local",
}


@pytest.mark.parametrize("uri", WRONG_URIS.values(), ids=WRONG_URIS)
def test_a_wrong_uri_is_not_quoted(uri: bytes, tmp_path: Path) -> None:
    path = private(tmp_path / "uri", uri)
    for ended in (
        mistake(os.EX_CONFIG, words=LOCAL, given=uri),
        mistake(os.EX_CONFIG, words=["local", "--server", path]),
    ):
        for size in (4, 8):
            assert PASSWORD[:size] not in ended.err
        assert "YWVz" not in ended.err


@pytest.mark.parametrize("words", [["local"], ["forward", "--target", "example.com:80"]])
def test_a_client_end_without_a_server(words: list[str], tmp_path: Path) -> None:
    mistake(os.EX_CONFIG, "--server", words=words)
    path = private(tmp_path / "password", PASSWORD)
    mistake(os.EX_CONFIG, "no server", "--server", words=[*words, "--password-file", path])


def test_a_server_in_the_file_without_a_password(tmp_path: Path) -> None:
    path = private(tmp_path / "config.json", {"server": "127.0.0.1"})
    mistake(os.EX_CONFIG, "no password", "--password-file", words=["local", "--config", path])


def test_a_forwarder_without_a_target() -> None:
    words = ["forward", "--server", "-"]
    mistake(os.EX_CONFIG, "--target HOST:PORT", words=words, given=URI.encode())


# What the machine does not give


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        mistake(os.EX_UNAVAILABLE, place, "in use", words=["serve", "--listen", place])


def test_a_port_that_another_server_of_the_same_user_shares_among_its_workers() -> None:
    """SO_REUSEPORT would let it in, and each would get some of the other's clients."""
    with Running("serve", "--model", "prefork-reuseport") as server:
        place = f"127.0.0.1:{server.port}"
        words = ["serve", "--model", "prefork-reuseport", "--listen", place]
        mistake(os.EX_UNAVAILABLE, place, "in use", words=words)


@pytest.mark.parametrize(
    "model", [name for name, model in MODELS.items() if model.pool and not model.elastic]
)
def test_a_pool_of_one_size_that_should_grow(model: str) -> None:
    words = ["serve", "--model", model, "--workers", "2:4"]
    mistake(os.EX_CONFIG, "workers is 2:4", "expected N", model, words=words)


def test_one_of_two_ports_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ["serve", "--listen", "127.0.0.1:0", "--listen", place]
        mistake(os.EX_UNAVAILABLE, place, "in use", words=words)


def test_an_address_of_another_machine() -> None:
    words = ["serve", "--listen", "192.0.2.1:8388"]
    mistake(os.EX_UNAVAILABLE, "192.0.2.1:8388", "this machine", words=words)


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".example"])
def test_a_name_to_listen_on_that_cannot_exist(name: str) -> None:
    mistake(os.EX_UNAVAILABLE, f"{name}:8388", words=["serve", "--listen", f"{name}:8388"])


@needs_unprivileged
@pytest.mark.skipif(
    int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80,
    reason="every port is everybody's here",
)
def test_a_privileged_port() -> None:
    words = ["serve", "--listen", "127.0.0.1:80"]
    mistake(os.EX_NOPERM, "127.0.0.1:80", "below 1024", words=words, prefix=UNPRIVILEGED)


@needs_unprivileged
def test_more_descriptors_than_the_hard_limit(tmp_path: Path) -> None:
    from resource import RLIMIT_NOFILE, getrlimit

    hard = getrlimit(RLIMIT_NOFILE)[1]
    if not 0 < hard < 2**20:
        pytest.skip("the hard limit is above all that may be configured")
    path = private(tmp_path / "config.json", {"nofile": 2**20})
    mistake(os.EX_CONFIG, "nofile", str(hard), words=["serve", "--config", path], prefix=UNPRIVILEGED)


def test_keygen_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("mine")
    mistake(os.EX_CANTCREAT, str(path), "exists", words=["keygen", "--output", str(path)])
    assert path.read_text() == "mine"


@pytest.mark.parametrize("words", [["models"], ["keygen"], ["--version"], ["completion", "bash"], ["--help"]])
def test_a_full_disk_behind_standard_output_is_no_traceback(words: list[str]) -> None:
    from subprocess import PIPE, run

    from tests.cli.running import WATCHDOG, command, environment

    with open("/dev/full", "wb") as full:
        ended = run(
            command(*words), stdout=full, stderr=PIPE, env=environment(), timeout=WATCHDOG, check=False
        )
    assert ended.returncode != 0
    assert b"Traceback" not in ended.stderr
    assert b"No space left" in ended.stderr


def test_a_reader_that_has_had_enough_is_no_mistake() -> None:
    """`tunnel models | head -0`"""
    from subprocess import PIPE, Popen

    from tests.cli.running import WATCHDOG, command, environment

    process = Popen(command("completion", "bash"), stdout=PIPE, stderr=PIPE, env=environment())
    assert process.stdout
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=WATCHDOG)
    assert err == b""
