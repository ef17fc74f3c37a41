"""One cell of the table: a row, and whom it is tried on.

    rig()       a server without flags, shared with other rows
    make(...)   one of the row's own
    reason(...) the lines that the fault is worth in the log
    gone(rig)   it has ended, and that is right: another one starts in its place

Rules: what holds after every row is looked at here and nowhere else, so that no row can forget it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from models import MODELS
from tests.conformance.conftest import WORKERS, children, pool_of
from tests.faults.peers import PeerRig
from tests.faults.rows import PEERS, POOLS_OF_THREADS
from tests.harness.process import Tunnel
from tests.harness.rig import SERVE, Rig
from tests.harness.tree import holdings, is_alive, memory, wait_until

# Bytes that a server's own memory may have grown by: Python's slack, buffers of transfers. Not the memory
# of salts, which is shared, and fills up to 32 MiB.
GROWTH = 8_000_000
GROWTH_EACH = 1_000_000  # and each of its processes
WINDOW = 0.2  # seconds of looking at an idle server
COMPLAINTS = re.compile(r" (warning|error) | cannot connect to | no whole request")
SHOWN = 10  # lines
LISTENS_AGAIN = 5.0  # seconds


class Said(NamedTuple):
    """What a fault may leave in the log."""

    reason: re.Pattern[str]
    least: int
    most: int


class Watched:
    """A server, and what it was like before the fault."""

    def __init__(self, rig: Rig, memory: int) -> None:
        self.rig = rig
        self.lines = len(rig.tunnel.lines)
        self.memory = memory  # bytes
        self.said: list[Said] = []
        self.gone = False
        self.healthy = True

    def complaints(self) -> list[str]:
        with_reason = self.rig.tunnel.lines[self.lines :]
        return [line for line in with_reason if COMPLAINTS.search(line)]

    def look(self) -> None:
        """After every row. Raises AssertionError."""
        rig, program = self.rig, self.rig.tunnel
        rig.close_streams()
        if self.gone:
            self._look_at_successor()
        else:
            assert program.running, f"it has ended:\n{program.log()}"
            rig.transfer()
            rig.settles()
            now = holdings(rig.pid)
            grown = memory(rig.pid) - self.memory
            most = GROWTH + GROWTH_EACH * now.processes
            assert grown < most, f"{grown / 1e6:.1f} MB more than before"
            rig.idles(WINDOW)
        assert "Traceback" not in program.log(), program.log()
        if MODELS.get(rig.model):
            self._look_at_log()

    def _look_at_log(self) -> None:
        lines = self.complaints()
        for said in self.said:
            matching = [line for line in lines if said.reason.search(line)]
            lines = [line for line in lines if line not in matching]
            told = f"{len(matching)} lines like {said.reason.pattern!r}, expected {said.least} to {said.most}"
            assert said.least <= len(matching) <= said.most, "\n".join([told, *lines[:SHOWN]])
        assert not lines, "\n".join([f"{len(lines)} lines that nothing gives a reason for:", *lines[:SHOWN]])

    def _look_at_successor(self) -> None:
        """It has left nothing: whoever comes after it has the port, and serves."""
        rig = self.rig
        wait_until(lambda: not is_alive(rig.pid), 3.0, "it has ended")
        if rig.model in PEERS:
            return
        words = list(rig.tunnel.command)
        words[words.index("--listen") + 1] = str(rig.place)
        again = Again(words)
        try:
            ours, rig.tunnel = rig.tunnel, again
            rig.transfer()
            rig.tunnel = ours
        finally:
            again.kill()


class Again(Tunnel):
    """The same command once more, on the port that the first one had."""

    def __init__(self, words: list[str]) -> None:
        super(Tunnel, self).__init__(words)
        (line,) = self.wait_for_lines("listens on ", within=LISTENS_AGAIN)
        self.places = [self.place_of(line)]


class Shared:
    """The server that rows share: one at a time, a new one after a failure.

    Its memory is compared with what it had before the first of them: a little more with each is found, too.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.memory = 0  # bytes
        self._rig: Rig | None = None

    def get(self, subject: str) -> Rig:
        if self._rig is None or self._rig.model != subject or not self._rig.tunnel.running:
            self.drop()
            self._rig = start(self.directory, subject)
            self.memory = memory(self._rig.pid)
        return self._rig

    def drop(self) -> None:
        if self._rig is not None:
            self._rig.close()
        self._rig = None


