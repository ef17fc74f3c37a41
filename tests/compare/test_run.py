"""`compare run` from end to end: real servers, real load, real files."""

from __future__ import annotations

import html.parser
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import models
from compare import bench, schema, servers
from compare.analysis import HEADLINES, Analysis
from compare.interrupt import Interrupt
from compare.plan import CHILDREN, CROWD, QUICK, SCENARIOS
from compare.run import begun, run
from compare.schema import Result, Settings
from compare.servers import AEAD, BARE_FORK, DIRECT, ROWS
from models import MODELS
from tests.compare.conftest import Command, Finished

COUNTERS = (
    "up_waits",
    "down_waits",
    "up_preempted",
    "down_preempted",
    "connection_faults",
)  # where the system counts them
METHODS = ("chacha20-ietf-poly1305", pytest.param("aes-128-gcm", marks=pytest.mark.slow))


def test_it_ends_well_and_leaves_nothing(finished: Finished) -> None:
    assert finished.done.returncode == 0, finished.done.stderr
    assert finished.done.stderr == ""  # no terminal: no progress
    assert finished.left == []
    assert {path.name for path in finished.folder.iterdir()} == {"result.json", "report.md", "report.html"}


def test_every_sample_is_there_and_valid(finished: Finished) -> None:
    result = finished.result
    assert result.complete
    taken = {(sample.row, sample.scenario, sample.round) for sample in result.samples}
    wanted = set(itertools.product(("iterative", "fork"), QUICK, (1, 2)))
    wanted |= set(itertools.product(("prefork",), (*QUICK, "children"), (1, 2)))
    assert wanted < taken
    assert len(result.samples) == len(taken) == result.planned
    assert [sample.invalid for sample in result.samples if sample.invalid] == []


def test_every_figure_is_there_and_can_be(finished: Finished) -> None:
    analysis = Analysis(finished.result)
    metrics = [metric for metric in analysis.metrics if metric.key not in COUNTERS]
    for metric, row in itertools.product(metrics, ("iterative", "fork")):
        found = analysis.estimate(metric.key, row)
        if metric.scenario == "children":
            assert found is None  # no pool
            continue
        if row == "iterative" and metric.key in ("pss_open", "pss_each"):
            assert found is None  # one client at a time
            continue
        assert found, (metric.key, row)
        assert found.low <= found.value <= found.high
        assert found.value > 0 or metric.key.endswith(("user", "system"))
    for metric in HEADLINES:
        found = analysis.estimate(metric.key, "iterative")
        assert found
        assert found.value < {"CPU-s/GB": 20, "us/connection": 20_000, "us/request": 5_000}[metric.unit]


def test_fork_pays_for_its_forks(finished: Finished) -> None:
    """The CPU of children that have ended is in the figures, or fork would be the cheapest of all."""
    analysis = Analysis(finished.result)
    fork, iterative = (analysis.estimate("connection_cpu", row) for row in ("fork", "iterative"))
    assert fork
    assert iterative
    assert fork.value > 2 * iterative.value


def test_user_and_system_add_up(finished: Finished) -> None:
    for sample in finished.result.samples:
        if "user" in sample.figures:
            assert sample.figures["user"] + sample.figures["system"] == pytest.approx(sample.figures["cpu"])


def test_clients_per_child_come_from_the_scoreboard(finished: Finished) -> None:
    size = int(CROWD * finished.result.settings.duration * SCENARIOS["children"].part)
    for sample in finished.result.samples:
        if sample.scenario == "children":
            assert len(sample.workers) == CHILDREN
            assert sum(worker.connections for worker in sample.workers) == sample.figures["count"] == size
            assert sample.notes == []
            for worker in sample.workers:
                assert (worker.up > 0) == (worker.down > 0) == (worker.connections > 0)
        elif sample.scenario == "connections":
            asked = sample.row == "prefork" and sample.round == 1
            assert (sum(worker.connections for worker in sample.workers) > sample.figures["count"]) is asked


def test_a_pool_that_grows_is_not_waited_for(finished: Finished) -> None:
    """It is two workers at first, and more as soon as both are busy: it need not shrink again."""
    samples = [sample for sample in finished.result.samples if sample.row == "prefork"]
    assert [note for sample in samples for note in sample.notes] == []
    assert all(sample.figures["pss_open"] for sample in samples if sample.scenario == "memory")


