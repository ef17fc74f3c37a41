"""The `compare` command.

    run          measures the models, and writes result.json, report.md and report.html     run.py
    report       makes the reports of a result again                                        report/
    diff         what differs between two results, and what only seems to                   diff.py
    list         the results that are there                                                 history.py
    export       a result as CSV, or for pyperf                                             export.py
    bench        measures what the goals for speed ask, and says which are met              goals.py
    goals        says it again of results that are there                                    goals.py
    peers        what can be measured beside the models, and how to get it                  peers.py
    scenarios    what it can measure                                                        plan.py
    ceiling      how fast the load generator itself is                                      ceiling.py
    completion   a script for the shell

Rules: as in tunnel/cli.py, a user's mistake is one line and an exit code from sysexits.h. The report
goes to standard output, progress to standard error and only to a terminal.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from compare import diff, export, goals, peers, report, schema
from compare.analysis import Analysis
from compare.bench import BenchFailed
from compare.ceiling import CONTENDERS, print_ceilings
from compare.cluster import Cluster, ClusterFailed
from compare.history import FILE, FOLDER, Unreadable, listing, locate, read
from compare.interrupt import Interrupt, Interrupted
from compare.markers import GOALS, SUMMARY, refreshed
from compare.options import build_parser, complete_paths
from compare.plan import (
    DURATION,
    FEW,
    LOCAL_ONES,
    QUICK,
    QUICK_DURATION,
    QUICK_MOST,
    QUICK_ROUNDS,
    ROUNDS,
    SCENARIOS,
    make_plan,
)
from compare.report.overview import short_summary
from compare.report.text import framed
from compare.run import INTERRUPTED, begun, chosen_rows, run
from compare.schema import Result
from compare.servers import AEAD, AGAIN, BARE_FORK, DIRECT, FORK, RELAY, ROWS
from models import MODELS
from tunnel.config import DEFAULT_MODEL, LOCAL, SERVE
from tunnel.keys import DEFAULT_METHOD

GOALS_FILE = "goals.md"
EX_INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended
EX_FAILED = 1  # a condition of `compare diff --fail-if` holds

ENDLESS = 100_000  # characters in a line of a file

BY_QUICK = "no part of a first impression; compare run --scenarios NAME"
FRESH = (  # flags of `compare run` that a run which goes on has been given already
    *("--end", "--models", "--scenarios", "--method", "--no-peers", "--no-baselines", "--null"),
    *("--no-null", "--quick", "--rounds", "--duration", "--seed", "--out"),
)
NO_POOL = "the scenario children is for models with a pool"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    arguments = build_parser().command_line(argv)
    try:
        return COMMANDS[arguments.command](arguments)
    except Unreadable as error:
        return complain(arguments, str(error), error.code)
    except BrokenPipeError:  # `compare run | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return os.EX_OK
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return complain(
            arguments, f"{name}{error.strerror}", os.EX_CANTCREAT if error.filename else os.EX_OSERR
        )


def complain(arguments: argparse.Namespace, text: str, code: int) -> int:
    print(f"compare {arguments.command}: {text}", file=sys.stderr)
    return code


def print_scenarios(_: argparse.Namespace) -> int:
    for scenario in SCENARIOS.values():
        print(f"{scenario.name:<24}{scenario.summary:<68}{scenario.figures}")
    return os.EX_OK


def print_peers(_: argparse.Namespace) -> int:
    print(peers.listing(), flush=True)
    return os.EX_OK


def print_completion(arguments: argparse.Namespace) -> int:
    import shtab  # noqa: PLC0415 - here alone

    print(shtab.complete(complete_paths(build_parser(), shtab), arguments.shell), flush=True)
    return os.EX_OK


def make_reports(arguments: argparse.Namespace) -> int:
    """Where the report goes, its result.json lies too: the page has a link to it."""
    result, path = read(arguments.result), locate(arguments.result)
    if not arguments.out and os.path.basename(path) != FILE:
        return complain(arguments, f"{path}: not named {FILE}: expected --out DIR as well", os.EX_USAGE)
    if arguments.into:
        into(arguments.into, SUMMARY, framed(short_summary(Analysis(result)), "github"))
    folder = arguments.out or os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    if arguments.out:
        save(folder, FILE, schema.dump(result))
    write_reports(result, folder)
    return os.EX_OK


def compare_results(arguments: argparse.Namespace) -> int:
    before, after = read(arguments.before), read(arguments.after)
    found = diff.changes(Analysis(before), Analysis(after))
    if not found:
        return complain(arguments, "the two results have no figure in common", os.EX_DATAERR)
    if mistake := diff.unknown(arguments.fail_if, found):
        return complain(arguments, mistake, os.EX_USAGE)
    warned = diff.warnings(before, after, found)
    failed = [wanted.text for wanted in arguments.fail_if if any(map(wanted.holds, found))]
    for warning in warned:
        print(f"compare diff: warning: {warning}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(diff.as_json(found, warned, failed), indent=1), flush=True)
    else:
        print(diff.text(found, arguments.all), flush=True)
    for text in failed:
        print(f"compare diff: failed: {text}", file=sys.stderr)
    return EX_FAILED if failed else os.EX_OK


def list_results(arguments: argparse.Namespace) -> int:
    if arguments.folder == FOLDER and not os.path.isdir(FOLDER):
        table = ""
    else:
        try:
            table = listing(arguments.folder)
        except OSError as error:
            return complain(arguments, f"{arguments.folder}: {error.strerror}", os.EX_NOINPUT)
    if not table:
        return complain(arguments, f"no results in {arguments.folder}: `compare run` makes one", os.EX_OK)
    print(table, flush=True)
    return os.EX_OK


def export_result(arguments: argparse.Namespace) -> int:
    result = read(arguments.result)
    path = arguments.csv or arguments.pyperf
    text = export.as_csv(result) if arguments.csv else export.as_pyperf(result)
    if path == "-":
        print(text, end="", flush=True)
    else:
        save(os.path.dirname(path) or ".", os.path.basename(path), text)
    return os.EX_OK


def bench(arguments: argparse.Namespace) -> int:
    """Both ends, one after the other: no goal is a ratio between them."""
    started = time.time()
    if arguments.into:
        into(arguments.into, GOALS, "")  # better now than after minutes of measuring
    folder = arguments.out or time.strftime(f"{FOLDER}/bench-%Y-%m-%d-%H%M%S", time.localtime(started))
    length = goals.Length(arguments.rounds or goals.ROUNDS, arguments.duration or goals.DURATION)
    seed = int(started) if arguments.seed is None else arguments.seed
    models, left_out = runnable(arguments.models or list(MODELS))
    interrupt = Interrupt()
    interrupt.install()
    results = {}
    for end in (SERVE, LOCAL):
        place = os.path.join(folder, end)
        os.makedirs(place, exist_ok=True)
        there = [name for name in peers.found(end) if name in goals.PEERS]
        null = [f"{DEFAULT_MODEL}{AGAIN}"] if end == SERVE and DEFAULT_MODEL in models else []
        baselines = [name for name in baselines_of(models, end) if name != DIRECT]
        plan = goals.settings(end, models, DEFAULT_METHOD, seed, length)
        results[end] = result = begun(chosen_rows([*models, *null], there, baselines), plan, left_out)
        run(result, interrupt, partial(keep, place))
        keep(place, result)
        if result.stopped:
            print(f"compare bench: to go on: compare run --resume {shlex.quote(place)}", file=sys.stderr)
            print(f"compare bench: {end}: {result.stopped}", file=sys.stderr)
            return EX_INTERRUPTED if result.stopped == INTERRUPTED else os.EX_SOFTWARE
    analyses = {end: Analysis(result) for end, result in results.items()}
    save(folder, GOALS_FILE, f"{goals.text(analyses, 'github')}\n")
    print(goals.text(analyses))
    print(f"\nwritten to {folder}: {GOALS_FILE}, {SERVE}/{FILE}, {LOCAL}/{FILE}", flush=True)
    if arguments.into:
        into(arguments.into, GOALS, goals.text(analyses, "github"))
    return os.EX_OK


def keep(folder: str, result: Result) -> None:
    save(folder, FILE, schema.dump(result))


def say_goals(arguments: argparse.Namespace) -> int:
    analyses = {}
    for name in arguments.results:
        parts = [os.path.join(name, end) for end in (SERVE, LOCAL)]
        for place in [part for part in parts if os.path.isdir(part)] or [name]:
            result = read(place)
            if result.settings.end in analyses:
                text = f"{place}: another result of {result.settings.end}: expected one of each end"
                return complain(arguments, text, os.EX_USAGE)
            analyses[result.settings.end] = Analysis(result)
    if arguments.into:
        into(arguments.into, GOALS, goals.text(analyses, "github"))
    print(goals.text(analyses, "github" if arguments.markdown else "simple"), flush=True)
    return os.EX_OK


def into(path: str, name: str, made: str) -> None:
    """Puts it between the markers of that file; of nothing it only asks whether that can be done."""
    try:
        with open(path, encoding="utf-8") as file:
            document = refreshed(file.read(), name, made)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}", os.EX_NOINPUT) from None
    except ValueError as error:
        raise Unreadable(f"{path}: {error}", os.EX_DATAERR) from None
    if made:
        save(os.path.dirname(path) or ".", os.path.basename(path), document)


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
        return complain(arguments, INTERRUPTED, EX_INTERRUPTED)
    except BenchFailed as failure:
        return complain(arguments, str(failure), os.EX_SOFTWARE)
    return os.EX_OK


def measure(arguments: argparse.Namespace) -> int:
    started = time.time()
    if arguments.resume:
        if given := [flag for flag in FRESH if getattr(arguments, flag.strip("-").replace("-", "_"))]:
            text = f"--resume goes on as the run began: leave out {', '.join(given)}"
            return complain(arguments, text, os.EX_USAGE)
        folder = arguments.resume
        result = read(folder)
        if gone := [row.name for row in result.rows if row.name not in ROWS]:
            return complain(arguments, f"{folder}: no such row any more: {', '.join(gone)}", os.EX_DATAERR)
        if result.complete:
            return complain(arguments, f"{folder}: this run is complete", os.EX_DATAERR)
    else:
        made = begin(arguments, started)
        if isinstance(made, int):
            return made
        result = made
        folder = arguments.out or time.strftime(f"{FOLDER}/%Y-%m-%d-%H%M%S", time.localtime(started))
    os.makedirs(folder, exist_ok=True)
    if not os.access(folder, os.W_OK):  # better now than after minutes of measuring
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
    try:
        cluster = Cluster(arguments.cluster) if arguments.cluster else None
    except ClusterFailed as error:
        return complain(arguments, str(error), os.EX_UNAVAILABLE)
    interrupt = Interrupt()
    interrupt.install()
    for reason, left in result.left_out_because().items():
        print(f"compare run: left out: {', '.join(left)}: {reason}", file=sys.stderr, flush=True)
    run(
        result,
        interrupt,
        partial(keep, folder),
        address=arguments.server_address,
        cluster=cluster,
    )
    if result.samples:
        keep(folder, result)
        write_reports(result, folder)
    if result.stopped:
        before = "" if result.samples else " before anything was measured"
        if result.samples:
            print(f"compare run: to go on: compare run --resume {shlex.quote(folder)}", file=sys.stderr)
        print(f"compare run: {result.stopped}{before}", file=sys.stderr)
        return EX_INTERRUPTED if result.stopped == INTERRUPTED else os.EX_SOFTWARE
    return os.EX_OK if any(not sample.invalid for sample in result.samples) else os.EX_UNAVAILABLE


def begin(arguments: argparse.Namespace, started: float) -> Result | int:
    """The run that was asked for, or the exit code of the mistake in it."""
    end = arguments.end or SERVE
    others = [] if arguments.no_peers else peers.found(end)
    models, left_out = runnable(arguments.models or list(MODELS))
    baselines = [] if arguments.no_baselines else baselines_of(models, end)
    if arguments.models and left_out:
        for name, reason in left_out.items():
            complain(arguments, f"{name}: {reason}", os.EX_UNAVAILABLE)
        return os.EX_UNAVAILABLE
    if arguments.null and arguments.null not in models:
        return complain(arguments, f"--null {arguments.null}: not among the models to measure", os.EX_USAGE)
    twice = arguments.null or (DEFAULT_MODEL if DEFAULT_MODEL in models else models[0])
    null = [] if arguments.no_null else [f"{twice}{AGAIN}"]
    if end == LOCAL and (odd := [name for name in arguments.scenarios or () if name not in LOCAL_ONES]):
        text = f"--end {LOCAL} has no scenario {odd[0]}: expected some of {','.join(LOCAL_ONES)}"
        return complain(arguments, text, os.EX_USAGE)
    first_impression = arguments.quick and not arguments.scenarios
    if first_impression:
        known = SCENARIOS if end == SERVE else LOCAL_ONES
        left_out |= dict.fromkeys((name for name in known if name not in QUICK), BY_QUICK)
    settings = schema.Settings(
        scenarios=arguments.scenarios or default_scenarios(end, first_impression),
        rounds=arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS),
        duration=arguments.duration or (QUICK_DURATION if arguments.quick else DURATION),
        seed=int(started) if arguments.seed is None else arguments.seed,
        method=arguments.method or DEFAULT_METHOD,
        most=QUICK_MOST if first_impression else {},
        points={} if arguments.scenarios else FEW,
        end=end,
    )
    rows = chosen_rows([*models, *null], others, baselines)
    if not make_plan(rows, settings.scenarios, 1, 0):
        pools = ",".join(name for name in models_with_pools() if name not in models)
        return complain(arguments, f"nothing to measure: {NO_POOL}: expected some of {pools}", os.EX_USAGE)
    return begun(rows, settings, left_out)


def baselines_of(models: Sequence[str], end: str) -> list[str]:
    """What runs without a server; a bare fork where there is one to be beside."""
    return [DIRECT, RELAY, AEAD, *([BARE_FORK] if end == SERVE and FORK in models else [])]


def default_scenarios(end: str, first_impression: bool) -> list[str]:
    everything = QUICK if first_impression else SCENARIOS
    return [name for name in everything if end == SERVE or name in LOCAL_ONES]


def runnable(models: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those that this system can run, and of the others why not, and what would make them run."""
    reasons = {name: MODELS[name].missing() for name in models}
    return [name for name in models if not reasons[name]], {n: r for n, r in reasons.items() if r}


def models_with_pools() -> list[str]:
    return [name for name, model in MODELS.items() if model.pool]


def write_reports(result: Result, folder: str) -> None:
    """The terminal last: it may be gone."""
    from compare.report.page import page  # noqa: PLC0415 - a mistake in the flags should not wait for this

    analysis = Analysis(result)
    save(folder, "report.md", report.markdown(analysis))
    save(folder, "report.html", page(analysis))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else ENDLESS
    print(report.terminal(analysis, width))
    print(f"\nwritten to {folder}: report.html, report.md, {FILE}", flush=True)


def save(folder: str, name: str, text: str) -> None:
    """Whole or not at all: a reader never sees half a file. What is there and no file is written to as it
    is: put in its place, a file would take /dev/null from everybody, if root said so."""
    path = os.path.join(folder, name)
    as_it_is = os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode)
    beside = path if as_it_is else f"{path}.part"
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
    if not as_it_is:
        os.replace(beside, path)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": measure,
    "report": make_reports,
    "diff": compare_results,
    "list": list_results,
    "export": export_result,
    "bench": bench,
    "goals": say_goals,
    "peers": print_peers,
    "scenarios": print_scenarios,
    "ceiling": ceiling,
    "completion": print_completion,
}
