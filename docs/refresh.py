"""Puts the figures of a result into the pages that show them, between their markers.

    python docs/refresh.py docs/report             --check: only says whether they are up to date

    README.md    <!-- summary --> ... <!-- end summary -->    a row a model, peers and baselines

Rules: a page shows what a result says, to the digit; tests/test_readme.py holds it to that.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from compare.analysis import Analysis
from compare.history import read
from compare.report.overview import summary
from compare.report.parts import Table
from compare.report.text import framed

ROOT = Path(__file__).parent.parent
COLUMNS = ("CPU-s/GB up", "CPU-s/GB down", "CPU us/ conn.", "CPU us/ request", "ping us p99", "PSS MB idle")


def page_with(page: str, name: str, text: str) -> str:
    """The page with that text between the markers of that name."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)"
    changed, found = re.subn(pattern, lambda marks: f"{marks[1]}{text}\n{marks[2]}", page, flags=re.DOTALL)
    if found != 1:
        raise SystemExit(f"refresh: {found} places named {name}: expected one")
    return changed


def of_readme(analysis: Analysis) -> str:
    """The report's summary, in the columns that README shows."""
    table = summary(analysis)
    headers = [heading.replace("\n", " ") for heading in table.headers]
    kept = [0, *(headers.index(heading) for heading in COLUMNS)]
    few = Table(
        table.title,
        [headers[place] for place in kept],
        [[row[place] for place in kept] for row in table.rows],
        best=frozenset((line, kept.index(place)) for line, place in table.best if place in kept),
    )
    return framed(few, "github")


def main(folder: str, *check: str) -> None:
    analysis = Analysis(read(folder))
    readme = ROOT / "README.md"
    page = readme.read_text(encoding="utf-8")
    fresh = page_with(page, "summary", of_readme(analysis))
    if "--check" not in check:
        readme.write_text(fresh, encoding="utf-8")
    elif fresh != page:
        raise SystemExit(f"{readme.name}: is not what {folder} says: python docs/refresh.py {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