@pytest.mark.slow
def test_clients_per_child_of_all_pools(command: Command, tmp_path: Path) -> None:
    pools = [name for name, model in MODELS.items() if model.pool and not model.missing() and source(name)]
    words = [
        "run",
        "--models",
        ",".join(pools),
        "--scenarios",
        "children",
        "--no-peers",
        "--no-baselines",
        "--no-null",
    ]
    done = command.run(*words, "--rounds", "1", "--duration", "0.05", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    seen = {s.row: s for s in schema.load((tmp_path / "result.json").read_text()).samples}
    assert set(seen) == set(pools)
    wrong = {
        name: (sample.invalid, sample.notes, len(sample.workers))
        for name, sample in seen.items()
        if sample.invalid or sample.notes or len(sample.workers) != CHILDREN
    }
    assert wrong == {}


def source(name: str) -> bool:
    """True if that model has been written."""
    place = Path(models.__file__).parent / name.replace("-", "_")
    return place.is_dir() or place.with_suffix(".py").exists()


def test_latencies_are_counted(finished: Finished) -> None:
    for sample in finished.result.samples:
        if sample.scenario in ("ping-pong", "connections") and sample.row != BARE_FORK:
            assert sum(count for _, count in sample.latency_us) == sample.figures["count"] > 0


def test_environment_says_where_it_was(finished: Finished) -> None:
    environment = finished.result.environment
    for name in ("kernel", "cpu", "cores", "governor", "python", "cryptography", "openssl_of_cryptography"):
        assert environment[name]
    assert environment["sysctl"]["net.core.somaxconn"].isdigit()
    assert environment["command"][:2] == ["compare", "run"]


def test_report_on_the_terminal(finished: Finished) -> None:
    text = finished.done.stdout
    assert text.startswith(("Over all", "For bulk"))
    for row in ("iterative", "fork", DIRECT, AEAD):
        assert re.search(rf"^{row} +\S", text, re.MULTILINE)
    assert str(finished.folder) in text


def test_report_in_markdown(finished: Finished) -> None:
    text = (finished.folder / "report.md").read_text()
    for row in ("iterative", "fork"):
        assert re.search(rf"^\| {row} +\|.*\d", text, re.MULTILINE)
    assert "## Environment" in text


class Outline(html.parser.HTMLParser):
    """The elements of a page, and whether they are nested as they should be."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def count(self, tag: str) -> int:
        return sum(seen == tag for seen, _ in self.seen)


def test_report_in_html_is_one_file(finished: Finished) -> None:
    text = (finished.folder / "report.html").read_text()
    outline = Outline(text)
    assert outline.open == []
    assert len(text) < 2_000_000
    assert outline.count("img") == outline.count("iframe") == outline.count("object") == 0
    assert [attrs for tag, attrs in outline.seen if tag == "script"] == [{}]
    links = [attrs.get("href") or attrs.get("src") for _, attrs in outline.seen]
    assert {link for link in links if link and not link.startswith("#")} == {"data:,", "result.json"}
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text


def test_report_in_html_has_its_plots_twice_with_words_and_numbers(finished: Finished) -> None:
    outline = Outline((finished.folder / "report.html").read_text())
    drawings = [attrs for tag, attrs in outline.seen if tag == "svg"]
    named = [attrs["id"] for _, attrs in outline.seen if "id" in attrs]
    assert len(named) == len(set(named))
    assert len(drawings) >= 2 * 6
    assert len(drawings) % 2 == 0
    for drawing in drawings:
        assert drawing.get("role") == "img"
        assert set((drawing.get("aria-labelledby") or "nobody").split()) <= set(named)
    assert outline.count("details") >= 5


def test_report_in_html_quotes_the_source(finished: Finished) -> None:
    text = (finished.folder / "report.html").read_text()
    assert "accepted := server.accept(" in text
    assert "# fig:" not in text


def test_a_reader_that_has_gone_costs_no_report(command: Command, tmp_path: Path) -> None:
    """As in `compare run | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    what = ["--models", "iterative", "--no-peers", "--no-null", "--scenarios", "connections", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "compare", "run", *what, "--duration", "0.05", "--out", str(tmp_path)],
        env=command.environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.fixture
def settings() -> Settings:
    return Settings(["bulk-up", "bulk-down", "connections"], 1, 0.05, 1, "aes-256-gcm")


def run_against(
    way: str, settings: Settings, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> Result:
    monkeypatch.setattr(servers, "PATIENCE", 30.0)
    monkeypatch.setattr(bench, "TARGET", (sys.executable, "-m", "tests.compare.corrupting_target", way))
    result = begun([ROWS["iterative"], ROWS[DIRECT]], settings)
    run(result, interrupt)
    assert result.elapsed < servers.PATIENCE, "the server waited for a connection that nobody closed"
    return result


def test_a_wrong_byte_down_is_invalid(
    settings: Settings, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_against("down", settings, interrupt, monkeypatch)
    reasons = {(s.row, s.scenario): s.invalid for s in result.samples}
    for row in ("iterative", DIRECT):
        assert re.match(r"wrong byte down, at 5000 of", reasons[row, "bulk-down"] or "")
        assert reasons[row, "bulk-up"] is None
    analysis = Analysis(result)
    assert analysis.estimate("down_cpu", "iterative") is None
    assert analysis.estimate("up_cpu", "iterative") is not None


def test_a_wrong_byte_up_is_invalid(
    settings: Settings, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_against("up", settings, interrupt, monkeypatch)
    reasons = {(s.row, s.scenario): s.invalid for s in result.samples}
    assert re.match(r"wrong byte up, at \d+", reasons["iterative", "bulk-up"] or "")
    assert re.match(r"wrong byte up, at 39", reasons["iterative", "connections"] or "")
    assert reasons["iterative", "bulk-down"] is None


@pytest.mark.parametrize("method", METHODS)
def test_other_methods(method: str, command: Command, tmp_path: Path) -> None:
    what = ["--models", "select", "--no-peers", "--no-null", "--scenarios", "bulk-down", "--method", method]
    done = command.run("run", *what, "--rounds", "1", "--duration", "0.05", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = schema.load((tmp_path / "result.json").read_text())
    assert [sample.invalid for sample in result.samples] == [None] * 4
    assert result.settings.method == method
