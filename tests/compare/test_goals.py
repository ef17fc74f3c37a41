"""The goals for speed: which are met by results whose figures are known, and the run that measures them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from compare import goals, markers, schema
from compare.analysis import METRICS, Analysis
from compare.cli import baselines_of, into
from compare.goals import GOALS, NO, NOISE, UNKNOWN, YES, Finding
from compare.markers import refreshed
from compare.plan import SCENARIOS, make_plan
from compare.run import chosen_rows
from compare.schema import Result, Sample
from compare.servers import AGAIN, DIRECT
from compare.stats import Estimate
from models import MODELS
from tests.compare.conftest import Command
from tests.compare.made_up import full_result
from tunnel.config import DEFAULT_MODEL, LOCAL, SERVE

ROOT = Path(__file__).parent.parent.parent
BEGIN, END = markers.markers(markers.GOALS)
ROWS = ["iterative", "fork", "thread", "prefork", "epoll", "uvloop"]
BESIDE = ["libev", "go", "relay", "aead", "bare-fork"]


def measured(rows: list[str], rounds: int = 5) -> Result:
    """Of a made-up run what goals ask for."""
    result = full_result(rows, rounds)
    asked = goals.settings(SERVE, list(MODELS), "aes-256-gcm", 1, goals.Length(rounds))
    kept = [
        sample
        for sample in result.samples
        if sample.scenario in asked.scenarios
        and (sample.point is None or sample.point in asked.points[sample.scenario])
    ]
    return dataclasses.replace(result, samples=kept, settings=asked, planned=len(kept))


def made(change: Callable[[Sample], None] | None = None, rows: list[str] | None = None) -> Analysis:
    result = measured(rows or [*ROWS, *BESIDE])
    if change:
        for sample in result.samples:
            change(sample)
    return Analysis(result)


@pytest.fixture(scope="module")
def as_made() -> Analysis:
    return made()


def finding(analysis: Analysis, title: str) -> Finding:
    (goal,) = (goal for goal in GOALS if (goal.title, goal.end) == (title, SERVE))
    return goals.finding(goal, analysis)


def test_a_ratio_is_that_of_medians_of_one_run(as_made: Analysis) -> None:
    analysis = as_made
    best = finding(analysis, "bulk up, best model beside libev")
    assert best.ours
    assert best.beside
    assert best.figure
    assert best.ours.name in ("iterative", "prefork")  # 0.85 CPU-s/GB, the others more
    assert best.figure.value == pytest.approx(median(best.ours.values) / median(best.beside.values))
    assert best.figure.value == pytest.approx(0.85 / 1.68, rel=0.03)
    assert best.figure.low < best.figure.value < best.figure.high
    assert finding(analysis, "new connection, fork beside a bare fork").met == YES  # 1,600 of 700 us
    connection = finding(analysis, "new connection, best model beside libev")
    assert (connection.met, connection.goal.limit) == (NO, 1.5)  # 260 of 131 us


def test_the_floor_is_copying_and_the_cipher_of_the_same_rounds(as_made: Analysis) -> None:
    best = finding(as_made, "bulk up, best model beside the floor")
    assert best.beside
    assert len(best.beside.values) == 5
    assert median(best.beside.values) == pytest.approx(0.55 + 0.2, rel=0.03)
    missing = made(rows=[*ROWS, "libev", "go", "aead"])
    assert finding(missing, "bulk up, best model beside the floor").met == UNKNOWN


def test_what_holds_for_every_model_is_shown_by_the_worst_and_names_who_misses(as_made: Analysis) -> None:
    def dear(sample: Sample) -> None:
        if sample.row in ("epoll", "uvloop") and sample.scenario == "bulk-up":
            sample.figures["cpu"] *= 2 if sample.row == "epoll" else 1.5

    one = finding(made(dear), "bulk up, every model beside libev")
    assert one.ours
    assert (one.ours.name, one.met) == ("epoll", NO)
    assert one.note.startswith("4 of 6 meet it; not uvloop 0.")
    assert ", epoll 1.1" in one.note
    assert finding(as_made, "bulk up, every model beside libev").note == ""


def test_who_has_no_figure_is_named_with_the_reason() -> None:
    late = "the generator was late: 2.0% of requests were sent over 1 ms after they were due"

    def unlucky(sample: Sample) -> None:
        if sample.row == "epoll" and sample.scenario == "mixed" and sample.round < 3:
            sample.invalid = late
            sample.figures.clear()

    beside = "p99 beside one bulk stream, every model"
    cannot = made(unlucky, rows=[*ROWS, "trampoline"])
    assert finding(cannot, beside).note.endswith(
        "; without a figure: iterative (one client at a time); without a figure: trampoline (not measured)"
    )
    assert "epoll" in finding(cannot, beside).note  # three samples of five are enough

    def unluckier(sample: Sample) -> None:
        if sample.row == "epoll" and sample.scenario == "mixed" and sample.round < 4:
            sample.invalid = late

    assert finding(made(unluckier), beside).note.endswith(
        "without a figure: epoll (the generator was late: 3 of 5 samples do not count)"
    )


@pytest.mark.parametrize(
    ("times", "met"), [(0.9, YES), (0.9999, YES + NOISE), (1.0001, NO + NOISE), (1.1, NO)]
)
def test_a_limit_within_the_noise_is_said_to_be(times: float, met: str) -> None:
    """fork's connections, at most 1,800 us: at 0.9 of it surely, at 0.9999 by the median alone."""

    def scaled(sample: Sample) -> None:
        if sample.row == "fork" and sample.scenario == "connections":
            spread = 1 + 0.01 * (sample.round - 3)
            sample.figures["cpu"] = sample.figures["count"] * 1800e-6 * times * spread

    assert finding(made(scaled), "new connection, fork").met == met


