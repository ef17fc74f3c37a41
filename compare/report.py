"""The words and tables of a report, the same on the terminal, in Markdown and in HTML.

    Analysis --> verdict (sentences) --+--> terminal
             --> tables (cells) -------+--> report.md
             --> problems (sentences) -+--> page.py: report.html

Rules: a table is made once, as text cells; only its frame differs. Every figure that a reader might
take for more than it is carries its mark here: * the generator was the limit, ! not enough valid
samples.
"""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from tabulate import tabulate

from compare.analysis import HEADLINES, METRICS, Analysis, Metric, names
from compare.environment import doubts
from compare.plan import CHILDREN, CLIENTS, SCENARIOS
from compare.schema import Sample
from compare.servers import LIBEV, PEER
from compare.stats import Estimate, evenness, outliers

FOREIGN = 0.2  # cores that others may use before a reader is told
NOTES = 8  # of the samples' own, at most
NAMED = 5  # rows in a sentence, at most
EVEN, UNEVEN = 0.99, 0.9  # Jain's index: as even as chance makes it; nobody would call it even
BOOK = {  # UNP figure 30.2: clients of each of 15 children, 5,000 in all
    "row 2,\nBSD/OS": (333, 340, 335, 335, 332, 331, 333, 333, 332, 331, 334, 333, 334, 332, 332),
    "row 5,\nSolaris": (1006, 950, 720, 582, 485, 457, 385, 250, 105, 32, 14, 9, 4, 1, 0),
    "row 5,\nDigital Unix": (718, 647, 589, 554, 526, 501, 447, 389, 314, 208, 62, 18, 14, 12, 1),
}
BOLD = "Bold: first in its column, or not to be told apart from it."
LIMITED, UNUSABLE, NOTHING = "*", "!", "-"

SUMMARY = (  # metric, heading on two lines
    ("up_cpu", "CPU-s/GB\nup"),
    ("down_cpu", "CPU-s/GB\ndown"),
    ("up_rate", "MB/s\nup"),
    ("down_rate", "MB/s\ndown"),
    ("connection_cpu", "CPU us/\nconn."),
    ("connection_rate", "conn.\n/s"),
    ("ping_p50", "ping us\np50"),
    ("ping_p99", "ping us\np99"),
    ("ping_max", "ping us\nmax"),
    ("pss_idle", "PSS MB\nidle"),
    ("pss_busy", "PSS MB\nbusy"),
)
VERDICTS = {
    "up_cpu": ("For bulk up", "CPU-s/GB"),
    "down_cpu": ("For bulk down", "CPU-s/GB"),
    "connection_cpu": ("For each new connection", "us of CPU"),
    "ping_cpu": ("For a small request on an open connection", "us of CPU"),
}


class Table(NamedTuple):
    """Cells as text; the first column is the row's name."""

    title: str
    headers: list[str]  # may have two lines
    rows: list[list[str]]
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()  # (row, column) of what shares the first rank


