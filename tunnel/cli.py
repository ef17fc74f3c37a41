"""The `tunnel` command: flags and files in, a listening server out.

    serve      the server                         accepts sealed streams, dials where they say
    local      the client end                     accepts SOCKS5, dials the server
    forward    the client end, one fixed target   accepts anything, dials the server
    models     the server models                  keygen    a fresh password
    completion a script for the shell

Rules: a user's mistake is one line on standard error and an exit code from sysexits.h, never a
traceback. A secret in the arguments is moved out of them before anything else happens, because
every user of the machine can read them (`ps`).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from models import DEFAULT_MODEL, MODELS
from tunnel import config
from tunnel._version import __version__
from tunnel.address import Address, encode_name
from tunnel.errors import ConfigError, HandshakeError
from tunnel.keys import DEFAULT_METHOD, METHODS, Secret
from tunnel.log import LEVELS, log

# sysexits.h
EX_OK, EX_USAGE, EX_NOINPUT, EX_UNAVAILABLE, EX_OSERR, EX_CANTCREAT, EX_NOPERM, EX_CONFIG = (
    0,
    64,
    66,
    69,
    71,
    73,
    77,
    78,
)

SERVE, LOCAL, FORWARD = "serve", "local", "forward"
DEFAULTS: config.Values = {
    "model": DEFAULT_MODEL,
    "method": DEFAULT_METHOD,
    "backlog": 1024,
    "timeout": 300.0,
    "handshake_timeout": 59.0,
    "connect_timeout": 10.0,
    "grace": 30.0,
    "no_delay": True,
    "log_level": "info",
    "log_format": "text",
}


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a mistake, the nearest right word, and EX_USAGE."""

    def error(self, message: str) -> NoReturn:
        self.exit(EX_USAGE, f"{self.prog}: {message}{self._hint(message)}; see {self.prog} --help\n")

    def _hint(self, message: str) -> str:
        """The nearest word that would have been right, for an unknown option or an invalid choice."""
        from difflib import get_close_matches  # noqa: PLC0415

        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            wrong, right = choice[1], re.findall(r"'(.*?)'", choice[2])
        else:
            wrong = message.partition(": ")[2].partition("=")[0].partition(" ")[0]
            right = [word for action in self._actions for word in action.option_strings]
        close = get_close_matches(wrong, right, 1)
        return f" (did you mean {close[0]}?)" if close else ""


def field(name: str) -> Callable[[str], Any]:
    """An argparse type: the check of that field in the table of config.py."""

    def parse(value: str) -> Any:
        try:
            return config.check(name, value, f"{value!r}")
        except ConfigError:
            raise argparse.ArgumentTypeError(f"{value!r}: expected {config.FIELDS[name].expected}") from None

    return parse


