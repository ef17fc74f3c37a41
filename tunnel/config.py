"""What the user wants, from a file and from flags, checked once and completely.

    shadowsocks-libev's JSON --+
    ss:// URI (SIP002) --------+--> values by name --check--> Settings
    flags ---------------------'    (later ones win)

Rules: every name, its check and what is expected of it stand in one table, FIELDS, for the file and
the flags alike. A wrong value is an error that says which, where, and what was expected; an unknown
name is a warning, since other programs' files have keys of their own.
"""

from __future__ import annotations

import binascii
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tunnel.address import Address, pack
from tunnel.errors import ConfigError, HandshakeError
from tunnel.keys import DEFAULT_METHOD, METHODS, Secret, find_method
from tunnel.log import LEVELS

Values = dict[str, Any]

SERVE, LOCAL, FORWARD = "serve", "local", "forward"
SERVICES = TUNNEL, ECHO, BYTES, RELAY = "tunnel", "echo", "bytes", "relay"
HANDOVER = "UNP_TUNNEL_HANDOVER"  # in the environment: a program that SIGUSR2 started, see handover.py
DEFAULT_MODEL = "thread"
DEFAULT_PORT, DEFAULT_LOCAL_PORT = 8388, 1080
DEFAULTS: Values = {
    "model": DEFAULT_MODEL,
    "method": DEFAULT_METHOD,
    "backlog": 1024,
    "timeout": 300.0,
    "handshake_timeout": 59.0,
    "connect_timeout": 10.0,
    "half_closed_timeout": 120.0,  # as long as Linux's connection tracking remembers such a connection
    "grace": 30.0,
    "heartbeat": 30.0,
    "no_delay": True,
    "log_level": "info",
    "log_format": "text",
}


class Field(NamedTuple):
    """One setting: `check` returns the value or raises ValueError, `expected` says what it wants.

    A ConfigError from `check` says that itself.
    """

    check: Callable[[Any], Any]
    expected: str


def number(low: float, high: float, whole: bool = True) -> Callable[[Any], Any]:
    """A number within bounds, as JSON or as a flag's text."""

    def check(value: Any) -> int | float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        parsed = int(value) if whole else float(value)
        if not low <= parsed <= high or parsed != float(value):
            raise ValueError
        return parsed

    return check


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    value.encode()  # UnicodeEncodeError, a ValueError: JSON can spell what is no text (a lone surrogate)
    return value


def name_here(value: Any) -> str:
    """Of something on this machine, which cannot have a NUL in its name."""
    if "\0" in text(value):
        raise ValueError
    return str(value)


def file_path(value: Any) -> str:
    """Of a file to write to: whether it can be had is seen when it is opened."""
    path = name_here(value)
    if os.path.isdir(path):
        raise ConfigError(f"{path!r} is a directory: expected a file's path")
    return path


def hosts(value: Any) -> list[str]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed:
        raise ValueError
    return [text(host) for host in listed]


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def destinations(value: Any) -> list[str]:
    from tunnel.judge import parse_rule  # noqa: PLC0415 - it imports ipaddress, which few servers need

    listed = hosts(value)
    for rule in listed:
        parse_rule(rule)
    return listed


def target(value: Any) -> Address:
    place = parse_address(value)
    try:
        pack(place)
    except HandshakeError as error:
        raise ConfigError(str(error)) from None
    number(1, 65535)(place.port)
    return place


def one_of(*choices: str) -> Field:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return Field(check, f"one of {', '.join(choices)}")


def method(value: Any) -> str:
    return find_method(text(value)).name


def parse_address(value: Any) -> Address:
    """`HOST:PORT`, with an IPv6 host in brackets."""
    host, colon, port = text(value).rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host and not bracketed):
        raise ValueError
    host = host[1:-1] if bracketed else host
    return Address(text(host), number(0, 65535)(port))


def places(value: Any) -> list[Address]:
    return [parse_address(place) for place in hosts(value)]


def workers(value: Any) -> tuple[int, int]:
    least, colon, most = str(value).partition(":")
    bound = number(1, 10_000)
    size = bound(least), bound(most if colon else least)
    if size[0] > size[1] or not isinstance(value, int | str):
        raise ValueError
    return size


