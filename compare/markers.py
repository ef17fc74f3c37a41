"""A page of Markdown that shows what a result says keeps it between two lines, and has it made anew (--into).

<!-- goals: begin -->
what was here is replaced, to the digit
<!-- goals: end -->
"""

from __future__ import annotations

import re

GOALS, SUMMARY = "goals", "summary"


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def refreshed(document: str, name: str, made: str) -> str:
    """The document with that between its markers. Raises ValueError where they are not there once each."""
    begin, end = markers(name)
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise ValueError(f"expected the lines {begin} and {end}, in that order and once each")
    between = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    return between.sub(lambda _: f"{begin}\n{made}\n{end}", document)