def build_parser() -> Parser:
    parser = Parser(
        prog="tunnel",
        description="A Shadowsocks tunnel under any of the classic UNIX server models.",
        epilog="Start with `tunnel serve`: it needs no configuration and prints what to do next.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tunnel {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    add_server(
        commands,
        SERVE,
        "run the server",
        "Accept sealed streams and connect them to where they ask.",
        f"127.0.0.1:{config.DEFAULT_PORT}",
    )
    add_server(
        commands,
        LOCAL,
        "run the client end, a SOCKS5 proxy",
        "Accept SOCKS5 and pass it, sealed, to the server.",
        f"127.0.0.1:{config.DEFAULT_LOCAL_PORT}",
    )
    add_server(
        commands,
        FORWARD,
        "run the client end, for one fixed target",
        "Accept connections and pass them, sealed, to one target behind the server.",
        f"127.0.0.1:{config.DEFAULT_LOCAL_PORT}",
    )
    commands.add_parser("models", help="list the server models", allow_abbrev=False)
    keygen = commands.add_parser(
        "keygen",
        help="print a fresh random password",
        description="Print a password of 256 random bits, fit for every method.",
        allow_abbrev=False,
    )
    keygen.add_argument("--output", metavar="FILE", help="write it to FILE, readable by you alone")
    completion = commands.add_parser(
        "completion",
        help="print a completion script for your shell",
        description='Try: eval "$(tunnel completion bash)"',
        allow_abbrev=False,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser


def add_server(commands: Any, name: str, brief: str, description: str, listen: str) -> None:
    parser = commands.add_parser(name, help=brief, description=description, allow_abbrev=False)
    parser.add_argument(
        "--model",
        choices=tuple(MODELS),
        metavar="NAME",
        help=f"server model (default: {DEFAULT_MODEL}; see `tunnel models`)",
    )
    parser.add_argument("--config", metavar="FILE", help="shadowsocks-libev's JSON; flags win over it")
    place = parser.add_argument_group("where")
    place.add_argument(
        "--listen",
        metavar="HOST:PORT",
        action="append",
        type=field("listen"),
        help=f"address to listen on (default: {listen}); may be repeated",
    )
    if name == FORWARD:
        place.add_argument(
            "--target", metavar="HOST:PORT", type=field("target"), help="where the tunnel leads to"
        )
    if name == SERVE:
        place.add_argument(
            "--allow",
            metavar="CIDR",
            action="append",
            type=lambda cidr: field("allow")(cidr)[0],
            help="open a private range to users of a listener that others can reach; may be repeated",
        )
    else:
        place.add_argument(
            "--server",
            metavar="URI",
            help="the server's ss:// URI, a file that holds it, or - to read it from standard input",
        )
    place.add_argument(
        "--backlog", metavar="N", type=field("backlog"), help="connections that may wait for accept"
    )
    secret = parser.add_argument_group("secret")
    secret.add_argument("--method", choices=tuple(METHODS), metavar="NAME", help=", ".join(METHODS))
    secret.add_argument("--password-file", metavar="FILE", help="file with the password in its first line")
    work = parser.add_argument_group("work")
    work.add_argument(
        "--workers", metavar="N", type=field("workers"), help="size of the pool, in models that have one"
    )
    for option, help_text in (
        ("timeout", "seconds without a byte either way before a connection is cut"),
        ("handshake-timeout", "seconds from accept to a whole request"),
        ("connect-timeout", "seconds for each address of a target"),
        ("grace", "seconds that transfers have after SIGTERM"),
    ):
        name_in_file = option.replace("-", "_")
        work.add_argument(
            f"--{option}",
            metavar="S",
            type=field(name_in_file),
            help=f"{help_text} (default: {DEFAULTS[name_in_file]:g})",
        )
    logs = parser.add_argument_group("log")
    logs.add_argument("--log-level", choices=LEVELS, metavar="LEVEL", help=", ".join(LEVELS))
    logs.add_argument("--log-format", choices=("text", "json"), metavar="FORMAT", help="text or json")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    if argv is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before the server runs: no traceback
        hide_secrets_in_argv()
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        chosen: Parser = arguments.parser
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return run(arguments)
    except ConfigError as error:
        return complain(arguments, str(error), EX_CONFIG)
    except BrokenPipeError:  # `tunnel models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_OK
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        codes = {
            errno.EACCES: EX_NOPERM,
            errno.EPERM: EX_NOPERM,
            errno.EADDRINUSE: EX_UNAVAILABLE,
            errno.EADDRNOTAVAIL: EX_UNAVAILABLE,
            errno.EEXIST: EX_CANTCREAT,
        }
        default = EX_NOINPUT if error.filename else EX_OSERR
        return complain(arguments, f"{name}{error.strerror}", codes.get(error.errno or 0, default))


def complain(arguments: argparse.Namespace, text: str, code: int) -> int:
    print(f"tunnel {arguments.command}: {text}", file=sys.stderr)
    return code


def hide_secrets_in_argv() -> None:
    """Replaces this process by one that gets each ss:// URI through a pipe instead of its arguments."""
    if not any("ss://" in word for word in sys.argv):
        return
    words = list(sys.orig_argv)
    for place, word in enumerate(words):
        flag, found, secret = word.partition("ss://")
        if found:
            reading, writing = os.pipe()
            os.write(writing, (found + secret).encode())
            os.close(writing)
            os.set_inheritable(reading, True)
            words[place] = f"{flag}/dev/fd/{reading}"
    if words != sys.orig_argv:
        print(
            "tunnel: a secret among the arguments was visible for a moment; `--server -` reads it unseen",
            file=sys.stderr,
        )
        os.execv(sys.executable, words)  # noqa: S606 - no shell is the point


def run(arguments: argparse.Namespace) -> int:
    if arguments.command == "models":
        return print_models()
    if arguments.command == "keygen":
        return keygen(arguments.output)
    if arguments.command == "completion":
        import shtab  # noqa: PLC0415 - here alone

        print(shtab.complete(build_parser(), arguments.shell))
        return EX_OK
    return serve(arguments)


def print_models() -> int:
    rows = [("NAME", "FAMILY", "SOURCE", ""), *(model[:4] for model in MODELS.values())]
    for name, family, source, summary in rows:
        print(f"{name:<12}{family:<12}{source:<12}{summary}".rstrip())
    return EX_OK


def keygen(output: str | None) -> int:
    password = config.new_password()
    if output is None:
        print(password)
        return EX_OK
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="ascii") as file:
        file.write(password + "\n")
    return EX_OK


