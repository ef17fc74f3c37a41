"""report.html: one file, no request to anywhere, for a phone, a wide screen and the dark.

    verdict --> what to know first --> summary --> plots --> models with their source --> environment

Each plot is drawn twice, narrow and wide, and the style sheet shows one. Each has its sentence above
and its numbers one click below. Rules: no script, no font, no image from elsewhere; text is escaped
here and nowhere else (`esc`); the source that is quoted is the file's own, between its markers.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from importlib.resources import files
from textwrap import dedent

from compare import report
from compare.analysis import HEADLINES, METRICS, Analysis
from compare.plots import NARROW, WIDE, Plot, draw, plots
from compare.report import Table
from compare.servers import MODEL

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # the browser holds us to it
STYLE = (files("compare") / "report.css").read_text(encoding="utf-8")
FIGURE = re.compile(r"^\s*# fig: (?P<name>.+)\n(?P<lines>(?:.*\n)*?)\s*# end fig$", re.MULTILINE)


def esc(text: str) -> str:
    return html.escape(text).replace("CPU-s", "CPU\N{NON-BREAKING HYPHEN}s")


def page(analysis: Analysis) -> str:
    """The whole document."""
    env = analysis.result.environment
    sections = [
        summary(analysis),
        *(figure(plot) for plot in plots(analysis)),
        *scenarios(analysis),
        models(analysis),
        environment(analysis),
    ]
    first, *others = report.verdict(analysis)
    body = "\n".join(sections)
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
</header>
<main>
{body}
</main>
<footer>
<p>Made by <code>compare run</code> of unp-tunnel {esc(env.get("unp_tunnel", ""))}.
The raw samples lie beside this file: <a href="result.json">result.json</a>.</p>
</footer>
</body>
</html>
"""


def items(sentences: Iterable[str]) -> str:
    return "".join(f"<li>{esc(sentence)}</li>" for sentence in sentences)


def caution(analysis: Analysis) -> str:
    found = report.problems(analysis)
    if not found:
        return ""
    count = f"{len(found)} thing{'s' if len(found) > 1 else ''} to know before believing the figures"
    partial = "" if analysis.result.complete else f"<p><strong>{esc(found[0])}</strong></p>"
    unfolded = " open" if len(found) <= 2 else ""
    folded = f"<details{unfolded}><summary>{count}</summary><ul>{items(found)}</ul></details>"
    return f'<aside class="caution">{partial}{folded}</aside>'


def table(made: Table, label: str) -> str:
    """A table that scrolls by itself where it is wider than the screen."""
    heads = "".join(
        f'<th scope="col">{esc(heading).replace(chr(10), "<br>")}</th>' for heading in made.headers
    )
    rows = "".join(
        f'<tr><th scope="row">{esc(row[0])}</th>'
        + "".join(
            f'<td class="best">{esc(text)}</td>' if (line, column) in made.best else f"<td>{esc(text)}</td>"
            for column, text in enumerate(row[1:], 1)
        )
        + "</tr>"
        for line, row in enumerate(made.rows)
    )
    note = f'<p class="note">{esc(report.full_note(made))}</p>' if made.note else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{esc(label)}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def summary(analysis: Analysis) -> str:
    made = report.summary(analysis)
    ratios = report.libev_ratios(analysis)
    beside = f"<h3>{esc(ratios.title)}</h3>{table(ratios, ratios.title)}" if ratios else ""
    return f'<section id="summary"><h2>Summary</h2>{table(made, made.title)}{beside}</section>'


def figure(plot: Plot) -> str:
    drawings = "".join(
        f'<div class="{name}">{draw(plot, width, name == "narrow")}</div>'
        for name, width in (("narrow", NARROW), ("wide", WIDE))
    )
    return (
        f'<section id="{plot.key}"><h2>{esc(plot.title)}</h2><p>{esc(plot.sentence)}</p>'
        f"<figure>{drawings}</figure>"
        f"<details><summary>The numbers</summary>{table(plot.table, plot.title)}</details></section>"
    )


def scenarios(analysis: Analysis) -> list[str]:
    """The tables with intervals, folded."""
    made = [table for table in report.tables(analysis) if ": " in table.title]
    folded = "".join(
        f"<details><summary>{esc(entry.title)}</summary>{table(entry, entry.title)}</details>"
        for entry in made
    )
    return [f'<section id="scenarios"><h2>Each scenario</h2>{folded}</section>'] if made else []


def models(analysis: Analysis) -> str:
    """Each model's figures from the source, beside its numbers."""
    cards = [card(analysis, row.name) for row in analysis.result.rows if row.kind == MODEL]
    heading = "<h2>The models and their source</h2>"
    return f'<section id="models">{heading}<div class="cards">{"".join(cards)}</div></section>'


def card(analysis: Analysis, name: str) -> str:
    row = next(row for row in analysis.result.rows if row.name == name)
    numbers = "".join(
        f"<div><dt>{esc(metric.scenario)}</dt><dd>{esc(report.cell(analysis, metric.key, name))}"
        f" <small>{esc(metric.unit)}</small></dd></div>"
        for metric in (*HEADLINES, METRICS["pss_idle"])
        if metric in analysis.metrics
    )
    quoted = "".join(
        f'<figure class="code"><figcaption>{esc(title)}</figcaption>'
        f'<pre tabindex="0"><code>{esc(lines)}</code></pre></figure>'
        for title, lines in source_figures(name)
    )
    source = f"<details><summary>models/{esc(place_of(name))}</summary>{quoted}</details>" if quoted else ""
    return (
        f"<article><h3>{esc(name)} <small>{esc(row.source)}</small></h3><p>{esc(row.summary)}</p>"
        f"<dl>{numbers}</dl>{source}</article>"
    )


def place_of(model: str) -> str:
    """A model is a file, or a package."""
    stem = model.replace("-", "_")
    return f"{stem}/" if (files("models") / stem).is_dir() else f"{stem}.py"


def source_figures(model: str) -> list[tuple[str, str]]:
    """What stands between `# fig: NAME` and `# end fig` in the model's files, read and not imported."""
    place = files("models") / place_of(model)
    sources = sorted(place.iterdir(), key=lambda file: file.name) if place.is_dir() else [place]
    quoted = []
    for source in sources:
        if not source.is_file() or not source.name.endswith(".py"):
            continue  # or a result of another version, whose model is no more
        where = f"{source.name}: " if len(sources) > 1 else ""
        text = source.read_text(encoding="utf-8")
        quoted += [
            (where + found["name"], dedent(found["lines"]).rstrip()) for found in FIGURE.finditer(text)
        ]
    return quoted


def environment(analysis: Analysis) -> str:
    rows = "".join(
        f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>"
        for name, value in report.environment(analysis)
    )
    return (
        f'<section id="environment"><h2>Where and how</h2><dl class="facts">{rows}</dl>'
        "<p>CPU is user and system of all of a server's processes, those that have ended included. A fresh "
        "server for every sample, in seeded random order; what comes first after its start is thrown away. "
        "Every byte was compared. Intervals: 95%, bootstrap over rounds.</p></section>"
    )
