"""The `tunnel` command: flags and files in, a listening server out.

    serve        the server                          start.py
    local        the client end, a SOCKS5 proxy      start.py
    forward      the client end, one fixed target    start.py
    status       who does what in a server           status.py
    models, keygen, completion                       here

Rules: a user's mistake is one line on standard error and an exit code from sysexits.h, never a
traceback. A secret in the arguments is moved out of them before anything else happens, because
every user of the machine can read them (`ps`).
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from models import COPIES, MODELS
from tunnel import config
from tunnel._version import __version__
from tunnel.errors import ConfigError, ModelMissing
from tunnel.keys import METHODS
from tunnel.log import LEVELS

READ, WRITTEN = os.EX_NOINPUT, os.EX_CANTCREAT
FILES = {  # flags that bring one, and the exit code if it cannot be had
    "config": READ,
    "password_file": READ,
    "server": READ,
    "log_file": WRITTEN,
    "replay_file": WRITTEN,
    "output": WRITTEN,
}


class Formatter(argparse.HelpFormatter):
    """As wide as the terminal. argparse's own width comes from shutil, which loads three libraries for
    archives: 35 mappings that each fork of a server would copy (docs/performance.md)."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns() - 2)


def columns() -> int:
    """Of the terminal, or as COLUMNS says; 80 where there is neither."""
    try:
        return int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        try:
            return os.get_terminal_size(1).columns
        except OSError:
            return 80


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a mistake, the nearest right word, and EX_USAGE."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(formatter_class=Formatter, **arguments)
        self.others: Sequence[Parser] = ()

    def error(self, message: str) -> NoReturn:
        hint = "" if "did you mean" in message else self._hint(message)
        self.exit(os.EX_USAGE, f"{self.prog}: {message}{hint}; see {self.prog} --help\n")

    def command_line(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The whole of it. argparse itself would ask for a COMMAND before it says what it does not know,
        and take the value of an option that stands before the COMMAND for one."""
        words = sys.argv[1:] if argv is None else argv
        first = words[0].partition("=")[0] if words else ""
        if first.startswith("--") and first not in ("--", *self.options()):
            self.error(f"unrecognized arguments: {first}")
        arguments = self.parse_args(argv)
        if arguments.command is None:
            self.error("expected a COMMAND")
        return arguments

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """A command's parser says itself what it does not know, since it knows what was meant."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def _hint(self, message: str) -> str:
        """The nearest word that would have been right, for an unknown option or an invalid choice."""
        from difflib import get_close_matches  # noqa: PLC0415

        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            wrong, right = choice[1], re.findall(r"'(.*?)'", choice[2])
        else:
            wrong = message.partition(": ")[2].partition("=")[0].partition(" ")[0]
            if owners := [other.prog for other in self.others if wrong in other.options()]:
                return f" ({wrong} is an option of {', '.join(owners)})"
            right = self.options()
            if not wrong.startswith("-"):  # a value
                return ""
        close = get_close_matches(wrong, right, 1)
        return f" (did you mean {close[0]}?)" if close else ""

    def introduce(self, commands: Iterable[Parser]) -> None:
        """To one another, so that each can say whose option it is that it does not know."""
        everybody = [self, *commands]
        for parser in everybody:
            parser.others = everybody

    def options(self) -> list[str]:
        return [word for action in self._actions for word in action.option_strings]


def field(name: str) -> Callable[[str], Any]:
    """An argparse type: the check of that field in the table of config.py."""

    def parse(value: str) -> Any:
        checked = config.FIELDS[name]
        try:
            return checked.check(value)
        except ConfigError as error:  # it says itself what was wrong
            raise argparse.ArgumentTypeError(str(error)) from None
        except ValueError:
            expected = checked.expected.removesuffix(config.OR_A_LIST)  # a flag brings one
            raise argparse.ArgumentTypeError(f"{value!r}: expected {expected}") from None

    return parse


def one(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """For a flag that may be repeated: its field is a list, each flag brings one of it."""
    return lambda value: parse(value)[0]


def pid(value: str) -> int:
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{value!r}: expected the number of a process")
    return int(value)


def build_parser() -> Parser:
    parser = Parser(
        prog="tunnel",
        description="A Shadowsocks tunnel under any of the classic UNIX server models.",
        epilog="Start with `tunnel serve`: it needs no configuration and prints what to do next.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tunnel {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    add_server(
        commands,
        config.SERVE,
        "run the server",
        "Accept sealed streams and connect them to where they ask.",
        f"127.0.0.1:{config.DEFAULT_PORT}",
    )
    add_server(
        commands,
        config.LOCAL,
        "run the client end, a SOCKS5 proxy",
        "Accept SOCKS5 and pass it, sealed, to the server.",
        f"127.0.0.1:{config.DEFAULT_LOCAL_PORT}",
    )
    add_server(
        commands,
        config.FORWARD,
        "run the client end, for one fixed target",
        "Accept connections and pass them, sealed, to one target behind the server.",
        f"127.0.0.1:{config.DEFAULT_LOCAL_PORT}",
    )
    commands.add_parser(
        "models",
        help="list the server models",
        description="List the server models: what --model takes, who waits where, and where it comes from.",
        allow_abbrev=False,
    )
    status = commands.add_parser(
        "status",
        help="show who does what in a running server",
        description="Show the scoreboard of a running server of yours.",
        allow_abbrev=False,
    )
    status.add_argument("--pid", metavar="PID", type=pid, help="the server with this process")
    status.add_argument(
        "--port", metavar="PORT", type=field("server_port"), help="the server that listens on this port"
    )
    status.add_argument(
        "--socket", metavar="HOST:PORT", type=one(field("listen")), help="the server that listens there"
    )
    status.add_argument("--watch", action="store_true", help="show it again every second, until Ctrl-C")
    status.add_argument("--json", action="store_true", help="as JSON, one object a line")
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
    parser.introduce(commands.choices.values())
    return parser


def add_server(commands: Any, name: str, brief: str, description: str, listen: str) -> None:
    parser = commands.add_parser(name, help=brief, description=description, allow_abbrev=False)
    parser.add_argument(
        "--model",
        choices=tuple(MODELS),
        metavar="NAME",
        help=f"server model (default: {config.DEFAULT_MODEL}; see `tunnel models`)",
    )
    parser.add_argument("--config", metavar="FILE", help="shadowsocks-libev's JSON; flags win over it")
    place = parser.add_argument_group("where")
    place.add_argument(
        "--listen",
        metavar="HOST:PORT",
        action="append",
        type=one(field("listen")),
        help=f"address to listen on (default: {listen}); may be repeated",
    )
    if name == config.SERVE:
        parser.add_argument(
            "--service",
            choices=config.SERVICES,
            metavar="NAME",
            help="tunnel; or without encryption: echo, bytes (a line with a number, answered by that"
            " many bytes), relay (to --target) (default: tunnel)",
        )
    if name != config.LOCAL:
        leads = "where --service relay leads to" if name == config.SERVE else "where the tunnel leads to"
        place.add_argument("--target", metavar="HOST:PORT", type=field("target"), help=leads)
    if name == config.SERVE:
        place.add_argument(
            "--allow",
            metavar="RULE",
            action="append",
            type=one(field("allow")),
            help="let users go there: a range (10.0.0.0/8) or names (*.example.com); private ranges are"
            " closed to users of a listener that others can reach; may be repeated",
        )
        place.add_argument(
            "--deny",
            metavar="RULE",
            action="append",
            type=one(field("deny")),
            help="let nobody go there; the narrowest range and the longest name decide; may be repeated",
        )
        place.add_argument(
            "--replay-file",
            metavar="FILE",
            type=field("replay_file"),
            help="remember there which streams were seen, over a restart (default: in memory)",
        )
    else:
        place.add_argument(
            "--server",
            metavar="URI",
            help="the server's ss:// URI, a file that holds it, or - to read it from standard input",
        )
    place.add_argument(
        "--backlog",
        metavar="N",
        type=field("backlog"),
        help=f"connections that may wait for accept (default: {config.DEFAULTS['backlog']})",
    )
    place.add_argument(
        "--max-connections",
        metavar="N",
        type=field("max_connections"),
        help="connections at once, of all workers together; further ones wait in the backlog (default: any)",
    )
    place.add_argument(
        "--max-per-source",
        metavar="N",
        type=field("max_per_source"),
        help="connections at once from one IPv4 address or IPv6 /64; further ones are closed (default: any)",
    )
    secret = parser.add_argument_group("secrets and rights")
    secret.add_argument(
        "--method",
        choices=tuple(METHODS),
        metavar="NAME",
        help=f"{', '.join(METHODS)} (default: {config.DEFAULTS['method']})",
    )
    fresh = " (default: a fresh one, which is printed)" if name == config.SERVE else ""
    secret.add_argument(
        "--password-file", metavar="FILE", help=f"file with the password in its first line{fresh}"
    )
    secret.add_argument(
        "--user",
        metavar="NAME",
        type=field("user"),
        help="become this user once the port is bound, before any client: for a server started by root",
    )
    secret.add_argument(
        "--group", metavar="NAME", type=field("group"), help="and this group (default: that of --user)"
    )
    work = parser.add_argument_group("work")
    work.add_argument(
        "--workers",
        metavar="MIN:MAX",
        type=field("workers"),
        help="size of the pool, in models that have one; N for a fixed size (default: the model's own)",
    )
    work.add_argument(
        "--max-requests",
        metavar="N",
        type=field("max_requests"),
        help="connections after which a pool's worker is replaced by a fresh one (default: any)",
    )
    work.add_argument(
        "--relay",
        choices=COPIES,
        metavar="WAY",
        help=f"how a blocking model copies both directions: {', '.join(COPIES)} (default: the model's own)",
    )
    for option, help_text in (
        ("timeout", "seconds without a byte either way before a connection is cut"),
        ("half-closed-timeout", "the same, once one side has ended"),
        ("handshake-timeout", "seconds from accept to a whole request"),
        ("connect-timeout", "seconds for each address of a target"),
        ("grace", "seconds that transfers have after SIGTERM"),
        ("heartbeat", "seconds without a sign of life after which a pool's worker is killed"),
    ):
        name_in_file = option.replace("-", "_")
        work.add_argument(
            f"--{option}",
            metavar="S",
            type=field(name_in_file),
            help=f"{help_text} (default: {config.DEFAULTS[name_in_file]:g})",
        )
    logs = parser.add_argument_group("log")
    logs.add_argument(
        "--log-file",
        metavar="FILE",
        type=field("log_file"),
        help="instead of standard error; USR1 opens it again",
    )
    logs.add_argument(
        "--log-level",
        choices=LEVELS,
        metavar="LEVEL",
        help=f"{', '.join(LEVELS)} (default: {config.DEFAULTS['log_level']})",
    )
    logs.add_argument(
        "--log-format",
        choices=("text", "json"),
        metavar="FORMAT",
        help=f"text or json (default: {config.DEFAULTS['log_format']})",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    if argv is None:
        hide_secrets_in_argv()
    arguments = build_parser().command_line(argv)
    try:
        return run(arguments)
    except ConfigError as error:
        return complain(arguments, str(error), os.EX_CONFIG)
    except ModelMissing as error:
        return complain(arguments, str(error), os.EX_UNAVAILABLE)
    except BrokenPipeError:  # `tunnel models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return os.EX_OK
    except OSError as error:
        given = {path: name for name, path in vars(arguments).items() if path and name in FILES}
        flag = given.get(error.filename, "")
        name = f"--{flag.replace('_', '-')} " if flag else ""
        name += f"{error.filename}: " if error.filename else ""
        codes = {
            errno.EACCES: os.EX_NOPERM,
            errno.EPERM: os.EX_NOPERM,
            errno.EADDRINUSE: os.EX_UNAVAILABLE,
            errno.EADDRNOTAVAIL: os.EX_UNAVAILABLE,
            errno.EEXIST: os.EX_CANTCREAT,
        }
        default = FILES.get(flag, os.EX_CANTCREAT) if error.filename else os.EX_OSERR
        return complain(arguments, f"{name}{error.strerror}", codes.get(error.errno or 0, default))


def complain(arguments: argparse.Namespace, text: str, code: int) -> int:
    print(f"tunnel {arguments.command}: {text}", file=sys.stderr)
    return code


def hide_secrets_in_argv() -> None:
    """Replaces this process by one that gets each ss:// URI through a pipe instead of its arguments."""
    uri = re.compile("ss://", re.IGNORECASE | re.ASCII)  # RFC 3986 section 3.1
    if not any(map(uri.search, sys.argv)):
        return
    words = list(sys.orig_argv)
    for place, word in enumerate(words):
        if found := uri.search(word):
            flag, secret = word[: found.start()], word[found.start() :]
            reading, writing = os.pipe()
            os.write(writing, secret.encode())
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

        print(shtab.complete(complete_files(build_parser(), shtab.FILE), arguments.shell))
        return os.EX_OK
    if arguments.command == "status":
        from tunnel.status import print_status  # noqa: PLC0415

        return print_status(arguments)
    from tunnel.start import Start  # noqa: PLC0415 - the other commands need none of it

    Start(arguments.command, arguments).run()
    return os.EX_OK


def complete_files(parser: Parser, marker: Any) -> Parser:
    """Marks the options that take a FILE, in this parser and its commands, for the shell."""
    for action in parser._actions:
        if action.metavar == "FILE":
            action.complete = marker  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                complete_files(command, marker)
    return parser


def print_models() -> int:
    rows = [("NAME", "FAMILY", "SOURCE", ""), *(model[:4] for model in MODELS.values())]
    for name, family, source, summary in rows:
        print(f"{name:<19}{family:<10}{source:<11}{summary}".rstrip())
        if reason := MODELS[name].missing() if name in MODELS else None:
            print(f"{'':<19}cannot run here: {reason}")
    return os.EX_OK


def keygen(output: str | None) -> int:
    password = config.new_password()
    if output is None:
        print(password)
        return os.EX_OK
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="ascii") as file:
        file.write(password + "\n")
    return os.EX_OK
