"""What the `compare` command line accepts: its commands, their flags, and what a flag's value may be.

Rules: a mistake is said where argparse sees it, in one line, with what was expected; what a command does with
its flags is in cli.py.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from ipaddress import IPv4Address
from typing import Any

from compare import diff, goals
from compare.analysis import METRICS
from compare.ceiling import CONTENDERS
from compare.history import A_RESULT, FOLDER
from compare.markers import GOALS, SUMMARY, markers
from compare.plan import DURATION, QUICK_DURATION, QUICK_ROUNDS, ROUNDS, SCENARIOS
from compare.servers import LOOPBACK
from models import MODELS
from tunnel._version import __version__
from tunnel.cli import Parser
from tunnel.config import DEFAULT_MODEL, LOCAL, SERVE
from tunnel.keys import DEFAULT_METHOD, METHODS


def chosen(known: Mapping[str, object], what: str) -> Callable[[str], list[str]]:
    """An argparse type: names from `known`, separated by commas."""

    def parse(value: str) -> list[str]:
        found = [name.strip() for name in value.split(",") if name.strip()]
        for name in found:
            if name not in known:
                close = get_close_matches(name, known, 1)
                hint = f"did you mean {close[0]}? " if close else ""
                expected = f"{hint}expected some of {','.join(known)}"
                raise argparse.ArgumentTypeError(f"{what} {name!r} does not exist: {expected}")
        if not found:
            raise argparse.ArgumentTypeError(f"no {what} named: expected some of {','.join(known)}")
        return list(dict.fromkeys(found))

    return parse


def condition(value: str) -> diff.Condition:
    try:
        return diff.condition(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def own_address(value: str) -> str:
    """An argparse type: an IPv4 address that can be listened on here."""
    try:
        IPv4Address(value)
        with socket.create_server((value, 0)):
            return value
    except (ValueError, OSError):
        expected = "expected an IPv4 address of this machine"
        raise argparse.ArgumentTypeError(f"{value!r}: {expected}") from None


def at_least(low: float, kind: Callable[[str], float], expected: str) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            parsed = kind(value)
        except ValueError:
            parsed = low - 1
        if not low <= parsed <= 1e6:
            raise argparse.ArgumentTypeError(f"{value!r}: expected {expected}")
        return parsed

    return parse


def build_parser() -> Parser:
    parser = Parser(
        prog="compare",
        description="Compare the tunnel's server models on this machine.",
        epilog="Start with `compare run --quick`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"compare {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run_parser = commands.add_parser(
        "run",
        help="measure, and write a report",
        description="Start each model's server, load it, and write result.json, report.md and report.html.",
        allow_abbrev=False,
    )
    add_run(run_parser)
    add_report(commands)
    add_diff(commands)
    add_list(commands)
    add_export(commands)
    add_bench(commands)
    add_goals(commands)
    commands.add_parser(
        "peers",
        help="list the servers of others that can be measured too",
        description="Show which servers of others are on PATH, and how to get the rest.",
        allow_abbrev=False,
    )
    commands.add_parser(
        "scenarios",
        help="list the scenarios",
        description="List what can be measured: what --scenarios takes, and what it measures.",
        allow_abbrev=False,
    )
    ceiling_parser = commands.add_parser(
        "ceiling",
        help="how fast the load generator itself is",
        description="Load a server that costs next to nothing, then some models, and print both.",
        allow_abbrev=False,
    )
    add_ceiling(ceiling_parser)
    completion = commands.add_parser(
        "completion",
        help="print a completion script for your shell",
        description='Try: eval "$(compare completion bash)"',
        allow_abbrev=False,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.introduce(commands.choices.values())
    return parser


def add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="make a result's reports again",
        description="Write report.md and report.html from a result.json, and print the tables.",
        allow_abbrev=False,
    )
    parser.add_argument("result", metavar="RESULT", help=A_RESULT)
    parser.add_argument("--out", metavar="DIR", help="where to write (default: beside the result)")
    add_into(parser, SUMMARY)


def add_diff(commands: Any) -> None:
    parser = commands.add_parser(
        "diff",
        help="say what differs between two results",
        description="Say for each row and figure whether B is better than A, worse, or no different.",
        epilog=f"Exit code 1: a condition of --fail-if holds. Metrics: {', '.join(METRICS)}.",
        allow_abbrev=False,
    )
    parser.add_argument("before", metavar="A", help=A_RESULT)
    parser.add_argument("after", metavar="B", help="another one")
    parser.add_argument("--all", action="store_true", help="show what is no different, too")
    parser.add_argument("--json", action="store_true", help="as JSON, all of it")
    parser.add_argument(
        "--fail-if",
        metavar="CONDITION",
        action="append",
        default=[],
        type=condition,
        help="worse (some CPU figure is), or ROW.METRIC>N%%, such as prefork.up_cpu>5%% or, at a point,"
        " prefork.load_p99@2000>10%%: more than the noise, and more than that; may be repeated",
    )


def add_list(commands: Any) -> None:
    parser = commands.add_parser(
        "list",
        help="list the results that are there",
        description="List the results in a folder, the oldest first.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="DIR", nargs="?", default=FOLDER, help=f"default: {FOLDER}")


def add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write a result for other programs",
        description="Write a result as CSV, or as JSON for pyperf.",
        allow_abbrev=False,
    )
    parser.add_argument("result", metavar="RESULT", help=A_RESULT)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--csv", metavar="FILE", help="a line for each sample and figure; - is standard output")
    kind.add_argument(
        "--pyperf", metavar="FILE", help="times and memory, a run for each sample; - is standard output"
    )


def add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure what the goals for speed ask",
        description="Measure servers and clients beside libev, go and rust, and say which goals for speed"
        f" are met. {goals.ROUNDS} rounds take under 20 minutes.",
        epilog="docs/performance.md says what each goal is.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--models",
        metavar="A,B",
        type=chosen(MODELS, "model"),
        help="default: all that can run here; with fewer the best of these is the best model",
    )
    add_length(parser, goals.ROUNDS, goals.DURATION)
    place = f"{FOLDER}/bench- and the time"
    parser.add_argument("--out", metavar="DIR", help=f"where to write (default: {place})")
    add_into(parser, GOALS)


def add_goals(commands: Any) -> None:
    parser = commands.add_parser(
        "goals",
        help="say which goals for speed a result meets",
        description="Say for each goal for speed whether these results meet it.",
        epilog="docs/performance.md says what each goal is.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "results",
        metavar="RESULT",
        nargs="+",
        help="of `compare bench`: its folder; or a result.json of servers, one of clients, or both",
    )
    parser.add_argument("--markdown", action="store_true", help="as Markdown")
    add_into(parser, GOALS)


def add_into(parser: argparse.ArgumentParser, name: str) -> None:
    begin, end = markers(name)
    parser.add_argument(
        "--into",
        metavar="FILE",
        help=f"put the {name} into that Markdown file as well, between the lines {begin} and {end}",
    )


def add_length(parser: Any, rounds: int, duration: float, more: str = "") -> None:
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=at_least(1, int, "a whole number from 1"),
        help=f"samples of each figure (default: {rounds}{more})",
    )
    parser.add_argument(
        "--duration",
        metavar="S",
        type=at_least(0.05, float, "a number of seconds from 0.05"),
        help=f"seconds of load in each sample (default: {duration:g})",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=at_least(0, int, "a whole number from 0"),
        help="of the order (default: the time)",
    )


def add_ceiling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", metavar="A,B", type=chosen(MODELS, "model"), help=f"default: {','.join(CONTENDERS)}"
    )
    parser.add_argument(
        "--method",
        choices=tuple(METHODS),
        metavar="NAME",
        default=DEFAULT_METHOD,
        help=f"{', '.join(METHODS)} (default: {DEFAULT_METHOD})",
    )
    parser.add_argument(
        "--duration",
        metavar="S",
        type=at_least(0.05, float, "a number of seconds from 0.05"),
        default=0.5,
        help="seconds of load in each sample (default: 0.5)",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what")
    what.add_argument(
        "--models",
        metavar="A,B",
        type=chosen(MODELS, "model"),
        help="default: all that can run here",
    )
    what.add_argument(
        "--scenarios",
        metavar="A,B",
        type=chosen(SCENARIOS, "scenario"),
        help="default: all of them; see `compare scenarios`",
    )
    what.add_argument(
        "--end",
        choices=(SERVE, LOCAL),
        metavar="END",
        help=f"{SERVE}: servers; {LOCAL}: `tunnel local`, and the peers' clients, before one server that"
        f" costs next to nothing and is not counted (default: {SERVE})",
    )
    what.add_argument("--no-peers", action="store_true", help="leave out other Shadowsocks programs on PATH")
    what.add_argument("--no-baselines", action="store_true", help="leave out what runs without a server")
    what.add_argument(
        "--method",
        choices=tuple(METHODS),
        metavar="NAME",
        help=f"{', '.join(METHODS)} (default: {DEFAULT_METHOD})",
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--server-address",
        metavar="ADDRESS",
        type=own_address,
        default=LOOPBACK,
        help=f"address of this machine that servers listen on (default: {LOOPBACK})",
    )
    where.add_argument(
        "--cluster",
        metavar="URL",
        help="make the load on the workers of a Dask scheduler, such as tcp://192.0.2.1:8786; they must"
        " have this program, and reach --server-address",
    )
    how = parser.add_argument_group("how long")
    how.add_argument(
        "--quick",
        action="store_true",
        help=f"a first impression in three minutes: {QUICK_ROUNDS} rounds of {QUICK_DURATION:g} s a sample,"
        " without the scenario children, memory once",
    )
    add_length(how, ROUNDS, DURATION, ", which takes all models under half an hour")
    what.add_argument(
        "--null",
        metavar="MODEL",
        choices=tuple(MODELS),
        help="the model to enter twice: what differs between the two is noise (default:"
        f" {DEFAULT_MODEL}, or the first one that is measured)",
    )
    what.add_argument("--no-null", action="store_true", help="enter none twice")
    parser.add_argument("--out", metavar="DIR", help=f"where to write (default: {FOLDER}/ and the time)")
    parser.add_argument(
        "--resume",
        metavar="DIR",
        help="go on with a run that was cut short: its plan, less what it has measured",
    )


def complete_paths(parser: Parser, shtab: Any) -> Parser:
    """Marks what takes a file or a folder, in this parser and its commands, for the shell."""
    markers = dict.fromkeys(("FILE", "RESULT", "A", "B"), shtab.FILE) | {"DIR": shtab.DIRECTORY}
    for action in parser._actions:
        if action.metavar in markers:
            action.complete = markers[action.metavar]  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                complete_paths(command, shtab)
    return parser