def gather(arguments: argparse.Namespace) -> tuple[config.Values, list[str]]:
    """The values from defaults, file, URI and flags, in rising order, and warnings for the log."""
    values: config.Values = dict(DEFAULTS)
    warnings: list[str] = []
    if arguments.config:
        from_file, warnings = config.read_file(arguments.config)
        values |= from_file
    if uri := getattr(arguments, "server", None):
        values |= config.parse_uri(read_uri(uri))
        values.pop("key", None)
    flags = vars(arguments)
    values |= {
        name: flags[name] for name in config.FIELDS if flags.get(name) is not None and name != "server"
    }
    if arguments.password_file:
        values["password"] = config.read_password(arguments.password_file)
        values.pop("key", None)
    if values["model"] not in MODELS:
        raise ConfigError(
            f'{arguments.config}: "model" is {values["model"]!r}: expected one of {", ".join(MODELS)}'
        )
    return values, warnings


def read_uri(argument: str) -> str:
    """The URI itself, or the first line of the file that holds it, or of standard input."""
    if argument.startswith("ss://"):
        return argument
    return config.read_line(0 if argument == "-" else argument)


def listen_places(command: str, values: config.Values) -> list[Address]:
    """Where to listen: --listen, else the file's server (or local_address), else loopback."""
    if "listen" in values:
        given = values["listen"]
        return given if isinstance(given, list) and not isinstance(given, Address) else [given]
    if command == SERVE:
        port = values.get("server_port", config.DEFAULT_PORT)
        return [Address(host, port) for host in values.get("server", ["127.0.0.1"])]
    return [
        Address(values.get("local_address", "127.0.0.1"), values.get("local_port", config.DEFAULT_LOCAL_PORT))
    ]


def listen(places: Sequence[Address], values: config.Values) -> list[socket.socket]:
    """A listening socket for each place. Raises ConfigError or OSError that names the place."""
    listeners = []
    for place in places:
        try:
            listeners.append(listen_on(place, alone=len(places) == 1, values=values))
        except HandshakeError as error:
            raise ConfigError(f"cannot listen on {place}: {error}") from None
        except OSError as error:
            hint = {
                errno.EADDRINUSE: "the port is in use: expected a free one",
                errno.EACCES: "ports below 1024 are for root: expected a higher one",
                errno.EADDRNOTAVAIL: "expected an address of this machine",
            }
            text = hint.get(error.errno or 0, error.strerror)
            raise OSError(error.errno, f"cannot listen on {place}: {text}") from None
    return listeners


