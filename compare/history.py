"""Results of before: found, read, listed.

    results/2026-01-02-030405/result.json --read--> Result --> report, diff, export, --resume
    results/*/result.json --listing--> a line each

Rules: a result is named by its folder or by its file; what cannot be read is told in one sentence, with
the exit code that says whose fault it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tabulate import tabulate

from compare import schema
from compare.schema import Result, SchemaError

FILE = "result.json"
A_RESULT = "a result.json, or the folder that it lies in"  # what a command takes
FOLDER = "results"  # where `compare run` writes without --out
SHORT = 40  # characters of a list of names


class Unreadable(Exception):
    """No result there, or none that can be read."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def locate(name: str) -> str:
    """The file of a result that is named by its folder, or by the file itself."""
    return os.path.join(name, FILE) if os.path.isdir(name) else name


def read(name: str) -> Result:
    """The result in that folder or file. Raises Unreadable."""
    path = locate(name)
    try:
        with open(path, encoding="utf-8") as file:
            return schema.load(file.read())
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}: expected {A_RESULT}", os.EX_NOINPUT) from None
    except (SchemaError, UnicodeDecodeError) as error:
        reason = str(error) if isinstance(error, SchemaError) else "not text"
        raise Unreadable(f"{path}: {reason}", os.EX_DATAERR) from None


def listing(folder: str) -> str:
    """A table of the results in a folder, the oldest first; empty if there are none."""
    rows = []
    for name in sorted(os.listdir(folder)):
        place = os.path.join(folder, name)
        if not os.path.isfile(os.path.join(place, FILE)):
            continue
        try:
            rows.append([place, *described(read(place))])
        except Unreadable as error:
            rows.append([place, f"cannot be read: {str(error).partition(': ')[2]}"])
    headers = ["RESULT", "DATE", "REVISION", "ROWS", "SCENARIOS", "ROUNDS", "STATE"]
    return tabulate(rows, headers, tablefmt="plain", disable_numparse=True) if rows else ""


def described(result: Result) -> list[str]:
    env, settings = result.environment, result.settings
    return [
        str(env.get("started", "-")),
        str(env.get("revision", "-")),
        shortened([row.name for row in result.rows]),
        shortened(settings.scenarios),
        f"{settings.rounds} of {settings.duration:g} s",
        "complete" if result.complete else f"partial, {len(result.samples)} of {result.planned}",
    ]


def shortened(names: Sequence[str]) -> str:
    """`3: fork,thread,libev`, cut where it gets long."""
    text = f"{len(names)}: {','.join(names)}"
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."
