"""What is looked at after every row must be able to find something: servers with a leak that we made.

sitecustomize.py --> Drain.add, as it is, and then the leak      once for each failed handshake
                                             |
case: failed handshakes, then Case.look()  <-'    must complain of that, and of nothing when there is none
"""

from __future__ import annotations

import os
from functools import partialmethod
from pathlib import Path

import pytest

from tests.faults import table
from tests.faults.case import Case, Shared
from tests.harness.rig import NO_HANDSHAKE, Rig

MODULE = """
import _thread, os, signal, sys, time
from tunnel import drain
from tunnel.log import Log, log
kept = []

def twenty_percent(*_):
    until = time.monotonic() + 0.002
    while time.monotonic() < until:
        pass

def late(*_):
    time.sleep(2.2)

def stumble():
    try:
        raise ValueError("odd")
    except ValueError:
        sys.excepthook(*sys.exc_info())

def fail_and_leak(self, *arguments, add=drain.Drain.add):
    add(self, *arguments)
    if os.path.exists("BEGIN"):
        LEAK

drain.Drain.add = fail_and_leak
"""
SPIN = "signal.signal(signal.SIGALRM, twenty_percent); signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)"
LEAKS = {
    "a descriptor": ("kept.append(os.dup(2))", 1, "holds Holdings"),
    "a thread": ("_thread.start_new_thread(time.sleep, (100,))", 1, "holds Holdings"),
    "a process": ("os.fork() or os.execlp('sleep', 'sleep', '100')", 1, "holds Holdings"),
    "a zombie": ("os.fork() or os._exit(0)", 1, "holds Holdings.*zombies=[1-9]"),
    "a megabyte": ("kept.append(os.urandom(1 << 20))", 12, r"\d+\.\d MB more than before"),
    "a spin": (SPIN, 1, r"used 0\.\d+ s and .* of CPU"),
    "a line too many": ("log.warning('this is odd')", 1, "1 lines that nothing gives a reason for"),
    "a line too few": ("Log.warning = lambda *_: None", 2, "1 lines like 'handshake failed', expected 2"),
    "a traceback": ("stumble()", 1, "ValueError: odd"),
}
LATE = "signal.signal(signal.SIGALRM, late); signal.setitimer(signal.ITIMER_REAL, 0.001)"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not go back to the baseline is not waited for as long."""
    monkeypatch.setattr(Rig, "settles", partialmethod(Rig.settles, 0.5))


def after(leak: str, failures: int, model: str, directory: Path) -> None:
    """So many failed handshakes on a server that leaks something with each, and then the look."""
    begin = directory / "begin"
    module = MODULE.replace("BEGIN", str(begin)).replace("LEAK", leak)
    (directory / "sitecustomize.py").write_text(module)
    path = os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", os.getcwd())])
    case = Case(0, model, Shared(directory), directory)

    def check(case: Case) -> None:
        rig = case.make(environment=os.environ | {"PYTHONPATH": path}, workers=3)
        begin.touch()
        for _ in range(failures):
            rig.silent().sock.sendall(NO_HANDSHAKE)
        rig.tunnel.wait_for_lines("handshake failed")
        case.reason("handshake failed", failures)

    try:
        case.judge(check)
    finally:
        case.close()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("leak", "failures", "said"), LEAKS.values(), ids=LEAKS)
def test_a_leak_that_we_made_is_found(leak: str, failures: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=said):
        after(leak, failures, "epoll", tmp_path)


@pytest.mark.slow
def test_a_server_that_is_late_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a new transfer took"):
        after(LATE, 1, "epoll", tmp_path)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("what", ["a descriptor", "a thread"])
@pytest.mark.parametrize("model", ["prefork", pytest.param("prefork-epoll", marks=pytest.mark.slow)])
def test_one_worker_of_a_pool_leaks_one_thing(model: str, what: str, tmp_path: Path) -> None:
    leak, failures, said = LEAKS[what]
    with pytest.raises(AssertionError, match=said):
        after(leak, failures, model, tmp_path)


@pytest.mark.parametrize("model", ["epoll", "prefork"])
def test_nothing_is_found_where_nothing_leaks(model: str, tmp_path: Path) -> None:
    after("pass", 2, model, tmp_path)


def test_memory_is_compared_with_what_was_before_the_first_row(tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    try:
        first = Case(0, "epoll", shared, tmp_path)
        first.rig()
        shared.memory -= 5_000_000  # as if the first row had left so much
        second = Case(0, "epoll", shared, tmp_path)
        second.rig()
        second.allow_growth(-5_000_000)
        first.look()
        with pytest.raises(AssertionError, match="MB more than before"):
            second.look()
    finally:
        shared.drop()


def test_the_table_is_written_without_the_cache_as_well(pytestconfig: pytest.Config) -> None:
    class Without:
        """`pytest -p no:cacheprovider`."""

        getoption = pytestconfig.getoption

    assert table.Collector(Without())._kept("how", {"1": "so"}) == {"1": "so"}  # type: ignore[arg-type]
