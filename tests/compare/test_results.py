"""What is made of a result afterwards: report, diff, list, export; of this version's and of an old one's."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from compare import diff, export, schema
from compare.analysis import METRICS, Analysis
from compare.cli import main
from compare.diff import changes, condition
from compare.schema import Result
from compare.stats import BETTER, SAME, WORSE
from tests.compare.conftest import Finished
from tests.compare.test_analysis import result_of, rounds


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class InProcess:
    """The `compare` command, without a process of its own: these commands start nothing."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def run(self, *words: str) -> Done:
        try:
            code = main(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Done(code, *self._capture.readouterr())


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> InProcess:
    return InProcess(capsys)


OLD = Path(__file__).parent / "data" / "result-1.1.json"  # made by version 0.1.0 of this repository


@pytest.fixture(params=["new", "old"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a result.json in it."""
    place = tmp_path / "results" / "one"
    place.mkdir(parents=True)
    source = OLD
    if request.param == "new":
        finished: Finished = request.getfixturevalue("finished")
        source = finished.folder / "result.json"
    shutil.copy(source, place / "result.json")
    return place


def test_reports_are_made_again(folder: Path, command: InProcess) -> None:
    done = command.run("report", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in folder.iterdir()} == {"result.json", "report.md", "report.html"}
    assert re.search(r"^prefork +\d", done.stdout, re.MULTILINE)
    assert "## Environment" in (folder / "report.md").read_text()


def test_reports_go_where_they_are_told_to_with_their_raw_samples(command: InProcess, tmp_path: Path) -> None:
    done = command.run("report", str(OLD), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.json", "report.md", "report.html"}
    assert schema.load((tmp_path / "out" / "result.json").read_text()) == schema.load(OLD.read_text())


def test_a_report_made_twice_is_the_same(finished: Finished, command: InProcess, tmp_path: Path) -> None:
    done = command.run("report", str(finished.folder), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.md").read_text() == (finished.folder / "report.md").read_text()


def test_a_result_does_not_differ_from_itself(folder: Path, command: InProcess) -> None:
    done = command.run("diff", str(folder), str(folder), "--fail-if", "worse", "--all")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"0 better, 0 worse, [1-9]\d+ no difference\n", done.stdout)
    assert re.search(r"^prefork\.connection_cpu .*\+0\.0%", done.stdout, re.MULTILINE)


def test_results_are_listed(folder: Path, command: InProcess) -> None:
    (folder.parent / "empty").mkdir()
    broken = folder.parent / "two"
    broken.mkdir()
    (broken / "result.json").write_text("{")
    done = command.run("list", str(folder.parent))
    assert done.returncode == 0, done.stderr
    head, one, two = done.stdout.splitlines()
    assert head.split() == ["RESULT", "DATE", "REVISION", "ROWS", "SCENARIOS", "ROUNDS", "STATE"]
    assert one.startswith(str(folder))
    assert re.search(r" 20\d\d-\d\d-\d\dT.* complete$", one)
    assert "cannot be read: not a result of compare" in two


def test_what_was_cut_short_is_listed_as_partial(command: InProcess, tmp_path: Path) -> None:
    result = result_of(rounds("fork", 1.0))
    result.planned = 9
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text(schema.dump(result))
    assert "partial, 5 of 9" in command.run("list", str(tmp_path)).stdout


def test_nothing_to_list(command: InProcess, tmp_path: Path) -> None:
    done = command.run("list", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"compare list: no results in {tmp_path}: `compare run` makes one\n"


def test_csv_has_all_of_it(folder: Path, command: InProcess, tmp_path: Path) -> None:
    done = command.run("export", str(folder), "--csv", str(tmp_path / "table.csv"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    result = schema.load((folder / "result.json").read_text())
    lines = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert {(line["row"], line["scenario"], int(line["round"])) for line in lines} == {
        (sample.row, sample.scenario, sample.round) for sample in result.samples
    }
    analysis = Analysis(result)
    values = [
        float(line["value"])
        for line in lines
        if line["figure"] == "connection_cpu" and line["row"] == "prefork"
    ]
    assert sorted(values) == sorted(analysis.values(METRICS["connection_cpu"], "prefork"))
    assert {line["unit"] for line in lines if line["figure"] == "connection_cpu"} == {"us/connection"}


def test_what_is_no_file_is_written_to_and_stays(folder: Path, command: InProcess, tmp_path: Path) -> None:
    """A device, such as /dev/null, which root could replace; here a pipe, and a link."""
    pipe, link, linked = tmp_path / "pipe", tmp_path / "link", tmp_path / "linked"
    os.mkfifo(pipe)
    link.symlink_to(linked)
    fd = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # a reader, or nobody could open it to write
    for path in (link, pipe):
        assert command.run("export", str(folder), "--csv", str(path)).stderr == ""
    assert os.read(fd, 2**16) == linked.read_bytes()[: 2**16] != b""
    os.close(fd)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert link.is_symlink()
    assert list(tmp_path.glob("*.part")) == []


def test_csv_keeps_what_is_invalid() -> None:
    samples = rounds("fork", 1.0)
    samples[0].invalid, samples[0].figures = "connection lost, at once", {}
    first, *_ = csv.DictReader(io.StringIO(export.as_csv(result_of(samples))))
    assert (first["invalid"], first["figure"], first["value"]) == ("connection lost, at once", "", "")


def test_pyperf_reads_it(folder: Path, command: InProcess, tmp_path: Path) -> None:
    pyperf = pytest.importorskip("pyperf")
    done = command.run("export", str(folder), "--pyperf", str(tmp_path / "pyperf.json"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    suite = pyperf.BenchmarkSuite.load(str(tmp_path / "pyperf.json"))
    result = schema.load((folder / "result.json").read_text())
    analysis = Analysis(result)
    found = analysis.estimate("connection_cpu", "prefork")
    assert found
    benchmark = suite.get_benchmark("prefork.connection_cpu")
    assert benchmark.median() == pytest.approx(found.value / 1e6)
    assert (benchmark.get_nrun(), benchmark.get_unit()) == (found.rounds, "second")
    memory = suite.get_benchmark("prefork.pss_idle")
    assert memory.get_unit() == "byte"
    assert not any("rate" in name for name in suite.get_benchmark_names())


def scaled(result: Result, row: str, times: float) -> Result:
    """The same result, had that row taken `times` the CPU."""
    samples = [
        replace(sample, figures={**sample.figures, "cpu": sample.figures["cpu"] * times})
        if sample.row == row
        else sample
        for sample in result.samples
    ]
    return replace(result, samples=samples)


def test_what_got_worse_is_told_from_what_did_not() -> None:
    before = result_of(rounds("fork", 1.0) + rounds("thread", 0.8))
    found = {
        change.name: change for change in changes(Analysis(before), Analysis(scaled(before, "fork", 1.1)))
    }
    assert found["fork.up_cpu"].verdict == WORSE
    assert found["fork.up_cpu"].percent == pytest.approx(10)
    assert found["fork.up_cpu"].ratio.low == pytest.approx(1.1, abs=0.01)
    assert found["thread.up_cpu"].verdict == SAME
    back = changes(Analysis(scaled(before, "fork", 1.1)), Analysis(before))
    assert {change.name: change.verdict for change in back}["fork.up_cpu"] == BETTER


def test_a_change_within_the_noise_is_none() -> None:
    before = result_of(rounds("fork", 1.0) + rounds("thread", 0.8))
    found = changes(Analysis(before), Analysis(scaled(before, "fork", 1.005)))
    assert {change.verdict for change in found} == {SAME}


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("worse", True),
        ("fork.up_cpu>5%", True),
        ("fork.up_cpu > 5 %", True),
        ("fork.up_cpu>12%", False),
        ("thread.up_cpu>0%", False),
        ("thread.up_cpu<1%", False),  # no difference, so no condition on it holds
        ("fork.up_cpu<20%", True),
    ],
)
def test_conditions(text: str, fails: bool) -> None:
    before = result_of(rounds("fork", 1.0) + rounds("thread", 0.8))
    found = changes(Analysis(before), Analysis(scaled(before, "fork", 1.1)))
    assert any(map(condition(text).holds, found)) is fails


def test_conditions_at_a_point() -> None:
    wanted = condition("prefork.load_p99@2000>10%")
    assert wanted.name == "prefork.load_p99@2000"
    assert condition("prefork (again).up_cpu>-1%").percent == -1


@pytest.mark.parametrize(
    "text", ["better", "fork>5%", "fork.up_cpu>5", "fork.up_cpu>x%", "fork.up_cpu>1.2.3%"]
)
def test_conditions_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="expected worse, or"):
        condition(text)


def test_a_row_that_is_not_there_is_no_condition() -> None:
    result = result_of(rounds("fork", 1.0))
    found = changes(Analysis(result), Analysis(result))
    mistake = diff.unknown([condition("worse"), condition("frok.up_cpu>1%")], found)
    assert mistake
    assert "they share the rows fork and the metrics up_cpu," in mistake


def test_unlike_results_are_warned_of() -> None:
    one, other = result_of(rounds("fork", 1.0)), result_of(rounds("thread", 1.0))
    other.environment = {**other.environment, "kernel": "Linux 9"}
    other.settings = replace(other.settings, method="aes-128-gcm", duration=9.0)
    other.planned = 99
    assert diff.warnings(one, other, []) == [
        "not alike: kernel: Linux and Linux 9",
        "not alike: method: aes-256-gcm and aes-128-gcm",
        "not alike: duration: 2.0 and 9.0",
        "B is partial: 5 of 99 samples",
        "only in A: fork",
        "only in B: thread",
    ]


def test_a_baseline_that_moved_is_the_machine() -> None:
    one = result_of(rounds("fork", 1.0) + rounds("direct", 1.0))
    found = changes(Analysis(one), Analysis(scaled(one, "direct", 1.5)))
    (warning,) = diff.warnings(one, one, found)
    assert warning.startswith("the machine itself differs, since what has no server does: direct.up_cpu")


def test_a_diff_for_programs(command: InProcess, tmp_path: Path) -> None:
    before = result_of(rounds("fork", 1.0) + rounds("thread", 0.8))
    for name, result in (("a", before), ("b", scaled(before, "fork", 1.1))):
        (tmp_path / name).write_text(schema.dump(result))
    places = [str(tmp_path / name) for name in "ab"]
    done = command.run("diff", *places, "--json", "--fail-if", "fork.up_cpu>5%")
    assert done.returncode == 1
    assert done.stderr == "compare diff: failed: fork.up_cpu>5%\n"
    said = json.loads(done.stdout)
    assert said["failed"] == ["fork.up_cpu>5%"]
    (change,) = [entry for entry in said["changes"] if (entry["row"], entry["metric"]) == ("fork", "up_cpu")]
    assert change["b_is"] == WORSE
    assert change["ratio"]["value"] == pytest.approx(1.1)
    assert command.run("diff", *places, "--fail-if", "fork.up_cpu>15%").returncode == 0


MISTAKES = {
    "no such file": (
        ["report", "none.json"],
        os.EX_NOINPUT,
        "none.json: No such file or directory: expected",
    ),
    "no result in the folder": (["export", ".", "--csv", "-"], os.EX_NOINPUT, "./result.json: No such file"),
    "no such folder to list": (["list", "none"], os.EX_NOINPUT, "none: No such file"),
    "a damaged file": (["report", "damaged.json"], os.EX_DATAERR, "damaged result: "),
    "half a file": (["diff", "half.json", "half.json"], os.EX_DATAERR, "half.json: not a result of compare"),
    "not text": (["report", "binary.json"], os.EX_DATAERR, "binary.json: not text"),
    "another schema": (["diff", "good.json", "major.json"], os.EX_DATAERR, "expected unp-tunnel compare 1.x"),
    "a name without --out": (["report", "good.json"], os.EX_USAGE, "expected --out DIR"),
    "no format": (["export", "good.json"], os.EX_USAGE, "--csv --pyperf"),
    "two formats": (["export", "good.json", "--csv", "a", "--pyperf", "b"], os.EX_USAGE, "not allowed with"),
    "a folder that is not there": (["export", "good.json", "--csv", "none/x"], os.EX_CANTCREAT, "none/x"),
    "a folder for a file": (["export", "good.json", "--csv", "."], os.EX_CANTCREAT, "Is a directory"),
    "one result": (["diff", "good.json"], os.EX_USAGE, "required: B"),
    "no condition": (
        ["diff", "good.json", "good.json", "--fail-if", "no"],
        os.EX_USAGE,
        "expected worse, or",
    ),
    "no metric": (
        ["diff", "good.json", "good.json", "--fail-if", "fork.up_cpi>5%"],
        os.EX_USAGE,
        "no metric 'up_cpi'",
    ),
    "no row": (
        ["diff", "good.json", "good.json", "--fail-if", "f.up_cpu>5%"],
        os.EX_USAGE,
        "share the rows fork",
    ),
    "nothing to resume": (["run", "--resume", "none"], os.EX_NOINPUT, "none: No such file"),
    "too much to resume": (
        ["run", "--resume", "none", "--rounds", "3", "--no-null"],
        os.EX_USAGE,
        "leave out --no-null, --rounds",
    ),
    "another cipher to resume": (
        ["run", "--resume", "none", "--method", "aes-128-gcm"],
        os.EX_USAGE,
        "leave out --method",
    ),
    "a null of what is not measured": (
        ["run", "--models", "fork", "--null", "poll"],
        os.EX_USAGE,
        "--null poll",
    ),
    "an unknown shell": (["completion", "fish"], os.EX_USAGE, "choose from bash, zsh, tcsh"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(
    mistake: str,
    command: InProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, code, expected = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    good = schema.dump(result_of(rounds("fork", 1.0)))
    damaged = json.loads(good)
    del damaged["rows"]
    major = good.replace(f'"{schema.MAJOR}.{schema.MINOR}"', '"9.0"')
    for name, text in (
        ("good", good),
        ("damaged", json.dumps(damaged)),
        ("major", major),
        ("half", good[:500]),
    ):
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    done = command.run(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"compare {words[0]}: ")
    assert expected in done.stderr.replace("'bash'", "bash").replace("'zsh'", "zsh").replace("'tcsh'", "tcsh")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_all_commands(shell: str, command: InProcess) -> None:
    done = command.run("completion", shell)
    assert done.returncode == 0, done.stderr
    for word in ("run", "report", "diff", "export", "peers", "resume", "pyperf"):
        assert word in done.stdout


def test_peers_are_listed_with_a_way_to_get_them(
    command: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is there says its version; what is not there, how it could be."""
    program = tmp_path / "ssserver"
    program.write_text("#!/bin/sh\necho shadowsocks 1.23.4\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = command.run("peers")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert list(lines) == ["ROW", "libev", "rust", "go", "v2ray", "pproxy"]
    assert lines["rust"].endswith(f"{program}, version 1.23.4")
    assert lines["libev"].endswith("not found: apt-get install shadowsocks-libev")
    assert lines["pproxy"].endswith("not found: pip install pproxy pycryptodome, in a venv without uvloop")