PORT = Field(number(1, 65535), "a number from 1 to 65535")
OR_A_LIST = ", or a list of them"  # in a file
DESTINATIONS = f"a range such as 10.0.0.0/8, names such as *.example.com{OR_A_LIST}"
SECONDS = Field(number(0.001, 1e6, whole=False), "a number of seconds from 0.001 to 1000000")
FILE = Field(file_path, "a file's path")

FIELDS: Mapping[str, Field] = {
    # shadowsocks-libev's own names
    "server": Field(hosts, "a host, or a list of hosts"),
    "server_port": PORT,
    "local_address": Field(text, "a host"),
    "local_port": PORT,
    "password": Field(text, "a text of at least one character"),
    "key": Field(text, "the key in base64"),
    "method": Field(method, f"one of {', '.join(METHODS)}"),
    "timeout": SECONDS,
    "no_delay": Field(flag, "true or false"),
    "nofile": Field(number(16, 2**20), "a number from 16 to 1048576"),
    "user": Field(name_here, "a user's name or number"),
    "mode": one_of("tcp_only", "tcp_and_udp"),
    # ours; a flag of the same name exists for each
    "listen": Field(places, f"HOST:PORT (port from 0 to 65535, IPv6 as [::1]:8388){OR_A_LIST}"),
    "target": Field(target, "HOST:PORT (port from 1 to 65535, IPv6 as [::1]:8388)"),
    "model": Field(text, "a server model"),
    "workers": Field(workers, "N or MIN:MAX, from 1 to 10000, MIN not above MAX"),
    "max_requests": Field(number(1, 2**31), "a number from 1 to 2147483648"),
    "max_connections": Field(number(1, 2**16), "a number from 1 to 65536"),
    "max_per_source": Field(number(1, 2**16), "a number from 1 to 65536"),
    "heartbeat": Field(  # they beat once a second
        number(2, 1e6, whole=False), "a number of seconds from 2 to 1000000"
    ),
    "relay": one_of("poll", "threads", "fork"),
    "service": one_of(*SERVICES),
    "replay_file": FILE,
    "log_file": FILE,
    "group": Field(name_here, "a group's name or number"),
    "backlog": Field(number(1, 65535), "a number from 1 to 65535"),
    "handshake_timeout": SECONDS,
    "connect_timeout": SECONDS,
    "half_closed_timeout": SECONDS,
    "grace": SECONDS,
    "allow": Field(destinations, DESTINATIONS),
    "deny": Field(destinations, DESTINATIONS),
    "log_level": one_of(*LEVELS),
    "log_format": one_of("text", "json"),
}
NOT_SPOKEN = {  # known to others; going on without them would not do what the user wants
    "plugin": "SIP003 plugins are not supported",
}