def number(value: float, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.") else text  # -0 is no number to show


def interval(estimate: Estimate, digits: int) -> str:
    if estimate.rounds < 2:
        return number(estimate.value, digits)
    low, high = number(estimate.low, digits), number(estimate.high, digits)
    return f"{number(estimate.value, digits)} ({low} to {high})"


def between(values: Sequence[float], digits: int) -> str:
    """`0.61`, or `0.61 to 0.70`."""
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"


def verdict(analysis: Analysis) -> list[str]:
    """What the run says, in sentences; the first one is the shortest answer."""
    sentences = []
    overall = analysis.overall
    if overall and overall.ranks and len(overall.ranks) > 1:
        first = [name for name, rank in overall.ranks.items() if rank == 1]
        first.sort(key=lambda name: overall.estimates[name].value)
        verb = "needs" if len(first) == 1 else "need"
        shared = "" if len(first) == 1 else "; this run cannot tell them apart"
        sentences.append(f"Over all, {names(first, NAMED)} {verb} the least CPU{shared}.")
    for key, (where, unit) in VERDICTS.items():
        best = sorted(analysis.best(key), key=lambda name: analysis.estimates[key][name].value)
        if not best:
            continue
        digits = METRICS[key].digits
        estimates = [item for name in best if (item := analysis.estimate(key, name))]
        figures = (
            interval(estimates[0], digits)
            if len(best) == 1
            else between([e.value for e in estimates], digits)
        )
        ratios = [ratio for name in best if name != LIBEV and (ratio := analysis.ratio_to_libev(key, name))]
        beside = f", {between(ratios, 2)} times libev" if ratios else ""
        apart = "" if len(best) == 1 else ", not to be told apart"
        sentences.append(f"{where}: {names(best, NAMED)}{apart}, {figures} {unit}{beside}.")
    if spread := fairness(analysis):
        sentences.append(spread)
    return sentences or ["Nothing valid was measured."]


def foreign(sample: Sample) -> float:
    """Cores that other programs used during a sample."""
    return sample.figures.get("foreign_cpu", 0.0) / sample.figures.get("wall", 1.0)


def problems(analysis: Analysis) -> list[str]:
    """What a reader must know before believing the figures."""
    return [
        *noise(analysis),
        *circumstances(analysis),
        *invalid(analysis),
        *held_back(analysis),
        *notes(analysis),
        *strays(analysis),
    ]


def noise(analysis: Analysis) -> Iterator[str]:
    """How far apart the same model came out twice, and from where on a difference is one."""
    headlines = [metric for metric in HEADLINES if metric in analysis.metrics]
    floors = {metric: floor for metric in headlines if (floor := analysis.floor(metric.key))}
    if floors:
        listed = ", ".join(f"{metric.scenario} {100 * floor:.1f}%" for metric, floor in floors.items())
        yield f"Noise floor: CPU that differs by less is not told apart: {listed}."
    if not analysis.null_of:
        yield "No model was entered twice, so the noise floor is from the rows' scatter alone."
        return
    nulls = {metric: analysis.null[metric.key] for metric in headlines if metric.key in analysis.null}
    if nulls:
        listed = ", ".join(f"{m.scenario} {100 * (null.ratio - 1):+.1f}%" for m, null in nulls.items())
        yield f"Null run: {analysis.null_of[0]}, entered twice, differs from itself by: {listed}."
    for metric, null in nulls.items():
        if not null.alike:
            yield (
                f"{metric.scenario}, {metric.title}: the null run is further apart than chance"
                " explains; nothing below that is ranked."
            )


def circumstances(analysis: Analysis) -> Iterator[str]:
    result = analysis.result
    taken, rounds = len(result.samples), result.settings.rounds
    if not result.complete:
        yield f"Partial: stopped after {taken} of {result.planned} samples ({result.stopped})."
    yield from doubts(result.environment, result.elapsed)
    busy = [share for sample in result.samples if (share := foreign(sample)) > FOREIGN]
    if busy:
        yield (
            f"The machine was not ours alone: during {len(busy)} of {taken} samples other programs used "
            f"{FOREIGN:g} to {max(busy):.1f} cores. Intervals are wider for it."
        )
    for name, reason in result.left_out.items():
        yield f"Left out: {name}: {reason}."
    for name, enough in result.settings.most.items():
        if enough < rounds and name in result.settings.scenarios:
            yield f"Of {name} only {enough} round{'s' if enough > 1 else ''}."
    if rounds < 3:
        yield f"Only {rounds} round{'s' if rounds > 1 else ''}: the intervals say little."


def invalid(analysis: Analysis) -> Iterator[str]:
    """Samples that do not count; what spoils all of a row's samples is said once."""
    taken = Counter((sample.row, sample.scenario) for sample in analysis.result.samples)
    whole = Counter(sample.row for sample in analysis.result.samples)
    everywhere = Counter((sample.row, sample.invalid) for sample in analysis.invalid)
    lost = {row: reason for (row, reason), count in everywhere.items() if count == whole[row] > 1}
    for row, reason in lost.items():
        yield f"Invalid: {row}, all {whole[row]} samples: {reason}"
    reasons = Counter((s.row, s.scenario, s.invalid) for s in analysis.invalid if s.row not in lost)
    for (row, scenario, reason), count in reasons.items():
        yield f"Invalid: {row}, {scenario}, {count} of {taken[row, scenario]} samples: {reason}"


def held_back(analysis: Analysis) -> Iterator[str]:
    """Throughput that says more about the generator than about the server."""
    limited: dict[str, dict[str, list[str]]] = {}
    for metric in analysis.metrics:
        for row in analysis.servers:
            if reason := analysis.limited(metric, row):
                limited.setdefault(reason, {}).setdefault(metric.scenario, []).append(row)
    for reason, where in limited.items():
        listed = [
            f"{scenario} ({'all' if len(rows) == len(analysis.servers) else ', '.join(rows)})"
            for scenario, rows in where.items()
        ]
        yield f"Throughput not ranked, {reason} (CPU figures stand): {', '.join(listed)}."


def notes(analysis: Analysis) -> Iterator[str]:
    """What the samples themselves have to say, the most frequent first."""
    said = Counter(
        f"{sample.row}, {sample.scenario}: {note}"
        for sample in analysis.result.samples
        for note in sample.notes
    )
    for note, _ in said.most_common(NOTES):
        yield f"Note: {note}"
    if len(said) > NOTES:
        yield f"Note: {len(said) - NOTES} more in result.json."


def strays(analysis: Analysis) -> Iterator[str]:
    for metric in HEADLINES:
        if metric not in analysis.metrics:
            continue
        for row in analysis.servers:
            if strange := outliers(analysis.values(metric, row)):
                yield f"Outlier, kept: {row}, {metric.scenario}, {len(strange)} of its samples."


def cell(analysis: Analysis, key: str, row: str) -> str:
    metric = METRICS[key]
    estimate = analysis.estimate(key, row)
    if estimate is None:
        return (
            UNUSABLE
            if any(s.row == row and s.scenario == metric.scenario for s in analysis.invalid)
            else NOTHING
        )
    return number(estimate.value, metric.digits) + (LIMITED if analysis.limited(metric, row) else "")


def summary(analysis: Analysis) -> Table:
    """One row a model, then peers and baselines; sorted by the overall rank."""
    columns = [(key, heading) for key, heading in SUMMARY if METRICS[key] in analysis.metrics]
    overall = analysis.overall
    ranked = overall.ranks if overall else {}
    rows = [
        [row, str(ranked.get(row, NOTHING)), *(cell(analysis, key, row) for key, _ in columns)]
        for row in by_rank(analysis)
    ]
    headline = ", ".join(
        f"{m.title.replace('CPU ', '')} {m.unit}" for m in HEADLINES if m in analysis.metrics
    )
    note = f"Medians over rounds. Rank: geometric mean of the CPU figures ({headline}), shared by"
    note += " those that cannot be told apart."
    if any(text.endswith(LIMITED) for row in rows for text in row):
        note += f" {LIMITED} the server was not the limit: the rate is not ranked."
    if any(text == UNUSABLE for row in rows for text in row):
        note += f" {UNUSABLE} too few valid samples."
    best = {
        (line, column)
        for line, row in enumerate(row[0] for row in rows)
        for column, (key, _) in enumerate(columns, 2)
        if analysis.ranks[key].get(row) == 1
    }
    return Table("Summary", ["", "rank", *(heading for _, heading in columns)], rows, note, frozenset(best))


def by_rank(analysis: Analysis) -> list[str]:
    """Row names: servers by overall rank, then score; baselines last."""
    overall = analysis.overall
    last = float("inf")

    def place(name: str) -> tuple[bool, float, float]:
        score = overall.estimates.get(name) if overall else None
        rank = overall.ranks.get(name, last) if overall else last
        return name not in analysis.servers, rank, score.value if score else last

    return sorted(analysis.names, key=place)


def libev_ratios(analysis: Analysis) -> Table | None:
    """Each headline as a multiple of shadowsocks-libev's."""
    keys = [metric.key for metric in HEADLINES if metric in analysis.metrics]
    if LIBEV not in analysis.names or not any(analysis.estimate(key, LIBEV) for key in keys):
        return None
    rows = []
    for name in by_rank(analysis):
        if analysis.kinds[name] == PEER or name not in analysis.servers:
            continue
        ratios = [analysis.ratio_to_libev(key, name) for key in keys]
        rows.append([name, *(f"{ratio:.2f}" if ratio else NOTHING for ratio in ratios)])
    return Table(
        "Times shadowsocks-libev",
        ["", *(f"{METRICS[key].scenario}\n{METRICS[key].unit}" for key in keys)],
        rows,
        "Below 1: less CPU than ss-server for the same work, in the same rounds.",
    )


def scenario_table(analysis: Analysis, scenario: str) -> Table:
    """One scenario with intervals and ranks."""
    metrics = [metric for metric in analysis.metrics if metric.scenario == scenario]
    lead = metrics[0]
    sign = -1 if lead.more_is_better else 1

    def place(row: str) -> tuple[bool, float]:
        estimate = analysis.estimate(lead.key, row)
        return row not in analysis.servers, sign * estimate.value if estimate else float("inf")

    rows = [
        [
            row,
            str(analysis.ranks[lead.key].get(row, NOTHING)),
            *(detail(analysis, metric, row) for metric in metrics),
            f"{len(analysis.valid(row, scenario))}",
        ]
        for row in sorted(analysis.names, key=place)
        if any(sample.row == row and sample.scenario == scenario for sample in analysis.result.samples)
    ]
    headers = [
        "",
        f"rank\n{lead.title}",
        *(f"{metric.title}\n{metric.unit}" for metric in metrics),
        "valid\nsamples",
    ]
    return Table(f"{scenario}: {SCENARIOS[scenario].summary}", headers, rows)


def detail(analysis: Analysis, metric: Metric, row: str) -> str:
    estimate = analysis.estimate(metric.key, row)
    if estimate is None:
        return NOTHING
    text = interval(estimate, metric.digits) if metric.headline else number(estimate.value, metric.digits)
    return text + (LIMITED if analysis.limited(metric, row) else "")


def by_evenness(analysis: Analysis) -> dict[str, list[int]]:
    """Clients of each child, busiest first, of the rows that have a pool; the most even row first."""
    found = {row: counts for row in analysis.servers if any(counts := analysis.clients_per_child(row))}
    return dict(sorted(found.items(), key=lambda item: -evenness(item[1])))


def fairness(analysis: Analysis) -> str | None:
    """Who shares clients evenly among children, in words."""
    found = by_evenness(analysis)
    if not found:
        return None
    grades: dict[str, list[str]] = {"evenly": [], "not quite evenly": [], "unevenly": []}
    for row, counts in found.items():
        index = evenness(counts)
        grades["evenly" if index >= EVEN else "not quite evenly" if index >= UNEVEN else "unevenly"].append(
            row
        )
    parts = []
    for grade, rows in grades.items():
        if rows:
            most, least = ([100 * found[row][end] / sum(found[row]) for row in rows] for end in (0, -1))
            parts.append(
                f"{grade} by {names(rows, NAMED)} (the busiest child served {between(most, 1)}% of them, "
                f"the idlest {between(least, 1)}%)"
            )
    children = max(map(len, found.values()))
    return f"Clients are shared among {children} children: {'; '.join(parts)}. Even is {100 / children:.1f}%."


def clients_per_child(analysis: Analysis) -> Table | None:
    """UNP figure 30.2, beside the book's own."""
    found = by_evenness(analysis)
    if not found:
        return None
    columns: dict[str, Sequence[int]] = {row.replace("-", "-\n", 1): counts for row, counts in found.items()}
    columns |= {f"UNP {name}": sorted(counts, reverse=True) for name, counts in BOOK.items()}
    rows = [
        [str(child + 1), *(number(c[child], 0) if child < len(c) else NOTHING for c in columns.values())]
        for child in range(max(map(len, columns.values())))
    ]
    rows.append(["in all", *(number(sum(counts), 0) for counts in columns.values())])
    rows.append(["evenness", *(number(evenness(counts), 3) for counts in columns.values())])
    note = "Connections that each child served, the busiest first; medians over rounds. "
    note += f"{CLIENTS} clients at once. Evenness: Jain's index, 1 when all are alike, "
    note += f"{1 / CHILDREN:.3f} when one child serves all. UNP: figure 30.2, its counts in the same order; "
    note += "row 2 is prefork, row 5 prefork-fdpass."
    return Table("Clients per child", ["child", *columns], rows, note)


def tables(analysis: Analysis) -> list[Table]:
    ratios = libev_ratios(analysis)
    children = clients_per_child(analysis)
    taken = {sample.scenario for sample in analysis.result.samples} & {m.scenario for m in analysis.metrics}
    scenarios = [name for name in analysis.result.settings.scenarios if name in taken]
    return [
        summary(analysis),
        *([ratios] if ratios else []),
        *([children] if children else []),
        *(scenario_table(analysis, name) for name in scenarios),
    ]


def environment(analysis: Analysis) -> list[tuple[str, str]]:
    """The machine in name and value, for people; result.json has all of it."""
    env, settings = analysis.result.environment, analysis.result.settings
    pinned = env["pinned"]
    apart = pinned["server"] != pinned["generator"]
    return [
        ("command", shlex.join(env["command"])),
        ("when", f"{env['started']}, {analysis.result.elapsed:.0f} s"),
        ("rounds", f"{settings.rounds} of {settings.duration:g} s a sample, seed {settings.seed}"),
        ("method", settings.method),
        ("processor", f"{env['cpu']}, {env['cores']} cores{', virtual' if env['hypervisor'] else ''}"),
        ("abilities", ", ".join(env["cpu_flags"]) or "none that ciphers use"),
        ("governor", env["governor"]),
        (
            "pinned",
            f"server {pinned['server']}, generator {pinned['generator']}, target {pinned['target']}"
            if apart
            else "everything on one core",
        ),
        ("kernel", env["kernel"]),
        ("python", env["python"]),
        ("cryptography", f"{env['cryptography']} with {env['openssl_of_cryptography']}"),
        ("unp-tunnel", f"{env['unp_tunnel']}, revision {env['revision']}"),
        ("peers", ", ".join(f"{name} {text}" for name, text in env["peers"].items()) or "none"),
        ("somaxconn", env["sysctl"]["net.core.somaxconn"]),
        ("open files", f"{env['open_files'][0]} of {env['open_files'][1]}"),
        ("load before", ", ".join(map(str, env["load_average"]))),
    ]


def full_note(table: Table) -> str:
    """The note of a table in a place that has bold type."""
    return f"{table.note} {BOLD}" if table.best else table.note


def framed(table: Table, style: str) -> str:
    headers = (
        table.headers if style == "simple" else [heading.replace("\n", " ") for heading in table.headers]
    )
    rows = table.rows
    if style == "github":
        rows = [
            [f"**{text}**" if (line, column) in table.best else text for column, text in enumerate(row)]
            for line, row in enumerate(rows)
        ]
    return tabulate(
        rows,
        headers,
        tablefmt=style,
        disable_numparse=True,
        colalign=["left"] + ["right"] * (len(headers) - 1),
    )


def fitted(table: Table, width: int) -> str:
    """The table in as many pieces as it takes to be no wider than that, each with the rows' names."""
    pieces = []
    start, end = 1, len(table.headers)
    while start < len(table.headers):
        piece = framed(columns(table, start, end), "simple")
        if end > start + 1 and max(map(len, piece.splitlines())) > width:
            end -= 1
            continue
        pieces.append(piece)
        start, end = end, len(table.headers)
    return "\n\n".join(pieces)


def columns(table: Table, start: int, end: int) -> Table:
    """Its first column, and those from `start` up to `end`."""
    headers = [table.headers[0], *table.headers[start:end]]
    return table._replace(headers=headers, rows=[[row[0], *row[start:end]] for row in table.rows])


def terminal(analysis: Analysis, width: int) -> str:
    """Verdict first, then the tables, no wider than `width` characters."""

    def lines(sentences: Sequence[str]) -> str:
        fill = partial(textwrap.fill, width=width, break_on_hyphens=False, break_long_words=False)
        return "\n".join(map(fill, sentences))

    parts = [lines(verdict(analysis)), lines(problems(analysis))]
    parts += [
        f"{table.title}\n{fitted(table, width)}\n{lines([table.note])}".rstrip() for table in tables(analysis)
    ]
    return "\n\n".join(part for part in parts if part)


def markdown(analysis: Analysis) -> str:
    def bullets(sentences: Sequence[str]) -> str:
        return "\n".join(f"- {sentence}" for sentence in sentences)

    parts = ["# Server models compared", "\n".join(verdict(analysis))]
    if found := problems(analysis):
        parts += ["## Before believing it", bullets(found)]
    for table in tables(analysis):
        parts += [f"## {table.title}", framed(table, "github"), full_note(table)]
    described = Table(
        "", ["", "value"], [[name, value.replace("|", "/")] for name, value in environment(analysis)]
    )
    parts += [
        "## Environment",
        tabulate(described.rows, described.headers, tablefmt="github", disable_numparse=True),
    ]
    parts.append("Latency is closed-loop: the next request is sent when the last one has been answered.")
    return "\n\n".join(part for part in parts if part) + "\n"