@pytest.mark.parametrize(
    ("low", "high", "rounds", "noise", "met"),
    [
        (0.85, 0.95, 5, 0.05, YES),
        (0.85, 1.01, 5, 0.05, YES + NOISE),  # the interval holds the limit
        (0.85, 0.95, 5, 0.20, YES + NOISE),  # the run's noise is more than the distance
        (0.90, 0.90, 1, 0.00, YES + NOISE),  # of one round nobody knows
    ],
)
def test_when_a_goal_is_met_surely(low: float, high: float, rounds: int, noise: float, met: str) -> None:
    assert goals.verdict(Estimate(0.9, low, high, rounds), 1.0, noise) == met
    above = Estimate(1 / 0.9, 1 / high, 1 / low, rounds)
    assert goals.verdict(above, 1.0, noise) == met.replace(YES, NO)


def test_one_round_is_never_sure() -> None:
    analysis = Analysis(measured([*ROWS, *BESIDE], rounds=1))
    assert all(one.met == UNKNOWN or one.met.endswith(NOISE) for one in goals.found({SERVE: analysis}))


def test_memory_is_without_the_stacks_of_threads(as_made: Analysis) -> None:
    one = finding(as_made, "idle connection of 1,000, thread, beyond its stacks")
    assert one.figure
    assert one.figure.value == pytest.approx(620 - 24, rel=0.02)
    assert one.met == NO
    loop = finding(as_made, "idle connection of 5,000, epoll")
    assert loop.figure
    assert loop.figure.value == pytest.approx(71, rel=0.02)


def test_the_best_peer_at_a_rate_is_any_peer(as_made: Analysis) -> None:
    one = finding(as_made, "p99 at 2,000 requests/s, best model beside the best peer")
    assert one.figure
    assert one.goal.point == 2000


def test_a_peer_that_is_not_here_is_not_measured_and_not_met() -> None:
    findings = goals.found({SERVE: made(rows=ROWS)})
    unknown = [one for one in findings if one.met == UNKNOWN]
    assert {one.note for one in unknown} == {"what it is beside was not measured"}
    said = goals.summary(findings)
    met = sum(one.met.startswith(YES) for one in findings)
    assert said.startswith(f"{met} of {len(findings)} goals are met")
    assert said.endswith(f"; {len(unknown)} were not measured.")


def test_clients_have_their_own_goals() -> None:
    result = measured([*ROWS, *BESIDE], rounds=2)
    clients = dataclasses.replace(result, settings=dataclasses.replace(result.settings, end=LOCAL))
    analyses = {SERVE: Analysis(result), LOCAL: Analysis(clients)}
    ends = [one.goal.end for one in goals.found(analyses)]
    assert ends.count(LOCAL) == 12
    assert len(ends) == len(GOALS)
    text = goals.text(analyses, "github")
    assert text.index("**Servers: tunnel serve**") < text.index("**Clients: tunnel local**")
    for said in ("| figure ", "revision 0123456789ab", "at most 0.85 x", "at most 1,800 us/connection"):
        assert said in text


