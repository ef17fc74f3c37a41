"""The report: what a run says, as sentences, tables and drawings.

    Analysis --> sections --+--> text.py   terminal, Markdown
                            `--> page.py   report.html

    findings.py      sentences, and what to know before believing them
    conditions.py    environment, noise floor, drift        overview.py      all rows; who beats whom
    latency.py       percentiles, load, mixed               bulk.py          CPU-s/GB, MB/s, switches
    connections.py   new, idle, all at once; memory         book.py          UNP chapter 30
    sources.py       the models' own lines                  draw.py, svg.py  how it is drawn

Rules: a section is made once and framed three times. It is made of what there is: what was not
measured is a sentence, and nothing that is missing stops a report.
"""

from __future__ import annotations

from compare.report.book import BOOK, clients_per_child, fairness
from compare.report.findings import problems, verdict
from compare.report.overview import summary
from compare.report.parts import UNUSABLE, cell, number
from compare.report.text import markdown, terminal

__all__ = [
    "BOOK",
    "UNUSABLE",
    "cell",
    "clients_per_child",
    "fairness",
    "markdown",
    "number",
    "problems",
    "summary",
    "terminal",
    "verdict",
]