def listen_on(place: Address, alone: bool, values: config.Values) -> socket.socket:
    host = encode_name(place.host)
    try:
        info = socket.getaddrinfo(host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise OSError(errno.EADDRNOTAVAIL, error.strerror) from None
    listener = socket.socket(info[0], socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if info[0] == socket.AF_INET6:
        # Alone, [::] serves IPv4 too; beside 0.0.0.0 it must leave the port's other half free.
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not alone)
    if values["no_delay"]:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    listener.bind(info[4])
    listener.listen(values["backlog"])
    return listener


def bound_address(listener: socket.socket) -> Address:
    host, port = listener.getsockname()[:2]
    return Address(host, port)


def serve(arguments: argparse.Namespace) -> int:
    """serve, local and forward: the same models over three kinds of session."""
    from models._server import Accept, Server, Timeouts  # noqa: PLC0415 - `tunnel models` needs none of it
    from models._stop import Stop  # noqa: PLC0415
    from tunnel.drain import Drain  # noqa: PLC0415

    command = arguments.command
    values, warnings = gather(arguments)
    model = MODELS[values["model"]]
    log.configure(model.name, values["log_level"], values["log_format"] == "json")
    for warning in warnings:
        log.warning(warning)
    fresh = command == SERVE and "password" not in values and "key" not in values
    if fresh:
        values["password"] = config.new_password()
    secret = config.secret_of(values, arguments.config or "command line")
    places = listen_places(command, values)
    servers: list[Address] = []
    if command != SERVE:
        if "server" not in values:
            raise ConfigError("no server: expected --server ss://..., or a --config that names one")
        servers = [Address(host, values.get("server_port", config.DEFAULT_PORT)) for host in values["server"]]
    if command == FORWARD and "target" not in values:
        raise ConfigError("no target: expected --target HOST:PORT")
    run_model = model.load()
    raise_file_limit(values.get("nofile"))
    listeners = listen(places, values)
    check_privacy(arguments.config, values, listeners)
    stop = Stop(listeners, values["grace"])
    stop.install()
    server = Server(
        listeners=listeners,
        accept=Accept(listeners, stop),
        new_session=session_factory(command, secret, values),
        dial=make_dial(listeners, servers, values),
        stop=stop,
        drain=Drain(),
        timeouts=Timeouts(handshake=values["handshake_timeout"], idle=values["timeout"]),
        workers=values.get("workers", model.pool),
        rehearsal=first_words(command, secret),
    )
    for listener in listeners:
        log.info(f"{command} listens on {bound_address(listener)}, method {secret.method.name}")
    if fresh:
        print_first_steps(secret.method.name, values["password"], bound_address(listeners[0]))
    run_model(server)
    log.info("stopped")
    return EX_OK


def session_factory(command: str, secret: Secret, values: config.Values) -> Callable[[], Any]:
    """What makes the Session of each accepted connection."""
    from tunnel import session  # noqa: PLC0415

    if command == SERVE:
        return lambda: session.ServerSession(secret)
    if command == LOCAL:
        return lambda: session.SocksSession(secret)
    target: Address = values["target"]
    return lambda: session.ForwardSession(secret, target)


def first_words(command: str, secret: Secret) -> bytes:
    """What a client of this end could say first, for a rehearsal (models/_pump.py)."""
    from tunnel import session, socks  # noqa: PLC0415

    target = Address("192.0.2.1", 9)  # RFC 5737: nobody's; a rehearsal dials nothing
    if command == SERVE:
        return bytes(session.ForwardSession(secret, target).up.buffer_updated(0))
    return socks.request(target) if command == LOCAL else b""


def make_dial(listeners: Sequence[socket.socket], servers: Sequence[Address], values: config.Values) -> Any:
    """How this end connects. A server that others can reach judges where its users may go."""
    from tunnel.dial import Dial, is_own  # noqa: PLC0415

    allows = None
    if not servers and not on_loopback(listeners):
        from tunnel.judge import Judge  # noqa: PLC0415 - 4 ms that a server on loopback saves

        allows = Judge(values.get("allow", ()), is_own).allows
    return Dial(allows, servers, values["connect_timeout"], values["no_delay"])


def on_loopback(listeners: Sequence[socket.socket]) -> bool:
    """True if only this machine's users can reach the server."""
    return all(listener.getsockname()[0].startswith(("127.", "::1")) for listener in listeners)


def check_privacy(path: str | None, values: config.Values, listeners: Sequence[socket.socket]) -> None:
    """A secret in a file that others can read: a warning on loopback, an error elsewhere."""
    if path is None or not {"password", "key"} & values.keys() or not config.readable_by_others(path):
        return
    text = f"{path}: others can read the secret in it: expected a file that is yours alone (chmod 600)"
    if not on_loopback(listeners):
        raise ConfigError(text)
    log.warning(text)


def raise_file_limit(wanted: int | None) -> None:
    """RLIMIT_NOFILE: as configured, else as far as it goes without being root."""
    import resource  # noqa: PLC0415

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted or hard, max(hard, wanted or 0)))
    except ValueError:
        raise ConfigError(f"nofile is {wanted}: expected at most {hard}, the hard limit here") from None


def print_first_steps(method: str, password: str, address: Address) -> None:
    uri = config.format_uri(method, password, address)
    with contextlib.suppress(BrokenPipeError):
        print(
            "No password was given, so here is a fresh one; it ends with this server.\n\n"
            f"  server   {uri}\n"
            f"  client   echo '{uri}' | tunnel local --server -\n"
            "  try it   curl --proxy socks5h://127.0.0.1:1080 http://example.com/\n",
            flush=True,
        )
