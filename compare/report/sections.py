"""The sections of a report, in the order in which they are read."""

from __future__ import annotations

from compare.analysis import Analysis
from compare.report import book, bulk, conditions, connections, latency, overview
from compare.report.parts import Missing, Section

ORDER = (
    overview.at_a_glance,
    latency.percentiles,
    latency.hockey_stick,
    latency.mixed,
    bulk.concurrency,
    bulk.sizes,
    bulk.gigabyte,
    connections.new_connections,
    connections.shock,
    connections.idle_connections,
    connections.memory,
    bulk.switches,
    book.children,
    book.evenness_of_all,
    bulk.series,
    conditions.drift,
    overview.beats,
    book.chapter_30,
    overview.scenarios,
)


def sections(analysis: Analysis) -> tuple[list[Section], list[Missing]]:
    """Those that the result has samples for, and why there are no others."""
    made = [section(analysis) for section in ORDER]
    return [one for one in made if isinstance(one, Section)], [
        one for one in made if isinstance(one, Missing)
    ]