def test_markers_keep_what_is_around_them() -> None:
    document = f"# Title\n\n{BEGIN}\nold\n{END}\n\n## Next\n"
    assert refreshed(document, markers.GOALS, "a \\1 b") == f"# Title\n\n{BEGIN}\na \\1 b\n{END}\n\n## Next\n"
    assert refreshed(refreshed(document, markers.GOALS, "x"), markers.GOALS, "old") == document
    for wrong in ("no markers", f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", BEGIN):
        with pytest.raises(ValueError, match="once each"):
            refreshed(wrong, markers.GOALS, "x")


def test_to_ask_whether_a_file_has_markers_does_not_empty_it(tmp_path: Path) -> None:
    """`compare bench --into` asks before it measures."""
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\nold\n{END}\n")
    into(str(page), markers.GOALS, "")
    assert page.read_text() == f"{BEGIN}\nold\n{END}\n"


def test_the_document_that_shows_them_has_the_markers() -> None:
    document = (ROOT / "docs" / "performance.md").read_text()
    assert BEGIN in refreshed(document, markers.GOALS, "x")


# The run


def test_all_models_are_measured_where_each_may_be_the_best() -> None:
    for end in (SERVE, LOCAL):
        asked = goals.settings(end, list(MODELS), "aes-256-gcm", 1, goals.Length())
        names = [*MODELS, *goals.PEERS, *(name for name in baselines_of(list(MODELS), end) if name != DIRECT)]
        rows = chosen_rows([*MODELS, f"{DEFAULT_MODEL}{AGAIN}"], names[len(MODELS) :], [])
        plan = make_plan(
            rows, asked.scenarios, asked.rounds, 1, asked.most, points=asked.points, only=asked.rows
        )
        taken = {(planned.row, planned.scenario, planned.point) for planned in plan}
        for goal in GOALS:
            if goal.end == end:
                assert goal.metric.scenario in asked.scenarios
                point = goal.point
                assert any(what[1:] == (goal.metric.scenario, point) for what in taken), goal.title
        for scenario in ("bulk-up", "bulk-down", "connections"):
            assert {row for row, where, _ in taken if where == scenario} >= set(MODELS) | set(goals.PEERS)
        for scenario, kept in asked.rows.items():
            assert {row for row, where, _ in taken if where == scenario} <= set(kept)
            assert scenario in SCENARIOS
    assert len(plan) < 400


def test_every_goal_asks_for_a_metric_that_is_there() -> None:
    assert {goal.metric.key for goal in GOALS} <= set(METRICS)
    assert len({(goal.title, goal.end) for goal in GOALS}) == len(GOALS)


def save(folder: Path, result: Result, end: str) -> None:
    (folder / end).mkdir(parents=True)
    result.settings.end = end
    (folder / end / "result.json").write_text(schema.dump(result))


def test_the_command_reads_a_folder_with_both_ends(command: Command, tmp_path: Path) -> None:
    for end in (SERVE, LOCAL):
        save(tmp_path / "bench", measured([*ROWS, *BESIDE], rounds=2), end)
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\n{END}\nbelow\n")
    done = command.run("goals", str(tmp_path / "bench"), "--into", str(page))
    assert done.returncode == 0, done.stderr
    assert f" of {len(GOALS)} goals are met" in done.stdout
    assert "Clients: tunnel local" in done.stdout
    text = page.read_text()
    assert text.startswith(f"above\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nbelow\n")
    assert "**Clients: tunnel local**" in text
    both = [str(tmp_path / "bench" / end) for end in (SERVE, LOCAL)]
    again = command.run("goals", *both, "--markdown")
    assert again.stdout.strip() == text.partition(BEGIN)[2].partition(END)[0].strip()


def test_mistakes_with_goals(command: Command, tmp_path: Path) -> None:
    save(tmp_path, measured(["prefork", "libev"], rounds=1), SERVE)
    one, page = str(tmp_path / SERVE), tmp_path / "page.md"
    page.write_text("nothing here\n")
    for words, code, expected in (
        (["goals", one, one], os.EX_USAGE, "another result of serve: expected one of each end"),
        (["goals", one, "--into", str(page)], os.EX_DATAERR, f"expected the lines {BEGIN}"),
        (["bench", "--into", str(page)], os.EX_DATAERR, f"expected the lines {BEGIN}"),
        (["goals", str(tmp_path / "none")], os.EX_NOINPUT, "No such file"),
    ):
        done = command.run(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
        assert expected in done.stderr
    assert page.read_text() == "nothing here\n"


@pytest.mark.slow
def test_a_bench_of_one_short_round(tmp_path: Path) -> None:
    """Both ends, for real, with few models and next to no load."""
    command = Command()
    what = [sys.executable, "-m", "compare", "bench", "--models", "fork,thread,prefork,epoll"]
    what += ["--rounds", "1", "--duration", "0.05"]
    done = subprocess.run(
        [*what, "--out", str(tmp_path)],
        env=command.environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert command.left_behind() == []
    for end in (SERVE, LOCAL):
        result = schema.load((tmp_path / end / "result.json").read_text())
        assert result.complete
        assert result.settings.end == end
    assert f" of {len(GOALS)} goals are met" in (tmp_path / "goals.md").read_text()
