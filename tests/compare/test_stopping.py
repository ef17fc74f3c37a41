"""However a run ends, what it started has ended, and what was measured is kept."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from compare import schema, servers
from compare.bench import Bench, LoadFailed
from compare.interrupt import Interrupt, Interrupted
from compare.peers import Listen
from compare.plan import Planned
from compare.run import begun, plan_of
from compare.servers import ROWS, ServerFailed
from tests.compare.conftest import PATIENCE, Command

RUN = ["run", "--models", "fork,prefork", "--no-peers", "--rounds", "50", "--duration", "0.1", "--seed", "1"]


class OnTerminal:
    """A run whose standard error is a terminal, so that it tells how far it is."""

    def __init__(self, command: Command, *words: str) -> None:
        self.screen, far = pty.openpty()
        words = (sys.executable, "-m", "compare", *words)
        self.process = subprocess.Popen(
            words, env=command.environment(), stdout=subprocess.PIPE, stderr=far, text=True
        )
        os.close(far)
        self.shown = ""

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, self.shown):
            assert select.select([self.screen], (), (), deadline - time.monotonic())[0], self.shown
            self.shown += os.read(self.screen, 4096).decode()

    def end(self) -> str:
        """What it wrote on standard output until its end."""
        out, _ = self.process.communicate(timeout=PATIENCE)
        with contextlib.suppress(OSError):  # EIO: nobody has that terminal open any more
            while more := os.read(self.screen, 4096):
                self.shown += more.decode()
        os.close(self.screen)
        return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_runs_keep_what_they_have(
    number: signal.Signals, command: Command, tmp_path: Path
) -> None:
    run = OnTerminal(command, *RUN, "--out", str(tmp_path))
    run.wait_for(r" 3/\d+")
    run.process.send_signal(number)
    out = run.end()
    assert run.process.returncode == 130
    assert command.left_behind() == []
    result = schema.load((tmp_path / "result.json").read_text())
    assert 3 <= len(result.samples) < result.planned
    assert not result.complete
    assert f"Partial: stopped after {len(result.samples)} of {result.planned} samples (interrupted)." in out
    assert "Partial: stopped after" in (tmp_path / "report.md").read_text()
    assert "Partial: stopped after" in (tmp_path / "report.html").read_text()
    assert re.search(r"\[#*\.*\] 3/\d+, \d+ s left: round 1, [a-z-]+, \w+", run.shown)


def test_interrupted_before_the_first_sample(command: Command, tmp_path: Path) -> None:
    run = OnTerminal(command, *RUN, "--out", str(tmp_path))
    run.wait_for(r" 0/\d+")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == ""
    assert run.process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_a_result_is_read_is_no_traceback(command: Command, tmp_path: Path) -> None:
    pipe = tmp_path / "result.json"
    os.mkfifo(pipe)
    words = (sys.executable, "-m", "compare", "report", str(pipe))
    process = subprocess.Popen(words, env=command.environment(), stderr=subprocess.PIPE)
    with open(pipe, "wb"):  # opens once the other end reads
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGINT
    assert err == b""


@pytest.mark.parametrize("moment", ["starting", "serving"])
def test_killed_runs_leave_no_server(moment: str, command: Command, tmp_path: Path) -> None:
    """Nothing can be caught here: the kernel tells the servers (launch.py)."""
    run = OnTerminal(command, *RUN, "--out", str(tmp_path))
    run.wait_for(r" 2/\d+")
    if moment == "serving":
        wait_until(
            lambda: any("-m tunnel serve" in line and "launch" not in line for line in command.running())
        )
    run.process.kill()
    run.end()
    wait_until(lambda: command.running() == [])


SHORT = ["--no-peers", "--no-baselines", "--duration", "0.05", "--seed", "5", "--rounds", "3"]
SMALL = ["run", "--models", "thread", "--scenarios", "connections,ping-pong", *SHORT]


def taken(folder: Path) -> list[Planned]:
    samples = schema.load((folder / "result.json").read_text()).samples
    return [Planned(sample.row, sample.scenario, sample.round, sample.point) for sample in samples]


def test_an_interrupted_run_goes_on_where_it_was(command: Command, tmp_path: Path) -> None:
    """In the order of the plan, each sample once, as if nothing had happened."""
    run = OnTerminal(command, *SMALL, "--out", str(tmp_path))
    run.wait_for(r" 5/12")
    run.process.send_signal(signal.SIGTERM)
    run.end()
    assert "compare run: to go on: compare run --resume " in run.shown
    before = taken(tmp_path)
    assert 5 <= len(before) < 12
    first = schema.load((tmp_path / "result.json").read_text())
    done = command.run("run", "--resume", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Partial" not in done.stdout
    assert "Resumed: 20" in done.stdout
    result = schema.load((tmp_path / "result.json").read_text())
    rows = [ROWS[row.name] for row in result.rows]
    assert taken(tmp_path) == plan_of(rows, result.settings)
    assert result.samples[: len(before)] == first.samples
    assert result.settings == first.settings
    assert [s.at for s in result.samples] == sorted(s.at for s in result.samples)
    assert result.elapsed > result.samples[-1].at
    assert result.environment["started"] == first.environment["started"]
    again = command.run("run", "--resume", str(tmp_path))
    assert (again.returncode, again.stdout) == (os.EX_DATAERR, "")
    assert "this run is complete" in again.stderr


@pytest.mark.slow
def test_a_killed_run_loses_one_round_at_most(command: Command, tmp_path: Path) -> None:
    run = OnTerminal(command, *SMALL, "--out", str(tmp_path))
    run.wait_for(r" 9/12")
    run.process.kill()
    run.end()
    wait_until(lambda: command.running() == [])
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    result = schema.load((tmp_path / "result.json").read_text())
    assert [sample.round for sample in result.samples] == [1] * 4 + [2] * 4
    assert "killed, or still running" in command.run("report", str(tmp_path)).stdout
    assert command.run("run", "--resume", str(tmp_path)).returncode == 0
    assert len(set(taken(tmp_path))) == len(taken(tmp_path)) == 12


def test_a_row_that_is_no_more_cannot_be_resumed(command: Command, tmp_path: Path) -> None:
    result = begun([ROWS["fork"]], schema.Settings(["connections"], 1, 0.05, 1, "aes-256-gcm"))
    result.rows[0].name = "spork"
    (tmp_path / "result.json").write_text(schema.dump(result))
    done = command.run("run", "--resume", str(tmp_path))
    assert (done.returncode, done.stdout) == (os.EX_DATAERR, "")
    assert "no such row any more: spork" in done.stderr


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE / 4
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Listens, hides a child that ignores SIGTERM, and then does as `stubborn` says.
STUBBORN = """
import os, signal, socket, sys, time
port, stubborn = int(sys.argv[1]), sys.argv[2] == "stubborn"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    time.sleep(600)
if not stubborn:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
listener = socket.create_server(("127.0.0.1", port))
while True:
    listener.accept()[0].close()
