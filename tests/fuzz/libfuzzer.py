"""One harness in a process whose end libFuzzer decides: `python -m tests.fuzz.libfuzzer NAME PROGRAM FLAG...`

run.py starts it. PROGRAM does the same again: libFuzzer runs it to merge. FLAG is one of libFuzzer's, or a
folder of inputs.
"""

from __future__ import annotations

import importlib
import sys

COVERED = ["tunnel", "ipaddress", "urllib.parse"]  # whose branches count as new


def fuzz(name: str, program_and_flags: list[str]) -> None:
    """Does not return."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=COVERED):
        harnesses = importlib.import_module("tests.fuzz.harnesses")
    atheris.Setup(program_and_flags, harnesses.HARNESSES[name])
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], sys.argv[2:])