def check(name: str, value: Any, where: str) -> Any:
    """The checked value of field `name`; raises ConfigError that begins with `where`."""
    field = FIELDS[name]
    try:
        return field.check(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (ValueError, TypeError, OverflowError):
        shown = "hidden" if name in ("password", "key") else repr(value)
        raise ConfigError(f"{where} is {shown}: expected {field.expected}") from None


def read_file(path: str) -> tuple[Values, list[str]]:
    """The values in a JSON file, and a warning for each name that nobody here knows.

    Raises OSError, or ConfigError that names the file, the key and what was expected.
    """
    import json  # noqa: PLC0415 - importing is forking cost

    with open(path, "rb") as file:
        try:
            content = json.load(file)
        except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, a number of 5,000 digits
            raise ConfigError(f"{path}: not JSON: {error}") from None
        except RecursionError:
            raise ConfigError(f"{path}: nested too deeply: expected one JSON object") from None
    if not isinstance(content, dict):
        raise ConfigError(f'{path}: expected a JSON object, such as {{"server": "::"}}')
    values: Values = {}
    warnings = []
    for name, value in content.items():
        if name in FIELDS:
            values[name] = check(name, value, f'{path}: "{name}"')
        elif name in NOT_SPOKEN and value:
            raise ConfigError(f'{path}: "{name}": {NOT_SPOKEN[name]}')
        elif name not in NOT_SPOKEN:
            warnings.append(f'{path}: "{name}" is not known here and has no effect')
    return values, warnings


def read_password(path: str) -> str:
    """The first line of a password file. Raises OSError or ConfigError."""
    password = read_line(path)
    if readable_by_others(path):
        raise ConfigError(f"{path}: others can read it: expected a file that is yours alone (chmod 600)")
    if not password:
        raise ConfigError(f"{path}: first line is empty: expected the password")
    return password


def read_line(path: str | int) -> str:
    """The first line of a text file, or of an open descriptor. Raises OSError or ConfigError."""
    with open(path, encoding="utf-8", closefd=not isinstance(path, int)) as file:
        try:
            return file.readline().rstrip("\r\n")
        except UnicodeDecodeError:
            shown = "standard input" if path == 0 else path
            raise ConfigError(f"{shown}: not UTF-8 text") from None


def readable_by_others(path: str) -> bool:
    """True if the file's mode lets its group or everybody read it."""
    return bool(os.stat(path).st_mode & 0o044)


def parse_uri(uri: str) -> Values:
    """SIP002: `ss://userinfo@host:port/?plugin=...#tag`, userinfo `method:password` in base64url or
    percent-encoded; and its ancestor, all of it in base64. Raises ConfigError, without the secret."""
    from urllib.parse import parse_qs, unquote  # noqa: PLC0415

    expected = "expected ss://BASE64(method:password)@HOST:PORT"
    scheme, _, rest = uri.strip().partition("://")
    if scheme.lower() != "ss":  # RFC 3986 section 3.1
        raise ConfigError(f"server URI does not begin with ss://: {expected}")
    rest, _, _tag = rest.partition("#")
    rest, _, query = rest.partition("?")
    rest = rest.rstrip("/")
    if "@" not in rest:
        rest = decode_base64(rest) or ""
    userinfo, at, place = rest.rpartition("@")
    if not at:
        raise ConfigError(f"server URI has no @: {expected}")
    try:
        userinfo = unquote(userinfo, errors="strict")
    except UnicodeDecodeError:
        raise ConfigError(f"server URI is not UTF-8 where it is percent-encoded: {expected}") from None
    if ":" not in userinfo:
        userinfo = decode_base64(userinfo) or ""
    name, colon, password = userinfo.partition(":")
    if not colon:
        raise ConfigError(f"server URI names no method and password before the @: {expected}")
    if parse_qs(query).get("plugin"):
        raise ConfigError(f"server URI asks for a plugin: {NOT_SPOKEN['plugin']}")
    try:
        host, port = parse_address(place)
    except ValueError:
        raise ConfigError(f"server URI does not end with a host and a port: {expected}") from None
    return {
        "server": [host],
        "server_port": check("server_port", port, "server URI: port"),
        "method": check("method", name, "server URI"),
        "password": check("password", password, "server URI: password"),
    }


def decode_base64(encoded: str) -> str | None:
    """Text from base64 or base64url, padded or not; None if it is neither."""
    plain = encoded.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return binascii.a2b_base64(plain + "=" * (-len(plain) % 4), strict_mode=True).decode()
    except ValueError:
        return None


def format_uri(method: str, password: str, address: Address) -> str:
    """The SIP002 URI that phones and laptops paste or scan."""
    userinfo = binascii.b2a_base64(f"{method}:{password}".encode(), newline=False).decode()
    return f"ss://{userinfo.rstrip('=').replace('+', '-').replace('/', '_')}@{address}"


def new_password() -> str:
    """A fresh random password of 256 bits, in base64."""
    return binascii.b2a_base64(os.urandom(32), newline=False).decode()


def secret_of(values: Values, where: str) -> Secret:
    """The Secret that `values` name by password or key. Raises ConfigError."""
    chosen = find_method(values.get("method", DEFAULT_METHOD))
    if "key" in values:
        decoded = values["key"].encode()
        try:
            key = binascii.a2b_base64(decoded, strict_mode=True)
        except binascii.Error:
            raise ConfigError(
                f"{where}: key is not base64: expected {chosen.key_size} bytes in base64"
            ) from None
        if len(key) != chosen.key_size:
            raise ConfigError(
                f"{where}: key is {len(key)} bytes long: expected {chosen.key_size} for {chosen.name}"
            )
        return Secret(chosen, key)
    if "password" not in values:
        raise ConfigError(f"{where}: no password: expected --password-file, or one in --config or --server")
    return Secret.from_password(chosen, values["password"])