def start(
    directory: Path, subject: str, *arguments: str, warm: bool = True, workers: int = WORKERS, **options: Any
) -> Rig:
    """A server of this kind, with a pool of `workers` if it has one."""
    if subject in PEERS:
        rig: Rig = PeerRig(directory, subject, **options)
    else:
        if missing := MODELS[subject].missing():
            pytest.skip(missing)
        end = options.pop("end", SERVE)
        options["workers"] = children(subject, workers)
        rig = Rig(directory, subject, end, *pool_of(subject, workers), *arguments, **options)
    if warm:
        try:
            if subject in POOLS_OF_THREADS:
                wait_until(lambda: holdings(rig.pid).threads > workers, 5.0, "the pool is full")
            rig.warm_up()
            if subject in MODELS:
                rig.meet_probes()
        except BaseException:
            rig.close()
            raise
    return rig


class Case:
    """What a row's check is given."""

    def __init__(self, number: int, subject: str, shared: Shared, directory: Path) -> None:
        self.number, self.subject, self.directory = number, subject, directory
        self.is_peer = subject in PEERS
        self.model = None if self.is_peer else MODELS[subject]
        self.notes: list[str] = []
        self._shared = shared
        self._watched: list[Watched] = []
        self._own: list[Rig] = []

    # whom
    def rig(self) -> Rig:
        rig = self._shared.get(self.subject)
        self._watched.append(Watched(rig, self._shared.memory))
        return rig

    def make(self, *arguments: str, warm: bool = True, workers: int = WORKERS, **options: Any) -> Rig:
        """As conformance's make_rig. A cold one has no baseline, so the row looks after it by itself."""
        rig = start(self.directory, self.subject, *arguments, warm=warm, workers=workers, **options)
        self._own.append(rig)
        if warm:
            self._watched.append(Watched(rig, memory(rig.pid)))
        return rig

    # what is right
    def reason(self, regex: str, least: int = 1, most: int | None = None) -> None:
        """Exactly so many lines of the log give the reason; `most` where the number is not ours to say."""
        self._watched[-1].said.append(Said(re.compile(regex), least, least if most is None else most))

    def watch(self, rig: Rig) -> None:
        """What a row has started cold is now as it should be: this is its baseline."""
        rig.warm_up()
        if not self.is_peer:
            rig.meet_probes()
        self._watched.append(Watched(rig, memory(rig.pid)))

    def forget_first(self) -> None:
        """The first server of the row has ended, and another one of the row has its place."""
        del self._watched[0]

    def allow_growth(self, size: int) -> None:
        """More bytes than usual may be left with the server."""
        self._watched[-1].memory += size

    def measure_again(self) -> None:
        """What went before was still the server getting warm."""
        self._watched[-1].memory = memory(self._watched[-1].rig.pid)

    def gone(self) -> None:
        """The server under test has ended, as it should."""
        self._watched[-1].gone = True

    def note(self, text: str) -> None:
        """Goes into the cell, beside the ok."""
        self.notes.append(text)

    def look(self) -> None:
        """What holds after every row; called by one that was somewhere else and is about to come back."""
        while self._watched:
            self._watched.pop().look()

    # what is done
    def judge(self, check: Callable[[Case], None]) -> None:
        """The check, and what holds after it. A peer's failure is its result."""
        try:
            check(self)
            self.look()
        except Exception as error:
            self._shared.drop()
            if not self.is_peer:
                raise
            self.notes.append(first_line(error))

    def close(self) -> None:
        for rig in self._own:
            print(rig.tunnel.log())  # shown with a failure
            rig.close()


def first_line(error: Exception) -> str:
    """In words, where it is a bare comparison."""
    text = str(error).strip().split("\n", 1)[0]
    text = re.sub(r"^assert '[0-9a-f]{12}\S*' == '\S+'$", "what arrives is not what was sent", text)
    text = re.sub(r"^assert '(\w+)' (?:==|in) (.*)$", r"\1 instead of \2", text).replace("'", "")
    return "no: " + (text or type(error).__name__)
