"""What a user can get wrong is told in one line, with what would have been right."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import models
from compare import schema
from compare.cli import runnable
from compare.plan import QUICK, SCENARIOS
from models import MODELS
from tests.compare.conftest import Command

ROOT = Path(models.__file__).parent.parent
MISTAKES = {
    "an unknown model": (
        ["run", "--models", "iterative,forkk"],
        os.EX_USAGE,
        "'forkk' does not exist: did you mean fork?",
    ),
    "an unknown scenario": (["run", "--scenarios", "bulk_up"], os.EX_USAGE, "did you mean bulk-up?"),
    "no model": (["run", "--models", ","], os.EX_USAGE, "no model named"),
    "an unknown flag": (["run", "--model", "fork"], os.EX_USAGE, "did you mean --models?"),
    "another command's flag": (
        ["report", "--quick", "x"],
        os.EX_USAGE,
        "(--quick is an option of compare run)",
    ),
    "a flag before the command": (["--quick", "run"], os.EX_USAGE, "(--quick is an option of compare run)"),
    "an unknown flag before the command": (["--verison"], os.EX_USAGE, "did you mean --version?"),
    "an unknown command": (["scenaros"], os.EX_USAGE, "did you mean scenarios?"),
    "no command": ([], os.EX_USAGE, "COMMAND"),
    "no rounds": (["run", "--rounds", "0"], os.EX_USAGE, "'0': expected a whole number from 1"),
    "a time that is none": (
        ["run", "--duration", "soon"],
        os.EX_USAGE,
        "'soon': expected a number of seconds",
    ),
    "a scenario that clients do not have": (
        ["run", "--end", "local", "--scenarios", "bulk-up,load"],
        os.EX_USAGE,
        "--end local has no scenario load: expected some of bulk-up,bulk-down,connections,ping-pong",
    ),
    "an end that is none": (["run", "--end", "middle"], os.EX_USAGE, "'serve', 'local'"),
    "a ceiling of no model": (["ceiling", "--models", "x"], os.EX_USAGE, "model 'x' does not exist"),
    "a value is no mistyped flag": (["run", "--models", "x"], os.EX_USAGE, "tornado; see compare run --help"),
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


def without(folder: Path, package: str) -> dict[str, str]:
    """An environment in which Python does not find `package`."""
    (folder / "sitecustomize.py").write_text(
        "import importlib.util as util\nfound = util.find_spec\n"
        f"util.find_spec = lambda name, *more: None if name == {package!r} else found(name, *more)\n"
    )
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def test_asking_for_what_cannot_run_here_is_an_error(command: Command, tmp_path: Path) -> None:
    done = command.run("run", "--models", "iterative,uvloop", **without(tmp_path, "uvloop"))
    assert done.returncode == os.EX_UNAVAILABLE
    assert done.stderr.count("\n") == 1
    assert re.fullmatch(r"compare run: uvloop: .*\buvloop\b.*: pip install .*\n", done.stderr)


def test_what_cannot_run_here_is_left_out_with_the_same_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = Command()
    asked = command.run("run", "--models", "uvloop", **without(tmp_path, "uvloop"))
    reason = asked.stderr.partition("compare run: ")[2].strip()
    monkeypatch.setattr(models, "find_spec", lambda name: None if name == "uvloop" else True)
    kept, left_out = runnable(list(MODELS))
    assert [f"{name}: {why}" for name, why in left_out.items()] == [reason]
    assert kept == [name for name in MODELS if name != "uvloop"]


def test_a_scenario_that_no_chosen_model_has(command: Command, tmp_path: Path) -> None:
    done = command.run(
        "run", "--models", "fork,poll", "--scenarios", "children", "--out", str(tmp_path / "x")
    )
    assert done.returncode == os.EX_USAGE
    assert "expected some of prefork,prefork-fcntl," in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_model_whose_module_is_missing_costs_only_its_own_samples(command: Command, tmp_path: Path) -> None:
    hook = tmp_path / "sitecustomize.py"
    hook.write_text(
        "import sys\nclass Gone:\n    @staticmethod\n    def find_spec(name, path=None, target=None):\n"
        "        if name == 'models.fork':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, Gone)\n"
    )
    what = [
        "--models",
        "iterative,fork",
        "--no-peers",
        "--no-baselines",
        "--no-null",
        "--rounds",
        "1",
        "--duration",
        "0.05",
    ]
    where = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = command.run(
        "run", *what, "--scenarios", "connections,bulk-up", "--out", str(tmp_path / "out"), **where
    )
    assert done.returncode == 0, done.stderr
    said = (
        "Invalid: fork, all 2 samples: fork did not start: ModuleNotFoundError: No module named 'models.fork'"
    )
    assert done.stdout.count("Invalid: ") == 1
    assert said in done.stdout


def test_a_first_impression_says_what_it_leaves_out(command: Command, tmp_path: Path) -> None:
    what = ["--models", "iterative", "--no-peers", "--no-baselines", "--no-null", "--duration", "0.05"]
    done = command.run("run", "--quick", *what, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    others = ", ".join(name for name in SCENARIOS if name not in QUICK)
    said = f"left out: {others}: no part of a first impression; compare run --scenarios NAME"
    assert done.stderr == f"compare run: {said}\n"
    assert f"L{said[1:]}" in " ".join(done.stdout.split())
    assert "Of memory only 1 round." in done.stdout
    taken = [(s.scenario, s.round) for s in schema.load((tmp_path / "result.json").read_text()).samples]
    assert ("memory", 2) not in taken
    assert ("ping-pong", 2) in taken


def fake_ss_server(folder: Path, script: str) -> str:
    """A PATH on which `ss-server` is this script, and there is no other peer."""
    path = folder / "bin"
    path.mkdir()
    program = path / "ss-server"
    program.write_text(script)
    program.chmod(0o755)
    return str(path)


def test_a_server_that_does_not_start_costs_only_its_own_samples(command: Command, tmp_path: Path) -> None:
    path = fake_ss_server(tmp_path, "#!/bin/sh\necho 'wrong phase of the moon' >&2\nexit 3\n")
    what = ["--models", "iterative", "--no-null", "--scenarios", "connections", "--rounds", "1"]
    what += ["--duration", "0.05"]
    done = command.run("run", *what, "--out", str(tmp_path / "out"), PATH=path)
    assert done.returncode == 0, done.stderr
    assert "libev did not start: wrong phase of the moon" in done.stdout
    assert "iterative" in done.stdout


def test_nothing_valid_is_a_failure(command: Command, tmp_path: Path) -> None:
    path = fake_ss_server(tmp_path, "#!/bin/sh\nexit 3\n")
    what = ["--models", "iterative", "--no-null", "--scenarios", "memory", "--rounds", "1"]
    what += ["--method", "aes-128-gcm"]
    hook = tmp_path / "sitecustomize.py"  # our servers import it, and die of it
    hook.write_text("import os, sys\nif 'serve' in sys.orig_argv:\n    os.write(2, b'no'), os._exit(1)\n")
    done = command.run("run", *what, "--out", str(tmp_path / "out"), PATH=path, PYTHONPATH=str(tmp_path))
    assert done.returncode == os.EX_UNAVAILABLE, done.stderr
    assert "Nothing valid was measured." in done.stdout
    assert "iterative did not start: no" in done.stdout
