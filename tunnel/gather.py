"""The user's values from defaults, file, URI and flags, in rising order.

Rules: read again as a whole by a reload. What can be read only once (standard input, a pipe) is kept.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Set

from models import MODELS
from tunnel import config
from tunnel.address import Address
from tunnel.config import FORWARD, RELAY, SERVE, TUNNEL, Values
from tunnel.errors import ConfigError, ModelMissing


class Gatherer:
    """Reads the values. `uri` and `password` are what a handover or a first read left behind."""

    def __init__(self, command: str, arguments: argparse.Namespace) -> None:
        self.command = command
        self.uri: str | None = None  # the text, once it has been read
        self.password: str | None = None  # the fresh one of a server without configuration
        self._uri_path: str | None = None  # where it was read from
        self._arguments = arguments

    @property
    def path(self) -> str | None:
        """The configuration file."""
        path: str | None = self._arguments.config
        return path

    def secret_files(self) -> list[str]:
        """Those that nobody else may read; a password file is judged when it is read."""
        return [path for path in (self.path, self._uri_path) if path is not None]

    def files(self) -> list[str]:
        """All that a reload reads again."""
        return [path for path in (self.path, self._arguments.password_file) if path is not None]

    def read(self) -> tuple[Values, list[str]]:
        """The values, and warnings for the log. Raises ConfigError, OSError."""
        values: Values = dict(config.DEFAULTS)
        from_file: Values = {}
        warnings: list[str] = []
        flags = {name: value for name, value in vars(self._arguments).items() if value is not None}
        if self.path is not None:
            from_file, warnings = config.read_file(self.path)
            values |= from_file
            if values["model"] not in MODELS:
                expected = ", ".join(MODELS)
                raise ConfigError(f'{self.path}: "model" is {values["model"]!r}: expected one of {expected}')
        name: str = flags.get("model") or values["model"]
        if reason := MODELS[name].missing():
            raise ModelMissing(f"model {name} cannot run here: {reason}")
        if argument := flags.pop("server", None):
            if self.uri is None:
                self.uri = read_uri(argument)
                self._uri_path = argument if os.path.isfile(argument) else None
            values.pop("key", None)
            values |= config.parse_uri(self.uri)
        if "password_file" in flags:
            values.pop("key", None)
            values["password"] = config.read_password(flags["password_file"])
        values |= {name: value for name, value in flags.items() if name in config.FIELDS}
        encrypts = service_of(self.command, values) == TUNNEL
        if self.command == SERVE and encrypts and "password" not in values and "key" not in values:
            self.password = values["password"] = self.password or config.new_password()
        return values, warnings + useless(self.command, values, from_file.keys() | flags.keys())


def service_of(command: str, values: Values) -> str:
    """What is served: the tunnel, or at the server's end one of the book's services."""
    service: str = values.get("service", TUNNEL) if command == SERVE else TUNNEL
    return service


def useless(command: str, values: Values, given: Set[str]) -> list[str]:
    """Warnings for what the user has given and has no effect."""
    model = MODELS[values["model"]]
    service = service_of(command, values)
    no_pool = "" if model.master else f"{model.name} has no pool of processes"
    no_server = "" if command == SERVE else f"tunnel {command} is a client end"
    no_judge = no_server or ("" if service == TUNNEL else f"service {service} is no tunnel")
    aimed = "service relay" if command == SERVE else "tunnel forward"
    no_target = "" if command == FORWARD or service == RELAY else f"only {aimed} has a target"
    why = {
        "workers": "" if model.pool else f"{model.name} has no pool",
        "max_requests": no_pool,
        "heartbeat": no_pool,
        "relay": "" if model.copy else f"{model.name} is a loop",
        "service": no_server,
        "target": no_target,
        "allow": no_judge,
        "deny": no_judge,
        "replay_file": no_judge,
        "password_file": "" if service == TUNNEL else f"service {service} encrypts nothing",
    }
    warnings = [f"{reason}: {name} has no effect" for name, reason in why.items() if reason and name in given]
    if values.get("mode") == "tcp_and_udp":
        warnings.append("mode is tcp_and_udp, but UDP is not relayed: TCP only")
    return warnings


def read_uri(argument: str) -> str:
    """The URI itself, or the first line of the file that holds it, or of standard input."""
    if "://" in argument:  # or another one, which is refused when it is parsed
        return argument
    if "@" in argument and not os.path.exists(argument):  # no word of it is shown, as of a missing file
        raise ConfigError("server is neither a URI that begins with ss:// nor a file: expected one of them")
    uri = config.read_line(0 if argument == "-" else argument)
    if not uri.strip():
        shown = "standard input" if argument == "-" else argument
        raise ConfigError(f"{shown}: first line is empty: expected the server's ss:// URI")
    return uri


def listen_places(command: str, values: Values) -> list[Address]:
    """Where to listen: --listen, else what the file says for this end, else loopback."""
    if "listen" in values:
        places: list[Address] = values["listen"]
        return places
    if command == SERVE:
        port = values.get("server_port", config.DEFAULT_PORT)
        return [Address(host, port) for host in values.get("server", ["127.0.0.1"])]
    port = values.get("local_port", config.DEFAULT_LOCAL_PORT)
    return [Address(values.get("local_address", "127.0.0.1"), port)]


def server_places(values: Values) -> list[Address]:
    """The server that a client end dials; several: the next one if one does not answer."""
    if "server" not in values:
        raise ConfigError("no server: expected --server ss://..., or a --config that names one")
    port = values.get("server_port", config.DEFAULT_PORT)
    return [Address(host, port) for host in values["server"]]
