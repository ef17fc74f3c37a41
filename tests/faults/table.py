"""From the results of the cells to the table: on the terminal, and in docs/faults.md.

    row | fault | right reaction | a column for each group of models that meet a fault alike

A cell is `ok`, or `ok` with a note, or a note alone: why it cannot be. Where the models of a group
differ, the cell names them.
"""

from __future__ import annotations

import platform
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.faults.rows import COLUMNS, ROWS

BEGIN, END = "<!-- table: written by `make faults` -->", "<!-- end of the table -->"
OK, FAILED = "ok", "FAILED"
SHORT = 15  # characters that a cell has room for
T = TypeVar("T")


class Collector:
    """Hears of every check, from all of xdist's workers. What was tried before, and not now, is kept."""

    def __init__(self, config: pytest.Config) -> None:
        self._path = config.getoption("--table", None)
        self._cache = getattr(config, "cache", None)  # -p no:cacheprovider
        self._new: dict[str, list[str]] = defaultdict(list)  # results by row, subject and check
        self._results: dict[str, list[str]] = {}
        self._how: dict[str, str] = {}  # by row and check

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told: dict[str, Any] = dict(report.user_properties)
        if "cell" not in told:
            return
        number, subject, check = told["cell"]
        self._how[f"{number} {check}"] = told["how"]
        results = self._new[f"{number} {subject} {check}"]
        if report.failed:
            results.append(FAILED)
        elif report.skipped:
            why: str = getattr(report, "wasxfail", "") or str(report.longrepr[2])  # type: ignore[index]
            results.append(why.removeprefix("Skipped: ").removeprefix(f"{subject}: "))
        elif report.when == "teardown" and not results:
            notes = told.get("notes") or []
            said = "; ".join(notes)
            results.append(said if is_no(notes) else f"{OK}: {said}" if notes else OK)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._new or not (self._path or terminalreporter.config.getoption("verbose") > 0):
            return
        terminalreporter.section("faults")
        for name, results in sorted(self._new.items(), key=lambda item: int(item[0].split()[0])):
            terminalreporter.write_line(f"{name}: {' / '.join(dict.fromkeys(results))}")
        if self._path:
            self._results, self._how = self._kept("results", self._new), self._kept("how", self._how)
            path = Path(self._path)
            path.write_text(between_marks(path.read_text(), self.markdown()))

    def _kept(self, name: str, new: Mapping[str, T]) -> dict[str, T]:
        """With what earlier runs have left."""
        if self._cache is None:
            return dict(new)
        kept: dict[str, T] = self._cache.get(f"faults/{name}", {}) | dict(new)
        self._cache.set(f"faults/{name}", kept)
        return kept

    def markdown(self) -> str:
        notes: list[str] = []
        lines = [f"| # | fault | right reaction | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
        for number, row in ROWS.items():
            cells = [self._cell(number, models, notes) for models in COLUMNS.values()]
            lines.append(f"| {number} | {row.fault} | {row.reaction} | {' | '.join(cells)} |")
        lines += ["", *(f"[{number}] {note}  " for number, note in enumerate(notes, 1))]
        lines += ["", f"Linux {platform.release()}, Python {platform.python_version()}.", ""]
        lines += ["## How each is provoked", "", "| # | how |", "|---|---|"]
        for number in ROWS:
            how = [said for name, said in self._how.items() if name.split()[0] == str(number)]
            lines += [f"| {number} | {' '.join(how)} |"] if how else []
        return "\n".join(lines)

    def _found(self, number: int, model: str) -> list[str]:
        """What came out of a row's checks."""
        names = [name for name in self._results if name.split()[:2] == [str(number), model]]
        return [text for name in sorted(names) for text in self._results[name]]

    def _cell(self, number: int, models: Sequence[str], notes: list[str]) -> str:
        if ROWS[number].later:
            return f"[{note(ROWS[number].later, notes)}]"
        results: dict[str, list[str]] = defaultdict(list)  # models by what came out
        for model in models:
            if found := self._found(number, model):
                results[" / ".join(text for text in dict.fromkeys(found) if text != OK) or OK].append(model)
        shown = []
        for text, names in results.items():
            whom = f"{', '.join(names)}: " if len(names) < len(models) else ""
            shown.append(whom + in_short(text, notes))
        return "; ".join(shown) or "-"


def in_short(text: str, notes: list[str]) -> str:
    """ok, no, FAILED, and a number for what there is to say."""
    good, reason = text == OK or text.startswith(f"{OK}: "), text.removeprefix(f"{OK}: ")
    word = OK if good else "no" if "no: " in text else FAILED if FAILED in text else ""
    if reason in (OK, FAILED):
        return word
    reason = reason.removeprefix("no: ").replace("|", "\\|")
    return f"{word} ({reason})" if len(reason) < SHORT else f"{word} [{note(reason, notes)}]".strip()


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
