"""A real run, made once; and the means to find what a run left behind.

Every `compare` that a test starts carries a MARK of its own in its environment, which all that it
starts inherits. Whoever still carries it afterwards has been left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from compare import schema
from compare.interrupt import Interrupt
from compare.plan import QUICK

MARK = "COMPARE_TEST"
PATIENCE = 180.0  # seconds; far more than anything here takes, on a machine that others keep busy


class Command:
    """The `compare` command, marked."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex

    def environment(self, **changes: str) -> Mapping[str, str]:
        return {**os.environ, MARK: self.mark, **changes}

    def run(self, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "compare", *words],
            env=self.environment(**changes),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def left_behind(self) -> list[str]:
        """Command lines of the processes that carry this mark. A killed one may need a moment to go."""
        deadline = time.monotonic() + 2
        while (found := self.running()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def running(self) -> list[str]:
        """Those that carry it at this moment."""
        return list(self._marked().values())

    def kill(self) -> None:
        """Ends what a failed test could not."""
        while marked := self._marked():
            for pid in marked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _marked(self) -> dict[int, str]:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return found


@pytest.fixture
def command() -> Iterator[Command]:
    """`compare`, and the check that it left nothing running."""
    made = Command()
    yield made
    left = made.left_behind()
    made.kill()
    assert left == []


class Finished:
    """A run that ended by itself."""

    def __init__(self, folder: Path, done: subprocess.CompletedProcess[str], left: list[str]) -> None:
        self.folder = folder
        self.done = done
        self.left = left

    @property
    def result(self) -> schema.Result:
        return schema.load((self.folder / "result.json").read_text())


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Three models, every scenario of a first impression and the pools', two rounds, as short as can be.

    One for all of pytest's processes (pytest-xdist): who comes first makes it, the others wait.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    kept = shared / "finished-run.pickle"
    with open(shared / "finished-run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_bytes(pickle.dumps(finish(shared / "finished-run")))
        made: Finished = pickle.loads(kept.read_bytes())
    return made


def finish(folder: Path) -> Finished:
    started = Command()
    models = ["--models", "iterative,fork,prefork", "--no-peers", "--no-null"]
    models += ["--scenarios", ",".join([*QUICK, "children"])]
    length = ["--rounds", "2", "--duration", "0.05", "--seed", "7"]
    done = started.run("run", *models, *length, "--out", str(folder))
    return Finished(folder, done, started.left_behind())


@pytest.fixture
def interrupt() -> Iterator[Interrupt]:
    made = Interrupt()
    yield made
    made.close()
