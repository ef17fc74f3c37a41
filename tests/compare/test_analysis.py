"""What a report says of samples that are made up, so that the right answer is known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from compare import report
from compare.analysis import HEADLINES, Analysis
from compare.bench import Bench, Cores
from compare.report import BOOK
from compare.report.page import page
from compare.report.sources import source_figures
from compare.sample import limit
from compare.schema import Result, RowInfo, Sample, Settings, Worker
from compare.servers import BASELINE, DIRECT, LIBEV, MODEL, PEER, TWICE
from compare.stats import SAME, WORSE

ENVIRONMENT = {
    "started": "2026-01-02T03:04:05Z",
    "command": ["compare", "run", "--out", "a b"],
    "kernel": "Linux",
    "cpu": "<processor>",
    "cpu_flags": [],
    "cores": 2,
    "governor": "unknown",
    "hypervisor": False,
    "pinned": {"server": [0], "generator": [1], "target": [1]},
    "load_average": [0.1, 0.2, 0.3],
    "python": "CPython",
    "cryptography": "1",
    "openssl_of_cryptography": "OpenSSL",
    "unp_tunnel": "0",
    "revision": "unknown",
    "peers": {},
    "sysctl": {"net.core.somaxconn": "4096"},
    "open_files": [1024, 4096],
}
ROUNDS = 5


def bulk(row: str, number: int, cpu: float, scenario: str = "bulk-up", limited: str | None = None) -> Sample:
    """1 GB in two seconds, at this cost, a little more or less each round."""
    spent = cpu * (1 + 0.002 * number)
    figures = {"bytes": 1e9, "wall": 2.0, "count": 1, "cpu": spent, "user": spent / 2, "system": spent / 2}
    return Sample(row, scenario, number, float(number), limited=limited, figures=figures)


def result_of(samples: list[Sample]) -> Result:
    kinds = {LIBEV: PEER, DIRECT: BASELINE}
    rows = list(dict.fromkeys(sample.row for sample in samples))
    scenarios = list(dict.fromkeys(sample.scenario for sample in samples))
    return Result(
        Settings(scenarios, ROUNDS, 2.0, 1, "aes-256-gcm"),
        ENVIRONMENT,
        [RowInfo(row, kinds.get(row, MODEL), "UNP 30", "a & b") for row in rows],
        samples,
        planned=len(samples),
    )


def rounds(row: str, cpu: float, scenario: str = "bulk-up", limited: str | None = None) -> list[Sample]:
    return [bulk(row, number, cpu, scenario, limited) for number in range(1, ROUNDS + 1)]


def test_ranks_and_ratio_to_libev() -> None:
    analysis = Analysis(result_of(rounds("thread", 0.8) + rounds("fork", 0.801) + rounds(LIBEV, 1.6)))
    assert analysis.ranks["up_cpu"] == {"thread": 1, "fork": 1, LIBEV: 3}
    assert analysis.ratio_to_libev("up_cpu", "thread") == pytest.approx(0.5)
    assert report.verdict(analysis)[0].startswith("Over all, thread and fork need the least CPU; ")
    assert "0.50 times libev" in report.verdict(analysis)[1]


def test_overall_rank_is_over_all_headlines() -> None:
    """One is good at this and the other at that; the third is a little worse at everything."""
    samples = (
        rounds("a", 0.5) + rounds("a", 2.0, "bulk-down") + rounds("b", 2.0) + rounds("b", 0.5, "bulk-down")
    )
    samples += rounds("c", 1.2) + rounds("c", 1.2, "bulk-down")
    overall = Analysis(result_of(samples)).overall
    assert overall
    assert overall.ranks == {"a": 1, "b": 1, "c": 3}
    assert overall.estimates["c"].value == pytest.approx(1.2)


def test_a_row_without_one_headline_has_no_overall_rank() -> None:
    samples = rounds("a", 0.5) + rounds("a", 0.5, "bulk-down") + rounds("b", 0.4)
    overall = Analysis(result_of(samples)).overall
    assert overall
    assert set(overall.ranks) == {"a"}


def test_generator_limited_throughput_is_marked_and_not_ranked() -> None:
    held_back = rounds("thread", 0.8, limited="generator and target use their whole core")
    analysis = Analysis(result_of(held_back + rounds("fork", 0.9)))
    assert set(analysis.ranks["up_rate"]) == {"fork"}
    assert analysis.ranks["up_cpu"] == {"thread": 1, "fork": 2}
    assert report.cell(analysis, "up_rate", "thread") == "500*"
    assert report.cell(analysis, "up_cpu", "thread") == "0.805"
    assert any(
        "Throughput not ranked" in problem and "thread" in problem for problem in report.problems(analysis)
    )


def test_invalid_samples_do_not_count() -> None:
    samples = rounds("thread", 0.8) + rounds("fork", 0.9)
    samples[0].invalid = "wrong byte up, at 7"
    samples[0].figures["cpu"] = 1000.0
    analysis = Analysis(result_of(samples))
    found = analysis.estimate("up_cpu", "thread")
    assert found
    assert (found.rounds, found.high < 1) == (ROUNDS - 1, True)
    assert "Invalid: thread, bulk-up, 1 of 5 samples: wrong byte up, at 7" in report.problems(analysis)


def test_mostly_invalid_rows_are_not_ranked() -> None:
    samples = rounds("thread", 0.8) + rounds("fork", 0.9)
    for sample in samples[:3]:
        sample.invalid = "connection lost"
    analysis = Analysis(result_of(samples))
    assert set(analysis.ranks["up_cpu"]) == {"fork"}
    assert report.cell(analysis, "up_cpu", "thread") == report.UNUSABLE


def test_a_busy_machine_is_told() -> None:
    samples = rounds("thread", 0.8)
    samples[2].figures["foreign_cpu"] = 1.0  # of two seconds
    assert any(
        "during 1 of 5 samples" in problem for problem in report.problems(Analysis(result_of(samples)))
    )


def test_text_from_the_result_is_escaped() -> None:
    text = page(Analysis(result_of(rounds("<b>", 0.8) + rounds("x&y", 0.9))))
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    assert "&lt;processor&gt;" in text
    assert "x&amp;y" in text


def test_tables_fit_a_terminal_of_eighty_columns() -> None:
    samples = [s for scenario in ("bulk-up", "bulk-down") for s in rounds("prefork", 0.8, scenario)]
    analysis = Analysis(result_of(samples + rounds(LIBEV, 1.6)))
    text, narrow = report.terminal(analysis, 10_000), report.terminal(analysis, 60)
    assert max(map(len, text.splitlines())) > 80
    assert max(map(len, narrow.splitlines())) <= 60
    assert set(re.findall(r"[\d.]+", text)) == set(re.findall(r"[\d.]+", narrow))
    assert narrow.count("prefork") > text.count("prefork")  # each piece names its rows


def test_bold_is_for_the_first_rank_alone() -> None:
    analysis = Analysis(result_of(rounds("thread", 0.8) + rounds("fork", 1.9)))
    assert "**0.805**" in report.markdown(analysis)
    assert "**1.911**" not in report.markdown(analysis)
    assert "**" not in report.terminal(analysis, 200)
    assert {metric.key for metric in HEADLINES} == {"up_cpu", "down_cpu", "connection_cpu", "ping_cpu"}


EVENLY = (346, 340, 340, 338, 337, 336, 336, 333, 331, 330, 330, 329, 328, 326, 320)


def crowd(row: str, number: int, counts: Sequence[int]) -> Sample:
    figures = {"wall": 4.0, "count": sum(counts), "cpu": 2.0, "user": 1.0, "system": 1.0}
    workers = [Worker(count, 100 * count, 1000 * count) for count in counts]
    return Sample(row, "children", number, float(number), figures=figures, workers=workers)


def crowded() -> Analysis:
    """A pool like the book's row 2, and one just like its row 5."""
    few = BOOK["row 5,\nSolaris"]
    return Analysis(
        result_of(
            [crowd("prefork", number, EVENLY[::-1]) for number in (1, 2, 3)]
            + [crowd("prefork-fdpass", number, few) for number in (1, 2, 3)]
        )
    )


