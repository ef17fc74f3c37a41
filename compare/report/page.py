"""report.html: one file, no request to anywhere, for a phone, a wide screen and the dark.

    verdict --> caution --> where and how --> sections --> models with their source --> command, raw data

Each drawing is there twice, narrow and wide, and the style sheet shows one. Each has its sentence above
and its numbers one click below. Everything can be read without a script; the script sorts tables and
follows one model through all of them. Rules: no font, no image, nothing from elsewhere, and the policy
in the head says so to the browser; text is escaped here and in sources.py (`esc`).
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable
from importlib.resources import files

from compare.analysis import HEADLINES, METRICS, Analysis
from compare.report import conditions
from compare.report.draw import NARROW, WIDE, draw, family_of
from compare.report.findings import problems, verdict
from compare.report.parts import Missing, Section, Table, by_rank, cell
from compare.report.sections import sections
from compare.report.sources import highlighted, place_of, source_figures
from compare.report.text import full_note
from compare.servers import MODEL

STYLE, SCRIPT = (
    (files("compare.report") / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
)
ALLOWED = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{ALLOWED}'"
TALL = 40  # rows, from which on a table scrolls by itself
FIRST_FACTS = ("when", "rounds", "method", "processor", "kernel", "python")  # unfolded


def esc(text: str) -> str:
    return html.escape(text).replace("CPU-s", "CPU\N{NON-BREAKING HYPHEN}s")


def page(analysis: Analysis) -> str:
    """The whole document."""
    env = analysis.result.environment
    made, missing = sections(analysis)
    body = [environment(analysis), *map(section, made), models(analysis), again(analysis, missing)]
    named = [("environment", "Where and how"), *((one.key, one.title) for one in made)]
    first, *others = verdict(analysis)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>Server models compared, {esc(env.get("started", "")[:10])}</title>
<link rel="icon" href="data:,">
<style>
{STYLE}</style>
</head>
<body>
<header>
<p class="kicker">Server models compared</p>
<h1>{esc(first)}</h1>
<ul class="verdict">{items(others)}</ul>
{caution(analysis)}
{contents([*named, ("models", "The models and their source"), ("again", "Do it again")])}
</header>
<main>
{chr(10).join(body)}
</main>
<footer>
<p>Made by <code>compare</code> of unp-tunnel {esc(str(env.get("unp_tunnel", "")))}.</p>
</footer>
{follow(analysis)}
<script>{SCRIPT}</script>
</body>
</html>
"""


def items(sentences: Iterable[str]) -> str:
    return "".join(f"<li>{esc(sentence)}</li>" for sentence in sentences)


def caution(analysis: Analysis) -> str:
    found = problems(analysis)
    if not found:
        return ""
    title = f"{len(found)} thing{'s' if len(found) > 1 else ''} to know before believing the figures"
    partial = "" if analysis.result.complete else f"<p><strong>{esc(found[0])}</strong></p>"
    unfolded = " open" if len(found) <= 2 else ""
    folded = f"<details{unfolded}><summary>{title}</summary><ul>{items(found)}</ul></details>"
    return f'<aside class="caution" aria-label="Caution">{partial}{folded}</aside>'


def contents(named: Iterable[tuple[str, str]]) -> str:
    links = "".join(f'<li><a href="#{key}">{esc(title)}</a></li>' for key, title in named)
    return (
        f'<nav aria-label="Sections"><details><summary>All sections</summary><ul>{links}</ul></details></nav>'
    )


def follow(analysis: Analysis) -> str:
    """A choice of one row; hidden where no script shows it."""
    options = "".join(f"<option>{esc(row)}</option>" for row in by_rank(analysis))
    return (
        '<div class="follow" role="region" aria-label="Follow one model" hidden><label>Follow '
        f'<select id="follow"><option value="">all models</option>{options}</select></label></div>'
    )


