"""What a run says, in sentences, and what to know before believing it.

verdict     who needs the least, with intervals, and how that compares with shadowsocks-libev
problems    invalid and limited samples, a busy machine, what was left out, outliers
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from compare.analysis import HEADLINES, METRICS, Analysis, Overall, names
from compare.environment import doubts
from compare.report import book, latency
from compare.report.parts import NAMED, between, count, interval, models
from compare.schema import Sample
from compare.servers import LIBEV
from compare.stats import outliers
from tunnel.config import LOCAL

FOREIGN = 0.2  # cores that others may use before a reader is told
NOTES = 8  # of the samples' own, at most
CLIENT_END = (
    "This is the client end: each row is `tunnel local` or a peer's client (libev is ss-local, rust sslocal),"
    " asked by SOCKS5, and what is up here is sealed."
)
VERDICTS = {
    "up_cpu": ("For bulk up", "CPU-s/GB"),
    "down_cpu": ("For bulk down", "CPU-s/GB"),
    "connection_cpu": ("For each new connection", "us of CPU"),
    "ping_cpu": ("For a small request on an open connection", "us of CPU"),
}


def verdict(analysis: Analysis) -> list[str]:
    """What the run says, in sentences; the first one is the shortest answer."""
    sentences = []
    overall = analysis.overall
    if overall and overall.ranks and len(overall.ranks) > 1:
        sentences.append(least(analysis, overall))
    sentences += filter(None, (best_at(analysis, key) for key in VERDICTS))
    compared = latency.equal_load(analysis)
    if compared and compared.load:
        sentences.append(latency.how_fast(analysis, compared).partition(". ")[0].rstrip(".") + ".")
    if spread := book.fairness(analysis):
        sentences.append(spread)
    return sentences or ["Nothing valid was measured."]


def least(analysis: Analysis, overall: Overall) -> str:
    """Who needs the least CPU over all; of the models who, if a peer needs less."""

    def sharing(rank: int, rows: list[str]) -> list[str]:
        return sorted(
            (name for name in rows if overall.ranks.get(name) == rank),
            key=lambda name: overall.estimates[name].value,
        )

    first = sharing(
        min(overall.ranks[name] for name in analysis.servers if name in overall.ranks), analysis.servers
    )
    verb = "needs" if len(first) == 1 else "need"
    shared = "; this run cannot tell them apart" if len(first) > 1 else ""
    text = f"Over all, {names(first, NAMED)} {verb} the least CPU{shared}"
    ours = [name for name in models(analysis) if name in overall.ranks]
    if ours and not set(ours) & set(first):
        next_best = sharing(min(overall.ranks[name] for name in ours), ours)
        text += f"; of the models, {names(next_best, NAMED)}"
    return f"{text}."


def best_at(analysis: Analysis, key: str) -> str | None:
    """Who is best at a headline, with the interval; of the models who, if a peer is better."""
    where, unit = VERDICTS[key]
    known, ranks = analysis.estimates.get(key, {}), analysis.ranks.get(key, {})
    best = [name for name in analysis.best(key) if name in analysis.servers]
    if not best:
        return None
    text = f"{where}: {said_of(analysis, key, best)} {unit}{beside_libev(analysis, key, best)}"
    ours = [name for name in models(analysis) if name in known]
    if ours and not set(ours) & set(best):
        first = min((ranks.get(name, 1) for name in ours), default=1)
        next_best = [name for name in ours if ranks.get(name, 1) == first]
        text += f"; of the models {said_of(analysis, key, next_best)}{beside_libev(analysis, key, next_best)}"
    return f"{text}."


def said_of(analysis: Analysis, key: str, rows: list[str]) -> str:
    """These rows and their figures: `fork, 0.86 (0.85 to 0.87)`."""
    digits = METRICS[key].digits
    found = {name: analysis.estimates[key][name] for name in rows}
    order = sorted(found, key=lambda name: found[name].value)
    if len(order) == 1:
        return f"{order[0]}, {interval(found[order[0]], digits)}"
    reach = between([end for e in found.values() for end in (e.low, e.high)], digits)
    figures = between([e.value for e in found.values()], digits)
    return f"{names(order, NAMED)}, not to be told apart, {figures} ({reach})"


def beside_libev(analysis: Analysis, key: str, rows: list[str]) -> str:
    ratios = [ratio for name in rows if name != LIBEV and (ratio := analysis.ratio_to_libev(key, name))]
    return f", {between(ratios, 2)} times libev" if ratios else ""


def foreign(sample: Sample) -> float:
    """Cores that other programs used during a sample."""
    return sample.figures.get("foreign_cpu", 0.0) / sample.figures.get("wall", 1.0)


def problems(analysis: Analysis) -> list[str]:
    """What a reader must know before believing the figures."""
    return [
        *circumstances(analysis),
        *invalid(analysis),
        *held_back(analysis),
        *notes(analysis),
        *strays(analysis),
    ]


def circumstances(analysis: Analysis) -> Iterator[str]:
    result = analysis.result
    taken, rounds = len(result.samples), result.settings.rounds
    if not result.complete:
        yield f"Partial: stopped after {taken} of {result.planned} samples ({result.stopped})."
    if result.settings.end == LOCAL:
        yield CLIENT_END
    yield from doubts(result.environment, result.elapsed)
    for key, null in analysis.null.items():
        if METRICS[key].headline and not null.alike:
            yield (
                f"{METRICS[key].scenario}, {METRICS[key].title}: the null run is further apart than chance"
                " explains; nothing below that is ranked."
            )
    busy = [share for sample in result.samples if (share := foreign(sample)) > FOREIGN]
    if busy:
        yield (
            f"The machine was not ours alone: during {len(busy)} of {taken} samples other programs used "
            f"{FOREIGN:g} to {max(busy):.1f} cores. Intervals are wider for it."
        )
    for reason, left in result.left_out_because().items():
        yield f"Left out: {', '.join(left)}: {reason}."
    for name, enough in result.settings.most.items():
        if enough < rounds and name in result.settings.scenarios:
            yield f"Of {name} only {count(enough, 'round')}."
    if rounds < 3:
        yield f"Only {count(rounds, 'round')}: the intervals say little."


def invalid(analysis: Analysis) -> Iterator[str]:
    """Samples that do not count; what spoils all of a row's samples is said once, and so is what spoils
    the same points of many rows, whatever numbers its reason has."""
    taken = Counter((sample.row, sample.scenario, sample.point) for sample in analysis.result.samples)
    whole = Counter(sample.row for sample in analysis.result.samples)
    everywhere = Counter((sample.row, sample.invalid) for sample in analysis.invalid)
    lost = {row: reason for (row, reason), spoilt in everywhere.items() if spoilt == whole[row] > 1}
    for row, reason in lost.items():
        yield f"Invalid: {row}, all {whole[row]} samples: {reason}"
    alike: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in analysis.invalid:
        if sample.row not in lost:
            alike[sample.scenario, re.sub(r"\d[\d.,]*", "#", sample.invalid or "")].append(sample)
    for (scenario, _), samples in alike.items():
        rows = list(dict.fromkeys(sample.row for sample in samples))
        points = sorted({sample.point for sample in samples if sample.point is not None})
        at = f" at {names([f'{point:,.0f}' for point in points])}" if points else ""
        among = sum(taken[where] for where in {(s.row, s.scenario, s.point) for s in samples})
        reason = samples[0].invalid
        yield f"Invalid: {names(rows, NAMED)}, {scenario}{at}, {len(samples)} of {among} samples: {reason}"


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
    """A line a scenario: who has outliers, and how many of how many samples they are."""
    for metric in HEADLINES:
        if metric not in analysis.metrics:
            continue
        found = {row: len(outliers(analysis.values(metric, row))) for row in analysis.servers}
        rows = [row for row, strange in found.items() if strange]
        if rows:
            among = sum(len(analysis.values(metric, row)) for row in rows)
            yield (
                f"Outliers, kept: {metric.scenario}, {sum(found.values())} of {among} samples:"
                f" {', '.join(rows)}."
            )
