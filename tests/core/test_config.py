"""The configuration: every name with good values and bad ones, and errors that a person can act on."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import wire
from tunnel.address import Address
from tunnel.config import (
    FIELDS,
    check,
    new_password,
    parse_address,
    read_file,
    read_password,
    secret_of,
)
from tunnel.errors import ConfigError
from tunnel.keys import METHODS

A_KEY = base64.b64encode(bytes(range(32))).decode()
SECONDS = (
    [1, 0.5, 300, "60", "0.25", 1e6],
    [0, -1, "", "soon", True, None, [], 1e7, "nan", "inf", float("nan")],
)
PORT = (
    [1, 80, 65535, "8388", 8388.0],
    [0, -1, 65536, "", "http", True, None, [], 80.5, "80.5", 10**400, 1e400],
)
NO_TEXT = ["", 5, None, True, [], {}, "\ud800"]
NO_FILE = [*NO_TEXT, "a\0b", "/"]
NO_ACCOUNT = [*NO_TEXT, "a\0b"]

# name: values that are taken, values that are not
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "server": (
        ["::", "192.0.2.1", ["0.0.0.0", "::"], ["example.com"]],
        ["", [], [""], 5, None, {}, [5], "\ud800"],
    ),
    "server_port": PORT,
    "local_address": (["127.0.0.1", "::1", "localhost"], NO_TEXT),
    "local_port": PORT,
    "password": (["x", "two words", "ünïcode"], NO_TEXT),
    "key": ([A_KEY], NO_TEXT),
    "method": (list(METHODS), ["rot13", "AES-256-GCM", "rc4-md5", "", 5, None]),
    "timeout": SECONDS,
    "no_delay": ([True, False], [1, 0, "true", None, ""]),
    "nofile": ([16, 1024, 1048576, "4096"], [0, 15, -1, 1048577, "many", None, True]),
    "user": (["nobody", "65534"], NO_ACCOUNT),
    "group": (["nogroup", "65534"], NO_ACCOUNT),
    "mode": (["tcp_only", "tcp_and_udp"], ["udp_only", "TCP_ONLY", "", None, 5, []]),
    "listen": (
        ["127.0.0.1:80", "[::1]:80", "example.com:0", ["127.0.0.1:1", "[::1]:1"]],
        [
            "",
            "127.0.0.1",
            ":80",
            "host:",
            "::1:80",
            "[]:80",
            "host:http",
            "host:65536",
            "host:-1",
            80,
            None,
            [],
        ],
    ),
    "target": (
        ["127.0.0.1:80", "[::1]:80", "example.com:65535"],
        ["", "example.com", ":80", "host:0", "x" * 256 + ":80", "a\0b:80", "ü" * 300 + ":80", 80, None],
    ),
    "model": (["fork", "select"], ["", 5, None]),
    "workers": (
        [1, 16, 10_000, "4", "2:8", "1:10000", "3:3"],
        [0, -1, 10_001, 1.5, "all", "", "8:2", "2:", ":2", "0:4", "2:10001", "1:2:3", None, False, []],
    ),
    "max_requests": ([1, 1000, 2**31, "50"], [0, -1, 1.5, 2**31 + 1, "many", "", None, True, []]),
    "max_connections": ([1, 64, 65536, "50"], [0, -1, 1.5, 65537, "many", "", None, True, []]),
    "max_per_source": ([1, 64, 65536, "50"], [0, -1, 1.5, 65537, "many", "", None, True, []]),
    "heartbeat": ([2, 30, 2.5, "60", 1e6], [1, 1.9, 0, -1, "", "soon", True, None, [], 1e7, "nan"]),
    "relay": (["poll", "threads", "fork"], ["thread", "POLL", "", None, 5, []]),
    "service": (["tunnel", "echo", "bytes", "relay"], ["discard", "ECHO", "", None, 7, []]),
    "replay_file": (["/var/lib/tunnel/salts", "salts"], NO_FILE),
    "log_file": (["/var/log/tunnel.log", "log"], NO_FILE),
    "backlog": ([1, 1024, 65535, "128"], [0, 65536, "long", None, True]),
    "handshake_timeout": SECONDS,
    "connect_timeout": SECONDS,
    "half_closed_timeout": SECONDS,
    "grace": SECONDS,
    "allow": (
        ["10.0.0.0/8", "fd00::/8", "127.0.0.1", ["10.0.0.0/8", "192.168.0.0/16"]],
        ["", "banana", "10.0.0.0/33", ["10.0.0.0/8", "x"], [], 5, None],
    ),
    "deny": (
        ["10.0.0.0/8", "*.example.com", "host.example.com", ["*", "0.0.0.0/0", "::/0"]],
        ["", "banana", "*.*", "a..b", "::ffff:10.0.0.0/104", ["x"], [], 5, None],
    ),
    "log_level": (["debug", "info", "warning", "error"], ["loud", "INFO", "", 1, None]),
    "log_format": (["text", "json"], ["xml", "", None, True]),
}


def cases(which: int) -> list[object]:
    return [
        pytest.param(name, value, id=f"{name}-{str(value)[:30]!a}")
        for name, values in VALUES.items()
        for value in values[which]
    ]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def to_file(content: object) -> str:
        path = tmp_path / "config.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return to_file


def test_every_field_has_its_good_and_bad_values_here() -> None:
    assert set(VALUES) == set(FIELDS)


@pytest.mark.parametrize(("name", "value"), cases(0))
def test_a_good_value_is_taken(name: str, value: Any, write: Any) -> None:
    values, warnings = read_file(write({name: value}))
    assert list(values) == [name]
    assert warnings == []
    if name not in ("server", "listen", "target", "allow", "deny", "workers"):
        assert values[name] == (type(values[name])(value) if isinstance(value, str) else value)


@pytest.mark.parametrize(("name", "value"), cases(1))
def test_a_bad_value_is_an_error_that_names_file_and_key_and_what_was_expected(
    name: str, value: Any, write: Any
) -> None:
    path = write({name: value})
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    text = str(caught.value)
    assert text.startswith(f'{path}: "{name}"')
    assert "expected" in text
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    if name in ("password", "key"):
        assert "hidden" in text


def test_lists_and_addresses_are_ready_to_use(write: Any) -> None:
    values, _ = read_file(
        write({"server": "::", "listen": ["[::1]:80", "h:1"], "target": "h:80", "allow": "10.0.0.0/8"})
    )
    assert values == {
        "server": ["::"],
        "listen": [Address("::1", 80), Address("h", 1)],
        "target": Address("h", 80),
        "allow": ["10.0.0.0/8"],
    }


@pytest.mark.parametrize(("value", "size"), [(4, (4, 4)), ("4", (4, 4)), ("2:8", (2, 8)), ("3:3", (3, 3))])
def test_workers_are_a_size_or_two_bounds(value: Any, size: tuple[int, int]) -> None:
    assert check("workers", value, "here") == size


def test_a_file_as_shadowsocks_libev_has_it_is_understood(write: Any) -> None:
    values, warnings = read_file(
        write(
            {
                "server": ["::1", "127.0.0.1"],
                "mode": "tcp_only",
                "server_port": 8388,
                "local_address": "127.0.0.1",
                "local_port": 1080,
                "password": "barfoo!",
                "timeout": 86400,
                "method": "chacha20-ietf-poly1305",
                "no_delay": True,
                "nofile": 51200,
                "plugin": "",
            }
        )
    )
    assert warnings == []
    assert values["timeout"] == 86400
    assert "plugin" not in values


def test_an_unknown_key_is_a_warning_that_names_file_and_key_and_not_the_value(write: Any) -> None:
    path = write({"fast_open": "s3cr3t", "server_prot": 1, "password": "x"})
    values, warnings = read_file(path)
    assert list(values) == ["password"]
    assert len(warnings) == 2
    assert all(path in warning for warning in warnings)
    assert '"fast_open"' in warnings[0]
    assert '"server_prot"' in warnings[1]
    assert "s3cr3t" not in "".join(warnings)


def test_a_plugin_is_an_error_since_going_on_without_it_would_not_do(write: Any) -> None:
    with pytest.raises(ConfigError, match=r'"plugin": .*not supported'):
        read_file(write({"plugin": "v2ray-plugin"}))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "password: x",
        '{"a": 1,}',
        "{'a': 1}",
        '{"password": "s3cr3t"',
        "[" * 100_000,
        "1" * 5000,
        "\x00",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_what_is_not_json_is_an_error_that_names_the_file(content: str, write: Any) -> None:
    path = write(content)
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "5", "null", '"text"', "true"])
def test_json_that_is_no_object_is_an_error_that_shows_one(content: str, write: Any) -> None:
    with pytest.raises(ConfigError, match="expected a JSON object"):
        read_file(write(content))


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"password": "\xff\xfe"}')
    with pytest.raises(ConfigError, match="not JSON"):
        read_file(str(path))


def test_a_file_that_is_not_there_says_so_itself() -> None:
    with pytest.raises(FileNotFoundError):
        read_file("no/such/file")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(FIELDS)), JSON)
def test_any_value_is_taken_or_a_config_error(name: str, value: Any) -> None:
    try:
        check(name, value, "here")
    except ConfigError as error:
        complaint = str(error)
    else:
        return
    assert complaint.startswith("here")


@given(st.text(max_size=40))
def test_any_text_is_a_place_or_a_value_error(text: str) -> None:
    try:
        host, port = parse_address(text)
    except ValueError:
        return
    assert host
    assert 0 <= port <= 65535


@given(st.text("abc.:[]0189", min_size=1, max_size=20), st.integers(0, 65535))
def test_a_place_that_is_written_out_is_read_again(host: str, port: int) -> None:
    try:
        place = parse_address(str(Address(host, port)))
    except ValueError:
        return
    if not set(host) & set("[]"):
        assert place == Address(host, port)


# Secrets


@pytest.mark.parametrize("method", METHODS)
def test_a_password_and_its_key_are_the_same_secret(method: str) -> None:
    key = wire.master_key("hehe", wire.KEY_SIZES[method])
    by_password = secret_of({"method": method, "password": "hehe"}, "here")
    by_key = secret_of({"method": method, "key": base64.b64encode(key).decode()}, "here")
    assert (
        by_password.subkey(bytes(32)) == by_key.subkey(bytes(32)) == wire.hkdf_sha1(key, bytes(32), len(key))
    )


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("AAAA", "expected 32"),
        (A_KEY[:-4], "expected 32"),
        ("s3cr3t!", "base64"),
        (A_KEY + "\n", "base64"),
        (A_KEY[:-1], "base64"),
    ],
)
def test_a_wrong_key_is_an_error_that_says_where_and_what_and_not_the_key(key: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        secret_of({"method": "aes-256-gcm", "key": key}, "config.json")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("config.json: ")
    assert "key" in str(caught.value)
    assert key.strip() not in str(caught.value)


def test_no_password_at_all_is_an_error_that_says_where_to_put_one() -> None:
    with pytest.raises(ConfigError, match="--password-file"):
        secret_of({"method": "aes-256-gcm"}, "command line")


def test_a_new_password_is_fresh_and_a_key_for_the_longest_method() -> None:
    passwords = {new_password() for _ in range(50)}
    assert len(passwords) == 50
    assert all(len(base64.b64decode(password, validate=True)) == 32 for password in passwords)


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.touch(0o600)
    return path


@pytest.mark.parametrize(
    ("content", "password"),
    [
        ("hehe", "hehe"),
        ("hehe\n", "hehe"),
        ("hehe\r\n", "hehe"),
        ("  two words \nand a remark\n", "  two words "),
        ("ünïcode\n", "ünïcode"),
    ],
)
def test_a_password_is_its_files_first_line(password_file: Path, content: str, password: str) -> None:
    password_file.write_bytes(content.encode())
    assert read_password(str(password_file)) == password


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n", b"\nhehe\n", b"\xff\xfes3cr3t\n"])
def test_a_password_file_without_a_password_is_an_error_that_names_it(
    password_file: Path, content: bytes
) -> None:
    password_file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_password(str(password_file))
    assert str(caught.value).startswith(f"{password_file}: ")
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o666])
def test_a_password_file_that_others_can_read_is_refused(password_file: Path, mode: int) -> None:
    password_file.write_text("s3cr3t\n")
    os.chmod(password_file, mode)
    with pytest.raises(ConfigError) as caught:
        read_password(str(password_file))
    assert str(caught.value).startswith(f"{password_file}: ")
    assert "expected" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_password_file_that_only_its_owner_can_read_is_taken(password_file: Path, mode: int) -> None:
    password_file.write_text("hehe\n")
    os.chmod(password_file, mode)
    assert read_password(str(password_file)) == "hehe"