"""

Started = Callable[[str], servers.Server]


@pytest.fixture
def started(command: Command, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch) -> Started:
    """A function that starts STUBBORN in the place of a model."""

    def start(how: str) -> servers.Server:
        def program(_row: object, listen: Listen) -> Sequence[str]:
            return [sys.executable, "-c", STUBBORN, str(listen.port), how]

        monkeypatch.setattr(servers, "command", program)
        monkeypatch.setattr(servers, "PATIENCE", 1.0)
        monkeypatch.setenv("COMPARE_TEST", command.mark)
        return servers.start(ROWS["fork"], "aes-256-gcm", [0], interrupt)

    return start


def test_what_a_server_leaves_behind_is_swept(started: Started, command: Command) -> None:
    server = started("polite")
    assert len(command.running()) == 2
    assert server.stop() is None
    assert command.left_behind() == []


def test_a_server_that_does_not_end_is_killed(started: Started, command: Command) -> None:
    server = started("stubborn")
    assert server.stop() == "did not end within 1 s of SIGTERM"
    assert command.left_behind() == []


def test_a_server_that_closes_at_once_is_the_servers_fault(started: Started, interrupt: Interrupt) -> None:
    with started("polite") as server, Bench(interrupt) as bench:
        bench.order("open", port=server.port, target=bench.target_port, method="aes-256-gcm", password="x")
        with pytest.raises(LoadFailed, match="connection"):
            bench.order("warm", scenario="connections", seconds_each=0.05)


def test_an_interrupt_during_the_start_stops_the_server(
    started: Started, command: Command, interrupt: Interrupt
) -> None:
    interrupt.requested = True
    with pytest.raises(Interrupted):
        started("stubborn")
    assert command.left_behind() == []


def test_a_program_that_is_not_there(interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "command", lambda *_: ["/nonexistent/server"])
    with pytest.raises(ServerFailed, match="No such file"):
        servers.start(ROWS["iterative"], "aes-256-gcm", [0], interrupt)


def test_waiting_ends_with_a_signal(interrupt: Interrupt) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        interrupt.install()
        assert interrupt.wait(None, 0) is False
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            interrupt.wait(None, PATIENCE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
