"""The `compare` command.

    run          measures the models, and writes result.json, report.md and report.html
    scenarios    what it can measure
    ceiling      how fast the load generator itself is

Rules: as in tunnel/cli.py, a user's mistake is one line and an exit code from sysexits.h. The report
goes to standard output, progress to standard error and only to a terminal.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from compare import report, schema
from compare.analysis import Analysis
from compare.bench import BenchFailed
from compare.ceiling import CONTENDERS, print_ceilings
from compare.interrupt import Interrupt, Interrupted
from compare.peers import found as found_peers
from compare.plan import FEW, QUICK, QUICK_MOST, SCENARIOS, make_plan
from compare.run import INTERRUPTED, chosen_rows, run
from compare.servers import AEAD, DIRECT, RELAY
from models import MODELS
from tunnel._version import __version__
from tunnel.cli import Parser
from tunnel.keys import DEFAULT_METHOD, METHODS

EX_INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended

ENDLESS = 100_000  # characters in a line of a file

ROUNDS, DURATION = 5, 0.8
QUICK_ROUNDS, QUICK_DURATION = 2, 0.2
BY_QUICK = "--quick leaves it out: compare run --scenarios {}"
NO_POOL = "the scenario children is for models with a pool"


class CommandParser(Parser):
    """A command's parser: says itself what it does not know, since it knows what was meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        if "did you mean" not in message:
            super().error(message)
        self.exit(os.EX_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


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
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=CommandParser
    )
    commands.add_parser("scenarios", help="list the scenarios", allow_abbrev=False)
    ceiling_parser = commands.add_parser(
        "ceiling",
        help="how fast the load generator itself is",
        description="Load a server that costs next to nothing, then some models, and print both.",
        allow_abbrev=False,
    )
    add_ceiling(ceiling_parser)
    run_parser = commands.add_parser(
        "run",
        help="measure, and write a report",
        description="Start each model's server, load it, and write result.json, report.md and report.html.",
        allow_abbrev=False,
    )
    add_run(run_parser)
    return parser


def add_ceiling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", metavar="A,B", type=chosen(MODELS, "model"), help=f"default: {','.join(CONTENDERS)}"
    )
    parser.add_argument("--method", choices=tuple(METHODS), metavar="NAME", default=DEFAULT_METHOD)
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
    what.add_argument("--no-peers", action="store_true", help="leave out other Shadowsocks servers on PATH")
    what.add_argument("--no-baselines", action="store_true", help="leave out what runs without a server")
    what.add_argument(
        "--method", choices=tuple(METHODS), metavar="NAME", default=DEFAULT_METHOD, help=", ".join(METHODS)
    )
    how = parser.add_argument_group("how long")
    how.add_argument(
        "--quick",
        action="store_true",
        help=f"a first impression in three minutes: {QUICK_ROUNDS} rounds of {QUICK_DURATION:g} s a sample,"
        " without the scenario children, memory once",
    )
    how.add_argument(
        "--rounds",
        metavar="N",
        type=at_least(1, int, "a whole number from 1"),
        help=f"samples of each figure (default: {ROUNDS}, which takes all models under half an hour)",
    )
    how.add_argument(
        "--duration",
        metavar="S",
        type=at_least(0.05, float, "a number of seconds from 0.05"),
        help=f"seconds of load in each sample (default: {DURATION:g})",
    )
    how.add_argument(
        "--seed",
        metavar="N",
        type=at_least(0, int, "a whole number"),
        help="of the order (default: the time)",
    )
    parser.add_argument("--out", metavar="DIR", help="where to write (default: results/ and the time)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    if arguments.command == "scenarios":
        for scenario in SCENARIOS.values():
            print(f"{scenario.name:<24}{scenario.summary:<68}{scenario.figures}")
        return os.EX_OK
    try:
        if arguments.command == "ceiling":
            return ceiling(arguments)
        return measure(arguments)
    except BrokenPipeError:  # `compare run | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return os.EX_OK
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"compare run: {name}{error.strerror}", file=sys.stderr)
        return os.EX_CANTCREAT if error.filename else os.EX_OSERR


