"""From what the user wants to a server that runs: serve, local and forward.

    values (config.py) --> listeners --> Server --> model.serve(server)
                             listen.py     `- new_session: which Session, with which secret
                                           `- dial: targets, judged; or the one server

    command    accepts           dials
    serve      sealed streams    where they say
    local      SOCKS5            its server
    forward    anything          its server

Rules: everything that can be wrong is found before the first connection is accepted. What only some
servers need is imported by those: what a server has imported is what its forks cost.
"""

from __future__ import annotations

import argparse
import resource
import signal
import socket
from collections.abc import Callable, Sequence

from models import MODELS
from models._server import Accept, Rehearsal, Server, Timeouts, Workers
from models._stop import Stop
from tunnel import config, socks
from tunnel.address import Address
from tunnel.aead import Sealer
from tunnel.config import FORWARD, LOCAL, SERVE, Values
from tunnel.dial import Dial, is_own
from tunnel.drain import Drain
from tunnel.errors import ConfigError
from tunnel.keys import Secret
from tunnel.listen import bound_address, listen, on_loopback
from tunnel.log import log
from tunnel.session import ForwardSession, ServerSession, Session, SocksSession


def start(command: str, arguments: argparse.Namespace) -> None:
    """Runs a server until it has been told to stop. Raises ConfigError or OSError before it runs."""
    values, warnings = gather(arguments)
    model = MODELS[values["model"]]
    log.configure(model.name, values["log_level"], values["log_format"] == "json")
    if model.pool is None and "workers" in values:
        warnings.append(f"{model.name} has no pool: workers has no effect")
    if values.get("mode") == "tcp_and_udp":
        warnings.append("mode is tcp_and_udp, but UDP is not relayed: TCP only")
    for warning in warnings:
        log.warning(warning)
    fresh = command == SERVE and "password" not in values and "key" not in values
    if fresh:
        values["password"] = config.new_password()
    secret = config.secret_of(values, arguments.config or "command line")
    servers = [] if command == SERVE else server_places(values)
    if command == FORWARD and "target" not in values:
        raise ConfigError("no target: expected --target HOST:PORT")
    serve = model.load()
    raise_file_limit(values.get("nofile"))
    # A supervisor may stop what has only just begun to listen: it waits until that can be obeyed.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    listeners = listen(listen_places(command, values), values["backlog"], values["no_delay"])
    check_privacy(arguments.config, listeners)
    stop = Stop(listeners, values["grace"])
    stop.install()
    server = Server(
        listeners=listeners,
        accept=Accept(listeners, stop),
        new_session=session_factory(command, secret, values),
        dial=Dial(judge(command, listeners, values), servers, values["connect_timeout"], values["no_delay"]),
        stop=stop,
        drain=Drain(),
        timeouts=Timeouts(handshake=values["handshake_timeout"], idle=values["timeout"]),
        workers=Workers(*(values.get("workers") or model.pool or (1, 1))),
        rehearsal=rehearsal(command, secret),
    )
    for listener in listeners:
        log.info(f"{command} listens on {bound_address(listener)}, method {secret.method.name}")
    if fresh:
        print_first_steps(secret.method.name, values["password"], bound_address(listeners[0]))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    serve(server)
    log.info("stopped")


def gather(arguments: argparse.Namespace) -> tuple[Values, list[str]]:
    """The values from defaults, file, URI and flags, in rising order, and warnings for the log."""
    values: Values = dict(config.DEFAULTS)
    warnings: list[str] = []
    flags = {name: value for name, value in vars(arguments).items() if value is not None}
    if "config" in flags:
        from_file, warnings = config.read_file(flags["config"])
        values |= from_file
        if values["model"] not in MODELS:
            expected = ", ".join(MODELS)
            raise ConfigError(
                f'{flags["config"]}: "model" is {values["model"]!r}: expected one of {expected}'
            )
    if uri := flags.pop("server", None):
        values.pop("key", None)
        values |= config.parse_uri(read_uri(uri))
    if "password_file" in flags:
        values.pop("key", None)
        values["password"] = config.read_password(flags["password_file"])
    values |= {name: value for name, value in flags.items() if name in config.FIELDS}
    return values, warnings


def read_uri(argument: str) -> str:
    """The URI itself, or the first line of the file that holds it, or of standard input."""
    if argument.startswith("ss://"):
        return argument
    return config.read_line(0 if argument == "-" else argument)


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


def session_factory(command: str, secret: Secret, values: Values) -> Callable[[], Session]:
    """What makes the Session of each accepted connection."""
    if command == SERVE:
        return lambda: ServerSession(secret)
    if command == LOCAL:
        return lambda: SocksSession(secret)
    target: Address = values["target"]
    return lambda: ForwardSession(secret, target)


def rehearsal(command: str, secret: Secret) -> Rehearsal:
    """What both sides of a connection to this end could say (models/_pump.py tells why)."""
    target = Address("192.0.2.1", 9)  # RFC 5737: nobody's; a rehearsal dials nothing
    if command == SERVE:
        return Rehearsal(bytes(ForwardSession(secret, target).up.buffer_updated(0)), b"x")
    client = socks.request(target) if command == LOCAL else b"x"
    return Rehearsal(client, bytes(Sealer(secret, b"x").buffer_updated(0)))


def judge(command: str, listeners: Sequence[socket.socket], values: Values) -> Callable[[str], bool] | None:
    """What says where users may go; None on loopback, whose users could go there anyway."""
    if command != SERVE or on_loopback(listeners):
        return None
    from tunnel.judge import Judge  # noqa: PLC0415 - 4 ms that a server on loopback saves

    return Judge(values.get("allow", ()), is_own).allows


def check_privacy(path: str | None, listeners: Sequence[socket.socket]) -> None:
    """A configuration that others can read: a warning on loopback, an error elsewhere."""
    if path is None or not config.readable_by_others(path):
        return
    text = f"{path}: others can read it: expected a file that is yours alone (chmod 600)"
    if not on_loopback(listeners):
        raise ConfigError(text)
    log.warning(text)


def raise_file_limit(wanted: int | None) -> None:
    """RLIMIT_NOFILE: as configured, else as far as it goes without being root."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted or hard, max(hard, wanted or 0)))
    except ValueError:
        raise ConfigError(f"nofile is {wanted}: expected at most {hard}, the hard limit here") from None


def print_first_steps(method: str, password: str, address: Address) -> None:
    """What a newcomer pastes next."""
    uri = config.format_uri(method, password, address)
    print(
        "No password was given, so here is a fresh one; it ends with this server.\n\n"
        f"  server   {uri}\n"
        f"  client   echo '{uri}' | tunnel local --server -\n"
        "  try it   curl --proxy socks5h://127.0.0.1:1080 http://example.com/\n",
        flush=True,
    )
