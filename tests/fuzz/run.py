"""libFuzzer over the harnesses: `make fuzz`, or

    python -m tests.fuzz.run [NAME...] [--seconds S] [--runs N] [--keep]

Each harness has a process of its own, one after the other, which begins with corpus/NAME and looks for
inputs that reach lines of tunnel/ that no other input has reached. What breaks a harness is kept in
.fuzz/ and ends the run with exit code 1; put such an input into corpus/NAME together with its repair.

--keep minimises what was found and adds it to corpus/, where `make test` runs it.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.seeds import CORPUS

CRASHES = Path(".fuzz")
NAMES = ("opener", "header", "socks", "judge", "config", "uri", "flags", "records", "sessions")
DONE = re.compile(r"Done (\d+) runs in (\d+) second")
COVERAGE = re.compile(r"cov: (\d+)")


class Outcome(NamedTuple):
    name: str
    runs: int
    seconds: int
    coverage: int
    broken: str  # where the input is that broke it

    def __str__(self) -> str:
        speed = self.runs // max(self.seconds, 1)
        return f"{self.name:<10}{self.runs:>12,}{self.seconds:>8}{speed:>9,}{self.coverage:>8}  {self.broken}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--seconds", type=int, default=0, help="for each harness (default: 60)")
    parser.add_argument("--runs", type=int, default=0, help="inputs for each harness, however long it takes")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer's choices (default: 1)")
    parser.add_argument("--keep", action="store_true", help="add what was found to corpus/, minimised")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no such harness: {', '.join(sorted(unknown))}")
    print(f"{'harness':<10}{'inputs':>12}{'seconds':>8}{'a second':>9}{'covered':>8}", flush=True)
    outcomes = []
    for name in arguments.names or NAMES:
        outcomes.append(run(name, arguments))
        print(outcomes[-1], flush=True)
    print(f"{sum(outcome.runs for outcome in outcomes):,} inputs")
    return int(any(outcome.broken for outcome in outcomes))


def run(name: str, arguments: argparse.Namespace) -> Outcome:
    """One harness, in a process whose end libFuzzer decides."""
    CRASHES.mkdir(exist_ok=True)
    limits = [f"-runs={arguments.runs}"] if arguments.runs else []
    if arguments.seconds or not arguments.runs:
        limits.append(f"-max_total_time={arguments.seconds or 60}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as found:
        flags = [*limits, f"-seed={arguments.seed}", f"-artifact_prefix={CRASHES}/{name}-", "-timeout=30"]
        ended = start(name, [*flags, found, str(CORPUS / name)])
        if arguments.keep:
            keep(name, found)
    if not (done := DONE.search(ended.stderr)) or ended.returncode:
        said = (ended.stdout + ended.stderr).splitlines(keepends=True)
        sys.stderr.writelines(line for line in said if not line.startswith(("#", "INFO", "WARNING")))
        artifact = re.search(r"written to (\S+)", ended.stderr)
        return Outcome(name, 0, 0, 0, artifact[1] if artifact else f"exit code {ended.returncode}")
    covered = COVERAGE.findall(ended.stderr)
    return Outcome(name, int(done[1]), int(done[2]), int(covered[-1]), "")


def start(name: str, flags: list[str]) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        program = Path(directory, name)
        words = shlex.join([sys.executable, "-m", "tests.fuzz.libfuzzer", name])
        program.write_text(f'#!/bin/sh\nexec {words} "$0" "$@"\n')
        program.chmod(0o700)
        return subprocess.run(
            [str(program), *flags], capture_output=True, text=True, errors="replace", check=False
        )


def keep(name: str, found: str) -> None:
    """The smallest set of inputs with the coverage of all of them; the seeds stay, whatever they cover."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as merged:
        start(name, ["-merge=1", merged, str(CORPUS / name), found])
        known = {path.read_bytes() for path in (CORPUS / name).iterdir()}
        for path in Path(merged).iterdir():
            if path.read_bytes() not in known:
                shutil.copy(path, CORPUS / name / f"found-{path.name[:12]}")


if __name__ == "__main__":
    sys.exit(main())
