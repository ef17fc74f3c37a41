"""The report as text: for a terminal, no wider than that, and as Markdown.

Rules: the tables are the page's. A table that is wider than the terminal comes in pieces, each with
the rows' names; what is bulky is left to report.md.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial

from tabulate import tabulate

from compare.analysis import Analysis
from compare.report import conditions
from compare.report.findings import problems, verdict
from compare.report.parts import Section, Table
from compare.report.sections import sections

BOLD = "Bold: first in its column, or not to be told apart from it."


def full_note(table: Table) -> str:
    """The note of a table in a place that has bold type."""
    return f"{table.note} {BOLD}".strip() if table.best else table.note


def framed(table: Table, style: str) -> str:
    simple = style == "simple"
    headers = table.headers if simple else [heading.replace("\n", " ") for heading in table.headers]
    rows = table.rows
    if not simple:
        rows = [
            [
                f"**{text}**" if (line, column) in table.best else escaped(text)
                for column, text in enumerate(row)
            ]
            for line, row in enumerate(rows)
        ]
    return tabulate(
        rows,
        headers,
        tablefmt=style,
        disable_numparse=True,
        colalign=["left"] + ["right"] * (len(headers) - 1),
    )


def escaped(text: str) -> str:
    """What would end a cell of Markdown does not."""
    return text.replace("|", "\\|")


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


def environment(analysis: Analysis) -> Table:
    said = [("command", conditions.command(analysis)), *conditions.environment(analysis)]
    return Table("Environment", ["", "value"], [[name, value] for name, value in said])


def terminal(analysis: Analysis, width: int) -> str:
    """Verdict first, then the sections, no wider than `width` characters."""
    fill = partial(textwrap.fill, width=width, break_on_hyphens=False, break_long_words=False)

    def lines(sentences: Sequence[str]) -> str:
        return "\n".join(fill(sentence) for sentence in sentences if sentence)

    def part(section: Section) -> str:
        tables = [
            "\n".join(filter(None, [lines([table.title]), fitted(table, width), lines([table.note])]))
            for table in section.tables
            if not table.bulky
        ]
        first, *others = tables or [lines([section.title])]
        return "\n\n".join([f"{lines([section.sentence])}\n{first}", *others])

    made, missing = sections(analysis)
    parts = [
        lines(verdict(analysis)),
        lines(problems(analysis)),
        lines(conditions.noise(analysis)),
    ]
    if twice := conditions.twice(analysis):
        parts.append(f"{twice.title}\n{fitted(twice, width)}")
    parts += map(part, made)
    parts.append(lines([f"Not in this report: {one.title.lower()} ({one.why})." for one in missing]))
    return "\n\n".join(part for part in parts if part)


def markdown(analysis: Analysis) -> str:
    def bullets(sentences: Sequence[str]) -> str:
        return "\n".join(f"- {sentence}" for sentence in sentences)

    def titled(table: Table) -> list[str]:
        return [f"### {table.title}", framed(table, "github"), full_note(table)]

    parts = ["# Server models compared", "\n".join(verdict(analysis))]
    if found := problems(analysis):
        parts += ["## Before believing it", bullets(found)]
    parts += ["## Environment", framed(environment(analysis), "github"), bullets(conditions.noise(analysis))]
    if twice := conditions.twice(analysis):
        parts += titled(twice)
    made, missing = sections(analysis)
    for section in made:
        parts += [f"## {section.title}", section.sentence]
        for table in section.tables:
            parts += titled(table) if table.title != section.title else titled(table)[1:]
    if missing:
        parts += ["## Not measured", bullets([f"{one.title}: {one.why}." for one in missing])]
    return "\n\n".join(part for part in parts if part) + "\n"
