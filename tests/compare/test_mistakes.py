"""What a user can get wrong is told in one line, with what would have been right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.compare.conftest import Command

MISTAKES = {
    "an unknown model": (
        ["run", "--models", "iterative,forkk"],
        os.EX_USAGE,
        "'forkk' does not exist: did you mean fork?",
    ),
    "an unknown scenario": (["run", "--scenarios", "bulk_up"], os.EX_USAGE, "did you mean bulk-up?"),
    "no model": (["run", "--models", ","], os.EX_USAGE, "no model named"),
    "an unknown flag": (["run", "--model", "fork"], os.EX_USAGE, "did you mean --models?"),
    "an unknown command": (["scenaros"], os.EX_USAGE, "did you mean scenarios?"),
    "no command": ([], os.EX_USAGE, "COMMAND"),
    "no rounds": (["run", "--rounds", "0"], os.EX_USAGE, "'0': expected a whole number from 1"),
    "a time that is none": (
        ["run", "--duration", "soon"],
        os.EX_USAGE,
        "'soon': expected a number of seconds",
    ),
    "an unknown method": (["run", "--method", "rc4"], os.EX_USAGE, "aes-256-gcm"),
    "a file as folder": (["run", "--out", __file__], os.EX_CANTCREAT, "File exists"),
}


@pytest.mark.parametrize(("words", "code", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(words: list[str], code: int, expected: str, command: Command) -> None:
    done = command.run(*words)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("compare")
    assert expected in done.stderr


def test_scenarios_are_listed(command: Command) -> None:
    done = command.run("scenarios")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()][:2] == ["bulk-up", "bulk-down"]


def fake_ss_server(folder: Path, script: str) -> str:
    """A PATH on which `ss-server` is this script."""
    path = folder / "bin"
    path.mkdir()
    program = path / "ss-server"
    program.write_text(script)
    program.chmod(0o755)
    return f"{path}:{os.environ['PATH']}"


def test_a_server_that_does_not_start_costs_only_its_own_samples(command: Command, tmp_path: Path) -> None:
    path = fake_ss_server(tmp_path, "#!/bin/sh\necho 'wrong phase of the moon' >&2\nexit 3\n")
    what = ["--models", "iterative", "--scenarios", "connections", "--rounds", "1", "--duration", "0.05"]
    done = command.run("run", *what, "--out", str(tmp_path / "out"), PATH=path)
    assert done.returncode == 0, done.stderr
    assert "libev did not start: wrong phase of the moon" in done.stdout
    assert "iterative" in done.stdout


def test_nothing_valid_is_a_failure(command: Command, tmp_path: Path) -> None:
    path = fake_ss_server(tmp_path, "#!/bin/sh\nexit 3\n")
    what = ["--models", "iterative", "--scenarios", "memory", "--rounds", "1", "--method", "aes-128-gcm"]
    hook = tmp_path / "sitecustomize.py"  # our servers import it, and die of it
    hook.write_text("import os, sys\nif 'serve' in sys.orig_argv:\n    os.write(2, b'no'), os._exit(1)\n")
    done = command.run("run", *what, "--out", str(tmp_path / "out"), PATH=path, PYTHONPATH=str(tmp_path))
    assert done.returncode == os.EX_UNAVAILABLE, done.stderr
    assert "Nothing valid was measured." in done.stdout
    assert "iterative did not start: no" in done.stdout