def test_the_book_adds_up() -> None:
    assert {name: (len(counts), sum(counts)) for name, counts in BOOK.items()} == dict.fromkeys(
        BOOK, (15, 5000)
    )


def test_clients_per_child_stand_beside_the_books() -> None:
    table = report.clients_per_child(crowded())
    assert table
    assert table.headers[:3] == ["child", "prefork", "prefork-\nfdpass"]
    assert [heading.startswith("UNP row") for heading in table.headers] == [False] * 3 + [True] * 3
    assert table.rows[0] == ["1", "346", "1,006", "340", "1,006", "718"]
    assert table.rows[14] == ["15", "320", "0", "331", "0", "1"]
    assert table.rows[15] == ["in all", *["5,000"] * 5]
    assert table.rows[16] == ["evenness", "1.000", "0.485", "1.000", "0.485", "0.638"]
    assert report.markdown(crowded()).count("## Clients per child") == 1


def test_who_shares_evenly_is_said_in_words() -> None:
    said = report.fairness(crowded())
    assert said
    assert "shared among 15 children: evenly by prefork (the busiest child served 6.9% of them" in said
    assert "unevenly by prefork-fdpass (the busiest child served 20.1% of them, the idlest 0.0%)" in said
    assert report.fairness(Analysis(result_of(rounds("fork", 0.8)))) is None


def test_a_long_list_of_equals_is_cut_in_sentences() -> None:
    samples = [sample for number in range(12) for sample in rounds(f"model-{number}", 0.8)]
    analysis = Analysis(result_of(samples))
    assert "model-3 and 8 others need the least CPU" in report.verdict(analysis)[0]