def ceiling(arguments: argparse.Namespace) -> int:
    models, left_out = runnable(arguments.models or CONTENDERS)
    for name, reason in left_out.items():
        print(f"compare ceiling: left out: {name}: {reason}", file=sys.stderr)
    interrupt = Interrupt()
    interrupt.install()
    settings = schema.Settings([], 1, arguments.duration, 1, arguments.method)
    try:
        print_ceilings(models, settings, interrupt)
    except Interrupted:
        print(f"compare ceiling: {INTERRUPTED}", file=sys.stderr)
        return EX_INTERRUPTED
    except BenchFailed as failure:
        print(f"compare ceiling: {failure}", file=sys.stderr)
        return os.EX_SOFTWARE
    return os.EX_OK


def measure(arguments: argparse.Namespace) -> int:
    started = time.time()
    peers = [] if arguments.no_peers else found_peers()
    baselines = [] if arguments.no_baselines else [DIRECT, RELAY, AEAD]
    models, left_out = runnable(arguments.models or list(MODELS))
    if arguments.models and left_out:
        for name, reason in left_out.items():
            print(f"compare run: {name}: {reason}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    first_impression = arguments.quick and not arguments.scenarios
    if first_impression:
        left_out |= {name: BY_QUICK.format(name) for name in SCENARIOS if name not in QUICK}
    settings = schema.Settings(
        scenarios=arguments.scenarios or list(QUICK if first_impression else SCENARIOS),
        rounds=arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS),
        duration=arguments.duration or (QUICK_DURATION if arguments.quick else DURATION),
        seed=int(started) if arguments.seed is None else arguments.seed,
        method=arguments.method,
        most=QUICK_MOST if first_impression else {},
        points={} if arguments.scenarios else FEW,
    )
    rows = chosen_rows(models, peers, baselines)
    if not make_plan(rows, settings.scenarios, 1, 0):
        pools = ",".join(name for name in models_with_pools() if name not in models)
        print(f"compare run: nothing to measure: {NO_POOL}: expected some of {pools}", file=sys.stderr)
        return os.EX_USAGE
    folder = arguments.out or time.strftime("results/%Y-%m-%d-%H%M%S", time.localtime(started))
    os.makedirs(folder, exist_ok=True)
    if not os.access(folder, os.W_OK):  # better now than after minutes of measuring
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
    interrupt = Interrupt()
    interrupt.install()
    for name, reason in left_out.items():
        print(f"compare run: left out: {name}: {reason}", file=sys.stderr, flush=True)
    result = run(rows, settings, interrupt, left_out)
    if result.samples:
        write(result, folder)
    if result.stopped:
        before = "" if result.samples else " before anything was measured"
        print(f"compare run: {result.stopped}{before}", file=sys.stderr)
        return EX_INTERRUPTED if result.stopped == INTERRUPTED else os.EX_SOFTWARE
    return os.EX_OK if any(not sample.invalid for sample in result.samples) else os.EX_UNAVAILABLE


def runnable(models: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those that this system can run, and of the others why not, and what would make them run."""
    reasons = {name: MODELS[name].missing() for name in models}
    return [name for name in models if not reasons[name]], {n: r for n, r in reasons.items() if r}


def models_with_pools() -> list[str]:
    return [name for name, model in MODELS.items() if model.pool]


def write(result: schema.Result, folder: str) -> None:
    """The raw samples first, so that nothing after them can lose them; the terminal last: it may be gone."""
    from compare.page import page  # noqa: PLC0415 - a mistake in the flags should not wait for this

    save(folder, "result.json", schema.dump(result))
    analysis = Analysis(result)
    save(folder, "report.md", report.markdown(analysis))
    save(folder, "report.html", page(analysis))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else ENDLESS
    print(report.terminal(analysis, width))
    print(f"\nwritten to {folder}: report.html, report.md, result.json", flush=True)


def save(folder: str, name: str, text: str) -> None:
    """Whole or not at all: a reader never sees half a file."""
    path = os.path.join(folder, name)
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.part", path)