def table(made: Table, unseen: bool = False) -> str:
    """A table that scrolls by itself where it is wider than the screen."""
    heads = "".join(
        f'<th scope="col">{esc(heading).replace(chr(10), "<br>") or "<span>row</span>"}</th>'
        for heading in made.headers
    )
    rows = "".join(
        f'<tr data-row="{esc(row[0])}"><th scope="row">{esc(row[0])}</th>'
        + "".join(
            f'<td class="best">{esc(text)}</td>' if (line, column) in made.best else f"<td>{esc(text)}</td>"
            for column, text in enumerate(row[1:], 1)
        )
        + "</tr>"
        for line, row in enumerate(made.rows)
    )
    note = f'<p class="note">{esc(full_note(made))}</p>' if made.note or made.best else ""
    title = esc(made.title)
    caption = f'<span class="unseen">{title}</span>' if unseen else title
    tall = " tall" if len(made.rows) > TALL else ""
    return (
        f'<div class="scroll{tall}" role="region" tabindex="0" aria-label="{title}, table"><table>'
        f"<caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def section(made: Section) -> str:
    head = f'<h2 id="{made.key}-title">{esc(made.title)}</h2><p id="{made.key}-says">{esc(made.sentence)}</p>'
    tables = "".join(table(entry, entry.title == made.title) for entry in made.tables)
    if made.drawing:
        words = f"{made.key}-title {made.key}-says"
        drawings = "".join(
            f'<div class="{name}">{draw(made.drawing, width, name == "narrow", words)}</div>'
            for name, width in (("narrow", NARROW), ("wide", WIDE))
        )
        tables = f"<details><summary>The numbers</summary>{tables}</details>"
        head += f"<figure>{drawings}</figure>"
    elif len(made.tables) > 2:
        tables = "".join(
            f"<details><summary>{esc(entry.title)}</summary>{table(entry, True)}</details>"
            for entry in made.tables
        )
    return f'<section id="{made.key}" aria-labelledby="{made.key}-title">{head}{tables}</section>'


def models(analysis: Analysis) -> str:
    """Each model's figures from the source, beside its numbers."""
    ours = [row for row in by_rank(analysis) if analysis.kinds[row] == MODEL]
    cards = "".join(card(analysis, row) for row in ours)
    heading = '<h2 id="models-title">The models and their source</h2>'
    heading += "<p>The lines that make each model what it is, beside what they cost.</p>"
    body = f'{heading}<div class="cards">{cards}</div>'
    return f'<section id="models" aria-labelledby="models-title">{body}</section>'


def code(label: str, lines: str) -> str:
    """Lines that scroll by themselves; they come escaped."""
    return f'<pre tabindex="0" role="region" aria-label="{esc(label)}"><code>{lines}</code></pre>'


def card(analysis: Analysis, name: str) -> str:
    row = next(row for row in analysis.result.rows if row.name == name)
    numbers = "".join(
        f"<div><dt>{esc(metric.scenario)}</dt><dd>{esc(cell(analysis, metric.key, name))}"
        f" <small>{esc(metric.unit)}</small></dd></div>"
        for metric in (*HEADLINES, METRICS["pss_idle"])
        if metric in analysis.metrics
    )
    quoted = "".join(
        f'<figure class="code"><figcaption>{esc(title)}</figcaption>'
        f"{code(f'{name}: {title}', highlighted(lines))}</figure>"
        for title, lines in source_figures(name)
    )
    source = f"<details><summary>models/{esc(place_of(name))}</summary>{quoted}</details>" if quoted else ""
    family = family_of(name)
    return (
        f'<article data-row="{esc(name)}"><h3>{esc(name)} <small>{esc(row.source)}</small></h3>'
        f'<p>{esc(row.summary)}</p><p class="family">{esc(family)}</p><dl>{numbers}</dl>{source}</article>'
    )


def facts(said: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>" for name, value in said)
    return f'<dl class="facts">{rows}</dl>'


def environment(analysis: Analysis) -> str:
    said = conditions.environment(analysis)
    first = [fact for fact in said if fact[0] in FIRST_FACTS]
    others = [fact for fact in said if fact[0] not in FIRST_FACTS]
    twice = conditions.twice(analysis)
    folded = (
        f"<details><summary>Everything else</summary>{facts(others)}{table(twice) if twice else ''}</details>"
    )
    return (
        '<section id="environment" aria-labelledby="environment-title">'
        f'<h2 id="environment-title">Where and how</h2><ul>{items(conditions.noise(analysis))}</ul>'
        f"{facts(first)}<p>CPU is user and system of all of a server's processes, those that have ended "
        "included. A fresh server for every sample, in seeded random order; what comes first after its start "
        "is thrown away. Every byte was compared. Intervals: 95%, bootstrap over rounds.</p>"
        f"{folded}</section>"
    )


def again(analysis: Analysis, missing: Iterable[Missing]) -> str:
    """The command, the raw data, and what was not measured."""
    absent = items(f"{one.title}: {one.why}." for one in missing)
    left = f"<h3>Not in this report</h3><ul>{absent}</ul>" if absent else ""
    return (
        '<section id="again" aria-labelledby="again-title"><h2 id="again-title">Do it again</h2>'
        f"{code('Command', esc(conditions.command(analysis)))}"
        '<p>The raw samples lie beside this file: <a href="result.json">result.json</a>.</p>'
        f"{left}</section>"
    )