def test_a_model_in_a_package_is_quoted_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_many").mkdir()
    (tmp_path / "of_many" / "loop.py").write_text(
        "# fig: run\nx = 1\n# end fig\n# fig: poll\ny = 2\n# end fig\n"
    )
    (tmp_path / "of_many" / "accept.py").write_text("    # fig: accept\n    z = 3\n    # end fig\n")
    (tmp_path / "of_many" / "notes.txt").write_text("# fig: no\nx\n# end fig\n")
    monkeypatch.setattr("compare.report.sources.files", lambda _: tmp_path)
    expected = [("accept.py: accept", "z = 3"), ("loop.py: run", "x = 1"), ("loop.py: poll", "y = 2")]
    assert source_figures("of-many") == expected
    assert source_figures("gone") == []


def test_what_spoils_all_of_a_row_is_said_once() -> None:
    samples = rounds("thread", 0.8) + rounds("thread", 0.8, "bulk-down") + rounds("fork", 0.9)
    for sample in samples[:10]:
        sample.invalid = "thread did not start: no"
    samples[10].invalid = "connection lost"
    said = [problem for problem in report.problems(Analysis(result_of(samples))) if "Invalid" in problem]
    assert said == [
        "Invalid: thread, all 10 samples: thread did not start: no",
        "Invalid: fork, bulk-up, 1 of 5 samples: connection lost",
    ]


def test_minus_nothing_is_nothing() -> None:
    assert [report.number(value, 1) for value in (-0.01, 0.0, -0.06, 10.0)] == ["0.0", "0.0", "-0.1", "10.0"]


TWO, THREE, ONE = (
    Cores((0,), (1,), (1,)),
    Cores((0,), (1,), (2,)),
    Cores((0,), (0,), (0,)),
)


@pytest.mark.parametrize(
    ("cores", "server", "generator", "target", "limited"),
    [
        (TWO, 0.60, 0.50, 0.47, True),
        (TWO, 0.98, 0.50, 0.49, False),  # both are at their end: then it is the server's
        (TWO, 0.60, 0.40, 0.30, False),  # nobody is: it waits for something else
        (THREE, 0.60, 0.60, 0.60, False),
        (THREE, 0.60, 0.20, 0.97, True),
        (ONE, 0.30, 0.30, 0.30, True),
    ],
)
def test_what_held_the_throughput_back(
    cores: Cores, server: float, generator: float, target: float, limited: bool
) -> None:
    bench = Bench.__new__(Bench)
    bench.cores = cores
    assert (limit(bench, server, generator, target) is not None) is limited


def entered_twice(apart: float) -> Analysis:
    """fork, and fork again at `apart` times its cost; thread at 1.3 times."""
    result = result_of(rounds("fork", 1.0) + rounds("fork (again)", apart) + rounds("thread", 1.3))
    result.rows = [row if row.name != "fork (again)" else replace(row, kind=TWICE) for row in result.rows]
    return Analysis(result)


def test_the_null_row_is_measured_and_not_ranked() -> None:
    analysis = entered_twice(1.001)
    assert analysis.servers == ["fork", "thread"]
    assert analysis.ranks["up_cpu"] == {"fork": 1, "thread": 2}
    assert analysis.null["up_cpu"].alike
    assert analysis.null["up_cpu"].ratio == pytest.approx(1.001)
    assert analysis.apart("up_cpu", "fork", "fork (again)") == SAME
    assert analysis.apart("up_cpu", "fork", "thread") == WORSE


def test_what_the_null_row_differs_by_is_no_difference_anywhere() -> None:
    analysis = entered_twice(1.4)
    assert not analysis.null["up_cpu"].alike
    assert analysis.floor("up_cpu") == pytest.approx(0.4)
    assert analysis.ranks["up_cpu"] == {"fork": 1, "thread": 1}
    assert analysis.apart("up_cpu", "fork", "thread") == SAME


def test_figures_along_an_axis() -> None:
    """Points are rows of their own: never one median over all of them."""
    samples = [
        Sample("fork", "load", number, point=float(point), latency_us=[(point // 10, 99), (point, 2)])
        for number in (1, 2, 3)
        for point in (1000, 2000)
    ]
    analysis = Analysis(result_of(samples))
    assert analysis.points("load") == [1000, 2000]
    assert [(point, e.value, e.rounds) for point, e in analysis.curve("load_p50", "fork")] == [
        (1000, 100, 3),
        (2000, 200, 3),
    ]
    assert analysis.estimate("load_p50", "fork") is None
    found = analysis.estimate("load_p99", "fork", 2000)
    assert found
    assert found.value == 2000
    assert analysis.pooled_latency("fork", "load", 1000) == [(100, 297), (1000, 6)]
