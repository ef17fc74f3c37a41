"""The report of a run of everything, of one that has next to nothing, and of all between."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from xml.etree import ElementTree as Tree

import pytest

from compare import report, schema
from compare.analysis import Analysis
from compare.report import book, bulk, conditions, connections, curves, latency, overview
from compare.report.draw import (
    FAMILIES,
    SERIES,
    Axis,
    Dot,
    Line,
    beside,
    dots,
    draw,
    far_off,
    panels,
    shared_out,
)
from compare.report.page import page
from compare.report.parts import NOTHING, UNUSABLE, Missing, Section, size
from compare.report.sections import ORDER, sections
from compare.report.sources import highlighted
from compare.schema import Result, Sample
from models import MODELS
from tests.compare.made_up import AGAIN, FAILED, SCENARIOS, full_result

FEW = ["prefork", "select", "libev", "direct", "relay", "aead"]


@pytest.fixture(scope="module")
def whole() -> Analysis:
    """Few rows, all scenarios: what a section says does not depend on how many there are."""
    return Analysis(full_result([*FEW, "iterative", "fork", "prefork-epoll", AGAIN, FAILED], rounds=3))


def of_scenarios(result: Result, *kept: str) -> Result:
    """The same without the samples of other scenarios."""
    samples = [sample for sample in result.samples if sample.scenario in kept]
    settings = dataclasses.replace(result.settings, scenarios=list(kept))
    return dataclasses.replace(result, samples=samples, settings=settings, planned=len(samples))


def section(made: Section | Missing) -> Section:
    assert isinstance(made, Section), made
    return made


# Whole


def test_a_run_of_everything_has_every_section(whole: Analysis) -> None:
    made, missing = sections(whole)
    assert missing == []
    assert len(made) == len(ORDER)
    assert len({one.key for one in made}) == len(made)
    for one in made:
        assert one.sentence.endswith(".")
        assert one.tables
        for table in one.tables:
            assert table.rows
            assert {len(row) for row in table.rows} == {len(table.headers)}, table.title


def test_the_order_is_that_of_the_specification(whole: Analysis) -> None:
    made, _ = sections(whole)
    order = [one.key for one in made]
    wanted = ["summary", "latency", "load", "concurrency", "sizes", "bulk", "connections", "idle", "switches"]
    wanted += ["children", "fairness", "series", "drift", "beats"]
    assert [key for key in order if key in wanted] == wanted


@pytest.mark.parametrize("make", ORDER, ids=lambda make: make.__name__)
def test_a_section_without_samples_is_a_sentence(make: Callable[[Analysis], Section | Missing]) -> None:
    nothing = dataclasses.replace(full_result(["prefork"], rounds=1), samples=[])
    made = make(Analysis(nothing))
    if make is overview.at_a_glance:
        assert section(made).tables[0].rows == [
            ["prefork", *[NOTHING] * (len(section(made).tables[0].headers) - 1)]
        ]
    else:
        assert isinstance(made, Missing)
        assert made.why


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("rows", [["prefork"], ["direct"], [FAILED], ["iterative", "libev"]], ids=" ".join)
def test_any_one_scenario_makes_a_report(scenario: str, rows: list[str]) -> None:
    analysis = Analysis(of_scenarios(full_result(rows, rounds=1), scenario))
    assert report.markdown(analysis).startswith("# Server models compared")
    assert report.terminal(analysis, 80)


def test_a_run_that_was_cut_short_makes_a_report() -> None:
    result = full_result(["prefork", "select"], rounds=1)
    for kept in (1, 7, 20):
        short = dataclasses.replace(result, samples=result.samples[:kept], stopped="interrupted")
        analysis = Analysis(short)
        assert "Partial: stopped after" in report.markdown(analysis)
        sections(analysis)


def test_an_environment_of_an_older_file_is_enough() -> None:
    result = dataclasses.replace(
        full_result(["prefork"], rounds=1), environment={"command": ["compare", "run"]}
    )
    assert "| command" in report.markdown(Analysis(result))


def test_a_result_that_was_written_and_read_makes_the_same_report(whole: Analysis) -> None:
    again = Analysis(schema.load(schema.dump(whole.result)))
    assert report.markdown(again) == report.markdown(whole)


# Words


def test_a_peer_that_is_best_does_not_hide_the_models(whole: Analysis) -> None:
    first, *others = report.verdict(whole)
    assert re.match(r"Over all, libev needs the least CPU; of the models, \w", first)
    (said,) = [sentence for sentence in others if sentence.startswith("For each new connection")]
    assert re.search(
        r"libev, \d+ \(\d+ to \d+\) us of CPU; of the models .* [12]\.\d\d.* times libev\.", said
    )


def test_figures_of_a_verdict_have_their_intervals(whole: Analysis) -> None:
    bulk_up = next(sentence for sentence in report.verdict(whole) if sentence.startswith("For bulk up"))
    assert re.search(r"0\.\d{3} \(0\.\d{3} to 0\.\d{3}\) CPU-s/GB", bulk_up)


def test_what_spoils_a_point_of_many_rows_is_said_once(whole: Analysis) -> None:
    said = [
        text for text in report.problems(whole) if text.startswith("Invalid") and " load at 14,000" in text
    ]
    assert len(said) == 1
    assert "generator was late" in said[0]
    assert sum(FAILED in text for text in report.problems(whole)) == 1


def test_a_model_measured_twice_is_the_noise_floor(whole: Analysis) -> None:
    table = conditions.twice(whole)
    assert table
    assert len(table.rows) == 4
    assert any(text.startswith("Null run: prefork-epoll, entered twice") for text in conditions.noise(whole))
    assert all(AGAIN not in sentence for sentence in report.verdict(whole))
    once = Analysis(full_result(["prefork"], rounds=1))
    assert conditions.twice(once) is None
    assert conditions.noise(once)[-1].startswith("No model was entered twice")


# Latency


def test_rows_are_compared_at_the_highest_load_that_they_keep_up_with(whole: Analysis) -> None:
    compared = latency.equal_load(whole)
    assert compared
    assert compared.load == 10000  # at 12,000 two of six do not
    kept = latency.kept_up(whole)
    assert kept["select"][12000.0].value < latency.KEEPS_UP
    assert "At 10,000 requests/s, offered to all alike" in section(latency.percentiles(whole)).sentence


def test_without_an_open_loop_the_closed_one_is_shown_and_said(whole: Analysis) -> None:
    closed = Analysis(of_scenarios(whole.result, "ping-pong"))
    compared = latency.equal_load(closed)
    assert compared
    assert compared.load is None
    assert "a stall shows once only" in section(latency.percentiles(closed)).sentence


def test_a_point_with_too_few_valid_samples_is_marked_and_not_drawn(whole: Analysis) -> None:
    table = section(latency.hockey_stick(whole)).tables[0]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["prefork"][-1] == UNUSABLE
    assert set(rows["iterative"]) == {UNUSABLE}
    found = curves.curves(whole, "load_p99")
    assert "iterative" not in found
    assert 14000.0 not in found["prefork"]


def test_the_bend_is_where_the_tail_leaves_its_floor() -> None:
    curve = {load: curves.At(us, False) for load, us in ((1000.0, 200.0), (2000.0, 590.0), (3000.0, 700.0))}
    assert latency.bend(curve) == 3000
    assert latency.bend({1000.0: curves.At(200.0, False)}) is None


# Bytes, connections, memory


def test_user_and_system_add_up_to_what_is_said(whole: Analysis) -> None:
    cost = bulk.cost(whole, "up", "prefork")
    total = whole.estimate("up_cpu", "prefork")
    assert cost
    assert total
    assert cost.total == pytest.approx(total.value)
    assert bulk.cost(whole, "up", FAILED) is None


def test_baselines_are_lines_and_no_bars(whole: Analysis) -> None:
    made = section(bulk.gigabyte(whole))
    assert "shadowsocks-libev, a relay without encryption and the cipher alone" in made.sentence
    assert made.drawing
    drawn = draw(made.drawing, 900, False, "x")
    assert all(label in drawn for label in ("libev", "relay, no cipher", "AEAD alone"))
    assert 'data-row="relay"' not in drawn


def test_throughput_that_was_held_back_keeps_its_mark() -> None:
    result = full_result(["prefork"], rounds=3)
    for sample in result.samples:
        if sample.scenario == "sizes" and sample.point == 64:
            sample.limited = "generator and target use their whole core"
    row = section(bulk.sizes(Analysis(result))).tables[0].rows[0]
    assert row[1].endswith("*")
    assert not row[2].endswith("*")


def test_memory_of_each_idle_connection(whole: Analysis) -> None:
    table = next(
        table for table in section(connections.idle_connections(whole)).tables if "KB" in table.title
    )
    each = {row[0]: row[1:] for row in table.rows}
    assert float(each["fork"][-1].replace(",", "")) == pytest.approx(2600, rel=0.05)
    assert each["select"][1:] == [UNUSABLE] * 3


def test_who_refuses_clients_is_not_the_fastest_to_serve_them() -> None:
    result = full_result(["iterative", "prefork", "select"], rounds=2)
    for sample in result.samples:
        if sample.scenario == "shock" and sample.row == "iterative":
            sample.figures["wall"] = 0.001
    made = section(connections.shock(Analysis(result)))
    assert made.sentence.startswith("2 of 3 serve every connection, prefork within ")
    assert "some fail with iterative" in made.sentence
    assert [row[0] for row in made.tables[0].rows][-1] == "iterative"


def test_throughput_on_many_connections_is_beside_that_on_few(whole: Analysis) -> None:
    few = dataclasses.replace(
        whole.result, samples=[s for s in whole.result.samples if s.scenario != "concurrency" or s.point != 1]
    )
    sentence = section(bulk.concurrency(Analysis(few))).sentence
    assert re.search(
        r"move bytes on 1,000 connections at once; beside .* on 10, [\w-]+ has 0\.\d\d times", sentence
    )


def test_a_series_of_one_value_is_none(whole: Analysis) -> None:
    short = [dataclasses.replace(sample, series=sample.series[:1]) for sample in whole.result.samples]
    assert isinstance(bulk.series(Analysis(dataclasses.replace(whole.result, samples=short))), Missing)


@pytest.mark.parametrize(("count", "said"), [(64, "64"), (1024, "1K"), (262144, "256K"), (1 << 20, "1M")])
def test_sizes_are_said_as_people_say_them(count: int, said: str) -> None:
    assert size(count) == said


def test_rows_that_have_points_only_are_left_to_the_curves(whole: Analysis) -> None:
    """Of `unp` the pools were asked with sizes; they are in the table of chapter 30."""
    table = overview.scenario_table(whole, "unp")
    assert table
    listed = [row[0] for row in table.rows]
    assert {"iterative", "fork"} <= set(listed)
    assert "prefork" not in listed


# UNP


def test_process_control_stands_beside_the_books(whole: Analysis) -> None:
    table = section(book.chapter_30(whole)).tables[0]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["iterative"][:3:2] == ["0", "0.00"]
    assert rows["fork"][3:] == ["2.00", "400", "504.2", "168.9", "29.6", "20.9"]
    assert float(rows["fork"][2]) == pytest.approx(5000 * 0.7 * (1600e-6 - 260e-6), rel=0.05)
    assert rows["prefork"][3:] == ["2.00", "0.15", NOTHING, "6.2", "1.80", "1.80"]
    assert rows["select"][5:] == [NOTHING] * 4


def test_pools_that_grow_stand_beside_the_books(whole: Analysis) -> None:
    table = section(book.chapter_30(whole)).tables[1]
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.headers[1:] == ["15", "30", "60", "120"]
    assert rows["UNP prefork, BSD/OS"] == ["1.80", "3.5", "6.9", "13.5"]


def test_the_chapter_says_where_it_agrees_with_the_book(whole: Analysis) -> None:
    few = of_scenarios(full_result(["iterative", "fork", "thread", "prefork"], rounds=3), "unp")
    said = section(book.chapter_30(Analysis(few))).sentence
    assert "Of 3 pairs of the book's designs 2 stand in the order of its third edition." in said
    assert "That fork costs the most agrees with the book: a connection makes 400 page faults in it" in said
    assert "That a thread for each client is cheaper than a preforked child does not agree: " in said
    assert "there is no thundering herd: 2.00 and 2.00 context switches for each connection" in said
    samples = [
        dataclasses.replace(s, figures={**s.figures, "ctx_voluntary": 5000 * (s.point or 0)})
        for s in whole.result.samples
        if s.scenario == "unp"
    ]
    herd = Analysis(of_scenarios(dataclasses.replace(whole.result, samples=samples), "unp"))
    assert (
        "there is a thundering herd: 15 and 120 context switches" in section(book.chapter_30(herd)).sentence
    )


def test_a_run_from_before_switches_were_counted_says_nothing_of_them(whole: Analysis) -> None:
    samples = [
        dataclasses.replace(
            s, figures={k: v for k, v in s.figures.items() if k not in ("ctx_voluntary", "faults_minor")}
        )
        for s in whole.result.samples
        if s.scenario == "unp"
    ]
    old = section(
        book.chapter_30(Analysis(of_scenarios(dataclasses.replace(whole.result, samples=samples), "unp")))
    )
    assert "herd" not in old.sentence
    assert "page faults" not in old.sentence
    assert {row[4] for row in old.tables[0].rows} == {NOTHING}


def test_clients_per_child_come_from_unp_where_children_was_not_measured(whole: Analysis) -> None:
    only = Analysis(of_scenarios(whole.result, "unp"))
    assert list(book.pools(only)) == ["prefork"]
    assert sum(book.pools(only)["prefork"]) == pytest.approx(5000, abs=15)


# Who beats whom


def made_of_bulk(costs: dict[str, float]) -> Analysis:
    samples = [
        Sample(
            row, "bulk-up", number, figures={"bytes": 1e9, "wall": 1.0, "cpu": cost * (1 + 0.001 * number)}
        )
        for row, cost in costs.items()
        for number in (1, 2, 3)
    ]
    result = full_result(list(costs), rounds=1)
    return Analysis(of_scenarios(dataclasses.replace(result, samples=samples), "bulk-up"))


def test_won_tied_and_lost() -> None:
    table = section(overview.beats(made_of_bulk({"fork": 0.8, "thread": 0.805, "poll": 1.2}))).tables[0]
    rows = {row[0]: row[2:] for row in table.rows}
    assert rows["fork"] == ["1", "1", "0", "1 1 0", "", "=", "+"]
    assert rows["thread"] == ["1", "1", "0", "1 1 0", "=", "", "+"]
    assert rows["poll"] == ["0", "0", "2", "0 0 2", overview.LOST, overview.LOST, ""]


# Drawings


def test_every_model_has_one_family() -> None:
    members = [name for rows in FAMILIES.values() for name in rows]
    assert sorted(members) == sorted(MODELS)
    assert max(map(len, FAMILIES.values())) <= SERIES


def test_many_rows_are_shared_out_among_panels() -> None:
    """Twenty lines in eight colours would be told apart by nobody."""
    assert list(shared_out(["fork", "thread"])) == [""]
    shared = shared_out([*MODELS, "libev", "direct"])
    assert list(shared)[-1] == "Peers and baselines"
    assert sorted(row for rows in shared.values() for row in rows) == sorted([*MODELS, "libev", "direct"])


def test_one_point_is_a_dot_and_no_line(whole: Analysis) -> None:
    once = dataclasses.replace(
        whole.result, samples=[s for s in whole.result.samples if s.scenario != "idle" or s.point == 100]
    )
    made = section(connections.idle_connections(Analysis(once)))
    assert made.drawing
    assert "concat" not in made.drawing(900, False)
    assert ">MB of PSS (log scale)<" in draw(made.drawing, 900, False, "x")


FAR_OFF = {"a": 1.0, "b": 1.2, "c": 0.9, "d": 1.1, "far": 30.0, "low": 0.03}


def test_a_row_that_is_far_off_is_told_by_the_median_of_the_others() -> None:
    found = {row: [(1.0, value), (2.0, 2 * value)] for row, value in FAR_OFF.items()}
    assert far_off(found) == ["far"]
    assert far_off(found, too_low=True) == ["far", "low"]
    found["far"] += [(3.0, 99.0), (4.0, 1.1)]  # near at one of its points: a bend, and shown
    found |= {row: [*found[row], (3.0, value), (4.0, value)] for row, value in list(FAR_OFF.items())[:4]}
    assert far_off(found) == []
    assert far_off({"a": [(1.0, 1.0)], "b": [(1.0, 2.0)], "c": [(1.0, 99.0)]}) == []  # nobody is many


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
def test_a_row_that_is_far_off_does_not_stretch_the_axes(narrow: bool) -> None:
    """And is said to be, above the drawing; one that is about it keeps it."""
    lines = [Line(row, [(1.0, value), (2.0, value)]) for row, value in FAR_OFF.items()]
    shown = {row: Dot(value, value, value, str(value)) for row, value in FAR_OFF.items()}
    axes = Axis("n", [1.0, 2.0], log=False), Axis("us (log scale)", [0.01, 0.1, 1, 10, 100])
    width = 318 if narrow else 1020
    for drawing, gone in ((panels(lines, *axes), {"far", "low"}), (dots(shown, "us"), {"far"})):
        drawn = draw(drawing, width, narrow, "x")
        rows = {element.get("data-row") for element in Tree.fromstring(drawn).iter()} - {None}
        assert rows == FAR_OFF.keys() - gone
        assert f">Off the scale: {' and '.join(sorted(gone))}; see the numbers.<" in drawn
        assert float(Tree.fromstring(drawn).get("width", "")) <= (358 if narrow else 1080)
    assert "Off the scale" not in draw(dots(shown, "us", everybody=True), width, narrow, "x")


def test_a_bar_that_is_far_off_leaves_room_for_the_others() -> None:
    result = full_result(["prefork", "select", "fork", "poll", "libev"], rounds=2)
    for sample in result.samples:
        if sample.row == "libev" and sample.scenario.startswith("bulk"):
            sample.figures |= {name: 500 * sample.figures[name] for name in ("cpu", "user", "system")}
    made = section(bulk.gigabyte(Analysis(result)))
    assert made.drawing
    for narrow in (False, True):
        drawn = draw(made.drawing, 318 if narrow else 1020, narrow, "x")
        assert ">Off the scale: libev; see the numbers.<" in drawn
        assert 'data-row="libev"' not in drawn
    assert "libev" in [row[0] for row in made.tables[0].rows]


def test_names_beside_a_panel_do_not_lie_on_each_other() -> None:
    lines = [Line(f"row {at}", [(1.0, 5.0), (2.0, 1.0 + at / 1000)]) for at in range(8)]
    places = sorted(beside(lines, (1.0, 10.0), 150, log=True).values())
    assert all(after - before >= 12.9 for before, after in itertools.pairwise(places))
    assert places[-1] <= 150.5


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
def test_drawings_are_as_wide_as_they_may_be(whole: Analysis, narrow: bool) -> None:
    """And say who their marks are, for the one that is followed; and nothing to screen readers but a name."""
    made = section(latency.hockey_stick(whole))
    assert made.drawing
    root = Tree.fromstring(draw(made.drawing, 318 if narrow else 1020, narrow, "a b"))
    assert float(root.get("width", "")) <= (358 if narrow else 1080)
    assert (root.get("role"), root.get("aria-labelledby")) == ("img", "a b")
    assert {element.get("data-row") for element in root.iter()} >= {"prefork", "fork", "libev"}
    assert not [element for element in root.iter() if element is not root and "role" in element.attrib]


def test_each_family_has_the_palette_from_its_first_colour_on(whole: Analysis) -> None:
    """Vega would share one scale among all panels, and call it a legend."""
    made = section(latency.hockey_stick(whole))
    assert made.drawing
    inks: dict[str, set[str]] = {}
    for element in Tree.fromstring(draw(made.drawing, 1020, False, "x")).iter():
        ink = element.get("stroke") or element.get("fill") or ""
        if "data-row" in element.attrib and ink != "var(--pale)":
            inks.setdefault(element.attrib["data-row"], set()).add(ink)
    for first in ("fork", "prefork", "select", "prefork-epoll"):
        assert inks[first] == {"var(--series-1)"}
    assert inks["libev"] == {"currentColor"}


# Source


def test_source_is_coloured_and_escaped() -> None:
    text = 'if a < b:  # <i>\n    return f"{x} & y", "<b>", 0x1F'
    made = highlighted(text)
    assert '<i class="k">if</i> a &lt; b' in made
    assert '<i class="c"># &lt;i&gt;</i>' in made
    assert '<i class="n">0x1F</i>' in made
    assert '<i class="s">&quot;&lt;b&gt;&quot;</i>' in made
    assert re.sub(r"</?i[^>]*>", "", made) == text.replace("&", "&amp;").replace("<", "&lt;").replace(
        ">", "&gt;"
    ).replace('"', "&quot;")


@pytest.mark.parametrize(
    "text", ["elif x:\n    y\n", "    a\n  b\n", "x = (1,\n", "'''open", "\n\n", "ä = 'ö'  # ü"]
)
def test_half_a_statement_is_shown_whole(text: str) -> None:
    shown = re.sub(r"</?i[^>]*>", "", highlighted(text))
    assert shown == text.replace("'", "&#x27;")


# Frames


def test_markdown_has_the_tables_of_the_page(whole: Analysis) -> None:
    text = report.markdown(whole)
    made, _ = sections(whole)
    for one in made:
        assert f"## {one.title}\n\n{one.sentence}" in text
        for table in one.tables:
            assert f"| {table.rows[-1][0]} " in text


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    result = full_result(["prefork"], rounds=1)
    result.environment["command"] = ["compare", "run", "--out", "a|b"]
    line = next(
        line for line in report.markdown(Analysis(result)).splitlines() if line.startswith("| command")
    )
    assert "a\\|b" in line


def test_terminal_leaves_what_is_bulky_to_the_files(whole: Analysis) -> None:
    text = report.terminal(whole, 100)
    assert max(map(len, text.splitlines())) <= 100
    made, _ = sections(whole)
    (drift,) = [one for one in made if one.key == "drift"]
    assert drift.sentence[:60] in text
    line = drift.tables[0].rows[-1]
    pattern = r"\s+\|?\s*".join(map(re.escape, line))
    assert re.search(pattern, report.markdown(whole))
    assert not re.search(pattern, text)


def test_the_page_is_small_and_asks_nobody() -> None:
    text = page(Analysis(full_result(FEW, rounds=2)))
    assert len(text.encode()) < 1_000_000
    assert re.search(r"default-src 'none'; .*script-src 'sha256-", text)
    assert not re.search(r"""(?:src|href)=["'](?!#|data:,|result\.json)""", text)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", text)
