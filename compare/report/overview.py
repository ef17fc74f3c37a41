"""The rows beside each other: one table of all that matters, and who beats whom.

    summary     a row a model, then peers and baselines
    beats       won, not to be told apart, lost: each model against each other
    scenarios   one table for each scenario, with intervals and ranks

Rules: two rows are told apart by their intervals and by the noise floor (stats.verdict).
"""

from __future__ import annotations

from compare.analysis import HEADLINES, METRICS, Analysis, Metric, names
from compare.plan import SCENARIOS
from compare.report import latency
from compare.report.draw import LABELS, rows_axis, values
from compare.report.parts import (
    LIMITED,
    NAMED,
    NOTHING,
    UNUSABLE,
    Drawing,
    Missing,
    Section,
    Spec,
    Table,
    by_rank,
    cell,
    interval,
    models,
    not_measured,
    number,
)
from compare.servers import LIBEV
from compare.stats import BETTER, SAME, WORSE, verdict

COLUMNS = (  # metric, heading on two lines
    ("up_cpu", "CPU-s/GB\nup"),
    ("down_cpu", "CPU-s/GB\ndown"),
    ("up_rate", "MB/s\nup"),
    ("down_rate", "MB/s\ndown"),
    ("connection_cpu", "CPU us/\nconn."),
    ("connection_rate", "conn.\n/s"),
    ("ping_cpu", "CPU us/\nrequest"),
    ("ping_p50", "ping us\np50"),
    ("ping_p99", "ping us\np99"),
    ("pss_idle", "PSS MB\nidle"),
    ("pss_each", "KB/\nconn."),
)
SHORT = ("up_cpu", "down_cpu", "connection_cpu", "ping_cpu", "ping_p99", "pss_idle")  # for README
WON, EVEN, LOST = "+", "=", "\N{MINUS SIGN}"  # not by colour alone
MARKS = {BETTER: WON, SAME: EVEN, WORSE: LOST}


def summary(analysis: Analysis) -> Table:
    """One row a model, then peers and baselines; sorted by the overall rank."""
    columns = [(key, heading) for key, heading in COLUMNS if METRICS[key] in analysis.metrics]
    overall = analysis.overall
    ranked = overall.ranks if overall else {}
    loaded = latency.equal_load(analysis)
    at_load = loaded if loaded and loaded.load else None
    rows = []
    for row in by_rank(analysis):
        cells = [row, str(ranked.get(row, NOTHING)), *(cell(analysis, key, row) for key, _ in columns)]
        if at_load:
            wait = analysis.estimate(at_load.p99, row, at_load.load)
            cells.append(number(wait.value, 0) if wait else NOTHING)
        rows.append(cells)
    headers = ["", "rank", *(heading for _, heading in columns)]
    if at_load:
        headers.append(f"p99 us at\n{at_load.load:,.0f}/s")
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
        if analysis.ranks[key].get(row) == 1 and row in analysis.servers
    }
    return Table("Summary", headers, rows, note, frozenset(best))


def short_summary(analysis: Analysis) -> Table:
    """The summary in the columns that README shows."""
    whole = summary(analysis)
    shown = ["", *(heading for key, heading in COLUMNS if key in SHORT)]
    kept = [place for place, heading in enumerate(whole.headers) if heading in shown]
    return Table(
        whole.title,
        [whole.headers[place] for place in kept],
        [[row[place] for place in kept] for row in whole.rows],
        best=frozenset((line, kept.index(place)) for line, place in whole.best if place in kept),
    )


def libev_ratios(analysis: Analysis) -> Table | None:
    """Each headline as a multiple of shadowsocks-libev's."""
    keys = [metric.key for metric in HEADLINES if metric in analysis.metrics]
    if LIBEV not in analysis.names or not any(analysis.estimate(key, LIBEV) for key in keys):
        return None
    program = next(row.source for row in analysis.result.rows if row.name == LIBEV)
    rows = []
    for name in by_rank(analysis):
        if name in models(analysis):
            ratios = [analysis.ratio_to_libev(key, name) for key in keys]
            rows.append([name, *(f"{ratio:.2f}" if ratio else NOTHING for ratio in ratios)])
    return Table(
        "Times shadowsocks-libev",
        ["", *(f"{METRICS[key].scenario}\n{METRICS[key].unit}" for key in keys)],
        rows,
        f"Below 1: less CPU than {program} for the same work, in the same rounds.",
    )


def at_a_glance(analysis: Analysis) -> Section:
    ratios = libev_ratios(analysis)
    made = [summary(analysis), *([ratios] if ratios else [])]
    sentence = "A row a model, the one that needs the least CPU first; bold is the best of its column."
    return Section("summary", "Summary", sentence, made)


def scenario_table(analysis: Analysis, scenario: str) -> Table | None:
    """One scenario with intervals and ranks; None where no metric belongs to it."""
    metrics = [metric for metric in analysis.metrics if metric.scenario == scenario]
    taken = [row for row in analysis.names if analysis.valid(row, scenario)]
    if not metrics or not taken:
        return None
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
        if any(
            (sample.row, sample.scenario, sample.point) == (row, scenario, None)
            for sample in analysis.result.samples
        )
    ]
    headers = [
        "",
        f"rank\n{lead.title}",
        *(f"{metric.title}\n{metric.unit}" for metric in metrics),
        "valid\nsamples",
    ]
    about = f": {SCENARIOS[scenario].summary}" if scenario in SCENARIOS else ""
    return Table(f"{scenario}{about}", headers, rows)


