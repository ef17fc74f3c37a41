"""From the results of the cells to the table: on the terminal, and in docs/faults.md.

    row | fault | right reaction | a column for each group of models that meet a fault alike

A cell is `ok`, or `ok` with a note, or a note alone: why it cannot be. Where the models of a group
differ, the cell names them.
"""

from __future__ import annotations

import platform
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.rows import COLUMNS, PEERS, ROWS

BEGIN, END = "<!-- table: written by `make faults` -->", "<!-- end of the table -->"
OK, FAILED = "ok", "FAILED"


class Collector:
    """Hears of every cell, from all of xdist's workers."""

    def __init__(self, config: pytest.Config) -> None:
        self._path = config.getoption("--table", None)
        self._cells: dict[tuple[int, str], list[str]] = defaultdict(list)
        self._how: dict[int, list[str]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told: dict[str, Any] = dict(report.user_properties)
        if "cell" not in told:
            return
        number, subject = told["cell"]
        if told["how"] not in self._how[number]:
            self._how[number].append(told["how"])
        cell = self._cells[number, subject]
        if report.failed:
            cell.append(FAILED)
        elif report.skipped:
            why: str = getattr(report, "wasxfail", "") or str(report.longrepr[2])  # type: ignore[index]
            cell.append(why.removeprefix("Skipped: ").removeprefix(f"{subject}: "))
        elif report.when == "teardown":
            notes = told.get("notes") or []
            said = "; ".join(notes)
            cell.append(said if is_no(notes) else f"{OK}: {said}" if notes else OK)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._cells or not (self._path or terminalreporter.config.getoption("verbose") > 0):
            return
        terminalreporter.section("faults")
        for (number, subject), results in sorted(self._cells.items()):
            terminalreporter.write_line(f"{number:>3}  {subject:<18} {' / '.join(dict.fromkeys(results))}")
        if self._path:
            path = Path(self._path)
            path.write_text(between_marks(path.read_text(), self.markdown()))

    def markdown(self) -> str:
        notes: list[str] = []
        lines = [f"| # | fault | right reaction | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
        for number, row in ROWS.items():
            cells = [self._cell(number, models, notes) for models in COLUMNS.values()]
            lines.append(f"| {number} | {row.fault} | {row.reaction} | {' | '.join(cells)} |")
        lines += ["", *(f"[{number}] {note}  " for number, note in enumerate(notes, 1))]
        lines += ["", f"Linux {platform.release()}, Python {platform.python_version()}.", ""]
        lines += ["## How each is provoked", "", "| # | how |", "|---|---|"]
        lines += [f"| {number} | {' '.join(self._how[number])} |" for number in ROWS if self._how[number]]
        return "\n".join(lines)

    def _cell(self, number: int, models: Sequence[str], notes: list[str]) -> str:
        if ROWS[number].later:
            return f"[{note(ROWS[number].later, notes)}]"
        results: dict[str, list[str]] = defaultdict(list)  # models by what came out
        for model in models:
            if found := self._cells.get((number, model)):
                results[" / ".join(text for text in dict.fromkeys(found) if text != OK) or OK].append(model)
        shown = []
        for text, names in results.items():
            ok, reason = text == OK or text.startswith(f"{OK}: "), text.removeprefix(f"{OK}: ")
            word = OK if ok else "no" if reason.startswith("no: ") else FAILED if FAILED in text else ""
            said = "" if reason in (OK, FAILED) else f"[{note(reason.removeprefix('no: '), notes)}]"
            some = len(names) < len([model for model in models if applies(number, model)])
            whom = f"{', '.join(names)}: " if some else ""
            shown.append(whom + " ".join(filter(None, (word, said))))
        return "; ".join(shown) or "-"


def applies(number: int, model: str) -> bool:
    return model in ROWS[number].models or model in PEERS


def is_no(notes: Sequence[str]) -> bool:
    return any(text.startswith("no: ") for text in notes)


def note(text: str, notes: list[str]) -> int:
    if text not in notes:
        notes.append(text)
    return notes.index(text) + 1


def between_marks(document: str, content: str) -> str:
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert rest, f"the document has no {BEGIN}"
    return f"{before}{BEGIN}\n\n{re.sub(r' +$', '', content)}\n\n{END}{after}"