def detail(analysis: Analysis, metric: Metric, row: str) -> str:
    estimate = analysis.estimate(metric.key, row)
    if estimate is None:
        return NOTHING
    text = interval(estimate, metric.digits) if metric.headline else number(estimate.value, metric.digits)
    return text + (LIMITED if analysis.limited(metric, row) else "")


def scenarios(analysis: Analysis) -> Section | Missing:
    title = "Each scenario"
    found = [scenario_table(analysis, name) for name in analysis.result.settings.scenarios]
    made = [table for table in found if table]
    if not made:
        return not_measured(title, *analysis.result.settings.scenarios)
    sentence = "Every figure with one point each; of the headlines, with 95% intervals over rounds."
    return Section("scenarios", title, sentence, made)


def beats(analysis: Analysis) -> Section | Missing:
    """Each against each other by the overall score, whose intervals say who can be told apart."""
    title = "Who beats whom"
    scores = analysis.overall.estimates if analysis.overall else {}
    order = [row for row in by_rank(analysis) if row in scores and row in analysis.servers]
    floor = analysis.overall.floor if analysis.overall else 0.0
    if len(order) < 2 or any(scores[row].rounds < 2 for row in order):
        return Missing(title, "that takes two rows with every headline figure, and two rounds")
    found = {
        row: {
            other: MARKS[verdict(scores[other], scores[row], floor=floor)] for other in order if other != row
        }
        for row in order
    }
    tally = {
        row: {mark: list(found[row].values()).count(mark) for mark in (WON, EVEN, LOST)} for row in order
    }
    headlines = [metric for metric in HEADLINES if metric in analysis.metrics]
    first = [row for row in order if not tally[row][LOST]]
    sentence = f"{names(first, NAMED)} lose{'s' if len(first) == 1 else ''} to nobody"
    even = sum(tally[row][EVEN] for row in order) // 2
    pairs = len(order) * (len(order) - 1) // 2
    sentence += f"; {even} of {pairs} pairs cannot be told apart (by the geometric mean of the CPU figures)."
    table = Table(
        "Won, tied and lost against the others",
        ["", "score", "won", "tied", "lost", *(f"{m.scenario}\n+ = {LOST}" for m in headlines), *order],
        [
            [
                row,
                interval(scores[row], 2),
                *(str(tally[row][mark]) for mark in (WON, EVEN, LOST)),
                *(won_tied_lost(analysis, metric, row, order) for metric in headlines),
                *(found[row].get(other, "") for other in order),
            ]
            for row in order
        ],
        f"{WON} needs less CPU than the column's model, {LOST} more, {EVEN} not to be told apart.",
    )
    return Section("beats", title, sentence, [table], matrix(found, order))


def won_tied_lost(analysis: Analysis, metric: Metric, row: str, others: list[str]) -> str:
    """By one figure alone, round by round where rounds are many."""
    found = [MARKS[analysis.apart(metric.key, other, row)] for other in others if other != row]
    return " ".join(str(found.count(mark)) for mark in (WON, EVEN, LOST))


def matrix(found: dict[str, dict[str, str]], order: list[str]) -> Drawing:
    """Squares: the row against the column."""
    data = [
        {"row": row, "other": other, "mark": mark}
        for row, others in found.items()
        for other, mark in others.items()
    ]

    def spec(width: int, narrow: bool) -> Spec:
        each = min(36, (width - LABELS) / len(order))
        axis = {"title": None, "labelAngle": -90, "orient": "top", "ticks": False, "domain": False}
        axis |= {"labelPadding": 6, "labelColor": "currentColor", "labelOverlap": False}
        axis |= {"labelFontSize": 10 if narrow else 12}
        other = {"field": "other", "type": "nominal", "sort": order, "axis": axis}
        inks = {"domain": [WON, EVEN, LOST], "range": ["var(--won)", "var(--even)", "var(--lost)"]}
        ink = {"field": "mark", "scale": inks, "legend": None}
        signs = {"domain": [WON, EVEN, LOST], "range": ["var(--on-won)", "var(--soft)", "var(--on-lost)"]}
        tall = max(each, 18)
        who = {"description": {"field": "row"}}
        return {
            "width": each * len(order),
            "height": tall * len(order),
            "data": values(data),
            "encoding": {"y": rows_axis(order), "x": other},
            "layer": [
                {
                    "mark": {"type": "rect", "stroke": "var(--card)", "strokeWidth": 2, "cornerRadius": 3},
                    "encoding": {"color": ink, **who},
                },
                {
                    "mark": {"type": "text", "baseline": "middle"},
                    "encoding": {
                        "text": {"field": "mark"},
                        "color": {"field": "mark", "scale": signs, "legend": None},
                    },
                },
            ],
            "resolve": {"scale": {"color": "independent"}},
        }

    return spec
